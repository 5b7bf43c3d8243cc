import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.units import UnitIndex, unit_ids
from dpcgan_fast.errors import InputError


def schema(unit):
    return Schema.from_dict({"unit": unit, "columns": [{"name": "x", "type": "binary"}]})


@pytest.mark.parametrize("cells", [["b", "a", "b ", "c"], [7, 3, 7, 9], [7.5, 3.0, 7.5, -1.0]])
def test_ids_are_numbered_by_first_appearance(cells):
    assert unit_ids(pa.table({"id": cells}), schema("id")).tolist() == [0, 1, 0, 2]


def test_one_person_whose_id_is_written_in_two_ways_is_one_unit():
    """A column of whole numbers that has become one of floats or of texts names the same people."""
    assert unit_ids(pa.table({"id": ["1", "2", "1.0", " 2"]}), schema("id")).tolist() == [0, 1, 0, 1]


@given(st.lists(st.text("01aB-", min_size=1, max_size=3), min_size=1), st.booleans())
def test_ids_without_blanks_and_decimals_are_numbered_as_those_beside_one_with_blanks(cells, whole):
    """Where no id can be another way to write a second one, they are not looked at one by one."""
    if whole:
        column, odd = pa.array([len(cell) for cell in cells]), [*(str(len(cell)) for cell in cells), " last "]
    else:
        column, odd = pa.array(cells), [*cells, " last "]
    ids = unit_ids(pa.table({"id": column}), schema("id")).tolist()
    assert ids == unit_ids(pa.table({"id": odd}), schema("id")).tolist()[:-1]


def test_without_a_unit_column_there_are_no_ids():
    assert unit_ids(pa.table({"x": [1]}), schema(None)) is None


@pytest.mark.parametrize(
    "cells",
    [["a", "", "b"], ["a", None, "b"], ["a", "null", "b"], [1, None, 2], ["a", " NA ", "b"], [1.0, np.nan, 2.0]],
)
def test_a_missing_id_is_refused_with_its_row(cells):
    with pytest.raises(InputError, match=r"data.csv, column id, row 2\)"):
        unit_ids(pa.table({"id": cells}), schema("id"), "data.csv")


rows = st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=40)


def grouped(pairs, max_rows):
    """The specification: of each unit the first kept rows, counted as rows that were kept."""
    kept_units = [unit for unit, kept in pairs if kept]
    n_units = max((unit for unit, _ in pairs), default=-1) + 1
    return [[row for row, unit in enumerate(kept_units) if unit == u][:max_rows] for u in range(n_units)]


@given(rows, st.integers(1, 4))
def test_units_hold_their_first_kept_rows_in_file_order(pairs, max_rows):
    ids, kept = (np.array([p[i] for p in pairs], kind) for i, kind in ((0, np.int64), (1, bool)))
    index = UnitIndex.from_ids(ids, kept, max_rows)
    expected = grouped(pairs, max_rows)
    assert index.n_units == len(expected)
    for unit, own in enumerate(expected):
        found, of_unit = index.rows_of(np.array([unit]))
        assert found.tolist() == own
        assert of_unit.tolist() == [unit] * len(own)


@given(rows, st.data())
def test_a_batch_of_units_is_their_rows_in_the_order_of_the_units(pairs, data):
    ids, kept = (np.array([p[i] for p in pairs], kind) for i, kind in ((0, np.int64), (1, bool)))
    index = UnitIndex.from_ids(ids, kept, 3)
    units = data.draw(st.lists(st.integers(0, index.n_units - 1), unique=True) if index.n_units else st.just([]))
    found, of_unit = index.rows_of(np.array(units, np.int64))
    expected = grouped(pairs, 3)
    assert found.dtype == of_unit.dtype == np.int64
    assert found.tolist() == [row for unit in units for row in expected[unit]]
    assert of_unit.tolist() == [unit for unit in units for _ in expected[unit]]


def test_every_row_is_a_unit_without_ids_even_if_its_row_was_dropped():
    index = UnitIndex.from_ids(None, np.array([True, False, True]), 1)
    assert index.n_units == 3
    assert [index.rows_of(np.array([u]))[0].tolist() for u in range(3)] == [[0], [], [1]]


@given(rows, st.integers(0, 6))
def test_adding_or_removing_a_unit_changes_no_other(pairs, gone):
    """Row contents stand for identity here: record numbers shift, the rows that they name do not."""

    def contents(some):
        ids = np.array([u for u, _, _ in some], np.int64)
        kept = np.array([k for _, k, _ in some], bool)
        index = UnitIndex.from_ids(ids, kept, 2)
        named = [name for _, k, name in some if k]
        return {u: [named[i] for i in index.rows_of(np.array([u]))[0]] for u in range(index.n_units) if u in ids}

    named = [(unit, kept, name) for name, (unit, kept) in enumerate(pairs)]
    everyone = contents(named)
    everyone.pop(gone, None)
    assert contents([row for row in named if row[0] != gone]) == everyone


def test_float_ids_that_may_stand_for_several_people_are_refused():
    """A table library turns a column of whole numbers into floats if one is missing."""
    exact, merged = pa.table({"id": [2.0**53 - 1, 7.0]}), pa.table({"id": [2.0**53, 7.0]})
    assert unit_ids(exact, schema("id")).tolist() == [0, 1]
    with pytest.raises(InputError, match="may stand for several"):
        unit_ids(merged, schema("id"))


@given(st.lists(st.booleans(), max_size=20))
def test_rows_without_ids_are_grouped_as_rows_with_an_id_each(kept):
    own, given_ids = (UnitIndex.from_ids(ids, np.array(kept, bool), 1) for ids in (None, np.arange(len(kept))))
    assert own.starts.tolist() == given_ids.starts.tolist()
    assert own.rows.tolist() == given_ids.rows.tolist()
    assert own.rows.dtype == own.starts.dtype == np.int64
