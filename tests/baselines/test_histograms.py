"""Independent columns: what is counted of a unit, and what is drawn."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.baselines.choice import INDEPENDENT, baselines_for
from dpcgan_fast.baselines.histograms import drawn_cells, histograms_of, shares_of, totals_of
from dpcgan_fast.baselines.parts import evenly
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.public_cells import modelled_columns
from dpcgan_fast.privacy.denoising import closest_histogram
from tests.conftest import examples
from tests.evaluate.tables import COLUMNS, patients, schema_of


def drawn_at(epsilon: float, train: pa.Table, rows: int) -> pa.Table:
    baseline = baselines_for(schema_of())[0]
    assert baseline.name == INDEPENDENT
    return baseline.fit(train, epsilon, 1e-5).sample(rows, np.random.default_rng(0))


def test_the_bound_of_a_unit_is_reached_so_that_no_noise_is_wasted():
    schema = schema_of()
    features = tuple(column for column in modelled_columns(schema) if column.name != "died")
    joint = np.concatenate([part.ravel() for part in histograms_of(Rows.of(patients(1, 0), schema), features)])
    assert np.linalg.norm(joint) == pytest.approx(math.sqrt(len(COLUMNS)))


def test_cells_that_are_empty_for_certain_are_not_released():
    schema = schema_of()
    features = {column.name: column for column in modelled_columns(schema)}
    rows = Rows.of(patients(100, 0), schema)
    age, bmi = histograms_of(rows, (features["age"], features["bmi"]))
    assert age.shape == (2, 20)
    assert bmi.shape == (2, 21)  # which may be missing
    assert age.sum() == bmi.sum() == 100


def test_columns_depend_on_the_class_and_not_on_each_other():
    train = patients(4000, 0)
    drawn, real = drawn_at(3.0, train, 4000).to_pandas(), train.to_pandas()
    for died in (0, 1):
        assert drawn[drawn.died == died].age.mean() == pytest.approx(real[real.died == died].age.mean(), abs=2.5)
        assert abs(drawn[drawn.died == died][["age", "bmi"]].corr().iloc[0, 1]) < 0.12


def test_totals_weigh_histograms_by_how_little_noise_they_sum():
    few, many = np.array([[10.0, 20.0]]), np.full((1, 8), 6.0)
    totals = totals_of([few, many], 2.0)
    assert totals.values == pytest.approx([(30 * 4 + 48) / 5])
    assert totals.variance == pytest.approx(4 * 8 / 5)


def test_shares_are_those_of_the_nearest_histogram():
    noisy, totals = np.array([[5.0, -3.0, 4.0], [-1.0, -2.0, -5.0]]), np.array([9.0, 1.0])
    shares = shares_of(noisy, totals)
    assert shares[0] == pytest.approx(closest_histogram(noisy[0], 9.0) / 9.0)
    assert shares.min() >= 0
    assert shares.sum(axis=1) == pytest.approx(1)


def test_the_closest_histogram_is_non_negative_has_the_total_and_is_nearest():
    rng = np.random.default_rng(0)
    for _ in range(50):
        noisy = rng.normal(0, 5, 7)
        found = closest_histogram(noisy, 10.0)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(10)
        others = rng.dirichlet(np.ones(7), 200) * 10
        assert np.linalg.norm(found - noisy) <= np.linalg.norm(others - noisy, axis=1).min()


def test_each_row_draws_from_its_own_group():
    shares = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    groups = np.array([1, 0, 0, 1] + [2] * 2000)
    found = drawn_cells(shares, groups, np.random.default_rng(0))
    assert found[:4].tolist() == [1, 0, 0, 1]
    assert found[4:].sum() == pytest.approx(1000, abs=1)


def test_each_cell_is_drawn_as_often_as_it_should_be_but_for_a_row():
    shares = np.array([[0.123, 0.0, 0.3, 0.577], [0.25, 0.25, 0.25, 0.25]])
    groups = np.random.default_rng(0).integers(0, 2, 997)
    found = drawn_cells(shares, groups, np.random.default_rng(1))
    for group, own in enumerate(shares):
        rows = found[groups == group]
        assert np.abs(np.bincount(rows, minlength=4) - len(rows) * own).max() <= 1


def test_a_row_that_is_drawn_alone_is_of_a_cell_by_its_share():
    rng = np.random.default_rng(0)
    alone = [int(drawn_cells(np.array([[0.2, 0.8]]), np.zeros(1, np.int64), rng)[0]) for _ in range(4000)]
    assert np.mean(alone) == pytest.approx(0.8, abs=0.03)


def test_rows_of_a_cell_are_in_no_order():
    found = drawn_cells(np.array([[0.5, 0.5]]), np.zeros(4000, np.int64), np.random.default_rng(0))
    assert found[:2000].mean() == pytest.approx(0.5, abs=0.05)
    assert (found[::2] != found[1::2]).mean() == pytest.approx(0.5, abs=0.05)


@settings(max_examples=examples(50))
@given(order=st.lists(st.floats(-5, 5), max_size=40), seed=st.integers(0, 99))
def test_even_numbers_keep_the_order_and_lie_one_in_each_part(order, seed):
    even = evenly(np.array(order), np.random.default_rng(seed))
    assert sorted((even * len(order)).astype(int).tolist()) == list(range(len(order)))
    assert (np.diff(even[np.argsort(order, kind="stable")]) > 0).all()
