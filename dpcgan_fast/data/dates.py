"""Dates as numbers of days, and back: days since 1970-01-01, or since another date of the same record, its origin."""

import datetime

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.schema import Bounds, Column, Schema
from dpcgan_fast.errors import InputError

_ISO = r"^\d{4}-\d{2}-\d{2}([T ].*)?$"  # what follows is a time of the day, which does not count
_DATE_LENGTH = 10
_MOST_DAYS = 700_000 / 2  # on either side of 1970: from the year 1011 to 2928
_HOW = "Write dates as 2024-12-31, or leave the cell empty if the date is missing."


def with_days(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """The table with whole numbers of days in place of dates; one that holds such numbers stays as it is.

    Days of a column with an origin are those since that date, missing where either is.
    Raises InputError, which names `where`, column and row and quotes no cell, if a cell is no date.
    """
    columns = {name: table[name] for name in table.column_names}
    dates = [column for column in schema.columns if column.type == "date" and column.name in columns]
    days = {
        column.name: _days(columns[column.name], f"{where}, column {column.name}")
        for column in dates
        if not _is_number(columns[column.name].type)
    }
    columns |= days
    for column in dates:
        if column.name in days and column.origin in columns:
            columns[column.name] = cells.compute.subtract(days[column.name], columns[column.origin])
    fields = [table.field(name).with_type(columns[name].type) for name in table.column_names]
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields))


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _days(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    """Days since 1970-01-01, int64."""
    column = cells.plain(column)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = _of_texts(column, where)
    elif not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type) or pa.types.is_null(column.type)):
        raise InputError("The column's type is not a date", where, _HOW)
    return column.cast(pa.date32(), safe=False).cast(pa.int32()).cast(pa.int64())


def _of_texts(column: pa.ChunkedArray, where: str) -> pa.ChunkedArray:
    trimmed = cells.compute.utf8_trim_whitespace(column)
    missing = cells.is_missing(column)
    shaped = cells.compute.match_substring_regex(trimmed, _ISO).fill_null(False).to_numpy()
    if not (shaped | missing).all():
        raise _no_date(where, int((shaped | missing).argmin()))
    dates = cells.compute.utf8_slice_codeunits(trimmed, 0, _DATE_LENGTH)
    dates = cells.compute.if_else(pa.array(missing), pa.scalar(None, dates.type), dates)
    try:
        return dates.cast(pa.date32())
    except pa.ArrowInvalid:
        found = (row for row, date in enumerate(dates.to_pylist()) if date is not None and parsed_date(date) is None)
        raise _no_date(where, next(found, 0)) from None


def _no_date(where: str, row: int) -> InputError:
    return InputError("A cell is not a date", f"{where}, row {row + 1}", _HOW)


def parsed_date(text: str) -> datetime.date | None:
    """The date that a text stands for, if it does."""
    try:
        return datetime.date.fromisoformat(text)
    except ValueError:
        return None


def within_calendar(bounds: Bounds) -> Bounds:
    """Bounds in days, of which no sum of two leaves the years that dates can have."""
    first, last = (float(np.clip(bound, -_MOST_DAYS, _MOST_DAYS)) for bound in bounds)
    return (first, last) if first < last else (0.0, 1.0)


def dates_of(columns: dict[str, pa.Array], date_columns: list[Column]) -> dict[str, pa.Array]:
    """Dates, date32, out of days as records hold them. columns: int64, by name, those of the origins among them."""
    dates = {}
    for column in date_columns:
        days = columns[column.name]
        if column.origin is not None:
            days = cells.compute.add(columns[column.origin], days)
        dates[column.name] = days.cast(pa.int32()).cast(pa.date32())
    return dates
