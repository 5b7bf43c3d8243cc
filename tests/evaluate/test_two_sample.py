"""Can a classifier tell a table's rows from real ones?"""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.two_sample import c2st, c2st_by_learner
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


@pytest.mark.parametrize("rows", [0, 19])
def test_with_fewer_than_twenty_rows_there_is_no_figure(rows):
    assert c2st(pairs(rows, 0), pairs(100, 1), NUMBERS) is None
    assert c2st_by_learner(pairs(100, 0), pairs(rows, 1), NUMBERS) is None
    assert c2st_by_learner(pairs(20, 0), pairs(100, 1), NUMBERS) is not None
