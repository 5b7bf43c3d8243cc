"""A store holds the very records that reading the table gives, however often the work was interrupted."""

import errno
import shutil
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data import preparing
from dpcgan_fast.data.records import read_records
from dpcgan_fast.errors import InputError, MachineError, StoppedError
from tests.conftest import examples
from tests.data.disks import small_disk
from tests.data.preparations import (
    COLUMNS,
    ROWS,
    VOCABULARY,
    CrashError,
    by_unit,
    content,
    failing_at,
    groups_of,
    make_schema,
    prepare,
    records_of,
    write_meds,
    write_shards,
)

SENTINEL = "S3NTINEL_VALUE"
SMALL = 1 << 7
FORMS = ["csv", "csv.gz", "parquet"]
SCHEMAS = {
    "merged": make_schema(),
    "one column": make_schema(codes=["dx"], plain=[]),
    "private": make_schema(vocabulary="private"),
    "few codes": make_schema(most=1),
    "few rows": make_schema(max_rows_per_unit=2),
    "several rows": make_schema(codes=[], max_rows_per_unit=3),
    "rows of their own": make_schema(unit=None),
}
EVENTS = st.tuples(
    st.sampled_from(["p1", "p2", " p2", "7", "7.0", "q q"]),
    st.sampled_from(["", "0", "1"]),
    st.sampled_from(["", "NA", "50", "70.5"]),
    st.sampled_from(["", "a", "b|a", " c |x", "d|NA|b", "a|b|c|d"]),
    st.sampled_from(["", "r1", "r2|r1", "r3"]),
)


def same(source, schema, out):
    """Prepares, and compares with what reading gives: in order, or by unit where rows of a unit are one record."""
    assert prepare(source, schema, out) == read_records(source, schema, "data")[1]
    wanted = records_of(read_records(source, schema, "data")[0], schema)
    found = records_of(read_records(out, schema, "data")[0], schema)
    if schema.merges_rows:
        assert by_unit(found) == by_unit(wanted)
    else:
        assert found == wanted


# ---- the records


@settings(max_examples=examples(70))
@given(
    rows=st.lists(EVENTS, min_size=1, max_size=30), cuts=st.lists(st.integers(0, 30), max_size=3),
    form=st.sampled_from(FORMS), name=st.sampled_from(sorted(SCHEMAS)), size=st.sampled_from([SMALL, 1 << 12, 1 << 26]),
)  # fmt: skip
def test_records_are_those_of_the_table(tmp_path_factory, rows, cuts, form, name, size):
    """Of a unit whose rows are capped, or that has several first cells, it is the table's order that counts."""
    folder = tmp_path_factory.mktemp("table")
    edges = [0, *sorted(cuts), len(rows)]
    shards = [rows[first:end] for first, end in pairwise(edges)]
    with groups_of(size):
        same(write_shards(folder / "table", shards, form), SCHEMAS[name], folder / "store")
    shutil.rmtree(folder)


@pytest.mark.parametrize("form", ["csv", "csv.gz", "parquet"])
@pytest.mark.parametrize("name", SCHEMAS)
def test_of_one_file(tmp_path, form, name):
    write_shards(tmp_path / "table", [ROWS], form)
    with groups_of(SMALL):
        same(tmp_path / "table" / f"part-0.{form}", SCHEMAS[name], tmp_path / "store")


@settings(max_examples=examples(20))
@given(data=st.data())
def test_shards_may_come_in_any_order(tmp_path_factory, data):
    """The units' sets are the same; the first cells and capped rows are those of the order."""
    folder = tmp_path_factory.mktemp("table")
    order = data.draw(st.permutations([ROWS[k::4] for k in range(4)]))
    schema = make_schema(plain=[])
    with groups_of(SMALL):
        prepare(write_shards(folder / "a", [ROWS], "csv"), schema, folder / "store a")
        prepare(write_shards(folder / "b", order, "csv"), schema, folder / "store b")
    tables = [read_records(folder / f"store {letter}", schema, "data")[0] for letter in "ab"]
    assert by_unit(records_of(tables[0], schema)) == by_unit(records_of(tables[1], schema))


