"""Training rows as a release counts them: each with the class and the weight that its unit gives it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.public_cells import cell_count, cells, codes, label_of
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.data.units import UnitIndex, unit_ids
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy.releases import row_weights

TRAINING_TABLE = "the training table"  # what an error calls a table that came without a name
_BLOCK = 1 << 22  # values that are looked at together
_LEAST_ROWS = 1 << 11  # of a block: each costs a look at every column


@dataclass(frozen=True)
class Rows:
    """A training table for releases.

    classes:     (rows,) int64, the label's class; 0 where it is not known
    weights:     (rows,) float64; those of one unit sum to 1, see `row_weights`, or to 0 if none has a known class
    class_count: number of classes, 1 without a label
    """

    table: pa.Table
    classes: np.ndarray
    weights: np.ndarray
    class_count: int
    _made: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table, schema: Schema, where: str = TRAINING_TABLE) -> "Rows":
        """Raises InputError if the table does not fit the schema. where: what to call the table in an error"""
        label = label_of(schema)
        class_count = 1 if label is None else len(label.classes())
        classes = np.zeros(table.num_rows, dtype=np.int64) if label is None else codes(table, label)
        known = classes < class_count
        return cls(table, np.where(known, classes, 0), _weights(table, schema, known, where), class_count)

    def cells(self, column: Column) -> np.ndarray:
        """The public cell of every row, (rows,) whole numbers, see `public_cells.cells`; it is read once."""
        return self.once(f"cells: {column.name}", cell_count(column), lambda: cells(self.table, column))

    def once(self, name: str, count: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Whole numbers in [0, count), (rows,), that are made when they are asked for first, and then kept by a name.

        They are of the narrowest type: all columns of all rows are in memory together.
        """
        if name not in self._made:
            self._made[name] = make().astype(np.min_scalar_type(max(count - 1, 0)))
        return self._made[name]

    def blocks(self, width: int) -> Iterator[tuple[slice, "Rows"]]:
        """Blocks of rows, of which numbers (rows, width) take little memory, and where they are; in order."""
        size = max(_BLOCK // max(width, 1), _LEAST_ROWS)
        for first in range(0, len(self.classes), size):
            part = slice(first, first + size)
            own = self.table.slice(first, size)
            yield part, Rows(own, self.classes[part], self.weights[part], self.class_count)

    def histogram(self, found: np.ndarray, width: int) -> np.ndarray:
        """Weight of the rows of each class in each cell: (class_count, width) float64.

        found: (rows,) whole numbers in [0, width)

        Formal guarantee: a unit adds non-negative numbers that sum to at most 1, and so at most 1 in L2 norm.
        """
        places = self.classes * width + found
        return np.bincount(places, self.weights, minlength=self.class_count * width).reshape(self.class_count, width)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Weighted sum over the rows of each class: (class_count, n) float64. values: (rows, n).

        Formal guarantee: with rows of L2 norm at most 1, a unit adds at most 1 in L2 norm.
        """
        of_class = (self.classes == np.arange(self.class_count)[:, None]) * self.weights
        return of_class @ values


def _weights(table: pa.Table, schema: Schema, counted: np.ndarray, where: str) -> np.ndarray:
    """Of the rows that are counted, a unit's first max_rows_per_unit weigh the same, see `row_weights`."""
    if schema.unit is not None and schema.unit not in table.column_names:
        raise InputError(
            "The table lacks the unit's column",
            f"{where}, column {schema.unit}",
            f"Give a table with the column {schema.unit}.",
        )
    index = UnitIndex.from_ids(unit_ids(table, schema, where), counted, schema.max_rows_per_unit)
    used = np.diff(index.starts)
    weights = np.zeros(table.num_rows)
    weights[np.flatnonzero(counted)[index.rows]] = row_weights(np.repeat(used, used))
    return weights
