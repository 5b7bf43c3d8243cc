"""The draft of a schema: names and types of a table's columns, and nothing else of what it holds.

The draft reads the data (types and whether cells are missing), so it is outside the privacy claim, which begins with
the schema that a person has filled in. No value of the data is copied into it.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.csr_files import is_matrix_file, read_code_matrix
from dpcgan_fast.data.reading import TableSource, column_names, open_with, read_table
from dpcgan_fast.data.schema import UNDECIDED_UNIT
from dpcgan_fast.data.table_files import MEDS_CODE, MEDS_UNIT, is_meds


def draft_schema(source: TableSource) -> dict[str, Any]:
    """A schema to be filled in, as a dict for a JSON file: what a person must decide is "?" (the unit) or null.

    A column is binary if all cells that are not missing are 0 or 1, numeric if all are numbers (`integer` if all are
    whole), else categorical; columns of lists are codes. `missing` is true if a cell is empty, NA, NaN, N/A or null.
    A code matrix (.npz) and a folder in the MEDS standard have one column of codes; of the latter, values and times are
    left out.
    Raises InputError if the data cannot be read; the message quotes no cell.
    """
    if is_matrix_file(source):
        read_code_matrix(Path(str(source)))
        return _draft(None, [_codes("codes")])
    if isinstance(source, (str, os.PathLike)) and is_meds(Path(source)):
        open_with(source, [MEDS_UNIT, MEDS_CODE])
        return _draft(MEDS_UNIT, [_codes(MEDS_CODE)])
    table, _ = read_table(source, column_names(source))
    return _draft(UNDECIDED_UNIT, [_draft_column(name, table[name]) for name in table.column_names])


def _draft(unit: str | None, columns: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "version": 1,
        "unit": unit,
        "n_units": None,
        "max_rows_per_unit": 1,
        "label": None,
        "columns": columns,
        "signals": [],
    }


def _codes(name: str) -> dict[str, Any]:
    return {"name": name, "type": "codes", "vocabulary": None}


def _draft_column(name: str, column: pa.ChunkedArray) -> dict[str, Any]:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _codes(name)
    numbers, is_text = cells.parse_numbers(column, words={})
    missing = {"missing": True} if (np.isnan(numbers) & ~is_text).any() else {}
    if is_text.any():
        return {"name": name, "type": "categorical", "categories": None, **missing}
    present = numbers[~np.isnan(numbers)]
    if np.isin(present, (0.0, 1.0)).all():
        return {"name": name, "type": "binary", **missing}
    whole = {"integer": True} if (np.isfinite(present) & (np.rint(present) == present)).all() else {}
    return {"name": name, "type": "numeric", "bounds": None, **whole, **missing}
