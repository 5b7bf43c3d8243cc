"""A table as evaluation and baselines see it: every column as numbers, or as codes of the schema's public cells.

Cells are read exactly as training reads them: numbers clipped to their bounds, unknown categories and missing cells as
the schema says.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import MISSING as MISSING_CODE
from dpcgan_fast.data.cells import MOST_EXACT, UNKNOWN, binary_values, category_codes, numeric_values
from dpcgan_fast.data.code_rows import CodeRows, CodeSets
from dpcgan_fast.data.schema import OTHER, PRIVATE, Column, Schema, Signal
from dpcgan_fast.errors import InputError

NUMERIC_BINS = 20


def modelled_columns(schema: Schema) -> tuple[Column, ...]:
    """The schema's columns, then each signal's columns as numeric ones.

    Raises InputError if a bound or category list is not yet a public or released value.
    """
    columns = [
        _as_measured(column) if column.name != schema.label else _label_only(column) for column in schema.columns
    ]
    for signal in schema.signals:
        columns += signal_columns(signal)
    for column in columns:
        facts = {"numeric": column.bounds, "categorical": column.categories, "codes": None, "binary": ("0", "1")}
        if facts[column.type] in (None, PRIVATE):
            raise InputError(
                "Evaluation and baselines need public bounds and category lists",
                f"schema, column {column.name}",
                "Use the schema in the run folder, where released values stand in place of private ones.",
            )
    return tuple(columns)


def signal_columns(signal: Signal) -> tuple[Column, ...]:
    """The signal's columns as numeric ones."""
    return tuple(
        Column(name=name, type="numeric", bounds=signal.bounds, integer=signal.integer) for name in signal.columns
    )


def without_codes(schema: Schema) -> Schema:
    """The schema without its columns of codes."""
    return schema.model_copy(update={"columns": tuple(c for c in schema.columns if c.type != "codes")})


def _as_measured(column: Column) -> Column:
    """Dates are whole numbers of days, and the order of categories does not count."""
    types = {"date": {"type": "numeric", "integer": True}, "ordinal": {"type": "categorical"}}
    return column.model_copy(update=types.get(column.type, {}))


def label_of(schema: Schema) -> Column | None:
    """The label's column, whose codes are its classes and nothing else; None without a label."""
    label = schema.label_column()
    return None if label is None else _label_only(label)


def _label_only(label: Column) -> Column:
    """A label that is missing or unknown has no class; training leaves such rows out."""
    return label.model_copy(update={"unknown": "missing", "missing": False})


def bounds_of(column: Column) -> tuple[float, float]:
    """(lower, upper) of a numeric column that `modelled_columns` let pass."""
    assert isinstance(column.bounds, tuple)
    return column.bounds


def numbers(table: pa.Table, column: Column) -> np.ndarray:
    """Values of a numeric column, clipped to its bounds: (rows,) float64, NaN where missing.

    A missing cell of a column that has none by its schema reads as the middle of the bounds.
    """
    lower, upper = bounds_of(column)
    values = np.clip(numeric_values(cells_of(table, column), _where(column)), lower, upper)
    return values if column.missing else np.where(np.isnan(values), lower / 2 + upper / 2, values)


def scaled_numbers(table: pa.Table, column: Column) -> np.ndarray:
    """`numbers` scaled to [0, 1] by the bounds, so that no classifier overflows on wide ones: (rows,) float64."""
    lower, upper = (bound / 2 for bound in bounds_of(column))  # halves: the width of the widest bounds is finite
    return (numbers(table, column) / 2 - lower) / (upper - lower)


def coded_names(column: Column) -> tuple[str, ...]:
    """Names of the codes of a binary or categorical column, in order; a missing cell has the code after the last."""
    extra = (OTHER,) if column.type == "categorical" and column.unknown == OTHER else ()
    return column.classes() + extra


def codes(table: pa.Table, column: Column) -> np.ndarray:
    """Codes of a binary or categorical column: (rows,) int64 in 0..len(coded_names), the last one being missing.

    A missing cell of a column that has none by its schema reads as 0 if binary, or else as an unknown category.
    """
    missing = len(coded_names(column))
    if column.type == "binary":
        found = binary_values(cells_of(table, column), _where(column))
        without = missing if column.missing or column.unknown == "missing" else 0
    else:
        found = category_codes(cells_of(table, column), column.classes(), _where(column))
        unknown = {OTHER: len(column.classes()), "missing": missing, "first": 0}[column.unknown]
        found = np.where(found == UNKNOWN, unknown, found)
        without = missing if column.missing else unknown
    return np.where(found == MISSING_CODE, without, found)


