"""Rows that two tables have in common: copies of training rows, and test tables that are not held out."""

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import canonical_text, distinct
from dpcgan_fast.data.hashing import mixed
from dpcgan_fast.data.public_cells import codes, modelled_columns, numbers
from dpcgan_fast.data.schema import Schema


def row_fingerprints(table: pa.Table, schema: Schema) -> np.ndarray:
    """A hash of every row's modelled columns as the model sees them: (rows,) uint64; equal rows have equal ones."""
    hashes = np.zeros(table.num_rows, dtype=np.uint64)
    for column in modelled_columns(schema):
        if column.type == "numeric":
            values = numbers(table, column) + 0.0  # -0.0 becomes 0.0
            bits = np.where(np.isnan(values), np.nan, values).view(np.uint64)
        else:
            bits = codes(table, column).astype(np.uint64)
        hashes = mixed(hashes ^ bits)
    return hashes


def share_of_copies(table: pa.Table, source: pa.Table, schema: Schema) -> float:
    """Share of the rows of `table` that also stand, cell for cell, in `source`; 0 for a table without rows."""
    if table.num_rows == 0:
        return 0.0
    return float(np.isin(row_fingerprints(table, schema), row_fingerprints(source, schema)).mean())


def shares_a_unit(table: pa.Table, other: pa.Table, schema: Schema) -> bool:
    """Whether both tables have the unit's column and a value of it in common."""
    unit = schema.unit
    if unit is None or unit not in table.column_names or unit not in other.column_names:
        return False
    ids, others = (
        {canonical_text(value) for value in distinct(part[unit], f"column {unit}")[0]} for part in (table, other)
    )
    return not ids.isdisjoint(others)
