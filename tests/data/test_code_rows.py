"""Sets of codes: the same whatever form, type or order a column gives them in, and no record's by another's doing."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.code_rows import CodeRows, CodeSets, code_entries, positions_in
from dpcgan_fast.errors import InputError
from tests.conftest import examples

NAMES = tuple(f"c{i}" for i in range(12))
SETS = st.lists(st.lists(st.sampled_from(NAMES), max_size=9), max_size=8)


def sets_of(column, separator="|"):
    entries = code_entries(column, separator, "data")
    found = [set() for _ in range(len(column))]
    for row, code in zip(entries.rows, entries.codes, strict=True):
        found[row].add(entries.names[code])
    return found


def as_sets(rows, names):
    return [{names[p] for p in rows.positions[a:b]} for a, b in zip(rows.starts[:-1], rows.starts[1:], strict=True)]


def code_rows(lists, names=NAMES):
    column = pa.array(lists, pa.list_(pa.string()))
    entries = code_entries(column, None, "data")
    return CodeRows.from_entries(entries.rows, positions_in(names, entries.names)[entries.codes], len(lists))


@settings(max_examples=examples(100))
@given(lists=SETS, cut=st.integers(0, 8))
def test_every_form_of_a_column_gives_the_same_sets(lists, cut):
    plain = pa.array(lists, pa.list_(pa.string()))
    joined = pa.array(["|".join(codes) for codes in lists], pa.string())
    forms = [
        plain,
        plain.cast(pa.large_list(pa.string())),
        pa.chunked_array([plain[:cut], plain[cut:]]),
        joined,
        joined.dictionary_encode(),
        pa.chunked_array([joined[:cut], joined[cut:]]),
        CodeSets(code_rows(lists), NAMES).lists(),
    ]
    assert all(sets_of(form) == [set(codes) for codes in lists] for form in forms)


def test_blanks_and_missing_entries_do_not_count_and_codes_are_taken_as_they_are_written():
    column = pa.array([[" a", None, "NA", "", "250.0"], None, [], ["250", "a "]])
    assert sets_of(column) == [{"a", "250.0"}, set(), set(), {"250", "a"}]


@pytest.mark.parametrize(("kind", "offsets"), [(pa.ListArray, pa.int32()), (pa.LargeListArray, pa.int64())])
def test_what_lies_beneath_a_null_list_is_no_code(kind, offsets):
    starts, mask = pa.array([0, 1, 2, 3], offsets), pa.array([True, False, False])
    assert sets_of(kind.from_arrays(starts, pa.array(["hidden", "a", "b"]), mask=mask)) == [set(), {"a"}, {"b"}]


def test_a_separator_divides_entries_of_lists_as_it_does_cells():
    assert sets_of(pa.array([["a|b", "c"], ["||"]])) == [{"a", "b", "c"}, set()]


def test_whole_numbers_are_codes():
    assert sets_of(pa.array([4019, None, 25000])) == [{"4019"}, set(), {"25000"}]


def test_without_a_separator_a_cell_is_one_code():
    assert sets_of(pa.array(["a|b", "c d"]), separator=None) == [{"a|b"}, {"c d"}]


@pytest.mark.parametrize("column", [pa.array([[["a"]]]), pa.array([{"a": 1}]), pa.array([[{"a": 1}]])])
def test_deeper_nesting_is_refused(column):
    with pytest.raises(InputError, match=r"not (lists of )?single values \(data, column dx\)"):
        code_entries(column, None, "data, column dx")


@pytest.mark.parametrize("lists", [[[0, 0, 1], [2]], [[1, 0], [2]], [[0, 1], [2, 2]]])
def test_a_field_that_says_sets_is_not_believed_if_they_are_none(lists):
    """A file keeps what a field says of its lists, whatever was done to them since."""
    names = pa.array(["a", "b", "c"])
    counts = np.cumsum([0, *map(len, lists)])
    values = pa.DictionaryArray.from_arrays(pa.array(np.concatenate(lists), pa.int32()), names)
    sets = CodeSets(CodeRows(np.array([0, 1]), np.array([0], np.int32)), ("a",))
    column = pa.LargeListArray.from_arrays(pa.array(counts, pa.int64()), values)
    table = pa.Table.from_arrays([column], schema=pa.schema([sets.field("dx")]))
    found = CodeSets.of_column(table, "dx", None, "data")
    assert as_sets(found.rows, found.names) == [{"abc"[code] for code in codes} for codes in lists]
    assert found.rows.are_sets()
    named_twice = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["a", "a"]))
    column = pa.LargeListArray.from_arrays(pa.array([0, 2], pa.int64()), named_twice)
    table = pa.Table.from_arrays([column], schema=pa.schema([sets.field("dx")]))
    assert CodeSets.of_column(table, "dx", None, "data").rows.positions.tolist() == [0]


def test_sets_of_more_records_and_codes_than_four_bytes_can_number():
    records, codes = np.array([70_000, 3, 70_000, 70_000, 3]), np.array([40_000, 7, 2, 40_000, 39_999])
    rows = CodeRows.from_entries(records, codes, 70_001)
    assert len(rows) == 70_001
    assert rows.row_of_entry().tolist() == [3, 3, 70_000, 70_000]
    assert rows.positions.tolist() == [7, 39_999, 2, 40_000]


def test_many_entries_give_the_sets_that_few_would():
    """From some number on they are sorted in another way."""
    random = np.random.default_rng(0)
    records, codes = random.integers(0, 900, 100_000), random.integers(0, 70, 100_000)
    rows = CodeRows.from_entries(records, codes, 900)
    expected = np.unique(records * 70 + codes)
    assert (rows.row_of_entry() * 70 + rows.positions).tolist() == expected.tolist()


@settings(max_examples=examples(100))
@given(lists=SETS, rows=st.lists(st.integers(0, 7), max_size=9))
def test_rows_are_sets_that_can_be_taken_in_any_order(lists, rows):
    compressed = code_rows(lists)
    wanted = [row for row in rows if row < len(lists)]
    assert as_sets(compressed, NAMES) == [set(codes) for codes in lists]
    assert as_sets(compressed.take(np.array(wanted, np.int64)), NAMES) == [set(lists[row]) for row in wanted]
    within = np.diff(compressed.row_of_entry()) == 0
    assert (np.diff(compressed.positions)[within] > 0).all()


@settings(max_examples=examples(100))
@given(left=SETS, right=SETS)
def test_two_columns_lie_side_by_side(left, right):
    n = min(len(left), len(right))
    both = CodeRows.side_by_side([code_rows(left[:n]), code_rows(right[:n]).moved(len(NAMES))])
    names = (*NAMES, *(name.upper() for name in NAMES))
    assert as_sets(both, names) == [set(a) | {c.upper() for c in b} for a, b in zip(left[:n], right[:n], strict=True)]


@settings(max_examples=examples(100))
@given(lists=SETS, most=st.integers(1, 5), data=st.data())
def test_what_a_cap_keeps_of_a_record_is_its_own_doing(lists, most, data):
    """Neither other records, nor the order of the list of names that they have a part in, change it."""
    kept = as_sets(code_rows(lists).capped(most, NAMES), NAMES)
    for own, codes in zip(kept, lists, strict=True):
        assert own <= set(codes)
        assert len(own) == min(most, len(set(codes)))
    others = tuple(data.draw(st.permutations([*NAMES, "new"])))
    for own, codes in zip(kept, lists, strict=True):
        assert as_sets(code_rows([["new"], codes], others).capped(most, others), others)[1] == own


@settings(max_examples=examples(100))
@given(lists=SETS, most=st.integers(1, 5))
def test_sets_that_are_capped_name_what_they_have_and_nothing_else(lists, most):
    whole = CodeSets(code_rows(lists), NAMES)
    capped = whole.capped(most)
    assert as_sets(capped.rows, capped.names) == as_sets(whole.rows.capped(most, NAMES), NAMES)
    assert set(capped.names) == {name for codes in as_sets(capped.rows, capped.names) for name in codes}


def test_a_cap_prefers_no_code():
    """3 of 10 codes of 2,000 records that differ in one further code."""
    names = (*NAMES[:10], *(f"own {i}" for i in range(2000)))
    lists = [[*NAMES[:10], f"own {i}"] for i in range(2000)]
    kept = code_rows(lists, names).capped(3, names)
    shares = np.bincount(kept.positions, minlength=len(names))[:10] / len(lists)
    assert np.abs(shares - 3 / 11).max() < 5 * np.sqrt(3 / 11 * 8 / 11 / len(lists))


@pytest.mark.parametrize("block", [1, 3, 100])
def test_positions_in_a_vocabulary_do_not_depend_on_the_blocks(monkeypatch, block):
    lists = [["a", "c", "x"], [], ["x"], ["c", "b", "a"], ["d"], [], ["b", "d"]]
    table = pa.table({"dx": lists})
    sets = CodeSets.of_column(table, "dx", None, "data")
    monkeypatch.setattr("dpcgan_fast.data.code_rows._BLOCK_ROWS", block)
    vocabulary = ("d", "c", "b", "a")
    within = sets.within(vocabulary, 2)
    assert within.starts.tolist() == [0, 2, 2, 2, 4, 5, 5, 7]
    for row, codes in enumerate(lists):
        kept = [vocabulary[p] for p in within.positions[within.starts[row] : within.starts[row + 1]]]
        assert set(kept) <= set(codes)
        assert len(kept) == min(2, len(set(codes) & set(vocabulary)))
    assert within.positions.dtype == np.int32


def test_codes_that_became_floats_too_large_to_tell_apart_are_refused():
    with pytest.raises(InputError, match="The codes are floating-point numbers that may stand for several"):
        code_entries(pa.array([900000000000207008.0, None]), None, "data, column dx")
