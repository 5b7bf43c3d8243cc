"""How all visits of a person are written into the positions of a record, and read back.

Whether there is a visit is written as whether the person came again, and the cells of a column as its course (see
`courses`). What a record says of visits that are not there is always the same, and nothing is judged by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.blocks import Block
from dpcgan_fast.data.column_codecs import ColumnCodec
from dpcgan_fast.data.courses import Course, NumberCourse, StateCourse
from dpcgan_fast.data.schema import Column, Schema, Visits
from dpcgan_fast.data.visit_columns import number_name, slot_name


@dataclass(frozen=True)
class NumberCodec:
    """The number of a person's last visit: for each visit but the first a flag that is 1 where there is none any more.

    A flag is judged where the person had the visit before, so that flags drawn by themselves give numbers as they are.
    """

    name: str
    start: int
    most: int

    @property
    def blocks(self) -> tuple[Block, ...]:
        """A block a flag."""
        starts = range(self.start, self.start + self.most - 1)
        return tuple(
            Block("absent", self.name, start, 1, guard=start - 1 if start > self.start else None) for start in starts
        )

    @property
    def arrow_type(self) -> pa.DataType:
        """int64."""
        return pa.int64()

    def encode(self, column: pa.ChunkedArray, records: np.ndarray, where: str) -> None:
        """See `ColumnCodec`."""
        numbers = cells.numeric_values(column, where)
        records[:, self.start : self.start + self.most - 1] = numbers[:, None] < np.arange(2, self.most + 1)

    def decode(self, records: np.ndarray) -> pa.Array:
        """See `ColumnCodec`."""
        return pa.array(self.there(records).sum(1))

    def flag(self, slot: int) -> int | None:
        """Position of the flag that there is no visit of that number, from 0, any more; None for the first."""
        return self.start + slot - 1 if slot > 0 else None

    def there(self, records: np.ndarray) -> np.ndarray:
        """Visits that are not after the last one, bool (N, most)."""
        gone = records[:, self.start : self.start + self.most - 1] >= 0.5
        return ~np.logical_or.accumulate(np.column_stack([np.zeros(len(records), bool), gone]), axis=1)


def _visits_of(rows: Schema) -> Visits:
    assert rows.visits is not None
    return rows.visits


def coded_columns(rows: Schema, columns: tuple[Column, ...]) -> dict[str, Column]:
    """Columns of visits as they are written, by name: that there is no visit needs no place in each of its cells.

    rows:    the schema of rows
    columns: of records
    """
    visits, of_records = _visits_of(rows), {column.name: column for column in columns}
    coded = {}
    for slot in range(1, visits.n_slots + 1):
        for own in filter(lambda column: visits.differs(column.name), rows.columns):
            column = of_records.get(slot_name(own.name, slot))
            if column is not None and not (own.name == visits.time and visits.bins is not None):
                coded[column.name] = column.model_copy(update={"missing": own.missing, "unknown": own.unknown})
    return coded


@dataclass(frozen=True)
class _Course:
    """A column's course, and where a flag says that it has no cell of its own at a visit, position or None by slot."""

    course: Course
    absent: tuple[int | None, ...]


class VisitCoding:
    """The visits in records whose columns have been written each by its codec.

    rows:   the schema of rows
    codecs: by name of the column, of all positions of a record

    blocks: those of the codecs, in order; those of a visit are guarded by the flag that it is not there
    guards: position of that flag, or None, for each column of a visit, also those of codes
    """

    def __init__(self, rows: Schema, codecs: Mapping[str, ColumnCodec]):
        self._visits = visits = _visits_of(rows)
        number = codecs[number_name(visits)]
        assert isinstance(number, NumberCodec)
        self._number = number
        # In bins the time's flag says whether there is a visit; position by slot, None where it is always there.
        self._empty: list[int | None] = [None] * visits.n_slots
        self.guards: dict[str, int | None] = {}
        self._columns: list[list[str]] = []  # by slot, those that have a codec here
        for slot in range(visits.n_slots):
            names = [slot_name(column.name, slot + 1) for column in rows.columns if visits.differs(column.name)]
            time = slot_name(visits.time, slot + 1)
            if visits.bins is not None and time in codecs and codecs[time].blocks[-1].kind == "absent":
                self._empty[slot] = codecs[time].blocks[-1].start
            after_last, empty = number.flag(slot), self._empty[slot]
            self.guards |= {name: after_last if name == time or empty is None else empty for name in names}
            self._columns.append([name for name in names if name in codecs])
        blocks = {
            name: [replace(b, guard=self.guards.get(name)) if b.guard is None else b for b in codec.blocks]
            for name, codec in codecs.items()
        }
        self._courses = [
            self._course(column, [blocks[slot_name(column.name, slot)] for slot in range(1, visits.n_slots + 1)])
            for column in rows.columns
            if visits.differs(column.name) and column.name != visits.time and column.type != "codes"
        ]
        hidden = {own.course.positions[0] for own in self._courses if isinstance(own.course, NumberCourse)}
        self.blocks: tuple[Block, ...] = tuple(
            replace(b, hidden=b.start in hidden and b.guard is not None) for own in blocks.values() for b in own
        )
        # Flags first, in order: what they say of each other and of all else.
        self._guarded = sorted(
            (b for b in self.blocks if b.guard is not None and not b.hidden), key=lambda b: b.kind != "absent"
        )

    @staticmethod
    def _course(column: Column, slots: list[list[Block]]) -> _Course:
        values = tuple(blocks[0] for blocks in slots)
        absent = tuple(blocks[-1].start if blocks[-1].kind == "absent" else None for blocks in slots)
        if column.type in ("numeric", "date"):
            return _Course(NumberCourse(tuple(block.start for block in values)), absent)
        missing = values[0].width - 1 if column.missing and values[0].kind == "categorical" else None
        return _Course(StateCourse(values, missing), absent)

    def encode(self, records: np.ndarray) -> None:
        """Rewrites records (N, F), in which each cell is written by its codec, in place."""
        there = self._there(records)
        for own in self._courses:
            own.course.encode(records, there & self._with_cells(records, own))
        for block in self._guarded:
            records[records[:, block.guard] >= 0.5, block.start : block.stop] = block.idle

    def decode(self, records: np.ndarray) -> np.ndarray:
        """Writes into records (N, F) what each codec can read, in place; which visits there are, bool (N, n_slots)."""
        last = self._number.there(records).sum(1) - 1
        for slot, flag in enumerate(self._empty):
            if flag is not None:
                records[last == slot, flag] = 0.0  # the last visit is one
        there = self._there(records)
        for own in self._courses:
            own.course.decode(records, there & self._with_cells(records, own))
        return there

    def without_absent(self, columns: dict[str, pa.Array], there: np.ndarray) -> dict[str, pa.Array]:
        """Decoded columns with missing cells where there is no visit; sets of codes stay, which cannot be missing."""
        absent = {
            name: cells.compute.if_else(pa.array(there[:, slot]), columns[name], pa.scalar(None, columns[name].type))
            for slot, names in enumerate(self._columns)
            for name in names
        }
        return {**columns, **absent}

    def _there(self, records: np.ndarray) -> np.ndarray:
        there = self._number.there(records)
        for slot, flag in enumerate(self._empty):
            if flag is not None:
                there[:, slot] &= records[:, flag] < 0.5
        return there

    @staticmethod
    def _with_cells(records: np.ndarray, own: _Course) -> np.ndarray:
        known = [np.ones(len(records), bool) if flag is None else records[:, flag] < 0.5 for flag in own.absent]
        return np.stack(known, axis=1)
