"""Rows and units that two tables have in common."""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.evaluate.overlap import (
    real_as_synthetic_notes,
    row_fingerprints,
    share_of_copies,
    shares_a_unit,
)  # fmt: skip
from tests.evaluate.tables import patients, schema_of, with_column


def test_copies_are_found_cell_for_cell_and_nothing_else_is():
    schema = schema_of()
    train = patients(300, 0).drop_columns(["stage"])
    others = patients(300, 1).drop_columns(["stage"])
    rows = {tuple(row.values()) for row in train.to_pylist()}
    equal = [tuple(row.values()) in rows for row in others.to_pylist()]
    assert share_of_copies(others, train, schema) == pytest.approx(sum(equal) / 300)
    mixed = pa.concat_tables([train.slice(0, 30), others.filter(~np.array(equal)).slice(0, 70)])
    assert share_of_copies(mixed, train, schema) == pytest.approx(0.3)
    assert share_of_copies(train.slice(0, 0), train, schema) == 0


def test_one_changed_cell_makes_another_row():
    table = patients(200, 0)
    for name in ("age", "bmi", "sex", "smoker", "died"):
        values = table[name].to_pylist()
        changed = with_column(table, name, [values[-1], *values[:-1]])
        same = sum(a == b for a, b in zip(values, changed[name].to_pylist(), strict=True))
        found = row_fingerprints(table, schema_of()) == row_fingerprints(changed, schema_of())
        assert found.sum() == same


def test_missing_cells_are_equal_and_so_are_the_two_zeros():
    schema = schema_of(columns=[{"name": "bmi", "type": "numeric", "bounds": [-1, 1], "missing": True}], label=None)
    hashes = row_fingerprints(pa.table({"bmi": [None, float("nan"), 0.0, -0.0]}), schema)
    assert hashes[0] == hashes[1]
    assert hashes[2] == hashes[3]
    assert hashes[0] != hashes[2]


def test_different_rows_have_different_fingerprints():
    table = patients(2000, 0).drop_columns(["stage"])
    different = {tuple(row.values()) for row in table.to_pylist()}
    assert len(np.unique(row_fingerprints(table, schema_of()))) == len(different)


def test_a_real_table_given_as_the_synthetic_one_is_warned_of_by_its_name():
    real, other, schema = patients(300, 0), patients(300, 1), schema_of()
    tables = {"the real test table": other, "the real training table": real}
    (note,) = real_as_synthetic_notes(real, tables, schema)
    assert note.startswith("WARNING: the synthetic table is the real training table, row for row")
    assert real_as_synthetic_notes(patients(300, 2), tables, schema) == []


def test_real_rows_in_another_order_or_some_of_them_or_drawn_with_replacement_are_warned_of_too():
    real, schema = patients(300, 0), schema_of()
    rng = np.random.default_rng(0)
    for rows in (rng.permutation(300), rng.choice(300, 100, replace=False), rng.choice(300, 300)):
        (note,) = real_as_synthetic_notes(real.take(pa.array(rows)), {"the real test table": real}, schema)
        assert "nearly all rows of the synthetic table stand, cell for cell, in the real test table" in note
    mixed = pa.concat_tables([real.slice(0, 150), patients(150, 1)])
    assert real_as_synthetic_notes(mixed, {"the real test table": real}, schema) == []


def test_copies_that_are_natural_are_not_taken_for_the_real_table():
    """Few categories, where every row stands in every table; a draw that is one row over and over; too few rows."""
    few = schema_of(columns=[{"name": "sex", "type": "categorical", "categories": ["F", "M"], "missing": True}])
    real = patients(300, 0)
    assert share_of_copies(patients(300, 1), real, few) == 1
    assert real_as_synthetic_notes(patients(300, 1), {"the real test table": real}, few) == []
    collapsed = real.take(pa.array([0] * 300))
    assert real_as_synthetic_notes(collapsed, {"the real test table": real}, schema_of()) == []
    assert real_as_synthetic_notes(real.slice(0, 10), {"the real test table": real}, schema_of()) == []
    constant = real.take(pa.array([0] * 30))
    assert real_as_synthetic_notes(constant, {"the real test table": constant}, schema_of()) == []


def test_a_table_of_few_categories_is_known_by_the_order_of_its_rows():
    few = schema_of(columns=[{"name": "smoker", "type": "binary"}])
    real = patients(300, 0)
    (note,) = real_as_synthetic_notes(real, {"the real test table": real}, few)
    assert "row for row" in note


def test_a_unit_in_both_tables_is_noticed_where_both_tables_name_units():
    schema = schema_of(unit="person")
    first, second, third = (
        patients(3, 0).append_column("person", pa.array(names))
        for names in (["a", "b", "c"], ["d", " c", "e"], [*"xyz"])
    )
    assert shares_a_unit(first, second, schema)
    assert not shares_a_unit(first, third, schema)
    assert not shares_a_unit(first, patients(3, 0), schema)
    assert not shares_a_unit(first, second, schema_of())


def test_an_id_is_the_same_in_a_column_of_numbers_and_in_one_of_texts():
    schema = schema_of(unit="person")
    numbers, floats, texts = (
        patients(2, 0).append_column("person", pa.array(ids)) for ids in ([1, 2], [2.0, 3.0], ["3.0", "4"])
    )
    assert shares_a_unit(numbers, floats, schema)
    assert shares_a_unit(floats, texts, schema)
    assert not shares_a_unit(numbers, texts, schema)
