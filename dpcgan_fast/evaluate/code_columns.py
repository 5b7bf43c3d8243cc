"""Columns of codes as evaluation sees them: a flag for each of the most frequent codes, and the number of codes.

All measures of ordinary tables then hold for codes too. Prevalences alone are cheap enough to compare for every code of
a vocabulary.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import compute
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate.columns import cells_of, errors_name

MOST_CODES = 200
_FEW_KNOWN = 0.5
BLOCK_ROWS = 1 << 15  # rows whose codes are unpacked at a time, so that memory is bounded


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

        table: with the original schema's columns, those of codes being lists of texts
        where: what to call the table in an error, such as "--real"

        Flags are int8, 0 or 1; numbers are int64 and count the different codes within the vocabulary, at most
        max_codes. A null list has no codes.
        Raises InputError if a codes column is absent or holds no lists, or if an extra column has a new one's name.
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

    def notes(self) -> list[str]:
        """Sentences on what a reader of the figures must know about the codes columns."""
        notes = []
        for name, column in _codes_columns(self.original).items():
            looked_at, codes = len(self.chosen[column.name]), len(_vocabulary(column))
            which = f"the {looked_at:,} most frequent among the real test rows" if looked_at < codes else "all"
            notes.append(
                f"Of the {codes:,} codes of column {column.name}, the figures look at {which}: each is a column of its "
                "own, and so is the number of codes in a row. `codes` compares the prevalences of all of them."
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
    or if a codes column of the test table is absent or holds no lists.
    """
    codes_columns = _codes_columns(schema)
    if not codes_columns:
        return None
    unit = () if schema.unit is None else (schema.unit,)
    with errors_name("schema"):
        _refuse_collisions((*schema.column_names(), *unit), schema)
    chosen, known = {}, {}
    with errors_name("--real"):
        for name, column in codes_columns.items():
            by_frequency = np.argsort(-_counts(test, column), kind="stable")
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


def code_prevalence(table: pa.Table, real: pa.Table, schema: Schema) -> dict[str, dict[str, float | None]]:
    """How far the prevalences of codes, the shares of rows that have them, are off, for each codes column.

    Returns, by column, over all codes of the vocabulary:
    max_abs: the largest absolute difference between the prevalences in `table` and in `real`, in [0, 1]
    r:       their Pearson correlation; None where one of the tables has all codes equally often

    A table without rows has the prevalence 0 of every code.
    Raises InputError if a vocabulary is no list, or a codes column is absent or holds no lists.
    """
    found = {}
    for name, column in _codes_columns(schema).items():
        shares, real_shares = (_counts(t, column) / max(1, t.num_rows) for t in (table, real))
        found[name] = {
            "max_abs": float(np.abs(shares - real_shares).max(initial=0.0)),
            "r": _correlation(shares, real_shares),
        }
    return found


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson correlation of two float64 arrays of the same shape, in [-1, 1]; None if one of them is constant."""
    if len(x) == 0 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _codes_columns(schema: Schema) -> dict[str, Column]:
    return {column.name: column for column in schema.codes_columns()}


def _vocabulary(column: Column) -> tuple[str, ...]:
    if not isinstance(column.vocabulary, tuple):
        raise InputError(
            "Evaluation needs public vocabularies",
            f"column {column.name}",
            "Use the schema in the run folder, where released values stand in place of private ones.",
        )
    return column.vocabulary


def _wide_names(column: Column, chosen: Iterable[int]) -> list[str]:
    """Names of the flags of the chosen codes, and of the number of codes."""
    vocabulary = _vocabulary(column)
    return [*(f"{column.name}: {vocabulary[code]}" for code in chosen), f"{column.name}: number of codes"]


def _refuse_collisions(names: Iterable[str], schema: Schema) -> None:
    """Raises InputError if the column of any code, chosen or not, would have one of the names or that of another.

    All codes count: which of them are chosen follows from the data, which must not decide whether evaluation succeeds.
    """
    uses = Counter(names)
    for column in _codes_columns(schema).values():
        uses.update(_wide_names(column, range(len(_vocabulary(column)))))
    repeated = next((name for name, count in uses.items() if count > 1), None)
    if repeated is not None:
        raise InputError(
            "A column for a code would have the name of another column",
            f"column {repeated}",
            "Rename the other column or the codes column, in the schema and in the tables.",
        )


def _wide_columns(table: pa.Table, column: Column, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Flags of the chosen codes and the number of codes, by the names of their columns: each (rows,)."""
    place = np.full(len(_vocabulary(column)), -1)
    place[chosen] = np.arange(len(chosen))
    flags = np.zeros((len(chosen), table.num_rows), np.int8)  # a row a code: the columns are contiguous
    numbers = np.zeros(table.num_rows, np.int64)
    for start, rows, codes in _blocks(table, column):
        places = place[codes]
        looked_at = places >= 0
        flags[places[looked_at], start + rows[looked_at]] = 1
        held = np.bincount(rows)
        numbers[start : start + len(held)] = np.minimum(held, column.max_codes)
    return dict(zip(_wide_names(column, chosen), [*flags, numbers], strict=True))


