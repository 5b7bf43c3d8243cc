"""Records: a table's rows as vectors in [0, 1]^F, and back.

Encoding is a function of one row and of public facts alone: no count, mean or range of the data enters a record, and
whether a row is kept depends on that row only.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.blocks import Block
from dpcgan_fast.data.code_rows import CodeSets
from dpcgan_fast.data.column_codecs import CategoryCodec, CodesCodec, ColumnCodec, column_codec, wide_codec
from dpcgan_fast.data.dates import dates_of
from dpcgan_fast.data.record_codes import CodesPart, RecordCodes
from dpcgan_fast.data.schema import PRIVATE, UNDECIDED_UNIT, Column, Schema
from dpcgan_fast.data.visit_coding import NumberCodec, VisitCoding, coded_columns
from dpcgan_fast.data.visit_columns import number_name
from dpcgan_fast.errors import InputError


@dataclass(frozen=True)
class EncodedRecords:
    """Encoded rows of a table of M rows, N of them kept.

    dense:      float32 (N, D), values in [0, 1]: the records' positions but those of codes; D is F without codes
    labels:     int64 (N,), index of each row's class; None without a label
    kept:       bool (M,), False where a row's label is missing or not among the classes
    codes:      of each record the codes that are 1, counted from the first code; None without columns of codes
    first_code: position of the first code in a record; the positions after the codes are the last of `dense`
    width:      F, positions of a record
    """

    dense: np.ndarray
    labels: np.ndarray | None
    kept: np.ndarray
    codes: RecordCodes | None
    first_code: int
    width: int

    @property
    def records(self) -> np.ndarray:
        """The whole records, float32 (N, F); those of codes are large."""
        if self.codes is None:
            return self.dense
        records = np.zeros((len(self.dense), self.width), np.float32)
        after = self.dense.shape[1] - self.first_code
        records[:, : self.first_code] = self.dense[:, : self.first_code]
        records[:, self.width - after :] = self.dense[:, self.first_code :]
        codes = self.codes.take(np.arange(len(records)))
        records[codes.row_of_entry(), self.first_code + codes.positions] = 1.0
        return records


def table_columns(schema: Schema) -> tuple[str, ...]:
    """The columns to read for a schema: the unit column if there is one, the modelled columns, and a key of visits."""
    unit = () if schema.unit in (None, UNDECIDED_UNIT) else (schema.unit,)
    names = schema.column_names()
    key = None if schema.visits is None else schema.visits.key
    return (*unit, *names) if key is None or key in names else (*unit, *names, key)


class RecordCodec:
    """Encodes tables into records and decodes records into tables, as a complete schema says.

    schema: complete, with paid values in place of every "private"
    joint:  the label is the record's last position (binary: 0 or 1; categorical: class index / (classes - 1)), as in
            the published nets; otherwise it is no part of the record and travels beside it

    blocks:       the record's layout: columns, then signals, in schema order; then columns of many categories, but
                  those of visits; then codes; then the joint label
    width:        F, positions of a record
    n_classes:    number of label classes, 1 without a label
    class_names:  names of the label classes, empty without a label
    arrow_schema: schema of the decoded table: columns (the label among them), then signal columns, in schema order

    Raises InputError if the schema is not complete or something in it is still private.
    """

    def __init__(self, schema: Schema, joint: bool = False):
        schema.require_complete()
        _refuse_private(schema)
        self.schema = schema
        self.joint = joint
        self._label = schema.label_column()
        self.class_names: tuple[str, ...] = self._label.classes() if self._label else ()
        self.n_classes: int = max(1, len(self.class_names))
        self._codecs: dict[str, ColumnCodec] = {}
        rows = schema.of_rows
        coded = {} if rows is None else coded_columns(rows, schema.columns)
        start = 0
        wide = wide_codecs(schema)
        for column in sorted(_plain_columns(schema), key=lambda column: column.name in wide):
            if rows is not None and rows.visits is not None and column.name == number_name(rows.visits):
                codec = NumberCodec(column.name, start, rows.visits.n_slots)
            elif column.name in wide:
                codec = replace(wide[column.name], start=start)
            else:
                codec = column_codec(coded.get(column.name, column), start)
            self._codecs[column.name] = codec
            start = codec.blocks[-1].stop
        self._visits = None if rows is None else VisitCoding(rows, self._codecs)
        self._first_code = start
        self._code_codecs: dict[str, CodesCodec] = {}
        for column in schema.codes_columns():
            assert isinstance(column.vocabulary, tuple)
            codec = CodesCodec(column.name, start, column.vocabulary, column.max_codes)
            self._code_codecs[column.name] = codec
            start = codec.block.stop
        if self._visits is None:
            blocks = [block for codec in self._codecs.values() for block in codec.blocks]
        else:
            blocks = list(self._visits.blocks)
        guards = {} if self._visits is None else self._visits.guards
        blocks += [replace(codec.block, guard=guards.get(name)) for name, codec in self._code_codecs.items()]
        if schema.is_one_signal:
            blocks = [replace(block, sample=True) for block in blocks]
        self._label_start = start
        if joint and self._label:
            blocks.append(Block("binary" if self._label.type == "binary" else "numeric", self._label.name, start, 1))
        self.blocks: tuple[Block, ...] = tuple(blocks)
        self.width: int = self.blocks[-1].stop if blocks else 0
        self.arrow_schema: pa.Schema = pa.schema([(name, self._arrow_type(name)) for name in schema.column_names()])

    def encode(self, table: pa.Table, where: str = "data") -> EncodedRecords:
        """Encodes the rows of a table that has at least the schema's columns.

        Values out of bounds are clipped, and nothing counts them. Rows whose label is missing or unknown are dropped.
        Raises InputError, which names `where` (the file), column and row, if a cell cannot be read as its type says.
        """
        label_width = int(self.joint and self._label is not None)
        dense = np.zeros((table.num_rows, self._first_code + label_width), np.float32)
        for name, codec in self._codecs.items():
            codec.encode(table[name], dense, f"{where}, column {name}")
        if self._visits is not None:
            self._visits.encode(dense)
        parts = []
        for column in self.schema.codes_columns():
            sets = CodeSets.of_column(table, column.name, column.separator, f"{where}, column {column.name}")
            codec = self._code_codecs[column.name]
            first = codec.block.start - self._first_code
            parts.append(CodesPart.of(sets, codec.vocabulary, codec.max_codes, first))
        kept = np.ones(table.num_rows, bool)
        labels = None
        if self._label is not None:
            labels = label_codes(self._label, table[self._label.name], where)
            if self.joint:
                dense[:, self._first_code] = labels / (self.n_classes - 1)
            kept = labels >= 0
        chosen = None
        if labels is not None and not kept.all():
            chosen = np.flatnonzero(kept)
            dense, labels = dense[chosen], labels[chosen]
        codes = RecordCodes(tuple(parts), chosen) if parts else None
        return EncodedRecords(dense, labels, kept, codes, self._first_code, self.width)

    def decode(self, records: np.ndarray, labels: np.ndarray | None = None) -> pa.Table:
        """The table that records stand for; any record gives cells that the schema allows.

        records: float (N, F); values outside [0, 1] are clipped, NaN counts as one half
        labels:  integers (N,), class indices; with `joint` they may be left out and are read from the last position

        Returns a table of `arrow_schema`: whole numbers and flags int64, other numbers float64, categories strings,
        dates date32, codes lists of strings, missing cells null.
        Raises ValueError if shapes do not fit, or labels are needed and not given.
        """
        if records.ndim != 2 or records.shape[1] != self.width:
            raise ValueError(f"expected records of shape (N, {self.width}), got {records.shape}")
        if self._label is not None:
            if labels is None and self.joint:
                labels = np.rint(_by_column(records[:, self._label_start :])[:, 0] * (self.n_classes - 1))
            if labels is None or labels.shape != records.shape[:1]:
                raise ValueError(f"expected labels of shape ({len(records)},), one class index a record")
        plain = _by_column(records[:, : self._first_code])
        there = None if self._visits is None else self._visits.decode(plain)
        columns = {
            name: self._decode_label(labels) if labels is not None and name == self.schema.label
            else self._codec(name).decode(plain if name in self._codecs else records)
            for name in self.schema.column_names()
        }  # fmt: skip
        if self._visits is not None and there is not None:
            columns = self._visits.without_absent(columns, there)
        columns |= dates_of(columns, [column for column in self.schema.columns if column.type == "date"])
        return pa.Table.from_arrays(list(columns.values()), schema=self.arrow_schema)

    def _arrow_type(self, name: str) -> pa.DataType:
        if self._label is not None and name == self._label.name:
            return pa.int64() if self._label.type == "binary" else pa.string()
        is_date = any(column.name == name and column.type == "date" for column in self.schema.columns)
        return pa.date32() if is_date else self._codec(name).arrow_type

    def _codec(self, name: str) -> ColumnCodec | CodesCodec:
        return self._codecs[name] if name in self._codecs else self._code_codecs[name]

    def _decode_label(self, labels: np.ndarray) -> pa.Array:
        indices = labels.astype(np.int64)
        if indices.size and not 0 <= indices.min() <= indices.max() < self.n_classes:
            raise ValueError(f"expected labels from 0 to {self.n_classes - 1}")
        if self.arrow_schema.field(self.schema.label).type == pa.int64():
            return pa.array(indices)
        return pa.array(self.class_names, pa.string()).take(pa.array(indices))


def label_codes(label: Column, column: pa.ChunkedArray, where: str) -> np.ndarray:
    """Class of each cell of a label's column, int64 (M,), negative where it is missing or unknown."""
    place = f"{where}, column {label.name}"
    if label.type == "binary":
        return cells.binary_values(column, place)
    return cells.category_codes(column, label.classes(), place)


