"""Buckets of units: the same id has the same bucket however it is written, and no bucket is much larger than others."""

import uuid

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.spools import _texts_taken, bucket_of_rows, bucket_places, read_bucket, write_spool
from dpcgan_fast.data.units import unit_ids
from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import native_module
from tests.conftest import examples
from tests.data.test_records import schema

BUCKETS = 16
NUMBERS = st.integers(-(2**40), 2**40)
TEXTS = st.text(st.sampled_from("ab01 .é\t\0"), max_size=40)


def buckets_of(cells, kind=None, buckets=BUCKETS):
    found = bucket_of_rows(pa.chunked_array([pa.array(cells, kind)]), buckets, "data")
    assert found.dtype == np.int64
    assert len(found) == len(cells)
    return found.tolist()


# ---- which bucket


@settings(max_examples=examples(100))
@given(numbers=st.lists(NUMBERS, min_size=1, max_size=6))
def test_a_number_has_one_bucket_in_every_type_and_spelling(numbers):
    """Integers of any width, floats, decimals, and text with blanks or decimals, in a column of any other cells."""
    whole = buckets_of(numbers, pa.int64())
    texts = [str(number) for number in numbers]
    forms = [
        buckets_of(numbers, pa.float64()),
        buckets_of(pa.array(numbers).cast(pa.decimal128(24, 2))),
        buckets_of(texts),
        buckets_of(texts, pa.large_string()),
        buckets_of([f"{text}.0" for text in texts]),
        buckets_of([f" {text}\t" for text in texts]),
        buckets_of([f" {text}.00" for text in texts]),
        buckets_of([*texts, "a b", "3.5", "é"])[: len(numbers)],
        buckets_of([*numbers, None], pa.int64())[: len(numbers)],
        bucket_of_rows(pa.chunked_array([pa.array(texts)]).dictionary_encode(), BUCKETS, "data").tolist(),
    ]
    assert all(form == whole for form in forms)


@settings(max_examples=examples(100))
@given(texts=st.lists(TEXTS, min_size=2, max_size=8), data=st.data())
def test_ids_of_one_unit_have_one_bucket_whatever_stands_beside_them(texts, data):
    """`unit_ids` says which cells are one unit. Chunks, slices and other cells do not matter."""
    column = pa.array(texts, pa.string())
    known = [text for text in texts if text.strip()]
    cut = data.draw(st.integers(0, len(texts)))
    found = bucket_of_rows(pa.chunked_array([column[:cut], column[cut:]]), BUCKETS, "data")
    alone = [buckets_of([text])[0] for text in texts]
    assert found.tolist() == alone
    ids = unit_ids(pa.table({"patient": known}), schema(), "data") if known else np.empty(0, np.int64)
    of_unit = {}
    for unit, text in zip(ids.tolist(), known, strict=True):
        assert of_unit.setdefault(unit, buckets_of([text])) == buckets_of([text])


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int32(), pa.uint64()])
def test_integers_of_any_width(kind):
    assert buckets_of([0, 7, 100], kind) == buckets_of([0, 7, 100], pa.int64())


def test_integers_that_no_signed_number_holds():
    assert buckets_of([2**64 - 1, 2**63], pa.uint64()) == buckets_of([str(2**64 - 1), str(2**63)])


def test_nulls_and_empty_columns():
    assert buckets_of([], pa.string()) == buckets_of([], pa.int64()) == []
    assert bucket_of_rows(pa.chunked_array([], pa.string()), BUCKETS, "data").tolist() == []
    assert buckets_of([None, "a", None])[1] == buckets_of(["a"])[0]
    assert len(set(buckets_of([None, None], pa.int64()))) == 1
    assert buckets_of(["a", "b"], buckets=1) == [0, 0]


def test_what_lies_beneath_a_null_does_not_matter():
    hidden = pa.array(["secret", "a"]).buffers()
    column = pa.StringArray.from_buffers(2, hidden[1], hidden[2], pa.py_buffer(b"\x02"), 1)
    assert column.to_pylist() == [None, "a"]
    assert buckets_of(column)[1] == buckets_of(["a"])[0]


def test_a_nested_column_is_refused():
    with pytest.raises(InputError, match=r"not single values \(data, column patient\)"):
        bucket_of_rows(pa.chunked_array([pa.array([["a"]])]), BUCKETS, "data, column patient")


RANDOM = np.random.default_rng(7)
N = 20_000
IDS = {
    "sequential": range(N),
    "sequential by tens": range(0, 10 * N, 10),
    "random": RANDOM.integers(0, 2**62, N),
    "prefix and number": [f"patient-{i:08}" for i in range(N)],
    "number between constants": [f"patient{i}@hospital.example" for i in range(N)],
    "number amid a long id": [f"urn:oid:2.16.840.1.113883.{i:08}.extension" for i in range(N)],
    "uuid": [str(uuid.UUID(bytes=RANDOM.bytes(16))) for _ in range(N)],
    "short": [f"{i:04x}" for i in range(N)],
    "words": [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)} {i // 676}" for i in range(N)],
}


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS)
@pytest.mark.parametrize("buckets", [7, 16])
def test_buckets_are_about_equal(ids, buckets):
    """As of draws: each has N / buckets units, and no more than 6 standard deviations more or less."""
    counts = np.bincount(buckets_of(list(ids), buckets=buckets), minlength=buckets)
    mean = N / buckets
    assert np.abs(counts - mean).max() < 6 * np.sqrt(mean)


