"""What the schema takes away of real cells, by bounds and lists that do not fit them.

Real rows are read by the schema as training reads them, so that no other figure shows such a loss.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import MISSING, UNKNOWN, category_codes, numeric_values
from dpcgan_fast.data.public_cells import bounds_of, cells_of, modelled_columns, without_codes
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.data.visit_columns import number_name, slot_name

# Bounds may well cut 1 % off at each end, and lists leave rare categories out: twice that, and what chance makes of it.
MOST_OUTSIDE = 0.05
_NAMED = 5
_SINGLE = 1e-6  # of a bound's size: a cell in single precision that equals a bound may read as beyond it
_SAID = {
    "numeric": "lie outside the schema's bounds",
    "categorical": "are not in the schema's list",
    "binary": "are neither 0 nor 1",
}


def outside_schema(
    test: pa.Table, schema: Schema, known: Mapping[str, float | None]
) -> tuple[dict[str, float | None], list[str]]:
    """Share of the real test cells that the schema has no place for, and a warning of each column with many.

    test:   the real rows, as records with dates as days
    schema: of records, with codes columns (see `Schema.as_records`)
    known:  by codes column, share of the codes that are in its vocabulary (see `CodeView`); other notes warn of those

    Of cells that are not missing, those outside the bounds, in no list, or neither 0 nor 1; None if all are missing. A
    signal's samples count together under its name, a column's cells at all visits under its own. Number and times of
    visits are left out: they are cut to their bounds before there are records.
    """
    shown_as = _names(schema)
    lost, present, kinds = defaultdict[str, int](int), defaultdict[str, int](int), dict[str, str]()
    for column in modelled_columns(without_codes(schema)):
        name = shown_as.get(column.name, column.name)
        if name is None:
            continue
        missing, outside = _cells(test, column)
        kinds[name] = column.type
        present[name] += int((~missing).sum())
        lost[name] += int(outside.sum())
    shares = {name: lost[name] / present[name] if present[name] else None for name in kinds}
    of_codes = {name: None if share is None else 1 - share for name, share in known.items()}
    return {**shares, **of_codes}, _warnings(shares, kinds)


def _names(schema: Schema) -> dict[str, str | None]:
    """By column of a record, what its cells count under if not its own name; None if they do not count."""
    names: dict[str, str | None] = {name: signal.name for signal in schema.signals for name in signal.columns}
    if schema.of_rows is not None and (visits := schema.of_rows.visits) is not None:
        names[number_name(visits)] = None
        for slot in range(1, visits.n_slots + 1):
            names |= {slot_name(name, slot): name for name in visits.columns}
            names[slot_name(visits.time, slot)] = None
    return names


def _cells(test: pa.Table, column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Which cells are missing, and which the schema has no place for: twice (rows,) bool."""
    found, where = cells_of(test, column), f"column {column.name}"
    if column.type == "categorical":
        codes = category_codes(found, column.classes(), where)
        return codes == MISSING, codes == UNKNOWN
    values = numeric_values(found, where)
    if column.type == "binary":
        return np.isnan(values), ~np.isnan(values) & (values != 0) & (values != 1)
    lower, upper = bounds_of(column)
    slack = _SINGLE * max(abs(lower), abs(upper))
    return np.isnan(values), (values < lower - slack) | (values > upper + slack)


def _warnings(shares: Mapping[str, float | None], kinds: Mapping[str, str]) -> list[str]:
    many = {name: share for name, share in shares.items() if share is not None and share > MOST_OUTSIDE}
    ranked = sorted(many, key=lambda name: -many[name])
    said = [
        f"WARNING: column {name}: {many[name]:.0%} of the cells of the real test rows {_SAID[kinds[name]]}. Training "
        "cannot have learned them, and the other figures, which read real rows by the same schema, do not show it. "
        "Correct the schema and train anew."
        for name in ranked[:_NAMED]
    ]
    if len(ranked) > _NAMED:
        said.append(
            f"WARNING: in {len(ranked) - _NAMED} more columns more than {MOST_OUTSIDE:.0%} of the real cells are not "
            "what the schema says: see outside_schema in metrics.json."
        )
    return said
