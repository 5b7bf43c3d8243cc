"""Codes of records are put together for those asked for, as if those of all had been, and nothing is copied for it."""

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.code_rows import CodeRows, CodeSets
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.mapping import mapped
from dpcgan_fast.data.record_codes import CodesPart, RecordCodes
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.train.data import CodedRows
from tests.conftest import examples

NAMES = ("a", "b", "c", "d", "e")
VOCABULARIES = {"same": NAMES, "another order": ("d", "b", "new", "a"), "none": (), "disjoint": ("x",)}
LISTS = st.lists(st.lists(st.sampled_from(NAMES), max_size=6), min_size=1, max_size=9)


def sets_of(lists):
    sets = CodeSets.of_column(pa.table({"dx": pa.array(lists, pa.list_(pa.string()))}), "dx", None, "data")
    places = np.array([NAMES.index(name) for name in sets.names], np.int64)
    return CodeSets(CodeRows.from_entries(sets.rows.row_of_entry(), places[sets.rows.positions], len(lists)), NAMES)


def as_lists(rows):
    return [part.tolist() for part in np.split(rows.positions, rows.starts[1:-1])]


@settings(max_examples=examples(150))
@given(
    lists=LISTS, others=LISTS, kinds=st.tuples(*[st.sampled_from(sorted(VOCABULARIES))] * 2), most=st.integers(1, 5),
    columns=st.integers(1, 2), data=st.data(),
)  # fmt: skip
def test_the_codes_of_any_records_are_those_that_all_would_have(lists, others, kinds, most, columns, data):
    """Also where a cap decides which are used, and where rows are left out."""
    others = (others * len(lists))[: len(lists)]
    parts, expected, first = [], [[] for _ in lists], 0
    for kind, own in list(zip(kinds, (lists, others), strict=True))[:columns]:
        vocabulary = VOCABULARIES[kind]
        parts.append(CodesPart.of(sets_of(own), vocabulary, most, first))
        for row, places in enumerate(as_lists(sets_of(own).within(vocabulary, most))):
            expected[row] += [first + place for place in places]
        first += len(vocabulary)
    chosen = data.draw(st.one_of(st.none(), st.lists(st.integers(0, len(lists) - 1), min_size=1)))
    records = expected if chosen is None else [expected[row] for row in chosen]
    asked = data.draw(st.lists(st.integers(0, len(records) - 1)))
    codes = RecordCodes(tuple(parts), None if chosen is None else np.array(chosen))
    if asked:
        assert as_lists(codes.take(np.array(asked))) == [records[record] for record in asked]
    out = torch.full((len(asked), 1 + first), 9.0)
    CodedRows(torch.full((len(records), 1), 0.5), codes, 1).gather(np.array(asked, np.int64), out)
    for row, record in zip(out.tolist(), asked, strict=True):
        assert row == [0.5, *(float(place in records[record]) for place in range(first))]


@pytest.mark.parametrize("label", [None, "died"])
def test_codes_that_lie_in_a_file_are_not_copied_for_another_vocabulary(tmp_path, label):
    """As of a paid vocabulary, in whose order no store can be; also with a second column, and with rows left out."""
    rows, held, names = 100_000, 20, tuple(f"C{i}" for i in range(1000))
    steps = np.random.default_rng(0).integers(1, 50, (rows, held), np.int32)
    (np.cumsum(steps, axis=1, dtype=np.int32) - 1).tofile(tmp_path / "positions")
    sets = CodeSets(
        CodeRows(np.arange(0, held * rows + 1, held), mapped(tmp_path / "positions", np.int32, held * rows)), names
    )
    fields = [sets.field("dx"), sets.field("rx"), pa.field("died", pa.int64())]
    died = pa.array([None, 0, 1, 1] * (rows // 4))
    table = pa.Table.from_arrays([sets.lists(checked=True)] * 2 + [died], schema=pa.schema(fields))
    columns = [{"name": name, "type": "codes", "vocabulary": names[::-1]} for name in ("dx", "rx")]
    columns += [{"name": "died", "type": "binary"}]
    codec = RecordCodec(Schema.from_dict({"unit": None, "label": label, "columns": columns}))
    tracemalloc.start()
    try:
        encoded = codec.encode(table)
        assert encoded.codes is not None
        encoded.codes.take(np.arange(100))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * held * rows / 2, "bytes; a copy of one column takes twice as many"
