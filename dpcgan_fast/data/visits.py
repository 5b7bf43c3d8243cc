"""All visits of a person as one record, and back: rows of visits to a wide table, and a wide table to such rows.

A record depends on its own unit's rows alone, and not on the order in which they stand, so that adding or removing a
unit changes no other record.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.code_rows import CodeRows, CodeSets, code_entries
from dpcgan_fast.data.constraints import satisfied
from dpcgan_fast.data.dates import with_days
from dpcgan_fast.data.encoding import RecordCodec, table_columns
from dpcgan_fast.data.schema import Column, Schema, Visits
from dpcgan_fast.data.schema_parts import Bins
from dpcgan_fast.data.units import unit_ids
from dpcgan_fast.data.visit_columns import bin_start, number_name, slot_name, time_is_known
from dpcgan_fast.errors import InputError

_NONE = -1  # stands for a row or cell that there is none of
_EDGE = 1e-6  # share of a bin's width that synthetic times keep from its ends, so that they are read back as of it


def _visits_of(schema: Schema) -> Visits:
    if schema.visits is None:
        raise ValueError("expected a schema with visits")
    return schema.visits


# ---- rows of visits to records


@dataclass(frozen=True)
class _Ordered:
    """Rows of a table by unit, and of each unit by visit in the order of time.

    rows:    int64 (M,), rows of the table
    units:   int64 (M,), unit of each, rising
    slots:   int64 (M,), number of each one's visit of the unit, from 0; those that are not used have the number `most`
    n_units: number of units
    most:    visits of a unit that are used
    """

    rows: np.ndarray
    units: np.ndarray
    slots: np.ndarray
    n_units: int
    most: int

    def last_visits(self) -> np.ndarray:
        """Number of each unit's last visit that is used, from 1 and at least that, int64 (n_units,)."""
        last = np.ones(self.n_units, np.int64)
        used = self.slots < self.most
        np.maximum.at(last, self.units[used], self.slots[used] + 1)
        return last

    def present(self, groups: np.ndarray, column: pa.ChunkedArray, n_groups: int, last: bool = False) -> np.ndarray:
        """A row of each group: the first, or last, whose cell is not missing, or any, or _NONE: int64 (n_groups,).

        groups: int64 (M,), of each row in order; those from n_groups on do not count
        """
        found = np.full(n_groups, _NONE)
        used = groups < n_groups
        way = 1 if last else -1  # the row that is written last is the one found
        for chosen in (used, used & ~cells.is_missing(column)[self.rows]):
            found[groups[chosen][::way]] = self.rows[chosen][::way]
        return found


