"""Units of privacy: which rows belong to one person."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError


def unit_ids(table: pa.Table, schema: Schema, where: str = "data") -> np.ndarray | None:
    """Unit of each row, int64 (M,), numbered by first appearance; None if every row is a unit of its own.

    Blanks around an id do not count, nor decimals of a whole number. `where` (the file) is for the error.
    Raises InputError if an id is missing, which names the row, or if ids are floats too large to tell neighbours apart.
    """
    if schema.unit is None:
        return None
    place = f"{where}, column {schema.unit}"
    column = cells.plain(table[schema.unit])
    if cells.written_one_way(column):
        ids, missing = cells.numbered(column, place), cells.is_missing(column)
    else:
        values, codes = cells.distinct(column, place)
        cells.refuse_rounded(values, "The unit ids", place)
        number: dict[str, int] = {}
        of_value = np.array([*(_number_of(value, number) for value in values), cells.MISSING], dtype=np.int64)
        ids = of_value[codes]
        missing = ids == cells.MISSING
    if missing.any():
        raise missing_id(place, int(missing.argmax()) + 1)
    return ids


def missing_id(place: str, row: int) -> InputError:
    """The error for a row without an id. place: file and column; row: the first one is 1."""
    how = "Give each row the id of its person, or leave the row out."
    return InputError("A unit id is missing", f"{place}, row {row}", how)


def _number_of(value: object, number: dict[str, int]) -> int:
    """The number of a unit id, a new one if it has none yet; MISSING if it is no id."""
    key = cells.canonical_text(value)
    if key.lower() in cells.MISSING_TEXTS:
        return cells.MISSING
    return number.setdefault(key, len(number))


@dataclass(frozen=True)
class UnitIndex:
    """Encoded rows grouped by unit, in compressed form; a unit without rows is still a unit.

    starts: int64 (n_units + 1,), where each unit's rows begin in `rows`
    rows:   int64, indices of encoded records, by unit and within a unit in file order
    """

    starts: np.ndarray
    rows: np.ndarray

    @classmethod
    def from_ids(cls, ids: np.ndarray | None, kept: np.ndarray, max_rows_per_unit: int) -> "UnitIndex":
        """Groups the kept rows by unit, of each unit the first `max_rows_per_unit` in file order.

        ids:  int64 (M,), from `unit_ids`; None if every row is a unit of its own
        kept: bool (M,), from `EncodedRecords`: index i of `rows` is the i-th kept row

        Formal guarantees: a unit has at most max_rows_per_unit rows. Which rows a unit has depends on that unit's rows
        alone, and a unit whose rows were all dropped still counts, so that adding or removing a unit changes no other.
        """
        if ids is None:
            starts = np.zeros(len(kept) + 1, np.int64)
            np.cumsum(kept, out=starts[1:])
            return cls(starts, np.arange(starts[-1]))
        n_units = int(ids.max()) + 1 if len(ids) else 0
        ids = ids[kept]
        by_unit = np.argsort(ids, kind="stable")
        all_counts = np.bincount(ids, minlength=n_units)
        place_in_unit = np.arange(len(ids)) - np.repeat(np.cumsum(all_counts) - all_counts, all_counts)
        rows = by_unit[place_in_unit < max_rows_per_unit]
        starts = np.zeros(n_units + 1, np.int64)
        np.cumsum(np.minimum(all_counts, max_rows_per_unit), out=starts[1:])
        return cls(starts, rows.astype(np.int64))

    @property
    def n_units(self) -> int:
        """Number of units, those without rows included."""
        return len(self.starts) - 1

    def rows_of(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Record indices of some units, and the unit of each, both int64 (B,), in the order of `units`.

        units: integers from 0 to n_units - 1
        """
        first = self.starts[units]
        counts = self.starts[units + 1] - first
        before = np.cumsum(counts) - counts
        positions = np.arange(int(counts.sum())) + np.repeat(first - before, counts)
        return self.rows[positions], np.repeat(units, counts).astype(np.int64)
