"""Can a classifier tell a table's rows from real ones?"""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.two_sample import c2st, c2st_by_learner, c2st_quantile_bins, inner_quantiles
from tests.evaluate.tables import patients, schema_of, with_column


@pytest.mark.parametrize("binned", [False, True])
def test_a_classifier_tells_shifted_rows_apart_and_rows_of_the_same_kind_not(binned):
    real, same, schema = patients(400, 0), patients(400, 1), schema_of()
    shifted = with_column(same, "age", np.minimum(same["age"].to_numpy() + 40, 110))
    near, far = c2st(same, real, schema, binned), c2st(shifted, real, schema, binned)
    assert near is not None
    assert far is not None
    assert 0.4 < near < 0.6
    assert far > 0.8


def test_binning_hides_how_finely_numbers_are_written():
    real, schema = patients(400, 0), schema_of()
    bmi = patients(400, 1)["bmi"].to_pandas()
    rounded = with_column(patients(400, 1), "bmi", (bmi // 2.5 * 2.5 + 1.25).tolist())
    raw, binned = c2st(rounded, real, schema), c2st(rounded, real, schema, binned=True)
    assert raw is not None
    assert binned is not None
    assert raw > 0.9
    assert binned < 0.6


NUMBERS = Schema.from_dict(
    {"unit": None, "columns": [{"name": name, "type": "numeric", "bounds": [-9, 9]} for name in "xy"]}
)


def pairs(rows: int, seed: int, correlation: float = 0.0, mean: float = 0.0) -> pa.Table:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    y = correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=rows)
    return pa.table({"x": x + mean, "y": y})


def test_rows_of_the_same_kind_are_told_apart_by_no_classifier():
    found = c2st_by_learner(pairs(600, 0), pairs(600, 1), NUMBERS)
    assert found is not None
    assert set(found) == {"gb", "rf", "lr"}
    assert all(0.4 < auroc < 0.6 for auroc in found.values())


def test_rows_with_another_mean_are_told_apart_by_every_classifier():
    found = c2st_by_learner(pairs(600, 0, mean=2.0), pairs(600, 1), NUMBERS)
    assert found is not None
    assert all(auroc > 0.8 for auroc in found.values())


def test_rows_with_another_dependence_are_told_apart_by_those_who_see_more_than_means():
    found = c2st_by_learner(pairs(600, 0, 0.95), pairs(600, 1), NUMBERS)
    assert found is not None
    assert found["gb"] > 0.75
    assert found["rf"] > 0.75
    assert 0.4 < found["lr"] < 0.6


def test_gradient_boosting_is_the_classifier_of_c2st():
    found = c2st_by_learner(pairs(200, 0), pairs(200, 1), NUMBERS)
    assert found is not None
    assert found["gb"] == c2st(pairs(200, 0), pairs(200, 1), NUMBERS)


# ---- quantile bins


def test_bins_hold_as_many_real_values_each():
    assert inner_quantiles(np.arange(101.0)).tolist() == pytest.approx(list(range(5, 100, 5)))
    assert inner_quantiles(np.array([3.0, np.nan, 3.0])).tolist() == [3.0], "equal edges are one"
    assert inner_quantiles(np.array([np.nan])).tolist() == []


def test_within_a_quantile_bin_values_cannot_be_told_apart():
    real = pairs(400, 0)
    edges = np.array([-9, *inner_quantiles(real["x"].to_numpy()), 9])
    middles = (edges[:-1] + edges[1:]) / 2
    same = pairs(400, 1)
    coarse = with_column(same, "x", middles[np.searchsorted(edges[1:-1], same["x"].to_numpy(), side="right")])
    raw, binned = c2st(coarse, real, NUMBERS), c2st_quantile_bins(coarse, real, NUMBERS)
    assert raw is not None
    assert raw > 0.8
    assert binned == c2st_quantile_bins(same, real, NUMBERS)
    assert binned is not None
    assert 0.4 < binned < 0.6


def test_quantile_bins_are_fine_where_real_rows_are_dense():
    """All of it lies in one of the schema's bins of equal width, 0.9 wide."""
    rng = np.random.default_rng(0)
    near = Schema.from_dict({"unit": None, "columns": [{"name": "x", "type": "numeric", "bounds": [-9, 9]}]})
    narrow, wide = (pa.table({"x": 0.45 + width * rng.uniform(-1, 1, 400)}) for width in (0.1, 0.4))
    equal, quantiles = c2st(narrow, wide, near, binned=True), c2st_quantile_bins(narrow, wide, near)
    assert equal == 0.5
    assert quantiles is not None
    assert quantiles > 0.8


def test_a_missing_cell_is_a_bin_of_its_own():
    schema, real = schema_of(), patients(400, 0)
    full = with_column(patients(400, 1), "bmi", np.random.default_rng(0).permutation(real["bmi"].fill_null(27.0)))
    gone = with_column(full, "bmi", pa.nulls(400, pa.float64()))
    found = c2st_quantile_bins(gone, full, schema)
    assert found is not None
    assert found > 0.95


@pytest.mark.parametrize("rows", [0, 19])
def test_with_fewer_than_twenty_rows_there_is_no_figure(rows):
    assert c2st(pairs(rows, 0), pairs(100, 1), NUMBERS) is None
    assert c2st_by_learner(pairs(100, 0), pairs(rows, 1), NUMBERS) is None
    assert c2st_quantile_bins(pairs(100, 0), pairs(rows, 1), NUMBERS) is None
    assert c2st_by_learner(pairs(20, 0), pairs(100, 1), NUMBERS) is not None
