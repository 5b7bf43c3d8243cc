"""What is kept of statistics follows from what was released of the rows, and from nothing else of them."""

from typing import Any

import numpy as np
import pytest

from dpcgan_fast.baselines import arrays_of, statistics_for
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.data.schema import Schema
from tests.baselines.replay import Replay
from tests.baselines.tables import codes_schema, codes_table, signal_schema, signals
from tests.baselines.test_tree import chained, schema_of
from tests.baselines.test_within_bins import rounded_people
from tests.baselines.test_within_bins import schema_of as schema_of_people

NUMBER = [{"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True}]


# name of the kind: a schema, a table from a seed and a number of rows, and what is released among other things
KINDS: dict[str, tuple[Schema, Any, set[str]]] = {
    "bins of numbers": (schema_of_people(), rounded_people, {"histograms", "within bins", "scores of pairs"}),
    "a chain of columns": (schema_of(4), lambda rows, seed: chained(rows, 4, seed), {"within bins", "table"}),
    "one column": (schema_of(1), lambda rows, seed: chained(rows, 1, seed), {"histograms"}),
    "a signal": (signal_schema(), signals, set()),
    "a signal and a column": (signal_schema(NUMBER), signals, {"histograms"}),
    "codes": (codes_schema((), most=10), codes_table, set()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_rows_with_the_same_answers_leave_the_same_numbers(monkeypatch, kind):
    """Not only a neighbouring table: any other, with another number of rows."""
    schema, make, wanted = KINDS[kind]
    statistics, replay = statistics_for(schema), Replay()
    monkeypatch.setattr(Budget, "release", lambda *given: replay.first(*given))
    before = arrays_of(statistics.fit(make(6000, 0), 20.0, 1e-5))
    assert wanted <= {answer.mechanism.mechanism.split(":")[0] for answer in replay.answers}
    monkeypatch.setattr(Budget, "release", replay.fixed())
    after = arrays_of(statistics.fit(make(140, 1), 20.0, 1e-5))
    assert set(after) == set(before)
    for name, values in before.items():
        assert np.array_equal(after[name], values), name