@pytest.mark.parametrize("unit", ["subject_id", None])
@pytest.mark.parametrize("vocabulary", [["A", "B"], "private"])
def test_of_a_meds_folder(tmp_path, unit, vocabulary):
    rows = [(i * 37 % 11, "ABC"[i % 3]) for i in range(60)]
    folder = write_meds(tmp_path / "meds", [rows[::2], [], rows[1::2]])
    codes = [{"name": "code", "type": "codes", "vocabulary": vocabulary}]
    schema = make_schema().from_dict({"unit": unit, "columns": codes})
    with groups_of(SMALL):
        same(folder, schema, tmp_path / "store")


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.float64(), pa.large_string()])
def test_of_ids_of_any_type(tmp_path, kind):
    numbers = [i * 7 % 5 + (2**63 if kind == pa.uint64() else 0) for i in range(40)]
    ids = pa.array([str(i) for i in numbers] if kind == pa.large_string() else numbers, kind)
    table = pa.table({"patient": ids, "dx": [VOCABULARY[i % 4] for i in range(40)]})
    pq.write_table(table, tmp_path / "table.parquet", row_group_size=8)
    with groups_of(SMALL):
        same(tmp_path / "table.parquet", make_schema(codes=["dx"], plain=[]), tmp_path / "store")


def test_of_a_code_matrix(tmp_path):
    dense = np.random.default_rng(0).random((50, 4)) < 0.3
    scipy.sparse.save_npz(tmp_path / "codes.npz", scipy.sparse.csr_matrix(dense))
    with groups_of(SMALL):
        same(tmp_path / "codes.npz", make_schema(codes=["dx"], plain=[], unit=None, most=2), tmp_path / "store")


def test_columns_that_the_schema_lacks_are_named_and_left(tmp_path):
    source = write_shards(tmp_path / "table", [ROWS], "csv")
    with groups_of(SMALL):
        assert prepare(source, make_schema(codes=["dx"], plain=["age"]), tmp_path / "store") == ("died", "rx")
    assert all(b"r1" not in file for file in content(tmp_path / "store").values())


# ---- the folder


def test_files_are_their_owners_alone_and_nothing_else_stays(tmp_path):
    source = write_shards(tmp_path / "table", [ROWS[:20], ROWS[20:]], "csv")
    out = tmp_path / "store"
    out.mkdir(mode=0o755)
    with groups_of(SMALL):
        prepare(source, make_schema(), out)
    assert out.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in out.iterdir())
    names = {path.name for path in out.iterdir()}
    assert {name for name in names if not name.startswith("columns-")} == {
        "store.json", *(f"codes-{place}.{kind}" for place in (0, 1) for kind in ("starts", "positions", "names"))
    }  # fmt: skip


@pytest.mark.parametrize("there", ["store", "folder", "file"])
def test_what_is_at_the_output_path_is_left_alone(tmp_path, there):
    source = write_shards(tmp_path / "table", [ROWS], "csv")
    out = tmp_path / "out"
    if there == "store":
        prepare(source, make_schema(), out)
    else:
        path = out if there == "file" else out / "notes.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"There is (something|a store) at the output path"):
        prepare(source, make_schema(), out)
    assert content(tmp_path) == before


