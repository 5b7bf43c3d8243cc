"""How one column is written into a record and read back from it.

Each codec knows its blocks (where in the record it stands), encodes cells into a record's positions, and decodes any
values in [0, 1] to cells that the schema allows. A cell that is missing where the schema has no place for missing cells
reads as a public default, never as something taken from the data.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.blocks import MANY_CATEGORIES, Block
from dpcgan_fast.data.knots import numbers_at, places_of
from dpcgan_fast.data.schema import OTHER, Bounds, Column

_LOG_RANGE = 1000.0  # of a log scale: from this share of the bounds' width on it is about logarithmic


class ColumnCodec(Protocol):
    """One column's place in a record.

    blocks:     positions, in order and without gaps
    arrow_type: type of the decoded column
    """

    @property
    def blocks(self) -> tuple[Block, ...]: ...  # noqa: D102

    @property
    def arrow_type(self) -> pa.DataType: ...  # noqa: D102

    def encode(self, column: pa.ChunkedArray, records: np.ndarray, where: str) -> None:
        """Writes cells into this column's positions of records, float32 (N, F), zero there before."""

    def decode(self, records: np.ndarray) -> pa.Array:
        """Cells from this column's positions of records, float (N, F), values in [0, 1]."""
        ...


def column_codec(column: Column, start: int) -> ColumnCodec:
    """The codec of a column whose schema is complete and holds nothing "private", from position `start` on."""
    if column.type == "numeric" and isinstance(column.bounds, tuple):
        quantiles = column.quantiles if isinstance(column.quantiles, tuple) else ()
        is_log = column.scale == "log"
        return NumericCodec(column.name, start, column.bounds, column.integer, column.missing, is_log, quantiles)
    if column.type == "date" and isinstance(column.bounds, tuple):
        return NumericCodec(column.name, start, column.bounds, True, column.missing)
    if column.type == "ordinal" and isinstance(column.categories, tuple):
        return OrdinalCodec(column.name, start, column.categories, column.unknown == "missing")
    if column.type == "binary":
        return FlagCodec(column.name, start, column.missing)
    if column.type == "categorical" and isinstance(column.categories, tuple):
        return CategoryCodec(column.name, start, column.categories, column.unknown, column.missing)
    raise ValueError(f"column {column.name!r} of type {column.type} has no public bounds or categories")


@dataclass(frozen=True)
class NumericCodec:
    """A number scaled to [0, 1]: by its bounds, by the logarithm of its share of them, or by quantiles between them.

    With `missing`, then a flag that is 1 where the cell is missing.

    Out-of-bounds cells are clipped. A missing cell has the middle of the scale as its value. Whole numbers come back
    inside the bounds, too (bounds that hold none, which paid bounds may be, give the whole number nearest to them).
    """

    name: str
    start: int
    bounds: Bounds
    integer: bool = False
    missing: bool = False
    log: bool = False
    quantiles: tuple[float, ...] = ()

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The value, then the flag if there is one."""
        flag = self.start + 1
        value = Block("numeric", self.name, self.start, 1, guard=flag if self.missing else None)
        return (value, Block("absent", self.name, flag, 1)) if self.missing else (value,)

    @property
    def arrow_type(self) -> pa.DataType:
        """int64 for whole numbers, else float64."""
        return pa.int64() if self.integer else pa.float64()

    def encode(self, column: pa.ChunkedArray, records: np.ndarray, where: str) -> None:
        """See `ColumnCodec`."""
        numbers = cells.numeric_values(column, where)
        absent = np.isnan(numbers)
        lower, upper = self.bounds
        places = places_of(np.clip(numbers, lower, upper), self._knots())
        if self.log:
            places = np.log1p(_LOG_RANGE * places) / math.log1p(_LOG_RANGE)
        records[:, self.start] = np.where(absent, 0.5, places)
        if self.missing:
            records[:, self.start + 1] = absent

    def decode(self, records: np.ndarray) -> pa.Array:
        """See `ColumnCodec`."""
        places = records[:, self.start].astype(np.float64)
        if self.log:
            places = np.expm1(places * math.log1p(_LOG_RANGE)) / _LOG_RANGE
        numbers, (lower, upper) = numbers_at(places, self._knots()), self.bounds
        if self.integer:
            lower, upper = _whole_bounds(self.bounds)
            np.rint(numbers, out=numbers)
        np.clip(numbers, lower, upper, out=numbers)
        if self.integer:
            numbers = numbers.astype(np.int64)
        absent = records[:, self.start + 1] >= 0.5 if self.missing else None
        return pa.array(numbers, self.arrow_type, mask=absent)

    def _knots(self) -> np.ndarray:
        return np.array([self.bounds[0], *self.quantiles, self.bounds[1]])


def _whole_bounds(bounds: Bounds) -> tuple[float, float]:
    first, last = (
        min(max(b, -cells.MOST_EXACT), cells.MOST_EXACT) for b in (math.ceil(bounds[0]), math.floor(bounds[1]))
    )
    if first > last:
        first = last = float(round(bounds[0] / 2 + bounds[1] / 2))
    return first, last


@dataclass(frozen=True)
class FlagCodec:
    """A flag, 0 or 1; with `missing`, a one-hot of 0, 1 and missing. Without it, a missing cell reads as 0."""

    name: str
    start: int
    missing: bool = False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One block."""
        if self.missing:
            return (Block("categorical", self.name, self.start, 3),)
        return (Block("binary", self.name, self.start, 1),)

    @property
    def arrow_type(self) -> pa.DataType:
        """int64."""
        return pa.int64()

    def encode(self, column: pa.ChunkedArray, records: np.ndarray, where: str) -> None:
        """See `ColumnCodec`."""
        flags = cells.binary_values(column, where)
        if self.missing:
            slots = np.where(flags == cells.MISSING, 2, flags)
            records[np.arange(len(slots)), self.start + slots] = 1.0
        else:
            records[:, self.start] = flags == 1

    def decode(self, records: np.ndarray) -> pa.Array:
        """See `ColumnCodec`."""
        if self.missing:
            slots = records[:, self.start : self.start + 3].argmax(axis=1)
            return pa.array(slots, pa.int64(), mask=slots == 2)
        return pa.array((records[:, self.start] >= 0.5).astype(np.int64))


