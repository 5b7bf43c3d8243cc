"""How many rows break the schema's constraints."""

import datetime

import pyarrow as pa
import pytest

from dpcgan_fast.data.dates import with_days
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.rules import rule_figures, rule_notes

ORDERED = [{"name": name, "type": "numeric", "bounds": [0, 10], "missing": True} for name in ("low", "high")]
DX = {"name": "dx", "type": "codes", "vocabulary": ["A", "B", "C"], "max_codes": 3}


def rules_of(table: pa.Table, *rules: dict, columns=None) -> list[dict]:
    schema = Schema.from_dict({"unit": None, "columns": columns or [*ORDERED, DX], "constraints": rules})
    return [rule["test"] for rule in rule_figures({"test": with_days(table, schema, "the real test table")}, schema)]


def order_of(low: list, high: list) -> pa.Table:
    return pa.table({"low": low, "high": high, "dx": [[]] * len(low)})


def test_an_order_is_broken_by_the_rows_that_have_both_cells_in_the_other_order():
    table = order_of([1, 2, 3, 2, None, 5], [2, 2, 1, None, 1, 4])
    less, at_most = rules_of(
        table, {"kind": "less", "columns": ["low", "high"]}, {"kind": "at_most", "columns": ["low", "high"]}
    )
    assert less == {"broken": pytest.approx(3 / 6), "concerned": pytest.approx(4 / 6)}
    assert at_most == {"broken": pytest.approx(2 / 6), "concerned": pytest.approx(4 / 6)}


def test_cells_are_compared_as_they_stand_and_not_as_the_bounds_clip_them():
    (found,) = rules_of(order_of([12], [15]), {"kind": "less", "columns": ["low", "high"]})
    assert found["broken"] == 0


def test_a_code_that_implies_another_concerns_the_rows_that_have_it():
    table = pa.table({"low": [1] * 5, "high": [2] * 5, "dx": [["A", "B"], ["A"], ["B"], None, ["A", "C", "Z"]]})
    (found,) = rules_of(table, {"kind": "implies", "columns": ["dx"], "code": "A", "implied": "B"})
    assert found == {"broken": pytest.approx(2 / 5), "concerned": pytest.approx(3 / 5)}


def test_a_code_out_of_the_vocabulary_concerns_no_row():
    table = pa.table({"low": [1], "high": [2], "dx": [["Z"]]})
    (found,) = rules_of(table, {"kind": "implies", "columns": ["dx"], "code": "Z", "implied": "B"})
    assert found == {"broken": 0, "concerned": 0}


def test_days_since_another_date_are_compared_as_dates():
    columns = [
        {"name": "birth", "type": "date", "bounds": ["1900-01-01", "2030-01-01"]},
        {"name": "death", "type": "date", "bounds": [0, 40000], "origin": "birth", "missing": True},
    ]
    day = datetime.date
    table = pa.table({"birth": [day(1990, 5, 1), day(1980, 1, 1)], "death": [day(2000, 1, 1), day(1979, 1, 1)]})
    (found,) = rules_of(table, {"kind": "at_most", "columns": ["birth", "death"]}, columns=columns)
    assert found == {"broken": pytest.approx(1 / 2), "concerned": 1}


def test_rules_are_told_in_words_and_a_table_that_is_not_there_has_no_figures():
    constraints = [
        {"kind": "less", "columns": ["low", "high"]},
        {"kind": "implies", "columns": ["dx"], "code": "A", "implied": "B"},
    ]
    schema = Schema.from_dict({"unit": None, "columns": [*ORDERED, DX], "constraints": constraints})
    tables = {"synthetic": order_of([], []), "train": None, "test": order_of([1], [2])}
    order, codes = rule_figures(tables, schema)
    assert order["rule"] == "low is less than high"
    assert codes["rule"] == "dx: A implies B"
    assert order["synthetic"] == {"broken": None, "concerned": None}
    assert order["train"] is None
    assert order["test"] == {"broken": 0, "concerned": 1}


def test_a_schema_without_constraints_has_no_rules():
    schema = Schema.from_dict({"unit": None, "columns": [*ORDERED, DX]})
    assert rule_figures({"test": order_of([1], [2])}, schema) == []


def test_orders_that_hold_at_each_visit_are_said_to_be_left_out():
    columns = [{"name": name, "type": "numeric", "bounds": [0, 10]} for name in ("year", "low", "high", "born", "met")]
    visits = {"time": "year", "max_visits": 3, "columns": ["low", "high"], "key": None}

    def rules_and_notes(*names: str) -> tuple[list, list]:
        constraints = [{"kind": "less", "columns": names}]
        values = {"unit": "id", "columns": columns, "visits": visits, "constraints": constraints}
        schema = Schema.from_dict(values).as_records()
        return rule_figures({"test": None}, schema), rule_notes(schema)

    rules, notes = rules_and_notes("low", "high")
    assert rules == []
    assert notes == ["rules leaves out orders of columns that differ between visits."]
    rules, notes = rules_and_notes("born", "met")
    assert [rule["rule"] for rule in rules] == ["born is less than met"]
    assert notes == []
