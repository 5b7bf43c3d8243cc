"""The yardstick is a private mechanism: its sensitivity, its noise, and the rows that it draws."""

import math
from typing import Any

import dp_accounting
import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from dpcgan_fast import ops
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import baseline
from dpcgan_fast.evaluate.columns import cell_shares, modelled_columns
from dpcgan_fast.privacy.denoising import closest_histogram
from tests.evaluate.tables import COLUMNS, LABEL, patients, schema_of, with_column

FEATURES = len(COLUMNS)


def released_at(
    epsilon: float, rows: int = 300, seed: int = 0, schema: Schema | None = None, train: Any = None
) -> pa.Table:
    table = patients(500, 0) if train is None else train
    return baseline.independent_marginals(
        table, schema or schema_of(), epsilon, 1e-5, rows, np.random.default_rng(seed)
    )


# ---- sensitivity


def joint(table: pa.Table, schema: Schema) -> np.ndarray:
    return np.concatenate([histogram.ravel() for histogram in baseline.joint_histograms(table, schema)])


@pytest.mark.parametrize("label", [LABEL, None])
def test_removing_a_row_moves_the_joint_histogram_by_at_most_the_root_of_the_columns(label):
    schema = schema_of(label)
    table = patients(40, 3)
    columns = len(baseline.joint_histograms(table, schema))
    whole = joint(table, schema)
    for row in range(table.num_rows):
        rest = pa.concat_tables([table.slice(0, row), table.slice(row + 1)])
        assert np.linalg.norm(whole - joint(rest, schema)) <= math.sqrt(columns) * (1 + 1e-12)


@pytest.mark.parametrize("cap", [1, 3, 100])
def test_removing_a_unit_with_many_rows_moves_it_no_more(cap):
    schema = schema_of(unit="person", max_rows_per_unit=cap)
    rng = np.random.default_rng(0)
    table = patients(60, 3).append_column("person", pa.array(rng.choice(8, 60, p=[0.5, *[0.5 / 7] * 7])))
    table = with_column(table, "age", np.full(60, 50))  # rows of a unit alike, which moves a cell the most
    whole = joint(table, schema)
    for person in range(8):
        rest = table.filter(np.array(table["person"].to_pylist()) != person)
        assert np.linalg.norm(whole - joint(rest, schema)) <= math.sqrt(FEATURES) * (1 + 1e-12)


def test_the_bound_is_reached_so_that_no_noise_is_wasted():
    table = patients(1, 0)
    assert np.linalg.norm(joint(table, schema_of())) == pytest.approx(math.sqrt(FEATURES))


def test_rows_beyond_the_cap_and_rows_without_a_class_are_not_counted():
    schema = schema_of(unit="person", max_rows_per_unit=2)
    table = patients(5, 0).append_column("person", pa.array(["a", "a", "a", "a", "b"]))
    table = with_column(table, "died", [None, 1, 0, 1, None])
    weights = baseline.row_weights(table, schema, np.array([False, True, True, True, False]))
    assert weights.tolist() == [0, 0.5, 0.5, 0, 0]
    assert joint(table, schema).sum() == pytest.approx(FEATURES)


def test_a_training_table_without_the_units_column_is_bad_input():
    with pytest.raises(InputError, match="column person"):
        baseline.joint_histograms(patients(5, 0), schema_of(unit="person"))


# ---- noise


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_the_noise_multiplier_meets_epsilon_and_no_smaller_one_does(epsilon, delta):
    multiplier = baseline.noise_multiplier(epsilon, delta)

    def delta_of(sigma: float) -> float:  # Balle and Wang, theorem 8, written out again
        below, above = (stats.norm.cdf(sign / (2 * sigma) - epsilon * sigma) for sign in (1, -1))
        return below - math.exp(epsilon) * above

    assert delta_of(multiplier) <= delta
    assert delta_of(multiplier * (1 - 1e-4)) > delta
    event = dp_accounting.GaussianDpEvent(multiplier)
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4).compose(event)
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, abs=2e-3)