@dataclass(frozen=True)
class CategoryCodec:
    """A one-hot over the categories, then `__other__` if unknown ones become it, then "missing" with `missing`.

    A missing cell without a place of its own reads as what an unknown category becomes.
    """

    name: str
    start: int
    categories: tuple[str, ...]
    unknown: str
    missing: bool = False
    wide: bool = False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """One block."""
        width = len(self.categories) + (self.unknown == OTHER) + self.missing
        return (Block("wide" if self.wide else "categorical", self.name, self.start, width),)

    @property
    def arrow_type(self) -> pa.DataType:
        """String."""
        return pa.string()

    def slots(self, column: pa.ChunkedArray, where: str) -> np.ndarray:
        """Which position of the block each cell sets, int64 (N,)."""
        codes = cells.category_codes(column, self.categories, where)
        last = self.blocks[0].width - 1
        unknown = {OTHER: len(self.categories), "missing": last, "first": 0}[self.unknown]
        slots = np.where(codes == cells.UNKNOWN, unknown, codes)
        return np.where(codes == cells.MISSING, last if self.missing else unknown, slots)

    def encode(self, column: pa.ChunkedArray, records: np.ndarray, where: str) -> None:
        """See `ColumnCodec`."""
        slots = self.slots(column, where)
        records[np.arange(len(slots)), self.start + slots] = 1.0

    def decode(self, records: np.ndarray) -> pa.Array:
        """See `ColumnCodec`."""
        block = self.blocks[0]
        names = [*self.categories, *([OTHER] if self.unknown == OTHER else []), *([None] if self.missing else [])]
        slots = records[:, block.start : block.stop].argmax(axis=1)
        return pa.array(names, pa.string()).take(pa.array(slots))


def wide_codec(column: Column) -> CategoryCodec | None:
    """The codec of a column that is known to have many categories; None of any other."""
    if column.type != "categorical" or not isinstance(column.categories, tuple):
        return None
    codec = CategoryCodec(column.name, 0, column.categories, column.unknown, column.missing, wide=True)
    return codec if codec.blocks[0].width > MANY_CATEGORIES else None


@dataclass(frozen=True)
class OrdinalCodec:
    """The place of a category in the order, as the middle of its part of [0, 1]; with `missing`, then a flag.

    An unknown or missing cell reads as missing, or else as the first category.
    """

    name: str
    start: int
    categories: tuple[str, ...]
    missing: bool = False

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The place, then the flag if there is one."""
        flag, n = self.start + 1, len(self.categories)
        place = Block("numeric", self.name, self.start, 1, cells=n, guard=flag if self.missing else None)
        return (place, Block("absent", self.name, flag, 1)) if self.missing else (place,)

    @property
    def arrow_type(self) -> pa.DataType:
        """String."""
        return pa.string()

    def encode(self, column: pa.ChunkedArray, records: np.ndarray, where: str) -> None:
        """See `ColumnCodec`."""
        places = cells.category_codes(column, self.categories, where)
        absent = places < 0
        if self.missing:
            records[:, self.start + 1] = absent
        first = 0.5 / len(self.categories)
        values = np.where(absent, 0.5 if self.missing else first, places / len(self.categories) + first)
        records[:, self.start] = values

    def decode(self, records: np.ndarray) -> pa.Array:
        """See `ColumnCodec`."""
        last = len(self.categories) - 1
        places = np.minimum((records[:, self.start] * len(self.categories)).astype(np.int64), last)
        absent = records[:, self.start + 1] >= 0.5 if self.missing else None
        return pa.array(self.categories, pa.string()).take(pa.array(places, mask=absent))


@dataclass(frozen=True)
class CodesCodec:
    """A set of codes: a position for each code of the vocabulary. Codes that are not in it do not count.

    Of a record's codes at most `max_codes` are used; see `CodeRows.capped`. A vocabulary without codes, which a
    paid one may be, keeps one position that no cell sets and that is read as nothing.
    """

    name: str
    start: int
    vocabulary: tuple[str, ...]
    max_codes: int

    @property
    def block(self) -> Block:
        """One block."""
        return Block("codes", self.name, self.start, max(1, len(self.vocabulary)))

    @property
    def arrow_type(self) -> pa.DataType:
        """List of strings."""
        return pa.list_(pa.string())

    def decode(self, records: np.ndarray) -> pa.Array:
        """Cells from this column's positions of records, float (N, F); NaN counts as one half."""
        width = len(self.vocabulary)
        given = ~(records[:, self.start : self.start + width] < 0.5)
        rows, positions = np.divmod(np.flatnonzero(given), max(1, width))
        starts = np.searchsorted(rows, np.arange(len(records) + 1))
        names = pa.array(self.vocabulary, pa.string()).take(pa.array(positions))
        return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), names)
