"""Tables from files and from memory, with exactly the columns that a schema wants.

A cell of a CSV file, or of a DataFrame's column of mixed types, stays text until its column's schema says what it is:
type inference would let one row decide how all others are read. The parsers' own messages quote the row at fault, so
none of them is ever passed on.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.names import did_you_mean
from dpcgan_fast.data.opened import Opened, opened_table, refuse_repeated_names
from dpcgan_fast.data.table_files import open_path
from dpcgan_fast.errors import InputError


class ArrowStream(Protocol):
    """A table in memory: pyarrow.Table, pandas.DataFrame, and whatever else speaks the Arrow stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


TableSource = str | os.PathLike[str] | ArrowStream

CORRECT_THE_SCHEMA = "Correct the name in the schema, or take the column out of it."

_TYPED_KINDS = "biuf"  # numpy's letters for booleans, integers and floats


def read_table(source: TableSource, wanted: Sequence[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads the wanted columns of a table, and names the columns that were left.

    source: path of a CSV file (separator , ; or tab; compressed if its ending says so), of a Parquet file, or of a
            folder of files of one of the two kinds, which are one table in the order of their names, also a MEDS one;
            a pandas DataFrame, a pyarrow Table, or another table with the Arrow stream interface
    wanted: names of columns, at least one

    Returns a table with exactly the wanted columns in that order, CSV cells as strings and all else as it is typed; and
    the names of the other columns, in the order of the data.

    Raises InputError, which names file, column and row (the first row after the header is row 1) and quotes no cell.
    """
    opened, left = open_with(source, wanted)
    return read_opened(opened, wanted), left


def open_with(
    source: TableSource, wanted: Sequence[str], remedy: str = CORRECT_THE_SCHEMA
) -> tuple[Opened, tuple[str, ...]]:
    """A table that is still unread, with the wanted columns, and its other ones.

    remedy: what to do about a column that it lacks
    Raises InputError if it lacks one.
    """
    opened = open_source(source)
    present = set(opened.names)
    lacking = [name for name in wanted if name not in present]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        question = did_you_mean(lacking[0], [name for name in opened.names if name not in wanted])
        how = f"{question[0].upper()}{question[1:]} {remedy}" if question else remedy
        raise InputError("The data lack a column of the schema", f"{opened.where}, column {lacking[0]}{more}", how)
    chosen = set(wanted)
    return opened, tuple(name for name in opened.names if name not in chosen)


def read_opened(opened: Opened, wanted: Sequence[str]) -> pa.Table:
    """The wanted columns of a table that `open_with` gave. Raises InputError as `read_table` does."""
    table = opened.read(list(wanted)).replace_schema_metadata(None)
    if table.num_rows == 0:
        raise no_rows(opened.where)
    return table


def no_rows(where: str) -> InputError:
    """The error for a table without rows."""
    return InputError("The data have no rows", where, "Give a table with at least one row.")


def column_names(source: TableSource) -> tuple[str, ...]:
    """Names of all columns of a source, in its order. Raises InputError as `read_table` does."""
    return open_source(source).names


def open_source(source: TableSource) -> Opened:
    """A table that is still unread. Raises InputError if it is none, or two of its columns have the same name."""
    if isinstance(source, (str, os.PathLike)):
        opened = open_path(Path(source))
    elif _is_frame(source):
        opened = _open_frame(source)
    else:
        opened = _open_arrow(source)
    refuse_repeated_names(opened)
    return opened


# ---- tables in memory


def _is_frame(source: object) -> bool:
    """Whether it is a pandas DataFrame; pandas itself need not be installed."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def _open_frame(frame: Any) -> Opened:
    names = tuple(str(label) for label in frame.columns)

    def read(wanted: list[str]) -> pa.Table:
        position = {name: i for i, name in enumerate(names)}
        return pa.table({name: _frame_column(frame.iloc[:, position[name]], name) for name in wanted})

    return opened_table("DataFrame", names, read)


def _frame_column(series: Any, name: str) -> pa.Array | pa.ChunkedArray:
    """Columns whose dtype says that they hold numbers or booleans are typed; all others become text, cell by cell.

    One odd cell makes pandas' column of numbers a column of objects, so a number must read as the number does, and a
    boolean as the boolean, in either form; see `cells.cell_text`.
    """
    if series.dtype.kind in _TYPED_KINDS:
        with contextlib.suppress(pa.ArrowException):  # a type that Arrow lacks, such as long double
            return pa.Array.from_pandas(series)
    rows = enumerate(zip(series, series.isna(), strict=True), start=1)
    return pa.array([None if absent else _frame_cell(cell, name, row) for row, (cell, absent) in rows], pa.string())


def _frame_cell(cell: object, name: str, row: int) -> str:
    if isinstance(cell, (list, tuple, dict, set)) or getattr(cell, "ndim", 0):
        where = f"DataFrame, column {name}, row {row}"
        raise InputError("A cell is not a single value", where, "Leave the column out.")
    return cells.cell_text(cell)


def _open_arrow(source: Any) -> Opened:
    if not hasattr(source, "__arrow_c_stream__"):
        how = "Give a path, a pandas DataFrame or a pyarrow Table."
        raise InputError(f"The data are of a type that cannot be read: {type(source).__name__}", "data", how)
    table = source if isinstance(source, pa.Table) else pa.table(source)
    return opened_table("table", tuple(table.column_names), lambda wanted: table.select(wanted))