def test_the_noise_has_the_standard_deviation_of_the_joint_release():
    empty = [np.zeros((2, 5000)) for _ in range(9)]
    noisy = baseline.noisy_parts(empty, 1.7 * baseline.sensitivity(empty, []), ops.NoiseKey())
    values = np.concatenate([part.ravel() for part in noisy])
    # 1e-9 band of a chi-square with 90,000 degrees of freedom
    low, high = np.sqrt(stats.chi2.ppf([5e-10, 1 - 5e-10], values.size) / values.size)
    assert low < values.std() / (1.7 * 3) < high
    assert np.unique(values).size > 0.95 * values.size


def test_two_releases_of_the_same_table_have_different_noise():
    first, second = (released_at(0.5) for _ in range(2))
    assert not first.equals(second)


def test_without_noise_the_histograms_are_released_as_they_are():
    histograms = baseline.joint_histograms(patients(100, 0), schema_of())
    noisy = baseline.noisy_parts(histograms, baseline.noise_multiplier(math.inf, None), ops.NoiseKey())
    assert all(np.array_equal(a, b) for a, b in zip(histograms, noisy, strict=True))


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1), (1, None)])
def test_what_is_no_privacy_guarantee_is_bad_input(epsilon, delta):
    with pytest.raises(InputError, match="epsilon above 0 and a delta"):
        baseline.noise_multiplier(epsilon, delta)


# ---- post-processing


def test_the_closest_histogram_is_non_negative_has_the_total_and_is_nearest():
    rng = np.random.default_rng(0)
    for _ in range(50):
        noisy = rng.normal(0, 5, 7)
        found = closest_histogram(noisy, 10.0)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(10)
        others = rng.dirichlet(np.ones(7), 200) * 10
        assert np.linalg.norm(found - noisy) <= np.linalg.norm(others - noisy, axis=1).min()


def test_without_noise_every_column_is_distributed_as_in_the_training_table():
    train = patients(4000, 0)
    drawn = released_at(math.inf, rows=4000, train=train)
    for column in modelled_columns(schema_of()):
        distance = np.abs(cell_shares(drawn, column) - cell_shares(train, column)).sum() / 2
        assert distance < 0.05


def test_columns_depend_on_the_class_and_not_on_each_other():
    train = patients(4000, 0)
    drawn = released_at(3.0, rows=4000, train=train).to_pandas()
    real = train.to_pandas()
    for died in (0, 1):
        assert drawn[drawn.died == died].age.mean() == pytest.approx(real[real.died == died].age.mean(), abs=2.5)
        assert abs(drawn[drawn.died == died][["age", "bmi"]].corr().iloc[0, 1]) < 0.12


@pytest.mark.parametrize("epsilon", [0.01, 1.0, math.inf])
def test_drawn_rows_keep_the_schema_whatever_the_noise(epsilon):
    columns: list[dict[str, Any]] = [
        *COLUMNS,
        {"name": "stage", "type": "categorical", "categories": ["low", "middle", "high"], "unknown": "first"},
    ]
    drawn = released_at(epsilon, schema=schema_of(columns=columns))
    assert drawn.column_names == ["age", "bmi", "sex", "smoker", "stage", "died"]
    assert drawn.schema.field("age").type == pa.int64()
    assert drawn["age"].null_count == drawn["smoker"].null_count == drawn["stage"].null_count == 0
    frame = drawn.to_pandas()
    assert frame.age.between(0, 110).all()
    assert frame.bmi.dropna().between(10, 60).all()
    assert set(frame.sex.dropna()) <= {"F", "M", "__other__"}
    assert set(frame.stage) <= {"low", "middle", "high"}
    assert set(frame.died) <= {0, 1}


def test_public_label_rates_are_used_in_place_of_noisy_ones():
    drawn = released_at(0.01, rows=4000, schema=schema_of({**LABEL, "rates": [0.9, 0.1]}))
    assert drawn["died"].to_numpy().mean() == pytest.approx(0.1, abs=0.03)


def test_a_schema_without_a_label_has_one_class_and_one_with_a_label_alone_has_its_rates():
    assert released_at(1.0, schema=schema_of(label=None)).column_names == ["age", "bmi", "sex", "smoker"]
    train = patients(2000, 0)
    drawn = released_at(3.0, rows=4000, schema=schema_of(columns=[]), train=train)
    assert drawn["died"].to_numpy().mean() == pytest.approx(train["died"].to_numpy().mean(), abs=0.04)