def _plain_columns(schema: Schema) -> list[Column]:
    """Every modelled column but the label and codes; a signal's columns are numbers with the signal's bounds."""
    samples = [
        Column(name=name, type="numeric", bounds=signal.bounds, integer=signal.integer)
        for signal in schema.signals
        for name in signal.columns
    ]
    return [column for column in schema.columns if column.type != "codes" and column.name != schema.label] + samples


def _by_column(records: np.ndarray) -> np.ndarray:
    """Records with the cells of each position side by side in memory, clipped to [0, 1]; NaN counts as one half."""
    columns = np.array(records.T, order="C")  # always a copy
    np.clip(columns, 0.0, 1.0, out=columns)
    unknown = np.isnan(columns)
    if unknown.any():
        columns[unknown] = 0.5
    return columns.T


def wide_codecs(schema: Schema) -> dict[str, CategoryCodec]:
    """Codecs, from position 0 on, of the columns that stand after all others, by name: those of many categories.

    Columns of visits are not among them, however many categories they have. A record has of them what has changed, so
    that no frequency of their cells is one of their positions; and the flags that guard them are drawn with them.
    """
    of_visits = {} if schema.of_rows is None else coded_columns(schema.of_rows, schema.columns)
    codecs = {column.name: wide_codec(column) for column in _plain_columns(schema) if column.name not in of_visits}
    return {name: codec for name, codec in codecs.items() if codec is not None}


def _refuse_private(schema: Schema) -> None:
    held = [
        (f"column {c.name}", PRIVATE in (c.bounds, c.categories, c.vocabulary, c.quantiles)) for c in schema.columns
    ]
    held += [(f"signal {s.name}", s.bounds == PRIVATE) for s in schema.signals]
    for place, private in held:
        if private:
            how = "Estimate it first (training does so at a cost in epsilon), or write a public value."
            raise InputError('A bound or list is still "private"', f"schema, {place}", how)
