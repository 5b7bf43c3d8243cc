"""How many rows break what the schema's constraints say.

Synthetic rows obey by construction; real ones tell whether a rule is right.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import numeric_values
from dpcgan_fast.data.public_cells import cells_of, code_sets, vocabulary_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.schema_parts import Constraint


def rule_figures(tables: Mapping[str, pa.Table | None], schema: Schema) -> list[dict[str, Any]]:
    """For each constraint of the schema, how many rows of each table break it.

    tables: by name, with the schema's columns, codes as lists and dates as whole numbers of days (see
            `data.dates.with_days`); None where there is none

    Returns, for each rule, its "kind", its "rule" in words, and by table {"broken": share of the rows that break it,
    "concerned": share of those that it concerns at all}: those with both cells, or with the code that implies another.
    Shares are None without rows, and a table's figures are None where it is.
    """
    return [
        {
            "kind": rule.kind,
            "rule": _in_words(rule),
            **{name: None if table is None else _shares(table, rule, schema) for name, table in tables.items()},
        }
        for rule in schema.constraints
    ]


def rule_notes(schema: Schema) -> list[str]:
    """What of the rules is not looked at. schema: of records (see `Schema.as_records`)"""
    rows = schema.of_rows
    if rows is None or rows.visits is None:
        return []
    differing = [rule for rule in rows.constraints if any(map(rows.visits.differs, rule.columns))]
    left_out = any(rule.kind != "implies" for rule in differing)
    return ["rules leaves out orders of columns that differ between visits."] if left_out else []


def _in_words(rule: Constraint) -> str:
    if rule.kind == "implies":
        return f"{rule.columns[0]}: {rule.code} implies {rule.implied}"
    return f"{rule.columns[0]} is {'less than' if rule.kind == 'less' else 'at most'} {rule.columns[1]}"


def _shares(table: pa.Table, rule: Constraint, schema: Schema) -> dict[str, float | None]:
    if table.num_rows == 0:
        return {"broken": None, "concerned": None}
    concerned, broken = (_implication if rule.kind == "implies" else _order)(table, rule, schema)
    return {"broken": float(broken.mean()), "concerned": float(concerned.mean())}


def _order(table: pa.Table, rule: Constraint, schema: Schema) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have both cells, and which of them in the wrong order: twice (rows,) bool."""
    smaller, larger = (_exact_values(table, name, schema) for name in rule.columns)
    present = ~(np.isnan(smaller) | np.isnan(larger))
    holds = smaller < larger if rule.kind == "less" else smaller <= larger
    return present, present & ~holds


def _exact_values(table: pa.Table, name: str, schema: Schema) -> np.ndarray:
    """A column's cells as they stand, not clipped to the bounds: (rows,) float64, NaN where missing."""
    column = next((column for column in schema.columns if column.name == name), None)
    values = numeric_values(table.column(name), f"column {name}")
    if column is not None and column.origin is not None:  # its days count from another date of the row
        return values + _exact_values(table, column.origin, schema)
    return values


def _implication(table: pa.Table, rule: Constraint, schema: Schema) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have the code, and which of them lack the one that it implies: twice (rows,) bool."""
    column = next(column for column in schema.codes_columns() if column.name == rule.columns[0])
    cells_of(table, column)
    sets, vocabulary = code_sets(table, column), vocabulary_of(column)
    row_of = sets.row_of_entry()
    has = []
    for code in (rule.code, rule.implied):
        found = np.zeros(len(sets), bool)
        if code in vocabulary:
            found[row_of[sets.positions == vocabulary.index(code)]] = True
        has.append(found)
    return has[0], has[0] & ~has[1]