def test_very_long_ids_take_no_time_for_each_byte():
    longest = ["a" * (1 << 24), "b" * (1 << 24), "c"]
    assert buckets_of(longest)[2] == buckets_of(["c"])[0]


# ---- spools


@settings(max_examples=examples(40))
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.one_of(st.none(), st.text(max_size=3)), st.lists(st.integers(0, 9)))),
    cut=st.integers(0, 9),
)
def test_a_bucket_gives_back_its_rows_in_their_order(tmp_path_factory, rows, cut):
    """Two spools, one after another; empty buckets, nulls and nested cells among them."""
    folder = tmp_path_factory.mktemp("spools")
    kinds = pa.schema([("bucket", pa.int64()), ("text", pa.string()), ("list", pa.list_(pa.int64()))])
    spools = []
    for number, part in enumerate((rows[:cut], rows[cut:])):
        table = pa.Table.from_pylist([dict(zip(kinds.names, row, strict=True)) for row in part], schema=kinds)
        path = folder / f"spool-{number}"
        write_spool(path, table, table["bucket"].to_numpy(), 6)
        places = bucket_places(path, 6).tolist()
        assert len(places) == 7
        assert places == sorted(places)
        assert places[-1] < path.stat().st_size
        assert path.stat().st_mode & 0o777 == 0o600
        spools.append((path, bucket_places(path, 6)))
    for bucket in range(6):
        parts = list(read_bucket(spools, bucket))
        assert all(part.schema.equals(kinds) for part in parts)
        given_back = [tuple(row.values()) for row in pa.concat_tables(parts).to_pylist()]
        assert given_back == [row for row in rows if row[0] == bucket]


@settings(max_examples=examples(100))
@given(
    texts=st.lists(st.text(max_size=40), min_size=1), cut=st.integers(0, 5), rows=st.lists(st.integers(0, 99)),
)  # fmt: skip
def test_texts_are_taken_as_arrow_takes_them(texts, cut, rows):
    """Of any length, whole and in part, from a slice of an array as well."""
    column = pa.array(texts)[min(cut, len(texts) - 1) :]
    wanted = np.array([row % len(column) for row in rows], np.int64)
    found = _texts_taken(column, wanted)
    found.validate(full=True)
    assert found.equals(column.take(pa.array(wanted, pa.int64())))


@pytest.mark.parametrize(
    ("starts", "rows", "message"),
    [
        ([0, 1, 3], [2], "rows in"),
        ([0, 1, 3], [-1], "rows in"),
        ([0, 1, 3], [1, 0, 1 << 40, 0], "rows in"),
        ([0, 2, 1], [1], "rise within the bytes"),
        ([-1, 2, 3], [0], "rise within the bytes"),
        ([0, 2, 4], [1], "rise within the bytes"),
        ([], [], r"starts \(N \+ 1,\)"),
    ],
)
def test_texts_are_not_taken_from_outside_the_column(starts, rows, message):
    with pytest.raises(ValueError, match=message):
        native_module().take_texts(np.zeros(3, np.uint8), np.array(starts, np.int32), np.array(rows, np.int64))


def test_no_more_texts_are_taken_than_their_offsets_can_count():
    text, starts = np.zeros(1 << 20, np.uint8), np.array([0, 1 << 20], np.int32)
    with pytest.raises(ValueError, match="less than 2 GiB"):
        native_module().take_texts(text, starts, np.zeros(1 << 11, np.int64))


def test_as_many_buckets_as_there_may_be(tmp_path):
    table = pa.table({"x": list(range(9))})
    bucket_of = np.array([0, 32767, 5, 32767, 0, 1, 5, 300, 32766])
    path = tmp_path / "spool"
    write_spool(path, table, bucket_of, 1 << 15)
    places = bucket_places(path, 1 << 15)
    for bucket in (0, 1, 2, 5, 300, 32766, 32767):
        (part,) = read_bucket([(path, places)], bucket)
        assert part["x"].to_pylist() == np.flatnonzero(bucket_of == bucket).tolist()


@pytest.mark.parametrize("damage", ["missing", "empty", "short", "noise"])
def test_a_damaged_spool_is_refused(tmp_path, damage):
    path = tmp_path / "spool"
    write_spool(path, pa.table({"x": ["secret"] * 9}), np.zeros(9, np.int64), 2)
    content, places = path.read_bytes(), bucket_places(path, 2)
    path.unlink()
    if damage != "missing":
        path.write_bytes({"empty": b"", "short": content[:-60], "noise": b"\xa5" * len(content)}[damage])
    with pytest.raises(InputError, match="spool") as caught:
        [list(read_bucket([(path, places)], bucket)) for bucket in (0, 1)]
    assert "secret" not in str(caught.value)
    with pytest.raises(InputError, match="spool"):
        bucket_places(path, 2)
