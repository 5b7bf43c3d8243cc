"""Tables from files and from memory, with exactly the columns that a schema wants.

A cell of a CSV file, or of a DataFrame's column of mixed types, stays text until its column's schema says what it is:
type inference would let one row decide how all others are read. The parsers' own messages quote the row at fault, so
none of them is ever passed on.
"""

import contextlib
import csv
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dpcgan_fast.data import cells
from dpcgan_fast.errors import DpcganError, InputError, MachineError


class ArrowStream(Protocol):
    """A table in memory: pyarrow.Table, pandas.DataFrame, and whatever else speaks the Arrow stream interface."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


TableSource = str | os.PathLike[str] | ArrowStream

_TYPED_KINDS = "biuf"  # numpy's letters for booleans, integers and floats
_SEPARATORS = ",;\t"
_PARQUET_MAGIC = b"PAR1"
_PARQUET_ENDINGS = (".parquet", ".pq")
# Of the files in a folder; a file that is given by itself may have any ending.
_SHARD = re.compile(r"(?P<stem>.+)\.(parquet|pq|(?P<text>csv|tsv)(\.(gz|bz2|zst|lz4|br))?)", re.IGNORECASE)
_LEFT_BY_TOOLS = "._"  # first letters of names that tools leave beside data, such as _SUCCESS
_LONGEST_HEADER = 1 << 26  # bytes
# Cells in quotes may hold line breaks; quotes inside a cell are text. Possessive, so that the time is linear.
_HEADER = re.compile(rb'((?:(?:"(?:[^"]++|"")*+")?+[^,;\t\r\n]*+[,;\t]?+)*+)[\r\n]')
# A row must fit into one block. The second size is for the rare file with longer rows; beyond it a quote was left open.
_BLOCK_SIZES = (1 << 24, 1 << 28)  # bytes
_UNREADABLE = (pa.ArrowException, OSError, ValueError, MemoryError)
_UTF8 = "Save the file as UTF-8 text."


@dataclass(frozen=True)
class _Opened:
    """A source whose column names are known and whose cells are still unread."""

    where: str
    names: tuple[str, ...]
    read: Callable[[list[str]], pa.Table]


def read_table(source: TableSource, wanted: Sequence[str]) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads the wanted columns of a table, and names the columns that were left.

    source: path of a CSV file (separator , ; or tab; compressed if its ending says so), of a Parquet file, or of a
            folder of files of one of the two kinds, which are one table in the order of their names; a pandas
            DataFrame, a pyarrow Table, or another table with the Arrow stream interface
    wanted: names of columns, at least one

    Returns a table with exactly the wanted columns in that order, CSV cells as strings and all else as it is typed; and
    the names of the other columns, in the order of the data.

    Raises InputError, which names file, column and row (the first row after the header is row 1) and quotes no cell.
    """
    opened = _open(source)
    present = set(opened.names)
    lacking = [name for name in wanted if name not in present]
    if lacking:
        more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        how = "Correct the name in the schema, or take the column out of it."
        raise InputError("The data lack a column of the schema", f"{opened.where}, column {lacking[0]}{more}", how)
    table = opened.read(list(wanted)).replace_schema_metadata(None)
    if table.num_rows == 0:
        raise InputError("The data have no rows", opened.where, "Give a table with at least one row.")
    chosen = set(wanted)
    return table, tuple(name for name in opened.names if name not in chosen)


def column_names(source: TableSource) -> tuple[str, ...]:
    """Names of all columns of a source, in its order. Raises InputError as `read_table` does."""
    return _open(source).names


def _open(source: TableSource) -> _Opened:
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        opened = _open_folder(path) if path.is_dir() else _open_file(path)
    elif _is_frame(source):
        opened = _open_frame(source)
    else:
        opened = _open_arrow(source)
    _refuse_repeated_names(opened)
    return opened


def _refuse_repeated_names(opened: _Opened) -> None:
    """Says which columns by position: the first line of a file without a header is a person's row."""
    first: dict[str, int] = {}
    for position, name in enumerate(opened.names, start=1):
        if name in first:
            where = f"{opened.where}, columns {first[name]} and {position}"
            raise InputError("Two columns have the same name", where, "Give each column a name of its own.")
        first[name] = position


# ---- tables in memory


