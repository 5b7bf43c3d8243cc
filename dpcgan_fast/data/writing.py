"""Tables written to files batch by batch, so that a table may be larger than memory."""

import contextlib
import csv
import gzip
import io
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from dpcgan_fast.errors import InputError
from dpcgan_fast.files import machine_error, written_whole

_CSV, _CSV_GZ, _PARQUET = ".csv", ".csv.gz", ".parquet"
_ENDINGS = (_CSV, _CSV_GZ, _PARQUET)
_ROW_GROUP = 1 << 26  # bytes in memory: smaller groups are written more slowly, larger ones need more to be read


def check_output(path: str | Path) -> str:
    """The ending of a table file's name, if it is one that can be written and there is a folder to write it to.

    Raises InputError otherwise; so that a long computation can refuse a bad name before it starts.
    """
    path = Path(path)
    name = path.name.lower()
    ending = next((ending for ending in (_CSV_GZ, _CSV, _PARQUET) if name.endswith(ending)), None)
    if ending is None:
        how = f"Use a name that ends in one of {', '.join(_ENDINGS)}."
        raise InputError("The output file's ending names no format", str(path), how)
    check_place(path)
    return ending


def check_place(path: Path) -> None:
    """Raises InputError unless a file can stand at `path`."""
    if path.is_dir():
        raise InputError("The output is a folder", str(path), "Give the name of a file.")
    if not path.parent.is_dir():
        raise InputError("The output's folder does not exist", str(path.parent), "Make the folder first.")


class TableWriter:
    """Writes batches of one table to a CSV (.csv, .csv.gz) or Parquet (.parquet) file, whole or not at all.

    A context manager. CSV: a header line, missing cells empty, text in quotation marks, numbers in the shortest form
    that reads back the same. While it is open the batches are in a temporary file beside `path`; that file takes the
    name `path` when the block ends without an error and is removed when it ends with one.

    Raises InputError if the name is no good, MachineError if the machine cannot write (disk full).
    """

    def __init__(self, path: str | Path, arrow_schema: pa.Schema):
        self._path = Path(path)
        self._ending = check_output(path)
        self._schema = arrow_schema
        self._open = contextlib.ExitStack()
        self._writer: pacsv.CSVWriter | pq.ParquetWriter | None = None
        self._waiting: list[pa.Table] = []  # for a row group of Parquet
        self._waiting_bytes = 0

    def __enter__(self) -> "TableWriter":
        with contextlib.ExitStack() as opening:  # what is open already is closed again if the next step fails
            sink = opening.enter_context(written_whole(self._path))
            if self._ending == _PARQUET:
                options = _parquet_options(self._schema)
                self._writer = opening.enter_context(pq.ParquetWriter(sink, self._schema, **options))
            else:
                if self._ending == _CSV_GZ:
                    sink = opening.enter_context(gzip.GzipFile("", "wb", fileobj=sink, mtime=0))
                sink.write(_header(self._schema.names))
                no_header = pacsv.WriteOptions(include_header=False)
                schema = self._as_written(self._schema.empty_table()).schema
                self._writer = opening.enter_context(pacsv.CSVWriter(sink, schema, write_options=no_header))
            self._open = opening.pop_all()
        return self

    def write(self, table: pa.Table) -> None:
        """Appends a batch with the columns of the schema, in its order."""
        if self._writer is None:
            raise ValueError("a TableWriter is used in a with statement")
        if not table.schema.equals(self._schema):
            raise ValueError("the batch does not have the columns and types that the writer was opened with")
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._ending != _PARQUET or self._waiting_bytes >= _ROW_GROUP:
            self._write_waiting()

    def _as_written(self, table: pa.Table) -> pa.Table:
        """An only column of CSV as text: the empty line of a missing cell would be no row, quotation marks are one."""
        if self._ending == _PARQUET or table.num_columns != 1:
            return table
        text = table.column(0).cast(pa.string()).fill_null("")
        return pa.table([text], names=table.column_names)

    def _write_waiting(self) -> None:
        assert self._writer is not None
        whole, self._waiting, self._waiting_bytes = self._as_written(pa.concat_tables(self._waiting)), [], 0
        try:
            self._writer.write_table(whole)
        except OSError as error:
            raise machine_error(error, self._path) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._waiting:
                self._write_waiting()
        except BaseException as failed:
            self._close(type(failed), failed, failed.__traceback__)
            raise
        self._close(kind, error, traceback)

    def _close(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer = None
        self._open.__exit__(kind, error, traceback)


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Encodings and compression of each column: of several that give files of about one size the quickest.

    Whole numbers, which are narrow, are packed; texts have a dictionary; floats hardly repeat, and to try a dictionary
    of them would take most of the time.
    """
    paths = {f"{f.name}.list.element" if pa.types.is_list(f.type) else f.name: f.type for f in schema}
    whole = {path for path, kind in paths.items() if pa.types.is_integer(kind)}
    floats = {path for path, kind in paths.items() if pa.types.is_floating(kind)}
    return {
        "compression": {path: "snappy" if path in whole else "zstd" for path in paths},
        "use_dictionary": [path for path in paths if path not in whole | floats],
        "column_encoding": dict.fromkeys(whole, "DELTA_BINARY_PACKED"),
    }


def _header(names: list[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(names)
    return line.getvalue().encode()
