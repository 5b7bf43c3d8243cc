"""Rows that two tables have in common: copies, tables that are not held out, and real tables given as synthetic."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import canonical_text, distinct
from dpcgan_fast.data.hashing import mixed
from dpcgan_fast.data.public_cells import codes, modelled_columns, numbers
from dpcgan_fast.data.schema import Schema

_NEARLY_ALL = 0.95
_MIN_ROWS = 20  # of each table: fewer may all be copies by chance


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


def real_as_synthetic_notes(synthetic: pa.Table, real: Mapping[str, pa.Table], schema: Schema) -> list[str]:
    """A warning for each real table that seems to have been given as the synthetic one: figures are as good as can be.

    real: by what to call it, such as "the real test table"
    """
    drawn, notes = row_fingerprints(synthetic, schema), []
    for name, table in real.items():
        found = row_fingerprints(table, schema)
        if np.array_equal(drawn, found) and len(np.unique(found)) > 1:
            seen = f"the synthetic table is {name}, row for row"
        elif _are_taken_from(drawn, found):
            seen = f"nearly all rows of the synthetic table stand, cell for cell, in {name}, whose rows hardly repeat"
        else:
            continue
        notes.append(
            f"WARNING: {seen}: the figures compare real rows with real rows and say nothing about the run. Give rows "
            "that were drawn from it as the synthetic table."
        )
    return notes


def _are_taken_from(drawn: np.ndarray, real: np.ndarray) -> bool:
    """Whether rows are real ones, though another draw of real rows would not be. drawn, real: fingerprints

    Of other rows, about as many are missing from the real ones as stand there just once (Good, Biometrika 40, 1953): if
    that is half of them, nearly all of many different rows do not stand there by chance. With few columns of few
    categories rows repeat, and copies tell nothing.
    """
    if min(len(drawn), len(real)) < _MIN_ROWS or np.isin(drawn, real).mean() < _NEARLY_ALL:
        return False
    _, times = np.unique(real, return_counts=True)
    return bool((times == 1).sum() >= len(real) / 2 and len(np.unique(drawn)) >= len(drawn) / 2)


def shares_a_unit(table: pa.Table, other: pa.Table, schema: Schema) -> bool:
    """Whether both tables have the unit's column and a value of it in common."""
    unit = schema.unit
    if unit is None or unit not in table.column_names or unit not in other.column_names:
        return False
    ids, others = (
        {canonical_text(value) for value in distinct(part[unit], f"column {unit}")[0]} for part in (table, other)
    )
    return not ids.isdisjoint(others)
