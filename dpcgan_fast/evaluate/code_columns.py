"""Columns of codes as evaluation sees them: a flag for each of the most frequent codes, and the number of codes.

All measures of ordinary tables then hold for codes too.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import UNKNOWN
from dpcgan_fast.data.code_rows import CodeRows, positions_in
from dpcgan_fast.data.public_cells import cells_of, code_sets, errors_name, read_codes, vocabulary_of
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.errors import InputError

MOST_CODES = 200
_FEW_KNOWN = 0.5


@dataclass(frozen=True)
class CodeView:
    """Which codes of each codes column evaluation looks at, and the schema of the wide tables.

    schema:   every codes column "dx" replaced, in place, by a binary column "dx: CODE" for each chosen code and an
              integer column "dx: number of codes" between 0 and max_codes
    original: the schema with the codes columns
    chosen:   by codes column, places of the chosen codes in its vocabulary, rising: (chosen,) int64
    known:    by codes column, share of the codes of the test rows that are in the vocabulary; None if there are none
    """

    schema: Schema
    original: Schema
    chosen: Mapping[str, np.ndarray]
    known: Mapping[str, float | None]

    def wide(self, table: pa.Table, where: str = "table") -> pa.Table:
        """The table with flags and numbers in place of codes columns; all other columns are kept as they are.

        table: with the original schema's columns; codes are read as training reads them
        where: what to call the table in an error, such as "the real test table"

        Flags are int8, 0 or 1; numbers are int64 and count the different codes within the vocabulary, at most
        max_codes. A null list has no codes.
        Raises InputError if a codes column is absent or holds no codes, or if an extra column has a new one's name.
        """
        with errors_name(where):
            # The schema's own columns were checked when the view was made; the table may have others.
            _refuse_collisions(table.column_names, self.original)
            codes_columns = _codes_columns(self.original)
            for column in codes_columns.values():
                cells_of(table, column)  # the loop below goes by the table's columns and would miss an absent one
            wide: dict[str, Any] = {}
            for name in table.column_names:
                if name in codes_columns:
                    wide |= _wide_columns(table, codes_columns[name], self.chosen[name])
                else:
                    wide[name] = table.column(name)
            return pa.table(wide)

    def flags(self, table: pa.Table, name: str) -> np.ndarray:
        """Which rows of a table have which of the chosen codes of a codes column: (chosen, rows) int8, 0 or 1."""
        column = _codes_columns(self.original)[name]
        return _flags(code_sets(table, column), column, self.chosen[name])

    def notes(self) -> list[str]:
        """Sentences on what a reader of the figures must know about the codes columns."""
        notes = []
        for name, column in _codes_columns(self.original).items():
            looked_at, codes = len(self.chosen[column.name]), len(vocabulary_of(column))
            which = f"the {looked_at:,} most frequent among the real test rows" if looked_at < codes else "all"
            notes.append(
                f"Of the {codes:,} codes of column {column.name}, the figures look at {which}: each is a column of its "
                "own, and so is the number of codes in a row. `codes` compares the prevalences of all of them, and how "
                "often two of those looked at occur together."
            )
            share = self.known[name]
            if share is not None:
                warning = "WARNING: only " if share < _FEW_KNOWN else ""
                notes.append(
                    f"{warning}{share:.1%} of the codes in the real test rows are in the vocabulary of {name}; others "
                    "do not count. Compare the vocabulary and the separator with the data if that is few."
                )
        return notes


def code_view(schema: Schema, test: pa.Table, most: int = MOST_CODES) -> CodeView | None:
    """The view of at most `most` codes of each codes column; None if the schema has no such column.

    test: the real test rows, whose most frequent codes are chosen. Codes that are as frequent, or do not occur, follow
          in the order of the vocabulary.

    Raises InputError if a vocabulary is not a public or released list, if a new column would have the name of another,
    or if a codes column of the test table is absent or holds no codes.
    """
    codes_columns = _codes_columns(schema)
    if not codes_columns:
        return None
    unit = () if schema.unit is None else (schema.unit,)
    with errors_name("schema"):
        _refuse_collisions((*schema.column_names(), *unit), schema)
    chosen, known = {}, {}
    with errors_name("the real test table"):
        for name, column in codes_columns.items():
            by_frequency = np.argsort(-code_counts(test, column), kind="stable")
            chosen[name] = np.sort(by_frequency[:most])
            known[name] = _share_known(test, column)
    columns = []
    for column in schema.columns:
        if column.name not in codes_columns:
            columns.append(column)
            continue
        *flags, number = _wide_names(column, chosen[column.name])
        columns += [Column(name=flag, type="binary") for flag in flags]
        columns.append(Column(name=number, type="numeric", bounds=(0, column.max_codes), integer=True))
    return CodeView(schema.model_copy(update={"columns": tuple(columns)}), schema, chosen, known)


def _codes_columns(schema: Schema) -> dict[str, Column]:
    return {column.name: column for column in schema.codes_columns()}


def _wide_names(column: Column, chosen: Iterable[int]) -> list[str]:
    """Names of the flags of the chosen codes, and of the number of codes."""
    vocabulary = vocabulary_of(column)
    return [*(f"{column.name}: {vocabulary[code]}" for code in chosen), f"{column.name}: number of codes"]


def _refuse_collisions(names: Iterable[str], schema: Schema) -> None:
    """Raises InputError if the column of any code, chosen or not, would have one of the names or that of another.

    All codes count: which of them are chosen follows from the data, which must not decide whether evaluation succeeds.
    """
    uses = Counter(names)
    for column in _codes_columns(schema).values():
        uses.update(_wide_names(column, range(len(vocabulary_of(column)))))
    repeated = next((name for name, count in uses.items() if count > 1), None)
    if repeated is not None:
        raise InputError(
            "A column for a code would have the name of another column",
            f"column {repeated}",
            "Rename the other column or the codes column, in the schema and in the tables.",
        )


def _wide_columns(table: pa.Table, column: Column, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Flags of the chosen codes and the number of codes, by the names of their columns: each (rows,)."""
    sets = code_sets(table, column)
    numbers = np.minimum(np.diff(sets.starts), column.max_codes)
    return dict(zip(_wide_names(column, chosen), [*_flags(sets, column, chosen), numbers], strict=True))


def _flags(sets: CodeRows, column: Column, chosen: np.ndarray) -> np.ndarray:
    """Which rows have which of the chosen codes: (chosen, rows) int8, a row a code, so that columns are contiguous."""
    place = np.full(len(vocabulary_of(column)), -1)
    place[chosen] = np.arange(len(chosen))
    flags, first = np.zeros((len(chosen), len(sets)), np.int8), 0
    for block in sets.blocks():
        places = place[block.positions]
        looked_at = places >= 0
        flags[places[looked_at], first + block.row_of_entry()[looked_at]] = 1
        first += len(block)
    return flags


def code_counts(table: pa.Table, column: Column) -> np.ndarray:
    """Number of rows that have each code of a column's vocabulary: (vocabulary,) int64."""
    return np.bincount(code_sets(table, column).positions, minlength=len(vocabulary_of(column)))


def _share_known(table: pa.Table, column: Column) -> float | None:
    """Share of the codes in a column, each once a row, that are in the vocabulary; None if it holds none."""
    sets = read_codes(table, column)
    known = positions_in(vocabulary_of(column), sets.names) != UNKNOWN
    return float(known[sets.rows.positions].mean()) if len(sets.rows.positions) else None
