"""What holds in every synthetic record, because the schema says so."""

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.cells import compute
from dpcgan_fast.data.schema import Schema


def with_implied_codes(table: pa.Table, schema: Schema) -> pa.Table:
    """The table with the codes that others of the same record imply, also those that these imply in turn.

    table: decoded, its codes lists in the order of the vocabulary
    """
    for column in schema.codes_columns():
        rules = [rule for rule in schema.constraints if rule.kind == "implies" and rule.columns == (column.name,)]
        if not rules or not isinstance(column.vocabulary, tuple):
            continue
        lists = table[column.name].combine_chunks()
        position = {code: i for i, code in enumerate(column.vocabulary)}
        has = np.zeros((table.num_rows, len(position)), bool)
        rows = np.repeat(np.arange(table.num_rows), np.diff(lists.offsets.to_numpy()))
        has[rows, compute.index_in(lists.flatten(), value_set=pa.array(column.vocabulary)).to_numpy()] = True
        pairs = [(position[rule.code], position[rule.implied]) for rule in rules
                 if rule.code in position and rule.implied in position]  # fmt: skip
        for _ in pairs:  # as many rounds as a chain can have links
            for code, implied in pairs:
                has[:, implied] |= has[:, code]
        rows, positions = np.nonzero(has)
        starts = np.searchsorted(rows, np.arange(table.num_rows + 1))
        names = pa.array(column.vocabulary, pa.string()).take(pa.array(positions))
        closed = pa.ListArray.from_arrays(pa.array(starts, pa.int32()), names)
        table = table.set_column(table.column_names.index(column.name), column.name, closed)
    return table


def satisfied(table: pa.Table, schema: Schema) -> pa.Array:
    """Which rows of a decoded table are in every order that the schema states, bool (N,); missing cells are in any."""
    holds = pa.array(np.ones(table.num_rows, bool))
    for rule in schema.constraints:
        if rule.kind != "implies":
            compare = compute.less if rule.kind == "less" else compute.less_equal
            smaller, larger = (table[name] for name in rule.columns)
            holds = compute.and_(holds, compute.fill_null(compare(smaller, larger), True))
    return holds