# ---- interrupted


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Three shards, so three groups of rows, and the files of the store that is made of them in one go."""
    folder = tmp_path_factory.mktemp("table")
    source = write_shards(folder / "table", [ROWS[:14], ROWS[14:27], ROWS[27:]], "csv")
    wanted = {}
    for name, schema in SCHEMAS.items():
        with groups_of(SMALL):
            prepare(source, schema, folder / name)
        wanted[name] = content(folder / name)
    return source, wanted


STOPPED = ["merged", "private", "several rows", "rows of their own"]


class StopAt:
    """Asks to stop, as a signal does, when it is asked itself for the time `call`, from 0."""

    def __init__(self, call):
        self.left = call

    def __call__(self):
        self.left -= 1
        return self.left == -1


@pytest.mark.parametrize("name", STOPPED)
def test_a_stop_after_any_group_or_bucket_changes_nothing(table, tmp_path, name):
    source, wanted = table
    out, stops = tmp_path / "store", 0
    with groups_of(SMALL):
        while True:
            try:
                prepare(source, SCHEMAS[name], out, StopAt(stops))
                break
            except StoppedError:
                pass
            prepare(source, SCHEMAS[name], out)
            assert content(out) == wanted[name]
            shutil.rmtree(out)
            stops += 1
    assert stops >= (6 if SCHEMAS[name].merges_rows else 3)


@pytest.mark.parametrize("name", STOPPED)
def test_a_stop_after_every_group_and_bucket_changes_nothing(table, tmp_path, name):
    source, wanted = table
    with groups_of(SMALL):
        for _ in range(99):
            try:
                prepare(source, SCHEMAS[name], tmp_path / "store", StopAt(0))
                break
            except StoppedError:
                pass
    assert content(tmp_path / "store") == wanted[name]


@pytest.mark.parametrize("name", ["merged", "rows of their own"])
@pytest.mark.parametrize(
    ("error", "seen"), [(CrashError(), CrashError), (OSError(errno.ENOSPC, "full"), MachineError)]
)  # fmt: skip
def test_work_goes_on_after_a_crash_or_a_full_disk_at_any_write(table, tmp_path, name, error, seen):
    """Files are then longer than was noted, or there before they were; and a dead process leaves its own behind."""
    source, wanted = table
    out, call = tmp_path / "store", 0
    with groups_of(SMALL):
        while True:
            try:
                with failing_at(call, error):
                    prepare(source, SCHEMAS[name], out)
                break
            except seen:
                pass
            if not (out / "store.json").exists():
                if (out / "progress.json").exists():
                    (out / ".columns-00000.arrow.1.partial").write_bytes(b"of a dead process")
                    (out / "spool-00098").write_bytes(b"of a dead process")
                prepare(source, SCHEMAS[name], out)
            (out / "progress.json").unlink(missing_ok=True)
            assert content(out) == wanted[name]
            shutil.rmtree(out)
            call += 1
    assert call > 10


def test_a_full_disk_is_the_machines_fault_and_the_work_goes_on_after_it(table, tmp_path):
    """A limit on the size of files stands for the disk; at every size some file is the first that does not fit."""
    source, wanted = table
    failures, sizes = 0, (0, 100, 400, 700, 1200, 2000, 4000, 16000)
    with groups_of(SMALL):
        for most in sizes:
            try:
                with small_disk(most):
                    prepare(source, SCHEMAS["merged"], tmp_path / "store")
                assert failures == sizes.index(most) >= 3
                break
            except MachineError as error:
                failures += "The disk is full" in str(error)
    assert content(tmp_path / "store") == wanted["merged"]


OTHER_SCHEMAS = {
    "vocabulary": make_schema(vocabulary=[*VOCABULARY, "e"]),
    "cap on codes": make_schema(most=3),
    "cap on rows": make_schema(max_rows_per_unit=5),
    "unit": make_schema(plain=["died"], unit="age"),
    "fewer plain columns": make_schema(plain=["died"]),
    "fewer codes": make_schema(codes=["dx"]),
    "no codes": make_schema(codes=[]),
}


@pytest.mark.parametrize("name", OTHER_SCHEMAS)
def test_work_that_was_begun_by_another_schema_is_left_alone(table, tmp_path, name):
    out = tmp_path / "store"
    with groups_of(SMALL), pytest.raises(StoppedError):
        prepare(table[0], SCHEMAS["merged"], out, StopAt(1))
    before = content(out)
    with (
        groups_of(SMALL),
        pytest.raises(InputError, match="by another schema or version, was begun at the output path"),
    ):
        prepare(table[0], OTHER_SCHEMAS[name], out)
    assert content(out) == before


@pytest.mark.parametrize("change", ["more rows", "another file", "a file less"])
def test_work_on_another_table_is_not_gone_on_with(table, tmp_path, change):
    source, out = tmp_path / "table", tmp_path / "store"
    shutil.copytree(table[0], source)
    with groups_of(SMALL), pytest.raises(StoppedError):
        prepare(source, SCHEMAS["merged"], out, StopAt(4))
    if change == "more rows":
        with (source / "part-2.csv").open("a") as file:
            file.write("p1,1,,a,r1\r\n")
    elif change == "another file":
        shutil.copy(source / "part-0.csv", source / "part-3.csv")
    else:
        (source / "part-1.csv").unlink()
    with (
        groups_of(SMALL),
        pytest.raises(InputError, match="Another table, or the same one by another schema or version"),
    ):
        prepare(source, SCHEMAS["merged"], out)


@pytest.mark.parametrize("damage", ["flip", "cut", "list", "lost codes", "lost spool"])
def test_work_that_was_begun_and_is_damaged_is_refused(table, tmp_path, damage):
    out = tmp_path / "store"
    with groups_of(SMALL), pytest.raises(StoppedError):
        prepare(table[0], SCHEMAS["merged"], out, StopAt(9))
    note = out / "progress.json"
    text = note.read_text()
    if damage.startswith("lost"):
        (out / ("codes-0.starts" if damage == "lost codes" else "spool-00001")).unlink()
    else:
        note.write_text({"flip": text.replace('"rows": ', '"rows": 1'), "cut": text[:-30], "list": "[1, 2]"}[damage])
    with groups_of(SMALL), pytest.raises(InputError):
        prepare(table[0], SCHEMAS["merged"], out)


# ---- tables that do not fit


def malformed(tmp_path, name):
    """A folder of three files, the second of which is at fault in its second row."""
    source = write_shards(tmp_path / "table", [ROWS[:15], ROWS[15:17], ROWS[20:]], "csv")
    lines = {
        "missing id": b" ,1,50,a,r1\r\n", "ragged": f"p1,{SENTINEL}\r\n".encode(), "not UTF-8": b"p1,1,50,\xff,r\r\n",
        "open quote": f'p1,1,50,"{SENTINEL},r1\r\n'.encode(),
    }  # fmt: skip
    path = source / "part-1.csv"
    path.write_bytes(b"".join([*path.read_bytes().splitlines(keepends=True)[:2], lines[name], b"p1,1,50,a,r1\r\n"]))
    return source


@pytest.mark.parametrize("name", ["missing id", "ragged", "not UTF-8", "open quote"])
@pytest.mark.parametrize("size", [SMALL, 1 << 26])
def test_an_error_is_that_of_reading_the_table_and_leaves_nothing_behind(tmp_path, name, size):
    source = malformed(tmp_path, name)
    with pytest.raises(InputError) as reading:
        read_records(source, make_schema(), str(source))
    with groups_of(size), pytest.raises(InputError) as caught:
        prepare(source, make_schema(), tmp_path / "store")
    assert str(caught.value) == str(reading.value)
    assert SENTINEL not in str(caught.value)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("unit", ["patient", None])
def test_a_table_without_rows(tmp_path, unit):
    (tmp_path / "table.csv").write_text(",".join(COLUMNS) + "\n")
    with groups_of(SMALL), pytest.raises(InputError, match="The data have no rows"):
        prepare(tmp_path / "table.csv", make_schema(unit=unit), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_vocabulary_must_be_decided_and_bounds_need_not_be(tmp_path):
    source = write_shards(tmp_path / "table", [ROWS], "csv")
    with pytest.raises(InputError, match="still to be filled in"):
        prepare(source, make_schema(vocabulary=None), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_there_are_never_more_buckets_than_can_be_told_apart(tmp_path, monkeypatch):
    source = write_shards(tmp_path / "table", [ROWS], "csv")
    monkeypatch.setattr(preparing, "_MOST_BUCKETS", 5)
    with groups_of(1):
        same(source, make_schema(), tmp_path / "store")
    assert len(list((tmp_path / "store").glob("columns-*"))) <= 5
