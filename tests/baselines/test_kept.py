"""What is kept of statistics follows from what was released of the rows, and from nothing else of them."""

import math
from typing import Any

import numpy as np
import pytest

from dpcgan_fast.baselines import arrays_of, mixed_codes, restored, statistics_for, tree
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.data.schema import Schema
from tests.baselines.replay import Replay
from tests.baselines.tables import codes_schema, codes_table, signal_schema, signals
from tests.baselines.test_tree import chained, schema_of
from tests.baselines.test_within_bins import rounded_people
from tests.baselines.test_within_bins import schema_of as schema_of_people

ALIKE = tree._ALIKE
CHAIN, SOME = "a chain of columns", "codes of which some are looked at"
NUMBER = [{"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True}]


# name of the kind: a schema, a table from a seed and a number of rows, and what is released among other things
KINDS: dict[str, tuple[Schema, Any, set[str]]] = {
    "bins of numbers": (schema_of_people(), rounded_people, {"histograms", "within bins", "scores of pairs"}),
    CHAIN: (
        schema_of(4),
        lambda rows, seed: chained(rows, 4, seed),
        {"within bins", "table", "correlations beyond the tree"},
    ),
    "one column": (schema_of(1), lambda rows, seed: chained(rows, 1, seed), {"histograms"}),
    "a signal": (signal_schema(), signals, {"levels of bands and their products", "pairs of waves"}),
    "a signal and a column": (signal_schema(NUMBER), signals, {"histograms"}),
    "codes": (codes_schema((), most=10), codes_table, {"clusters of codes", "pairs of codes"}),
    SOME: (codes_schema((), most=10), codes_table, {"clusters of codes", "pairs of codes"}),
}


@pytest.mark.parametrize(("kind", "alike"), [*((kind, ALIKE) for kind in KINDS), (CHAIN, (200.0, math.inf))])
def test_other_rows_with_the_same_answers_leave_the_same_numbers(monkeypatch, kind, alike):
    """Not only a neighbouring table: any other, with so few rows that whoever looks at them would decide otherwise."""
    monkeypatch.setattr(tree, "_ALIKE", alike)
    if kind == SOME:
        monkeypatch.setattr(mixed_codes, "_ENTRIES", 20_000)  # of about 40,000
    schema, make, wanted = KINDS[kind]
    statistics, replay = statistics_for(schema), Replay()
    monkeypatch.setattr(Budget, "release", lambda *given: replay.first(*given))
    before = arrays_of(statistics.fit(make(6000, 0), 20.0, 1e-5))
    if alike != ALIKE:
        wanted = wanted - {"correlations beyond the tree"} | {"correlations and means beyond the tree"}
    assert wanted <= {answer.mechanism.mechanism.split(":")[0] for answer in replay.answers}
    monkeypatch.setattr(Budget, "release", replay.again([]))
    after = arrays_of(statistics.fit(make(140, 1), 20.0, 1e-5))
    assert set(after) == set(before)
    for name, values in before.items():
        assert np.array_equal(after[name], values), name


def spoiled(values: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays that no release gives in the place of this one, by what was done to it."""
    whole = values.dtype.kind == "i"
    first = values.copy()
    first.flat[0] = -1 if whole else np.nan
    found = {"cut": values[..., :-1], "first value": first}
    return {**found, "large": values + 1000, "no whole numbers": values.astype(float)} if whole else found


@pytest.mark.parametrize("kind", ["bins of numbers", CHAIN, "one column", "a signal"])
def test_spoiled_numbers_are_refused_before_anything_is_drawn(kind):
    schema, make, _ = KINDS[kind]
    statistics = statistics_for(schema)
    arrays = arrays_of(statistics.fit(make(6000, 0), 20.0, 1e-5))
    for name, values in arrays.items():
        for bad in spoiled(values).values() if values.size else ():
            with pytest.raises((KeyError, ValueError, IndexError, TypeError)):
                restored(statistics, {**arrays, name: bad}, seeded=False)


def test_edges_that_are_no_tree_are_refused():
    schema, make, _ = KINDS[CHAIN]
    statistics = statistics_for(schema)
    arrays = arrays_of(statistics.fit(make(6000, 0), 20.0, 1e-5))
    edges = arrays["0.edges"]
    for bad in (edges[::-1], edges[:, ::-1], np.full_like(edges, 1), edges + 1):
        with pytest.raises(ValueError, match="tree"):
            restored(statistics, {**arrays, "0.edges": bad}, seeded=False)