def _is_frame(source: object) -> bool:
    """Whether it is a pandas DataFrame; pandas itself need not be installed."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def _open_frame(frame: Any) -> _Opened:
    names = tuple(str(label) for label in frame.columns)

    def read(wanted: list[str]) -> pa.Table:
        position = {name: i for i, name in enumerate(names)}
        return pa.table({name: _frame_column(frame.iloc[:, position[name]], name) for name in wanted})

    return _Opened("DataFrame", names, read)


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


def _open_arrow(source: Any) -> _Opened:
    if not hasattr(source, "__arrow_c_stream__"):
        how = "Give a path, a pandas DataFrame or a pyarrow Table."
        raise InputError(f"The data are of a type that cannot be read: {type(source).__name__}", "data", how)
    table = source if isinstance(source, pa.Table) else pa.table(source)
    return _Opened("table", tuple(table.column_names), lambda wanted: table.select(wanted))


# ---- files


def _open_folder(folder: Path) -> _Opened:
    """All data files of a folder as one table, in the order of their names."""
    how = "Give a folder of CSV files alone or of Parquet files alone, all with the same columns."
    try:
        paths = sorted(path for path in folder.iterdir() if path.name[0] not in _LEFT_BY_TOOLS)
    except OSError as error:
        raise _unreadable(folder, error) from None
    if not paths:
        raise InputError("The folder holds no data file", str(folder), how)
    first: dict[str, Path] = {}  # by name without the ending
    formats: set[bool] = set()
    for path in paths:
        shard = _SHARD.fullmatch(path.name)
        if not shard:
            raise InputError("The folder holds something that is neither CSV nor Parquet", str(path), how)
        formats.add(shard["text"] is None)
        twin = first.setdefault(shard["stem"], path)
        if twin is not path:  # the same people would count twice
            what = f"A file has the name of {twin.name} but for the ending, and may hold the same rows"
            raise InputError(what, str(path), "Leave one of them, or give them different names.")
    if len(formats) > 1:  # cells of the one are text, of the other typed
        raise InputError("The folder holds both CSV and Parquet files", str(folder), how)
    parts = [_open_file(path) for path in paths]
    for part in parts:
        _refuse_repeated_names(part)
        if set(part.names) != set(parts[0].names):  # not named: without a header, names are a person's row
            raise InputError(f"A file has other columns than {paths[0].name}", part.where, how)

    def read(wanted: list[str]) -> pa.Table:
        tables = [_without_dictionaries(part.read(wanted)) for part in parts]
        for name in wanted:
            try:
                pa.unify_schemas([table.select([name]).schema for table in tables], promote_options="permissive")
            except pa.ArrowException:
                what, where = "A column has different types in the files of a folder", f"{folder}, column {name}"
                raise InputError(what, where, "Write the files again, with one type for each column.") from None
        return pa.concat_tables(tables, promote_options="permissive")

    return _Opened(str(folder), parts[0].names, read)


def _without_dictionaries(table: pa.Table) -> pa.Table:
    """Plain columns, without metadata, so that those of two files fit."""
    fields = [
        pa.field(field.name, field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
        for field in table.schema
    ]
    return table.cast(pa.schema(fields))


def _open_file(path: Path) -> _Opened:
    try:
        if path.exists() and not path.is_file():  # a pipe could not be read twice
            what = f"A {'folder' if path.is_dir() else 'pipe or device'} was given in place of a data file"
            raise InputError(what, str(path), "Give the path of a file, or of a folder of files.")
        with path.open("rb") as file:
            head = file.read(len(_PARQUET_MAGIC))
    except FileNotFoundError:
        raise InputError("The data file does not exist", str(path), "Check the path.") from None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not head:
        raise InputError("The data file is empty", str(path), "Give a CSV or Parquet file with a header and rows.")
    if head == _PARQUET_MAGIC:
        return _open_parquet(path)
    if path.suffix.lower() in _PARQUET_ENDINGS:
        how = "Write it again as Parquet, or give it the ending .csv if it is a CSV file."
        raise InputError("The file is not a Parquet file, as its ending says", str(path), how)
    return _open_csv(path)


def _unreadable(path: Path, error: Exception) -> DpcganError:
    if isinstance(error, MemoryError):
        return MachineError("Out of memory", str(path), "Use a machine with more memory, or a smaller file.")
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else "damaged, cut short, or not what its ending says"
    return InputError(f"The data file cannot be read: {reason}", str(path), "Check the file, or write it again.")


def _open_parquet(path: Path) -> _Opened:
    try:
        with pq.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None

    def read(wanted: list[str]) -> pa.Table:
        try:
            with pq.ParquetFile(path) as file:
                table = file.read(columns=wanted).select(wanted)
            table.validate(full=True)  # a damaged file can hold offsets and text that would crash a later reader
        except _UNREADABLE as error:
            raise _unreadable(path, error) from None
        return table

    return _Opened(str(path), names, read)


def _open_csv(path: Path) -> _Opened:
    try:
        header = _header_line(path)
        text = header.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("The header is not UTF-8 text", str(path), _UTF8) from None
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if not text.strip():
        raise InputError("The data file is empty", str(path), "Give a CSV file with a header line and rows.")
    if "\0" in text:
        raise InputError("The file is not a text file", str(path), _UTF8)
    outside_quotes = re.sub(r'"[^"]*"', "", text)
    separator = max(_SEPARATORS, key=outside_quotes.count)
    try:
        names = tuple(next(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)))
    except csv.Error:
        how = "Check that every quotation mark is closed."
        raise InputError("The header line cannot be split into column names", str(path), how) from None
    return _Opened(str(path), names, lambda wanted: _read_csv(path, separator, wanted))


def _header_line(path: Path) -> bytes:
    """The first line that is not blank, up to the first line break outside quotes; decompressed, not decoded."""
    header = b""
    with pa.input_stream(path, compression="detect") as stream:
        while len(header) < _LONGEST_HEADER and (chunk := stream.read(max(1 << 20, len(header)))):
            header = (header + chunk).lstrip(b"\r\n")
            line = _HEADER.match(header)
            if line:
                return line[1]
    return header


def _read_csv(path: Path, separator: str, wanted: list[str]) -> pa.Table:
    for block_size in _BLOCK_SIZES:
        ragged: list[pacsv.InvalidRow] = []
        try:
            parsed = _parse_csv(path, separator, wanted, block_size, ragged)
        except pa.ArrowInvalid as error:
            if ragged:
                raise _ragged(path, separator, wanted, block_size, ragged) from None
            message = str(error)  # to be read, not shown
            if "straddling" in message:
                continue
            if "Empty CSV" in message:  # a header without a line break at its end
                return pa.table({name: pa.array([], pa.string()) for name in wanted})
            raise _unreadable(path, error) from None
        except _UNREADABLE as error:
            raise _unreadable(path, error) from None
        return pa.table({name: _as_text(parsed[name], path, name) for name in wanted})
    what = f"A row is longer than {_BLOCK_SIZES[-1] >> 20} MiB"
    raise InputError(what, str(path), "Check that every quotation mark is closed.")


def _parse_csv(
    path: Path, separator: str, wanted: list[str], block_size: int, ragged: list[pacsv.InvalidRow], threads: bool = True
) -> pa.Table:
    """Cells as bytes: so that text which is not UTF-8 can be located. Rows of a wrong length go to `ragged`."""

    def refuse(row: pacsv.InvalidRow) -> str:
        ragged.append(row)
        return "error"

    with pa.input_stream(path, compression="detect") as stream:
        return pacsv.read_csv(
            stream,
            read_options=pacsv.ReadOptions(block_size=block_size, use_threads=threads),
            parse_options=pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=pacsv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())
            ),
        )


def _ragged(
    path: Path, separator: str, wanted: list[str], block_size: int, ragged: list[pacsv.InvalidRow]
) -> InputError:
    """The error for a row with too few or too many cells; a second, serial pass counts the rows before it."""
    again: list[pacsv.InvalidRow] = []
    try:
        _parse_csv(path, separator, wanted, block_size, again, threads=False)
    except pa.ArrowInvalid:
        ragged = again or ragged
    first = ragged[0]
    row = f", row {first.number - 1}" if first.number else ""  # the parser counts the header as row 1
    what = f"A row has {first.actual_columns} cells where the header has {first.expected_columns}"
    how = "Correct the row: a cell with a separator or line break stands in quotation marks, and each mark is closed."
    return InputError(what, f"{path}{row}", how)


def _as_text(column: pa.ChunkedArray, path: Path, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        row = next(i for i, cell in enumerate(column, start=1) if not _is_utf8(cell.as_py()))
        raise InputError("A cell is not UTF-8 text", f"{path}, column {name}, row {row}", _UTF8) from None


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True
