"""Synthetic records in the form in which a table of codes is written: a row a record, a row an event, or MEDS.

MEDS is the Medical Event Data Standard (https://github.com/Medical-Event-Data-Standard/meds): a folder of Parquet files
with a row for each code of a subject.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import compute
from dpcgan_fast.data.csr_files import is_matrix_file
from dpcgan_fast.data.csr_writing import CodeMatrixWriter
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.writing import TableWriter, check_output, check_place
from dpcgan_fast.errors import InputError
from dpcgan_fast.files import machine_error, write_whole

Layout = Literal["records", "events", "meds"]
LAYOUTS: tuple[Layout, ...] = ("records", "events", "meds")
_MEDS_SCHEMA = pa.schema(
    [("subject_id", pa.int64()), ("time", pa.timestamp("us")), ("code", pa.string()), ("numeric_value", pa.float32())]
)
_MEDS_VERSION = "0.4.0"


class Sink(Protocol):
    """Takes batches of decoded records."""

    def write(self, table: pa.Table) -> None:
        """Appends a batch."""


def check_layout(path: str | Path, layout: str, schema: Schema) -> None:
    """Raises InputError if the records of a schema cannot be written so; before a long computation, not after it."""
    codes = schema.codes_columns()
    alone = len(codes) == 1 and len(schema.column_names()) == 1
    where = f"layout {layout}"
    if layout not in LAYOUTS:
        raise InputError("There is no such layout", where, f"Choose one of {', '.join(LAYOUTS)}.")
    if layout != "records" and schema.visits is not None:
        raise InputError("Visits are written a row a visit", where, "Use layout records.")
    if layout != "records" and len(codes) != 1:
        raise InputError("A layout of events needs exactly one column of codes", where, "Use layout records.")
    if layout == "events" and schema.unit is None:
        raise InputError("A layout of events needs the name of the unit's column", where, "Use layout records.")
    if layout == "meds":
        if not alone:
            raise InputError("MEDS holds codes alone, and the schema has other columns", where, "Use layout events.")
        if Path(path).exists():
            raise InputError("There is something at the output path already", str(path), "Choose a new folder.")
        return
    if is_matrix_file(path):
        if layout != "records" or not alone:
            how = "Use a name that ends in .parquet or .csv."
            raise InputError("A code matrix (.npz) holds one column of codes and nothing else", str(path), how)
        check_place(Path(path))
        return
    ending = check_output(path)
    separators = [column.separator for column in codes]
    if layout == "records" and ending in (".csv", ".csv.gz") and None in separators:
        how = 'Write a .parquet file, use layout events, or set "separator" in the schema.'
        raise InputError("A CSV cell cannot hold several codes without a separator", str(path), how)


@contextmanager
def open_sink(path: str | Path, layout: Layout, schema: Schema, arrow_schema: pa.Schema) -> Iterator[Sink]:
    """Opens an output, whole or not at all, for records of `arrow_schema`.

    records: a row a record, or a visit; codes are lists in Parquet, a cell with separators in CSV, a CSR matrix in .npz
    events:  a row for each code of a record, with the record's number, from 1, in the unit's column and its other
             cells repeated; a record without codes has one row with an empty code
    meds:    a folder

    Raises InputError as `check_layout` does, MachineError if the machine cannot write.
    """
    check_layout(path, layout, schema)
    if layout == "meds":
        with _meds_folder(Path(path)) as sink:
            yield sink
    elif is_matrix_file(path):
        (column,) = schema.codes_columns()
        assert isinstance(column.vocabulary, tuple)
        with CodeMatrixWriter(path, max(1, len(column.vocabulary))) as writer:
            yield _Matrix(writer, column.vocabulary)
    elif layout == "events":
        (column,) = schema.codes_columns()
        assert schema.unit is not None
        fields = [pa.field(schema.unit, pa.int64())]
        fields += [pa.field(f.name, pa.string()) if f.name == column.name else f for f in arrow_schema]
        with TableWriter(path, pa.schema(fields)) as writer:
            yield _Events(writer, column.name, schema.unit)
    elif check_output(path) == ".parquet" or not schema.codes_columns():
        with TableWriter(path, arrow_schema) as writer:
            yield writer
    else:
        separators = {column.name: column.separator or "" for column in schema.codes_columns()}
        fields = [pa.field(f.name, pa.string()) if f.name in separators else f for f in arrow_schema]
        with TableWriter(path, pa.schema(fields)) as writer:
            yield _Joined(writer, separators)


class _Joined:
    """Codes of a record in one cell."""

    def __init__(self, writer: TableWriter, separators: dict[str, str]):
        self._writer, self._separators = writer, separators

    def write(self, table: pa.Table) -> None:
        for name, separator in self._separators.items():
            joined = compute.binary_join(table[name], separator)
            table = table.set_column(table.column_names.index(name), name, joined)
        self._writer.write(table)


class _Events:
    """A row for each code of a record."""

    def __init__(self, writer: Sink, codes: str, unit: str):
        self._writer, self._codes, self._unit = writer, codes, unit
        self._before = 0  # records

    def write(self, table: pa.Table) -> None:
        lists = table[self._codes].combine_chunks()
        counts = np.diff(lists.offsets.to_numpy())
        rows = np.repeat(np.arange(len(counts)), np.maximum(counts, 1))
        places = np.full(len(rows), -1)  # of each row's code; none where a record has none
        places[np.repeat(counts, np.maximum(counts, 1)) > 0] = np.arange(int(counts.sum()))
        codes = lists.flatten().take(pa.array(places, mask=places < 0))
        columns = {self._unit: pa.array(rows + self._before + 1)}
        columns |= {name: codes if name == self._codes else table[name].take(rows) for name in table.column_names}
        self._before += table.num_rows
        self._writer.write(pa.table(columns))


class _Matrix:
    """Rows of a CSR matrix whose columns are the vocabulary."""

    def __init__(self, writer: CodeMatrixWriter, vocabulary: tuple[str, ...]):
        self._writer, self._vocabulary = writer, pa.array(vocabulary, pa.string())

    def write(self, table: pa.Table) -> None:
        for lists in table.column(0).chunks:
            columns = compute.index_in(lists.flatten(), value_set=self._vocabulary)
            starts = lists.offsets.to_numpy().astype(np.int64)
            self._writer.write(starts - starts[0], columns.to_numpy(zero_copy_only=False).astype(np.int32))


@contextmanager
def _meds_folder(folder: Path) -> Iterator[Sink]:
    """A folder that takes its name when it is whole. Its events are static, in the standard's words: without a time.

    A record without codes has no row, and so no subject: a row of MEDS has a code.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    facts = {"dataset_name": "synthetic", "etl_name": "dpcgan_fast", "meds_version": _MEDS_VERSION}
    try:
        for part in ("data", "metadata"):
            (partial / part).mkdir(parents=True)
        with TableWriter(partial / "data" / "0.parquet", _MEDS_SCHEMA) as writer:
            yield _MedsEvents(writer)
        write_whole(partial / "metadata" / "dataset.json", json.dumps(facts) + "\n")
        partial.rename(folder)
    except OSError as error:
        raise machine_error(error, folder) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _MedsEvents:
    """A row for each code, with the number of its record as its subject's."""

    def __init__(self, writer: TableWriter):
        self._writer = writer
        self._before = 0  # records

    def write(self, table: pa.Table) -> None:
        (lists,) = table.columns
        subjects = compute.add(compute.list_parent_indices(lists), self._before + 1).cast(pa.int64())
        codes = compute.list_flatten(lists)
        nothing = [pa.nulls(len(codes), _MEDS_SCHEMA.field(name).type) for name in ("time", "numeric_value")]
        self._writer.write(pa.table([subjects, nothing[0], codes, nothing[1]], schema=_MEDS_SCHEMA))
        self._before += table.num_rows