def _counts(table: pa.Table, column: Column) -> np.ndarray:
    """Number of rows that have each code: (vocabulary,) int64."""
    counts = np.zeros(len(_vocabulary(column)), np.int64)
    for _, _, codes in _blocks(table, column):
        counts += np.bincount(codes, minlength=len(counts))
    return counts


def _share_known(table: pa.Table, column: Column) -> float | None:
    """Share of the codes in a column that are in the vocabulary; None if it holds none."""
    vocabulary = pa.array(_vocabulary(column), pa.large_string())
    places = [_places(compute.list_flatten(chunk), vocabulary) for chunk in _lists(table, column).chunks]
    found = np.concatenate([np.empty(0, np.int64), *places])
    return float((found >= 0).mean()) if len(found) else None


def _blocks(table: pa.Table, column: Column) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The codes of a table by blocks of rows: the first row, and pairs of a row in the block and a code that it has.

    Pairs are two (pairs,) int64 arrays, each pair once, in the order of rows and of the vocabulary. Codes outside the
    vocabulary are left out, as in training.
    """
    vocabulary = pa.array(_vocabulary(column), pa.large_string())
    width = len(vocabulary)
    start = 0
    for chunk in _lists(table, column).chunks:
        for offset in range(0, len(chunk), BLOCK_ROWS):
            lists = chunk.slice(offset, BLOCK_ROWS)
            # Not Arrow's parent indices: they count what may lie beneath a null list, which flattening leaves out.
            lengths = compute.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False)
            codes = _places(compute.list_flatten(lists), vocabulary)
            pairs = (np.repeat(np.arange(len(lists)), lengths) * width + codes)[codes >= 0]
            rows, codes = np.divmod(_different(pairs), width)
            yield start + offset, rows, codes
        start += len(chunk)


def _different(values: np.ndarray) -> np.ndarray:
    """The different values, rising."""
    values = np.sort(values)
    return values[np.diff(values, prepend=-1) > 0]


def _lists(table: pa.Table, column: Column) -> pa.ChunkedArray:
    """The column as lists of texts, of dictionary-encoded texts, or of nulls. Raises InputError if it holds others."""
    lists = cells_of(table, column)
    if pa.types.is_null(lists.type):  # no row has a list
        return lists.cast(pa.list_(pa.string()))
    if pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type):
        kind = lists.type.value_type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
            return lists
    raise InputError(
        "The cells of a codes column are not lists of texts",
        f"column {column.name}",
        "Give one list of codes a row; a row without codes has an empty list or none.",
    )


def _places(values: pa.Array, vocabulary: pa.Array) -> np.ndarray:
    """Place of each text in the vocabulary: (values,) int64, -1 for a null and for a text that is not in it."""
    if isinstance(values, pa.DictionaryArray):
        of_entry = np.append(_places(values.dictionary, vocabulary), -1)
        # The entry after the last stands for null.
        return of_entry[values.indices.cast(pa.int64()).fill_null(len(of_entry) - 1).to_numpy()]
    found = compute.index_in(values.cast(vocabulary.type), value_set=vocabulary)
    return found.fill_null(-1).to_numpy().astype(np.int64)
