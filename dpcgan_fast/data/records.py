"""Tables with one row a record, out of whatever rows a source has.

Where a schema has columns of codes and names a unit, all rows of a unit are one record: a table of events (a row for
each diagnosis, say) gives each patient the set of codes, and of every other column the first cell that is not missing.
Where a schema has visits, they lie side by side in the record; see `visits.wide`.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.code_rows import CodeRows, CodeSets, code_entries
from dpcgan_fast.data.csr_files import CodeMatrix, code_matrix_of, is_code_matrix, is_matrix_file, read_code_matrix
from dpcgan_fast.data.dates import with_days
from dpcgan_fast.data.encoding import table_columns
from dpcgan_fast.data.memory import refuse_too_large
from dpcgan_fast.data.reading import CORRECT_THE_SCHEMA, open_with, read_opened
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.store import is_store, read_store, refuse_unfinished
from dpcgan_fast.data.units import UnitIndex, unit_ids
from dpcgan_fast.data.visits import wide
from dpcgan_fast.errors import InputError

# Peak of memory while a table is read, as a multiple of the bytes of its cells: 2.5 was measured of rows that stay what
# they are, and 5.3 of events that become records. Taken lower, so that only what certainly does not fit is refused.
_READ, _MERGED = 2, 4

RecordSource = Any  # what `read_table` takes, and scipy's sparse matrices, which have no common type


def read_records(
    source: RecordSource, schema: Schema, where: str, remedy: str = CORRECT_THE_SCHEMA
) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads what a schema models, a row for each record, and names the columns that were left.

    source: what `read_table` takes; a CSR matrix, in a file (.npz) or of scipy's, whose columns are the codes of the
            schema's only column; or the folder of a store
    remedy: what to do about a column that it lacks

    Returns a table of the unit column, if there is one, and the columns of `schema.as_records()`; those of codes as
    lists of different codes, dates as days (see `with_days`). And the names of the other columns, in the data's order.
    Raises InputError as `read_table` and `unit_ids` do, or if a matrix or store does not fit the schema; MachineError
    if the table is larger than the memory that is free.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        refuse_unfinished(path)
        if is_store(path):
            return read_store(path, schema), ()
    if is_code_matrix(source):
        return _table_of_matrix(code_matrix_of(source), schema, "matrix"), ()
    if is_matrix_file(source):
        return _table_of_matrix(read_code_matrix(Path(source)), schema, str(source)), ()
    wanted = list(table_columns(schema))
    opened, extra = open_with(source, wanted, remedy)
    refuse_too_large(opened.size(wanted) * (_MERGED if schema.merges_rows else _READ), where)
    return records_of(read_opened(opened, wanted), schema, where), extra


def records_of(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """The records of a table's rows, with dates as days. Raises InputError if a cell or id cannot be read."""
    if schema.visits is not None:
        return wide(with_days(table, schema, where), schema, where)
    return with_days(one_row_a_record(table, schema, where), schema, where)


def _table_of_matrix(matrix: CodeMatrix, schema: Schema, where: str) -> pa.Table:
    columns = schema.codes_columns()
    if schema.unit is not None or len(schema.column_names()) != 1 or not columns:
        how = 'Give a schema with "unit": null and one column of type codes, or a table with all columns.'
        raise InputError("A code matrix has codes alone, and a person in each row", where, how)
    vocabulary = columns[0].vocabulary
    if not isinstance(vocabulary, tuple) or len(vocabulary) != matrix.width:
        size = f"{len(vocabulary):,} codes" if isinstance(vocabulary, tuple) else "private"
        how = "Give the public list of its columns' codes, in their order."
        raise InputError(f"The matrix has {matrix.width:,} columns and the vocabulary is {size}", where, how)
    sets = CodeSets(CodeRows(matrix.starts, matrix.columns), vocabulary)
    return pa.Table.from_arrays([sets.lists()], schema=pa.schema([sets.field(columns[0].name)]))


def one_row_a_record(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """A table of events or of records as one of records; one without columns of codes as it is.

    Formal guarantee: a record depends on its own unit's rows alone, and a unit without any code has one, too.
    """
    if not schema.codes_columns():
        return table
    ids = unit_ids(table, schema, where)
    used = np.arange(table.num_rows)
    if ids is not None and schema.max_rows_per_unit > 1:
        used = np.sort(UnitIndex.from_ids(ids, np.ones(len(ids), bool), schema.max_rows_per_unit).rows)
        table, ids = table.take(pa.array(used)), ids[used]
    n_records = len(used) if ids is None else int(ids.max()) + 1
    separators = {column.name: column.separator for column in schema.codes_columns()}
    columns, fields = [], []
    for name in table.column_names:
        if name in separators:
            entries = code_entries(table[name], separators[name], f"{where}, column {name}")
            records = entries.rows if ids is None else ids[entries.rows]
            sets = CodeSets(CodeRows.from_entries(records, entries.codes, n_records), entries.names)
            columns.append(sets.lists())
            fields.append(sets.field(name))
        else:
            columns.append(table[name] if ids is None else _first_present(table[name], ids, n_records))
            fields.append(pa.field(name, table[name].type))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _first_present(column: pa.ChunkedArray, ids: np.ndarray, n_records: int) -> pa.ChunkedArray:
    """Each unit's first cell that is not missing, or its first."""
    first = np.zeros(n_records, np.int64)
    missing = cells.is_missing(column)
    passes = [np.arange(len(ids)), *([np.flatnonzero(~missing)] if missing.any() else [])]
    for rows in passes:
        backwards = rows[::-1]  # so that of a unit's rows the one written last is its first
        first[ids[backwards]] = backwards
    return column.take(pa.array(first))
