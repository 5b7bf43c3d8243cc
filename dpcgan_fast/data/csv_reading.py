"""CSV files: every cell as text, with errors that name the row and quote nothing of it."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from dpcgan_fast.data.opened import UNREADABLE, Opened
from dpcgan_fast.errors import DpcganError, InputError
from dpcgan_fast.files import unreadable

_SEPARATORS = ",;\t"
_LONGEST_HEADER = 1 << 26  # bytes
# Cells in quotes may hold line breaks; quotes inside a cell are text. Possessive, so that the time is linear.
_HEADER = re.compile(rb'((?:(?:"(?:[^"]++|"")*+")?+[^,;\t\r\n]*+[,;\t]?+)*+)[\r\n]')
# A row must fit into one block. The second size is for the rare file with longer rows; beyond it a quote was left open.
_BLOCK_SIZES = (1 << 24, 1 << 28)  # bytes
_UTF8 = "Save the file as UTF-8 text."
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4", ".br")
_INFLATION = 8  # of compressed text, about


def open_csv(path: Path) -> Opened:
    """A CSV file by its header line. Raises InputError if there is none, or it cannot be read."""
    try:
        header = _header_line(path)
        text = header.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError("The header is not UTF-8 text", str(path), _UTF8) from None
    except UNREADABLE as error:
        raise unreadable(error, path) from None
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
    size = path.stat().st_size * (_INFLATION if path.suffix.lower() in _COMPRESSED else 1)
    return Opened(
        str(path),
        names,
        lambda wanted: _read_csv(path, separator, names, wanted),
        lambda wanted: pa.schema([(name, pa.string()) for name in wanted]),
        lambda wanted: _csv_batches(path, separator, names, wanted),
        lambda wanted: size * len(wanted) // len(names),
    )


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


def _read_csv(path: Path, separator: str, names: tuple[str, ...], wanted: list[str]) -> pa.Table:
    """All batches. Arrow's own reader of whole files is no faster: where cells may hold line breaks, it cuts the text
    into rows on one thread too.
    """
    types = pa.schema([(name, pa.string()) for name in wanted])
    return pa.concat_tables([types.empty_table(), *_csv_batches(path, separator, names, wanted)])


def _csv_batches(path: Path, separator: str, names: tuple[str, ...], wanted: list[str]) -> Iterator[pa.Table]:
    """The rows block by block; names: all columns of the file."""
    watched = list(dict.fromkeys([*wanted, names[-1]]))  # an open quote in the last column leaves a row its length
    done = 0  # rows that were given
    for block_size in _BLOCK_SIZES:
        ragged: list[pacsv.InvalidRow] = []
        before = 0  # rows of this pass
        try:
            with pa.input_stream(path, compression="detect") as stream:
                for batch in pacsv.open_csv(stream, *_options(separator, watched, block_size, ragged)):
                    parsed = pa.table(batch).slice(max(0, done - before))
                    before += batch.num_rows
                    for name in watched:
                        place = names.index(name)
                        after = len(names) - 1 - place
                        _refuse_swallowed_rows(parsed[name], place, after, separator, f"{path}, column {name}", done)
                    if parsed.num_rows:
                        yield pa.table({name: _as_text(parsed[name], path, name, done) for name in wanted})
                        done = before
        except DpcganError:
            raise
        except UNREADABLE as error:
            if not _may_go_on(error, path, separator, watched, block_size, ragged):
                return
            continue
        return
    raise _too_long(path)


def _refuse_swallowed_rows(
    column: pa.ChunkedArray, place: int, after: int, separator: str, where: str, before: int
) -> None:
    """Raises InputError if a cell holds the text of further rows, as one does whose quotation mark was left open.

    place:  of the column in the file; each further line that such a cell holds has at least so many separators
    after:  columns after it; the first line of such a cell, which is the rest of its row, has as many separators
    before: rows of the file before these
    """
    mark = separator.encode()
    for chunk in column.chunks:
        if _has_line_breaks(chunk):
            for row, cell in enumerate(chunk, start=before + 1):
                own, *swallowed = cell.as_py().strip(b" \r\n").splitlines() or [b""]
                rows = swallowed and all(line.count(mark) >= place for line in swallowed)
                if rows and own.count(mark) >= after:
                    what, how = (
                        "A cell holds further rows of the table",
                        "Close every quotation mark, or leave the column out.",
                    )
                    raise InputError(what, f"{where}, row {row}", how)
        before += len(chunk)


def _has_line_breaks(cells: pa.BinaryArray) -> bool:
    _, offsets, data = cells.buffers()
    if not len(cells) or data is None:
        return False
    ends = np.frombuffer(offsets, np.int32)[cells.offset : cells.offset + len(cells) + 1]
    text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]]
    return bool(((text == ord("\n")) | (text == ord("\r"))).any())


def _too_long(path: Path) -> InputError:
    what = f"A row is longer than {_BLOCK_SIZES[-1] >> 20} MiB"
    return InputError(what, str(path), "Check that every quotation mark is closed.")


def _may_go_on(
    error: Exception, path: Path, separator: str, wanted: list[str], block_size: int, ragged: list[pacsv.InvalidRow]
) -> bool:
    """Whether a larger block may hold the row at fault; False for a file without rows. Raises the user's error else."""
    message = str(error) if isinstance(error, pa.ArrowInvalid) else ""  # to be read, not shown
    if ragged:
        raise _ragged(path, separator, wanted, block_size, ragged) from None
    if "straddling" in message:
        return True
    if "Empty CSV" in message:  # a header without a line break at its end
        return False
    raise unreadable(error, path) from None


def _options(
    separator: str, wanted: list[str], block_size: int, ragged: list[pacsv.InvalidRow], threads: bool = True
) -> tuple[pacsv.ReadOptions, pacsv.ParseOptions, pacsv.ConvertOptions]:
    """Cells as bytes: so that text which is not UTF-8 can be located. Rows of a wrong length go to `ragged`."""

    def refuse(row: pacsv.InvalidRow) -> str:
        ragged.append(row)
        return "error"

    return (
        pacsv.ReadOptions(block_size=block_size, use_threads=threads),
        pacsv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=refuse),
        pacsv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())),
    )


def _ragged(
    path: Path, separator: str, wanted: list[str], block_size: int, ragged: list[pacsv.InvalidRow]
) -> InputError:
    """The error for a row with too few or too many cells; a second pass, on one thread, counts the rows before it."""
    again: list[pacsv.InvalidRow] = []
    try:
        with pa.input_stream(path, compression="detect") as stream:
            for _ in pacsv.open_csv(stream, *_options(separator, wanted, block_size, again, threads=False)):
                pass
    except pa.ArrowInvalid:
        ragged = again or ragged
    first = ragged[0]
    row = f", row {first.number - 1}" if first.number else ""  # the parser counts the header as row 1
    what = f"A row has {first.actual_columns} cells where the header has {first.expected_columns}"
    how = "Correct the row: a cell with a separator or line break stands in quotation marks, and each mark is closed."
    return InputError(what, f"{path}{row}", how)


def _as_text(column: pa.ChunkedArray, path: Path, name: str, before: int) -> pa.ChunkedArray:
    """Bytes as text. before: rows of the file before these."""
    try:
        return column.cast(pa.string())
    except pa.ArrowInvalid:
        row = next(i for i, cell in enumerate(column, start=before + 1) if not _is_utf8(cell.as_py()))
        raise InputError("A cell is not UTF-8 text", f"{path}, column {name}, row {row}", _UTF8) from None


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True
