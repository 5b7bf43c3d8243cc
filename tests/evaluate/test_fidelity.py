"""Distances between synthetic and real rows."""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.fidelity import correlation_mae, correlations, fidelity, marginal_tv
from dpcgan_fast.evaluate.fidelity import pairwise_correlations as pairwise
from tests.evaluate.tables import patients, schema_of, with_column


def test_a_table_has_no_distance_from_itself():
    table = patients(300, 0)
    found = fidelity(table, table, schema_of())
    assert found.marginal_tv_mean == 0
    assert found.correlation_mae == 0
    assert set(found.marginal_tv) == {"age", "bmi", "sex", "smoker", "died"}


def test_the_distance_of_a_column_is_the_total_variation_of_its_cells():
    schema = Schema.from_dict(
        {"unit": None, "columns": [{"name": "x", "type": "numeric", "bounds": [0, 20], "missing": True}]}
    )
    real = pa.table({"x": [0.5, 0.6, 1.5, 3.5]})
    drawn = pa.table({"x": [0.5, 1.5, 1.6, None]})
    assert marginal_tv(drawn, real, schema)["x"] == pytest.approx(0.5)  # (1/4 + 1/4 + 1/4 + 1/4) / 2


def test_missing_cells_are_a_value_of_their_own():
    table = patients(200, 0)
    assert marginal_tv(with_column(table, "bmi", [None] * 200), table, schema_of())["bmi"] > 0.8


def test_a_table_without_rows_is_as_far_as_can_be():
    table = patients(100, 0)
    found = fidelity(table.slice(0, 0), table, schema_of())
    assert found.marginal_tv_mean == 1
    assert found.c2st is None


def test_correlations_of_complete_columns_are_pearsons():
    values = np.random.default_rng(0).normal(size=(100, 4)) @ np.random.default_rng(1).normal(size=(4, 4)) + 1e6
    assert np.allclose(pairwise(values), np.corrcoef(values, rowvar=False), atol=1e-6)


def test_a_pair_is_correlated_over_the_rows_where_both_are_present():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 3))
    values[rng.random((200, 3)) < 0.3] = np.nan
    found = pairwise(values)
    for i in range(3):
        for j in range(i):
            both = ~np.isnan(values[:, [i, j]]).any(axis=1)
            assert found[i, j] == pytest.approx(np.corrcoef(values[both, i], values[both, j])[0, 1])
            assert found[i, j] == found[j, i]


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9, np.nan])
def test_a_constant_or_empty_column_has_correlation_0(constant):
    values = np.column_stack([np.full(50, constant), np.arange(50.0)])
    found = pairwise(values)
    assert found[0, 0] == found[0, 1] == 0
    assert found[1, 1] == pytest.approx(1)


def test_fewer_than_twenty_complete_pairs_have_correlation_0():
    values = np.column_stack([np.arange(50.0), np.arange(50.0)])
    values[19:, 0] = np.nan
    assert pairwise(values)[0, 1] == 0
    values[19, 0] = 19.0
    assert pairwise(values)[0, 1] == pytest.approx(1)


def test_torn_columns_show_in_the_correlations_and_not_in_the_single_columns():
    table, real = patients(1000, 0), patients(1000, 1)
    rng = np.random.default_rng(0)
    torn = pa.table({name: table[name].take(rng.permutation(1000)) for name in table.column_names})
    assert marginal_tv(torn, real, schema_of()) == marginal_tv(table, real, schema_of())
    reference = correlations(real, schema_of())[0]
    errors = [correlation_mae(correlations(t, schema_of())[0], reference) for t in (table, torn)]
    assert errors[1] > 1.5 * errors[0]


def test_correlation_error_of_one_feature_is_0():
    assert correlation_mae(np.ones((1, 1)), np.ones((1, 1))) == 0
