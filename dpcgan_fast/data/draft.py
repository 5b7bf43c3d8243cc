"""The draft of a schema: names and types of a table's columns, and nothing else of what it holds.

The draft reads the data (types and whether cells are missing), so it is outside the privacy claim, which begins with
the schema that a person has filled in. No value of the data is copied into it.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.reading import TableSource, column_names, read_table
from dpcgan_fast.data.schema import UNDECIDED_UNIT


def draft_schema(source: TableSource) -> dict[str, Any]:
    """A schema to be filled in, as a dict for a JSON file: what a person must decide is "?" (the unit) or null.

    A column is binary if all cells that are not missing are 0 or 1, numeric if all are numbers (`integer` if all are
    whole), else categorical; `missing` is true if a cell is empty, NA, NaN, N/A or null.
    Raises InputError if the data cannot be read; the message quotes no cell.
    """
    table, _ = read_table(source, column_names(source))
    return {
        "version": 1,
        "unit": UNDECIDED_UNIT,
        "n_units": None,
        "max_rows_per_unit": 1,
        "label": None,
        "columns": [_draft_column(name, table[name]) for name in table.column_names],
        "signals": [],
    }


def _draft_column(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    numbers, is_text = cells.parse_numbers(column, words={})
    missing = {"missing": True} if (np.isnan(numbers) & ~is_text).any() else {}
    if is_text.any():
        return {"name": name, "type": "categorical", "categories": None, **missing}
    present = numbers[~np.isnan(numbers)]
    if np.isin(present, (0.0, 1.0)).all():
        return {"name": name, "type": "binary", **missing}
    whole = {"integer": True} if (np.isfinite(present) & (np.rint(present) == present)).all() else {}
    return {"name": name, "type": "numeric", "bounds": None, **whole, **missing}
