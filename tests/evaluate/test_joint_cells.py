"""Pairs and triples of columns: what single columns do not show, two or three together do."""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.joint_cells import joint_tv_mean
from tests.evaluate.tables import patients, schema_of

FLAGS = Schema.from_dict({"unit": None, "columns": [{"name": name, "type": "binary"} for name in "abc"]})


def flags(rows: int, relation: str, seed: int = 0) -> pa.Table:
    """Three fair coins: on their own, the third equal to the first, or to whether the other two differ."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.integers(0, 2, (3, rows))
    c = {"none": c, "pair": a, "triple": a ^ b}[relation]
    return pa.table({"a": a, "b": b, "c": c})


@pytest.mark.parametrize(
    ("relation", "pairs", "triples"), [("none", 0.0, 0.0), ("pair", 0.5 / 3, 0.5), ("triple", 0.0, 0.5)]
)
def test_a_relation_that_is_lost_shows_in_as_many_columns_as_it_has(relation, pairs, triples):
    real, drawn = flags(20_000, relation), flags(20_000, "none", seed=1)
    assert joint_tv_mean(drawn, real, FLAGS, 2) == pytest.approx(pairs, abs=0.015)
    assert joint_tv_mean(drawn, real, FLAGS, 3) == pytest.approx(triples, abs=0.015)


def test_a_table_is_at_no_distance_from_itself_and_an_empty_one_at_the_largest():
    table = patients(200, 0)
    for together in (2, 3):
        assert joint_tv_mean(table, table, schema_of(), together) == 0
        assert joint_tv_mean(table.slice(0, 0), table, schema_of(), together) == 1


def test_torn_columns_are_farther_than_other_rows_of_the_same_kind():
    real, other = patients(3000, 0), patients(3000, 1)
    rng = np.random.default_rng(0)
    torn = pa.table({name: other[name].take(pa.array(rng.permutation(3000))) for name in other.column_names})
    for together in (2, 3):
        near, far = (joint_tv_mean(table, real, schema_of(), together) for table in (other, torn))
        assert near is not None
        assert far is not None
        assert far > 1.4 * near


def test_with_too_few_columns_there_is_nothing_to_compare():
    schema = Schema.from_dict({"unit": None, "columns": [{"name": "a", "type": "binary"}]})
    table = flags(10, "none")
    assert joint_tv_mean(table, table, schema, 2) is None
    assert joint_tv_mean(table, table, FLAGS, 3) == 0


def test_of_many_columns_a_fixed_choice_of_sets_is_looked_at():
    names = [f"x{i}" for i in range(60)]
    schema = Schema.from_dict({"unit": None, "columns": [{"name": name, "type": "binary"} for name in names]})
    rng = np.random.default_rng(0)
    real, drawn = (pa.table(dict(zip(names, rng.integers(0, 2, (60, 500)), strict=True))) for _ in range(2))
    first, second = (joint_tv_mean(drawn, real, schema, 3) for _ in range(2))
    assert first == second
    assert first is not None
    assert 0 < first < 0.2