def coded_values(column: Column, found: np.ndarray) -> pa.Array:
    """Cells for codes, the reverse of `codes`: whole numbers if binary, else text; null where missing."""
    if column.type == "binary":
        return pa.array(found, pa.int64(), mask=found == 2)
    return pa.array([*coded_names(column), None], pa.string()).take(pa.array(found))


def typed_table(table: pa.Table, schema: Schema, where: str) -> pa.Table:
    """The modelled columns, and the unit's if it is there, with every cell read once: numbers, 0 and 1, or categories.

    where: what to call the table in an error, such as "the real test table"
    Raises InputError, which names the table, column and row, if the table does not fit the schema.
    """
    read = {}
    for column in modelled_columns(schema):
        with errors_name(where):
            if column.type == "numeric":
                read[column.name] = pa.array(numbers(table, column), from_pandas=True)
            else:
                read[column.name] = coded_values(column, codes(table, column))
    if schema.unit in table.column_names:
        read[schema.unit] = table.column(schema.unit)
    return pa.table(read)


@contextmanager
def errors_name(where: str) -> Iterator[None]:
    """Puts the table, such as "the real test table", before the place of an InputError that the block raises."""
    try:
        yield
    except InputError as error:
        raise InputError(error.what, f"{where}, {error.where}", error.how) from None


def bin_edges(column: Column) -> np.ndarray:
    """Edges of the public bins of a numeric column: (bins + 1,) float64, 20 bins of equal width between the bounds.

    Those of an integer column lie half-way between whole numbers, so that no whole number is on an edge and every bin
    has at least one; where the bounds hold fewer than 20 whole numbers, each has a bin of its own.
    """
    lower, upper = bounds_of(column)
    first, last = np.ceil(lower) - 0.5, np.floor(upper) + 0.5
    if column.integer and first < last < first + MOST_EXACT:
        bins = round(min(NUMERIC_BINS, last - first))
        return np.floor(np.linspace(first, last, bins + 1)) + 0.5
    share = np.linspace(0, 1, NUMERIC_BINS + 1)
    return np.maximum.accumulate(lower * (1 - share) + upper * share)  # rounding may lead back between near bounds


def cell_count(column: Column) -> int:
    """Number of public cells of a column: bins or codes, and one for missing."""
    return len(bin_edges(column)) if column.type == "numeric" else len(coded_names(column)) + 1


def cells(table: pa.Table, column: Column) -> np.ndarray:
    """The public cell of every row: (rows,) int64 in 0..cell_count - 1, the last one being missing."""
    if column.type != "numeric":
        return codes(table, column)
    values, edges = numbers(table, column), bin_edges(column)
    return np.where(np.isnan(values), len(edges) - 1, np.searchsorted(edges[1:-1], values, side="right"))


def cell_shares(table: pa.Table, column: Column) -> np.ndarray:
    """Share of the rows in each public cell: (cell_count,) float64; zeros for a table without rows."""
    counts = np.bincount(cells(table, column), minlength=cell_count(column))
    return counts / max(1, table.num_rows)


def sample_of(table: pa.Table, rows: int, seed: int = 0) -> pa.Table:
    """At most `rows` rows, the same ones for the same seed, in their order."""
    if table.num_rows <= rows:
        return table
    chosen = np.random.default_rng(seed).choice(table.num_rows, rows, replace=False)
    return table.take(np.sort(chosen))


def vocabulary_of(column: Column) -> tuple[str, ...]:
    """The column's codes. Raises InputError if they are no public or released list."""
    if not isinstance(column.vocabulary, tuple):
        raise InputError(
            "Evaluation and baselines need public vocabularies",
            f"column {column.name}",
            "Use the schema in the run folder, where released values stand in place of private ones.",
        )
    return column.vocabulary


def code_sets(table: pa.Table, column: Column) -> CodeRows:
    """Each row's codes that are in the vocabulary, all of them."""
    vocabulary = vocabulary_of(column)
    return read_codes(table, column).within(vocabulary, max(1, len(vocabulary)))


def read_codes(table: pa.Table, column: Column) -> CodeSets:
    """Each row's codes, whether they are in the vocabulary or not."""
    cells_of(table, column)  # which says if the table lacks it
    return CodeSets.of_column(table, column.name, column.separator, f"column {column.name}")


def cells_of(table: pa.Table, column: Column) -> pa.ChunkedArray:
    """The column's cells as they stand. Raises InputError if the table lacks it."""
    place = table.schema.get_field_index(column.name)  # without a look at the names of all columns
    if place < 0:
        raise InputError("A table lacks a column of the schema", _where(column), "Give tables with all its columns.")
    return table.column(place)


def _where(column: Column) -> str:
    return f"column {column.name}"
