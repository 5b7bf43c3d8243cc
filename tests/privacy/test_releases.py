"""One-shot Gaussian releases: sensitivity on neighbouring tables, noise, thresholds."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Mechanism, releases

EVIL = [0.0, -1.0, 1e300, -1e300, math.inf, -math.inf, math.nan, 5e-324, 3.5]


@given(st.integers(0, 2**31), st.integers(1, 6), st.lists(st.sampled_from(EVIL), min_size=1, max_size=6))
def test_one_unit_moves_the_bounds_histograms_by_at_most_the_square_root_of_the_columns(seed, columns, evil):
    """Whatever the unit's rows hold, and however many it has."""
    rng = np.random.default_rng(seed)
    units = np.concatenate([np.repeat(0, len(evil)), np.repeat(np.arange(1, 6), 2)])
    values = [np.concatenate([evil, rng.normal(size=10)]) for _ in range(columns)]
    rest = units != 0
    bounds = [(-3.0, 3.0)] * columns

    def histograms(kept):
        weights = [releases.unit_weights(units[kept])] * columns
        cut = [v[kept] for v in values]
        return releases.coarse_histograms(cut, weights), releases.fine_histograms(cut, weights, bounds)

    for whole, without in zip(histograms(slice(None)), histograms(rest), strict=True):
        assert np.linalg.norm(whole - without) <= math.sqrt(columns) * (1 + 1e-12)


@given(st.lists(st.integers(-2, 4), min_size=1, max_size=9))
def test_one_unit_moves_a_weighted_histogram_by_at_most_one(codes):
    units = np.concatenate([np.repeat(0, len(codes)), np.arange(1, 4)])
    cells = np.concatenate([codes, [0, 1, 2]])
    whole = releases.weighted_histogram(cells, releases.unit_weights(units), 5)
    without = releases.weighted_histogram(np.array([0, 1, 2]), np.ones(3), 5)
    assert np.linalg.norm(whole - without) <= 1 + 1e-12


def test_noise_has_the_stated_standard_deviation():
    release = releases.noisy_release("m", np.zeros(200_000), 3.0, 0.5, NoiseKey(), "row")
    assert release.std == 1.5
    assert release.values.std() == pytest.approx(1.5, rel=0.01)
    assert release.mechanism == Mechanism("m", "gaussian", 1.0, 0.5, 1, 3.0)


def test_without_noise_the_values_come_back_as_they_are():
    values = np.array([0.1, 0.2])
    assert releases.noisy_release("m", values, 1.0, 0.0, NoiseKey(), "row").values.tolist() == values.tolist()


def test_bounds_cover_the_data_and_not_much_more():
    rng = np.random.default_rng(0)
    columns = [rng.normal(100, 15, 20_000), rng.exponential(0.01, 20_000), np.round(rng.uniform(0, 9, 20_000))]
    weights = [np.ones(20_000)] * 3
    coarse = releases.noisy_release("c", releases.coarse_histograms(columns, weights), 1.8, 5.0, NoiseKey(1), "row")
    rough = releases.coarse_bounds(coarse.values, 3, coarse.std)
    fine = releases.noisy_release("f", releases.fine_histograms(columns, weights, rough), 1.8, 5.0, NoiseKey(2), "row")
    for values, (low, high) in zip(columns, releases.fine_bounds(fine.values, rough, fine.std), strict=True):
        inside = np.mean((values >= low) & (values <= high))
        assert inside > 0.99
        assert high - low < 3 * (values.max() - values.min())


def test_bounds_of_a_column_that_noise_hides_are_a_public_default():
    noisy = np.zeros(len(releases.coarse_edges()) - 1)
    assert releases.coarse_bounds(noisy, 1, std=10.0) == [(0.0, 1.0)]
    assert releases.fine_bounds(np.zeros(releases.FINE_BINS), [(2.0, 4.0)], std=10.0) == [(2.0, 4.0)]


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 0.2])
def test_a_category_that_one_unit_holds_appears_with_probability_delta(delta):
    mechanism = Mechanism("categories: x", "gaussian", 1.0, 2.0, 1, 1.0, delta)
    key, trials = NoiseKey(7), 4000
    seen = sum(
        "rare" in releases.thresholded_categories(["rare"], np.array([1.0]), mechanism, 1, key) for _ in range(trials)
    )
    assert abs(seen - trials * delta) < 6 * math.sqrt(trials * delta * (1 - delta)) + 1


def test_frequent_categories_appear_in_order_of_frequency():
    mechanism = Mechanism("categories: x", "gaussian", 1.0, 2.0, 1, 1.0, 1e-6)
    names = releases.thresholded_categories(["a", "b", "c"], np.array([500.0, 900.0, 3.0]), mechanism, 1, NoiseKey(1))
    assert names == ["b", "a"]


def test_the_threshold_allows_for_all_rows_of_a_unit():
    one = releases.category_threshold(2.0, 1e-6)
    assert one == pytest.approx(1 + 2.0 * norm.isf(1e-6))
    assert releases.category_threshold(2.0, 1e-6 / 50) > one


def test_rates_are_positive_add_up_to_one_and_keep_a_floor():
    rates = releases.noisy_rates(np.array([90.0, 10.0, -3.0]), floor=1e-3)
    assert rates.sum() == pytest.approx(1.0)
    assert rates.min() >= 0.9e-3
    assert releases.noisy_rates(np.array([-1.0, -2.0]), 1e-3).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("noisy", "divisor"), [(120.4, 120.4), (-3.0, 1.0), (0.2, 1.0), (math.nan, 1.0)])
def test_a_noisy_count_is_a_usable_divisor(noisy, divisor):
    assert releases.at_least_one(noisy) == divisor