def wide(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """Records, one a unit in the order of their first rows, out of a table of visits or of events.

    table: the columns of `table_columns(schema)`, dates as days (see `with_days`)

    Returns the unit's column and those of `schema.as_records()`: numbers and days float64, flags int64, codes lists,
    all else as it is in the table. Visits are ordered by time, those without one last; at equal times by their key, or
    else by their cells. The first max_visits count. A cell is the first one that is not missing of the visit, or, of a
    column that is the same at all visits, of the unit; codes are those of all of its rows. A bin of time has the time
    of its first row, and of each column the last cell that is not missing.

    Formal guarantee: a record is a function of its own unit's rows, and their order in the table does not matter.
    Raises InputError, which names `where`, column and row, if a column is not there or a cell cannot be read.
    """
    visits = _visits_of(schema)
    for name in table_columns(schema):
        if name not in table.column_names:
            how = "Give a table of visits with all columns of the schema, the unit's among them."
            raise InputError("A table lacks a column", f"{where}, column {name}", how)
    ids = unit_ids(table, schema, where)
    assert ids is not None
    table = _typed(table, schema, where)
    table = _with_times(table, ids, schema)
    ordered = _ordered(table, ids, schema, where)
    n, most, in_bins = ordered.n_units, visits.n_slots, visits.bins is not None
    in_slots = np.where(ordered.slots < most, ordered.slots * n + ordered.units, most * n)  # by slot, then by unit
    assert schema.unit is not None
    columns: dict[str, pa.Array | pa.ChunkedArray] = {
        schema.unit: table[schema.unit].take(pa.array(ordered.present(ordered.units, table[schema.unit], n))),
        number_name(visits): pa.array(ordered.last_visits()),
    }
    fields: dict[str, pa.Field] = {}
    for column in _columns(schema):
        name, differs = column.name, visits.differs(column.name)
        if column.type == "codes":
            groups = np.empty(len(ids), np.int64)
            groups[ordered.rows] = in_slots if differs else ordered.units
            for found, sets in _sets(table[name], column, groups, most if differs else 1, n, where):
                found_name = slot_name(name, found + 1) if differs else name
                columns[found_name], fields[found_name] = sets.lists(), sets.field(found_name)
        elif not differs:
            columns[name] = table[name].take(pa.array(ordered.present(ordered.units, table[name], n)))
        else:
            last = in_bins and name != visits.time
            rows = ordered.present(in_slots, table[name], most * n, last).reshape(most, n)
            parts = [table[name].take(pa.array(own, mask=own == _NONE)) for own in rows]
            if name == visits.time:
                parts = _since_bins(parts, schema) if in_bins else _with_gaps(parts)
            columns |= {slot_name(name, slot): part for slot, part in enumerate(parts, start=1)}
    names = (schema.unit, *schema.as_records().column_names())
    return pa.Table.from_arrays(
        [columns[name] for name in names],
        schema=pa.schema([fields.get(name, pa.field(name, columns[name].type)) for name in names]),
    )


def widened(table: pa.Table, schema: Schema, where: str, *, synthetic: bool = False) -> pa.Table:
    """The records of a table of visits; a table of records, and any table without visits, as it is.

    synthetic: the table may be one of synthetic visits, which have no key: each row is a visit then
    """
    if schema.visits is None or number_name(schema.visits) in table.column_names:
        return table
    schema = schema_of_sample(schema, table.column_names) if synthetic else schema
    return wide(with_days(table, schema, where), schema, where)


def schema_of_sample(schema: Schema, names: list[str] | tuple[str, ...]) -> Schema:
    """The schema by which a table with columns of these names is read, should it be one of synthetic visits."""
    if schema.visits is None or schema.visits.key is None or schema.visits.key in names:
        return schema
    return schema.model_copy(update={"visits": schema.visits.model_copy(update={"key": None})})


def _columns(schema: Schema) -> list[Column]:
    samples = [
        Column(name=name, type="numeric", bounds=signal.bounds) for signal in schema.signals for name in signal.columns
    ]
    return [*schema.columns, *samples]


def _typed(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """Numbers, days and flags read as such, so that an error names the row of the table."""
    for column in _columns(schema):
        place = f"{where}, column {column.name}"
        if column.type == "binary":
            flags = cells.binary_values(table[column.name], place)
            values = pa.array(flags, mask=flags == cells.MISSING)
        elif column.type in ("numeric", "date"):
            numbers = cells.numeric_values(table[column.name], place)
            values = pa.array(numbers, mask=np.isnan(numbers))
        else:
            continue
        table = table.set_column(table.column_names.index(column.name), column.name, values)
    return table


def _time_of(schema: Schema) -> Column:
    return next(column for column in schema.columns if column.name == _visits_of(schema).time)


def _with_times(table: pa.Table, ids: np.ndarray, schema: Schema) -> pa.Table:
    """Times counted from the unit's first one, if the schema says so, and then within their bounds."""
    time = _time_of(schema)
    values = table[time.name].to_numpy()
    if _visits_of(schema).from_first:
        first = np.full(int(ids.max(initial=_NONE)) + 1, np.inf)
        np.fmin.at(first, ids, values)
        with np.errstate(invalid="ignore"):  # infinite times, where bounds are still open
            values = values - first[ids]
    if isinstance(time.bounds, tuple):
        values = np.clip(values, *time.bounds)
    return table.set_column(table.column_names.index(time.name), time.name, pa.array(values, mask=np.isnan(values)))


def _ordered(table: pa.Table, ids: np.ndarray, schema: Schema, where: str) -> _Ordered:
    visits = _visits_of(schema)
    time = table[visits.time].to_numpy()
    n_units = int(ids.max(initial=_NONE)) + 1
    if visits.key is None:
        key, first_time = np.zeros(len(ids), np.int64), time
    else:
        place = f"{where}, column {visits.key}"
        cells.refuse_rounded(cells.distinct(table[visits.key], place)[0], "The keys of visits", place)
        key = _ranks(table[visits.key], place)
        _, visit = np.unique(ids * (len(ids) + 1) + key + 1, return_inverse=True)
        first_time = np.full(len(ids), np.nan)
        np.fmin.at(first_time, visit, time)
        first_time = first_time[visit]
    keys = [time, key, first_time, ids]  # the last one counts most
    rows = np.lexsort(keys)
    with np.errstate(invalid="ignore"):  # infinite times, where bounds are still open
        steps = np.stack([np.diff(own[rows].astype(np.float64)) for own in keys])
    if (np.nan_to_num(steps) == 0).all(axis=0).any():
        rows = np.lexsort([*_tie_keys(table, schema, where), *keys])
    units, key = ids[rows], key[rows]
    new_unit = np.diff(units, prepend=_NONE) != 0
    if visits.bins is not None:
        return _Ordered(rows, units, _bins_of(time[rows], schema), n_units, visits.n_slots)
    new_visit = np.ones(len(rows), bool) if visits.key is None else new_unit | (np.diff(key, prepend=_NONE) != 0)
    number = np.cumsum(new_visit)
    first_number = np.zeros(n_units, np.int64)
    first_number[units[new_unit]] = number[new_unit]
    slots = np.minimum(number - first_number[units], visits.n_slots)
    return _Ordered(rows, units, slots, n_units, visits.n_slots)


def _bins_of(times: np.ndarray, schema: Schema) -> np.ndarray:
    """Number of the bin that each time is in, from 0, or that of bins for those in none; int64 (M,)."""
    bins, time = _visits_of(schema).bins, _time_of(schema)
    assert bins is not None
    start = bin_start(time) if isinstance(time.bounds, tuple) else 0.0  # bounds that are still open: nothing is trained
    numbers = np.floor((times - start) / bins.width)
    return np.where((numbers >= 0) & (numbers < bins.count), numbers, bins.count).astype(np.int64)


def _tie_keys(table: pa.Table, schema: Schema, where: str) -> list[np.ndarray]:
    """What rows of equal time are sorted by: numbers, places of names, and keys of sets of codes, each (M,)."""
    keys = []
    for column in _columns(schema):
        place = f"{where}, column {column.name}"
        if column.type == "codes":
            entries = code_entries(table[column.name], column.separator, place)
            keys.append(CodeRows.from_entries(entries.rows, entries.codes, table.num_rows).keys(entries.names))
        elif column.type in ("numeric", "date", "binary"):
            keys.append(table[column.name].to_numpy())
        else:
            keys.append(_ranks(table[column.name], place))
    return keys


def _ranks(column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Each cell's place among the names in a column, int64 (M,), _NONE where it is missing.

    Of two cells the greater name has the greater place, whatever other cells there are.
    """
    names, codes = cells.category_names(column, where)
    places = np.full(len(names) + 1, _NONE)  # a missing cell has the last index
    places[np.array(sorted(range(len(names)), key=names.__getitem__), np.int64)] = np.arange(len(names))
    return places[codes]


def _with_gaps(times: list[pa.ChunkedArray]) -> list[pa.ChunkedArray | pa.Array]:
    values = np.stack([time.to_numpy() for time in times])
    with np.errstate(invalid="ignore"):  # infinite times, where bounds are still open
        gaps = np.diff(values, axis=0)
    return [times[0], *(pa.array(gap, mask=np.isnan(gap)) for gap in gaps)]


def _since_bins(times: list[pa.ChunkedArray], schema: Schema) -> list[pa.ChunkedArray | pa.Array]:
    """Of times in bins how long after the beginning of the bin they are."""
    bins, time = _visits_of(schema).bins, _time_of(schema)
    assert bins is not None
    start = bin_start(time) if isinstance(time.bounds, tuple) else 0.0
    since = [part.to_numpy() - (start + slot * bins.width) for slot, part in enumerate(times)]
    return [pa.array(np.clip(part, 0.0, bins.width), mask=np.isnan(part)) for part in since]


def _sets(
    column: pa.ChunkedArray, described: Column, groups: np.ndarray, n_slots: int, n_units: int, where: str
) -> list[tuple[int, CodeSets]]:
    """The sets of codes of each slot. groups: int64 (M,), slot * n_units + unit of each row; others do not count."""
    entries = code_entries(column, described.separator, f"{where}, column {described.name}")
    slots, units = np.divmod(groups[entries.rows], max(1, n_units))
    found = []
    for slot in range(n_slots):
        own = slots == slot
        rows = CodeRows.from_entries(units[own], entries.codes[own], n_units)
        found.append((slot, CodeSets(rows, entries.names)))
    return found


# ---- records to rows of visits


def long_fields(schema: Schema) -> pa.Schema:
    """Columns and types of `long`: the unit's, int64, then those of the schema, which has nothing private."""
    return pa.schema([pa.field(schema.unit, pa.int64()), *RecordCodec(schema).arrow_schema])


def long(table: pa.Table, schema: Schema, first: int = 1) -> pa.Table:
    """A row a visit, in the order of time, out of decoded records.

    table: of the columns of `schema.as_records()`, as a `RecordCodec` decodes them
    first: number of the first record in the unit's column

    Times are sums of gaps, cut at the upper bound; those of visits in bins lie inside the bin. Where time may be
    missing, visits without it come last.
    """
    visits, fields = _visits_of(schema), long_fields(schema)
    n = table.num_rows
    all_times = _times(table, schema)
    units, slots = np.nonzero(_there(table, visits))
    times = all_times[slots, units]
    order = np.lexsort([slots, np.isnan(times), units])
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for column in _columns(schema):
        if column.name == visits.time:
            values = times[order]
            numbers_only = pa.array(values, mask=np.isnan(values))
            columns[column.name] = numbers_only if column.type == "numeric" and not column.integer else (
                numbers_only.cast(pa.int64())
            )  # fmt: skip
        elif visits.differs(column.name):
            cells_of_slots = pa.concat_arrays(
                [table[slot_name(column.name, slot)].combine_chunks() for slot in range(1, visits.n_slots + 1)]
            )
            columns[column.name] = cells_of_slots.take(pa.array((slots * n + units)[order]))
        else:
            columns[column.name] = table[column.name].take(pa.array(units))  # which no order within a unit changes
    for column in schema.columns:
        if column.type == "date" and visits.differs(column.name):
            columns[column.name] = _dates(columns[column.name], columns.get(column.origin or ""))
    columns[fields[0].name] = pa.array(units + first)
    return pa.Table.from_arrays([columns[field.name] for field in fields], schema=fields)


def in_order(table: pa.Table, schema: Schema) -> pa.Array:
    """Which decoded records' visits are all in every order that the schema states, bool (N,)."""
    rows = long(table, schema, first=0)
    broken = np.zeros(table.num_rows, bool)
    broken[rows.column(0).filter(cells.compute.invert(satisfied(rows, schema))).to_numpy()] = True
    return pa.array(~broken)


def _there(table: pa.Table, visits: Visits) -> np.ndarray:
    """Which visits there are, bool (N, n_slots). In a bin there is one if it has a time, and in the last one always."""
    last = table[number_name(visits)].to_numpy()[:, None]
    numbers = np.arange(1, visits.n_slots + 1)
    if visits.bins is None:
        return numbers <= last
    timed = [
        np.ones(table.num_rows, bool) if time_is_known(visits, slot)
        else table[slot_name(visits.time, slot)].is_valid().to_numpy()
        for slot in range(1, visits.n_slots + 1)
    ]  # fmt: skip
    return (numbers < last) & np.stack(timed, axis=1) | (numbers == last)


def _times(table: pa.Table, schema: Schema) -> np.ndarray:
    """Time of each slot, float64 (n_slots, N): numbers, or days since the origin; NaN where missing."""
    visits, time = _visits_of(schema), _time_of(schema)
    parts = []
    for slot in range(1, visits.n_slots + 1):
        if time_is_known(visits, slot):
            parts.append(np.zeros(table.num_rows))
            continue
        part = table[slot_name(visits.time, slot)]
        part = part.cast(pa.int32()) if pa.types.is_date(part.type) else part
        parts.append(part.cast(pa.float64()).to_numpy(zero_copy_only=False))
    values = np.stack(parts)
    assert isinstance(time.bounds, tuple)
    whole = time.integer or time.type == "date"
    # Whole numbers stay so at the bound. A first one may lie beyond bounds that hold no whole number.
    upper = np.floor(time.bounds[1]) if whole else time.bounds[1]
    if visits.bins is not None:
        return np.minimum(_in_bins(np.nan_to_num(values), visits.bins, bin_start(time), whole), upper)
    missing = np.isnan(values)
    missing |= missing[0]  # a gap after no time leads to none
    times = np.minimum(np.cumsum(np.where(missing, 0.0, values), axis=0), np.maximum(upper, values[0]))
    return np.where(missing, np.nan, times) if time.missing else times


def _in_bins(since: np.ndarray, bins: Bins, start: float, whole: bool) -> np.ndarray:
    """Times from how long after the beginning of each bin they are, (n_slots, N), such that they are in it."""
    edge = 1.0 if whole else _EDGE * bins.width
    lower = np.zeros((len(since), 1))
    if not whole:
        lower[1:] = edge
    begins = start + bins.width * np.arange(len(since))[:, None]
    return begins + np.clip(since, lower, bins.width - edge)


def _dates(days: pa.Array | pa.ChunkedArray, origin: pa.Array | pa.ChunkedArray | None) -> pa.Array | pa.ChunkedArray:
    if pa.types.is_date(days.type):
        return days
    if origin is not None:
        days = cells.compute.add(days, origin.cast(pa.int32()).cast(pa.int64()))
    return days.cast(pa.int32()).cast(pa.date32())
