"""Which visits a schema allows, and what is said of those that it does not."""

import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.visits import wide
from dpcgan_fast.errors import InputError
from tests.data.people_with_visits import BINS, COLUMNS, DATES, records, schema_of, table_of


def test_an_unreadable_cell_is_named_by_its_row_in_the_table():
    rows = [("a", "F", "1", "2"), ("a", "F", "2", "two")]
    with pytest.raises(InputError, match=r"A cell is not a number \(data, column bili, row 2\)"):
        records(table_of(rows, ("id", "sex", "year", "bili")), schema_of(["sex", "year", "bili"]))


def test_a_table_without_the_unit_is_refused():
    with pytest.raises(InputError, match=r"lacks a column \(data, column id\)"):
        wide(table_of([("F", "1", "2")], ("sex", "year", "bili")), schema_of(["sex", "year", "bili"]), "data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": None}, "visits need the name of the column that identifies a person"),
        ({"max_rows_per_unit": 4}, "visits have a cap of their own"),
        ({"label": "pain"}, "label 'pain' must be the same at all visits"),
        ({"visits": {"time": "sex"}}, "time of visits 'sex' must be a numeric or date column"),
        ({"visits": {"columns": ["nothing"]}}, "column 'nothing' of visits is not among the columns"),
        ({"visits": {"max_visits": 1}}, "greater than or equal to 2"),
        ({"visits": {"key": "id"}}, "key of visits must not be the unit's column"),
        ({"visits": {"every": 3}}, "there is no such field"),
        ({"visits": {"max_visits": None}}, "visits need max_visits, .* or bins of time in its place"),
        ({"visits": {"bins": {"width": 1, "count": 3}}}, "visits need max_visits, .* or bins of time in its place"),
        ({"visits": {**BINS, "key": "stay"}}, "bins of time are what makes a visit: leave key and max_gap out"),
        ({"visits": BINS}, "time of visits 'year' must not be missing"),
        ({"visits": {"from_first": True}}, "time of visits 'year' must not be missing"),
        ({"visits": {"max_visits": None, "bins": {"width": 0, "count": 3}}}, "greater than 0"),
    ],
)
def test_visits_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        schema_of(**changes)


@pytest.mark.parametrize(
    ("time", "visits", "message"),
    [
        ({"bounds": [1, 16]}, {"from_first": True, "max_visits": 3}, "make it a number with bounds from 0"),
        ({"integer": True}, {"bins": {"width": 0.5, "count": 3}}, "in whole numbers, so must be the width of bins"),
        ({}, {"bins": {"width": 8, "count": 3}}, "the last bin begins after the bounds of 'year'"),
    ],
)
def test_times_that_do_not_fit_are_refused(time, visits, message):
    columns = [{"name": "year", "type": "numeric", "bounds": [0, 16], **time}]
    with pytest.raises(InputError, match=message):
        Schema.from_dict({"unit": "id", "columns": columns, "visits": {"time": "year", **visits}})


def test_what_makes_a_visit_must_be_said_where_visits_have_codes():
    """Rows of codes are mostly events, each of which would silently be a visit of its own."""
    visits = {"time": "year", "max_visits": 3, "columns": ["dx"]}
    values = {"unit": "id", "columns": [{"name": name, **COLUMNS[name]} for name in ("year", "dx")]}
    with pytest.raises(InputError, match=r"'dx' has codes of visits: write as their key the column"):
        Schema.from_dict({**values, "visits": visits})
    rows = table_of([("a", "1", "a"), ("a", "1", "b"), ("a", "2", "c")], ("id", "year", "dx"))
    numbers = [
        records(rows, Schema.from_dict({**values, "visits": {**visits, "key": key}}))["a"]["number of visits"]
        for key in (None, "year")
    ]
    assert numbers == [3, 2]


def test_private_facts_of_visits_are_refused_with_the_remedy():
    values = schema_of(["sex", "year", "bili"]).model_dump(mode="json")
    values["columns"][2]["bounds"] = "private"
    with pytest.raises(InputError, match=r"column 'bili' differs between visits, so that its bounds must be public"):
        Schema.from_dict(values)
    values["columns"][2]["bounds"] = None  # a draft: said when training begins
    with pytest.raises(InputError, match=r"The bounds are still to be filled in \(schema, column bili\)"):
        Schema.from_dict(values).require_complete()


def test_paid_quantiles_of_visits_are_refused():
    values = schema_of(["sex", "year", "bili"]).model_dump(mode="json")
    values["columns"][2] |= {"scale": "rank", "quantiles": "private"}
    with pytest.raises(InputError, match=r"column 'bili' differs between visits, so that its quantiles must be public"):
        Schema.from_dict(values)


def test_a_name_of_a_record_is_taken():
    values = schema_of(["sex", "year", "bili"]).model_dump(mode="json")
    values["columns"][0]["name"] = "bili[2]"
    with pytest.raises(InputError, match=r"rename the column 'bili\[2\]'"):
        Schema.from_dict(values)


def test_a_static_date_cannot_be_counted_from_one_that_differs():
    values = {**DATES, "visits": {"time": "admit", "max_visits": 3, "columns": []}}
    with pytest.raises(InputError, match="column 'leave' has an origin that differs between visits"):
        Schema.from_dict(values)
