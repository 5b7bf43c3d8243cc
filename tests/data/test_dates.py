"""Dates are whole days between public bounds, absolute or since another date of the record."""

import datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dpcgan_fast.data.dates import with_days, within_calendar
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError

BORN = {"name": "born", "type": "date", "bounds": ["1900-01-01", "2024-12-31"]}
SEEN = {"name": "seen", "type": "date", "origin": "born", "bounds": [0, 40_000], "missing": True}


def schema(*columns):
    return Schema.from_dict({"unit": None, "columns": list(columns)})


def days(cells, column=BORN):
    table = pa.table({"born": cells})
    return with_days(table, schema(column), "data")["born"].to_pylist()


@pytest.mark.parametrize(
    "cells",
    [
        pa.array(["1970-01-02", " 2000-03-01 ", "NA", ""]),
        pa.array(["1970-01-02T23:59:59+02:00", "2000-03-01 07:00", None, "nan"]),
        pa.array([datetime.date(1970, 1, 2), datetime.date(2000, 3, 1), None, None]),
        pa.array([datetime.datetime(1970, 1, 2, 23), datetime.datetime(2000, 3, 1), None, None]),
        pa.Array.from_pandas(pd.Series(pd.to_datetime(["1970-01-02", "2000-03-01", None, None]))),
        pa.array([1, 11017, None, None]),
    ],
    ids=["text", "text with a time", "date", "timestamp", "pandas", "days"],
)
def test_every_form_of_a_date_is_the_same_day(cells):
    assert days(cells) == [1, 11017, None, None]


@pytest.mark.parametrize("cell", ["2021-02-30", "01.02.2021", "2021-1-2", "20210102", "soon", "2021-01-02x"])
def test_a_cell_that_is_no_date_is_an_error_that_names_the_row_and_quotes_nothing(cell):
    with pytest.raises(InputError, match=r"not a date \(data, column born, row 3\)") as error:
        days(pa.array(["2021-01-01", None, cell, "2021-01-01"]))
    assert cell not in str(error.value)


def test_a_column_of_another_type_is_refused():
    with pytest.raises(InputError, match=r"type is not a date \(data, column born\)"):
        days(pa.array([True, False]))


def test_days_since_an_origin_come_back_as_dates():
    own = schema(BORN, SEEN)
    table = pa.table({"born": ["1950-06-01", "1980-01-01", "1990-05-05"], "seen": ["1950-06-11", "", "2020-01-01"]})
    relative = with_days(table, own, "data")
    assert relative["seen"].to_pylist() == [10, None, 10833]
    assert with_days(relative, own, "data").equals(relative), "what is in days stays as it is"
    codec = RecordCodec(own)
    back = codec.decode(codec.encode(relative).records)
    assert back.schema.types == [pa.date32()] * 2
    assert [str(cell) for cell in back["seen"].to_pylist()] == ["1950-06-11", "None", "2020-01-01"]


def test_dates_outside_of_the_bounds_are_clipped():
    own = schema(BORN)
    codec = RecordCodec(own)
    table = with_days(pa.table({"born": ["1066-10-14", "2200-01-01"]}), own, "data")
    back = codec.decode(codec.encode(table).records)
    assert [str(cell) for cell in back["born"].to_pylist()] == ["1900-01-01", "2024-12-31"]


def test_a_schema_with_dates_comes_back_from_its_text():
    own = schema(BORN, SEEN)
    assert Schema.from_text(own.to_json()) == own
    assert own.columns[0].bounds == (-25567.0, 20088.0)
    assert np.datetime64("1970-01-01") + np.timedelta64(20088, "D") == np.datetime64("2024-12-31")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([{**BORN, "bounds": ["1900", "2000"]}], "bounds of a date are written"),
        ([{**BORN, "bounds": ["2000-01-01", "1900-01-01"]}], "the lower one first"),
        ([{**BORN, "origin": "seen"}, SEEN], "needs for its origin a date column"),
        ([{**SEEN, "origin": "nothing"}], "needs for its origin a date column"),
        ([{"name": "x", "type": "numeric", "bounds": [0, 1], "origin": "born"}, BORN], "only a date has an origin"),
    ],
)
def test_dates_that_say_nothing_are_refused(columns, message):
    with pytest.raises(InputError, match=message):
        schema(*columns)


def test_bounds_that_are_not_filled_in_are_named():
    with pytest.raises(InputError, match=r"bounds are still to be filled in \(schema, column born\)"):
        schema({**BORN, "bounds": None}).require_complete()


@pytest.mark.parametrize("bounds", [(-(2.0**40), 2.0**40), (0.0, 1e300), (1e9, 2e9), (-5.0, 9.0)])
def test_bounds_of_dates_that_were_released_stay_within_the_calendar(bounds):
    first, last = within_calendar(bounds)
    assert first < last
    for days in (first, last, first + last):
        datetime.date(1970, 1, 1) + datetime.timedelta(days=days)
    assert within_calendar((-5.0, 9.0)) == (-5.0, 9.0)
