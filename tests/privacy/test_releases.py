"""One-shot Gaussian releases: sensitivity on neighbouring tables, noise, thresholds."""

import itertools
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
        assert np.linalg.norm(whole - without) <= math.sqrt(columns)


@given(st.lists(st.integers(-2, 4), min_size=1, max_size=9))
def test_one_unit_moves_a_weighted_histogram_by_at_most_one(codes):
    units = np.concatenate([np.repeat(0, len(codes)), np.arange(1, 4)])
    cells = np.concatenate([codes, [0, 1, 2]])
    whole = releases.weighted_histogram(cells, releases.unit_weights(units), 5)
    without = releases.weighted_histogram(np.array([0, 1, 2]), np.ones(3), 5)
    assert np.linalg.norm(whole - without) <= 1


def test_weights_sum_exactly_in_any_order():
    """So that not even the rounding of a sum over many rows moves by more than a unit weighs."""
    rng = np.random.default_rng(0)
    units = np.repeat(np.arange(40_000), rng.integers(1, 8, 40_000))
    weights = releases.unit_weights(units)
    sums = np.bincount(units, weights)
    assert sums.max() == 1
    assert sums.min() > 1 - 8 * 2**-20
    total = releases.weighted_histogram(np.zeros(len(units), np.int64), weights, 1)[0]
    order = rng.permutation(len(units))
    assert releases.weighted_histogram(np.zeros(len(units), np.int64), weights[order], 1)[0] == total
    assert total - releases.weighted_histogram(np.zeros(len(units) - 1, np.int64), weights[1:], 1)[0] == weights[0]


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


SHAPES = {
    "even": lambda rng, rows: rng.uniform(20, 95, rows),
    "whole numbers": lambda rng, rows: rng.integers(20, 95, rows).astype(float),
    "normal": lambda rng, rows: rng.normal(140, 5, rows),
    "long tail": lambda rng, rows: rng.exponential(0.01, rows),
    "mostly zero": lambda rng, rows: np.where(rng.random(rows) < 0.6, 0.0, rng.uniform(0, 100, rows)),
    "a group far off": lambda rng, rows: np.where(rng.random(rows) < 0.05, rng.normal(900, 5, rows), 20.0),
}


def refined(values, coarse, std, rng):
    """Fine bounds of one column, from a histogram with fresh noise."""
    exact = releases.fine_histograms([values], [np.ones(len(values))], [coarse])
    return releases.fine_bounds(exact + rng.normal(0, std, exact.shape), [coarse], std)[0]


def coarse_of(values):
    return releases.coarse_bounds(releases.coarse_histograms([values], [np.ones(len(values))]), 1, std=0.0)[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("rows", "std"), [(40, 0.5), (400, 1.6), (400, 5.0), (2000, 25.0), (10_000, 60.0)])
def test_fine_bounds_keep_the_data_however_few_rows_and_however_much_noise(shape, rows, std):
    """A histogram whose bins drown in the noise gives no reason to cut anything off."""
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(100):
        values = SHAPES[shape](rng, rows)
        low, high = refined(values, coarse_of(values), std, rng)
        kept.append(np.mean((low <= values) & (values <= high)))
    assert np.mean(kept) > 0.995
    assert min(kept) > 0.97


@pytest.mark.parametrize(("rows", "std", "share"), [(10_000, 1.5, 0.35), (10_000, 13.0, 0.45), (100_000, 60.0, 0.35)])
def test_fine_bounds_narrow_where_there_is_enough_data(rows, std, share):
    """The noise is about that of epsilon 3, if all of it, a tenth, or two parts in a hundred go to these releases."""
    rng = np.random.default_rng(0)
    coarse, widths = (64.0, 256.0), []
    for _ in range(100):
        values = rng.normal(140, 5, rows)
        low, high = refined(values, coarse, std, rng)
        assert np.mean((low <= values) & (values <= high)) > 0.99
        widths.append(high - low)
    assert np.median(widths) < share * (coarse[1] - coarse[0])


def test_fine_bounds_without_noise_are_those_of_the_occupied_bins():
    counts = np.zeros(releases.FINE_BINS)
    counts[[10, 11, 40]] = 1.0
    assert releases.fine_bounds(counts, [(0.0, 128.0)], std=0.0) == [(10.0, 41.0)]


@pytest.mark.parametrize(
    ("faint", "kept"), [({60: 2.2, 61: 2.2, 62: 2.2, 63: 2.2}, 64.0), (dict.fromkeys(range(20, 120, 10), 3.5), 128.0)]
)
def test_fine_bounds_keep_bins_that_only_stand_clear_of_the_noise_together(faint, kept):
    """Side by side, as a run; or scattered, by the sum of all that would be cut off."""
    counts = np.zeros(releases.FINE_BINS)
    counts[5] = 1e6
    counts[list(faint)] = list(faint.values())
    (_, high), *_ = releases.fine_bounds(counts, [(0.0, 128.0)], std=1.0)
    assert high >= kept


def test_fine_bounds_are_never_wider_than_coarse_ones_and_the_same_for_the_same_noisy_counts():
    rng = np.random.default_rng(0)
    for std in (0.1, 1.0, 30.0):
        for _ in range(200):
            noisy = rng.normal(rng.choice([0.0, 5.0], releases.FINE_BINS), std)
            (low, high), *_ = bounds = releases.fine_bounds(noisy, [(-1.0, 1.0)], std)
            assert -1.0 <= low < high <= 1.0
            assert releases.fine_bounds(noisy.copy(), [(-1.0, 1.0)], std) == bounds


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 0.2])
def test_a_category_that_one_unit_holds_appears_with_probability_delta(delta):
    mechanism = Mechanism("categories: x", "gaussian", 1.0, 2.0, 1, 1.0, delta)
    key, trials = NoiseKey(7), 4000
    seen = sum(
        "rare" in releases.thresholded_names(["rare"], np.array([1.0]), mechanism, 1, key)[0] for _ in range(trials)
    )
    assert abs(seen - trials * delta) < 6 * math.sqrt(trials * delta * (1 - delta)) + 1


def test_frequent_categories_appear_in_order_of_frequency():
    mechanism = Mechanism("categories: x", "gaussian", 1.0, 2.0, 1, 1.0, 1e-6)
    names, counts = releases.thresholded_names(
        ["a", "b", "c"], np.array([500.0, 900.0, 3.0]), mechanism, 1, NoiseKey(1)
    )
    assert names == ["b", "a"]
    assert counts == pytest.approx([900.0, 500.0], abs=12)


def test_the_order_of_equal_counts_does_not_follow_that_of_the_data():
    mechanism = Mechanism("categories: x", "gaussian", 1.0, 0.0, 1, 1.0, 1e-6)
    names, counts = ["b", "d", "a", "c"], np.array([5.0, 9.0, 5.0, 5.0])
    for order in itertools.permutations(range(4)):
        shown, values = releases.thresholded_names(
            [names[i] for i in order], counts[list(order)], mechanism, 1, NoiseKey(1)
        )
        assert (shown, values.tolist()) == (["d", "a", "b", "c"], [9.0, 5.0, 5.0, 5.0])


@pytest.mark.parametrize("full", [1, 16, 40])
def test_weighted_codes_of_a_record_have_at_most_the_norm_that_is_accounted(full):
    counts = np.arange(0, 5000)
    weights = releases.code_weights(counts, full)
    assert ((weights**2 * counts) <= full).all()
    assert (weights[: full + 1] == 1).all()
    assert (weights * 2**20 == np.floor(weights * 2**20)).all()


@pytest.mark.parametrize("most", [1, 2, 3, 100, 200])
def test_a_histogram_of_numbers_tells_what_weights_took_away(most):
    edges = releases.number_edges(most)
    assert edges[0] == 0
    assert edges[-1] <= most
    numbers = np.random.default_rng(0).integers(0, most + 1, 20_000)
    histogram = np.bincount(np.searchsorted(edges, numbers, side="right") - 1, minlength=len(edges)).astype(float)
    lost = releases.lost_to_weights(histogram, most, 16)
    truth = numbers.sum() / (numbers * releases.code_weights(numbers, 16)).sum()
    assert lost == pytest.approx(truth, rel=0.06)
    assert releases.lost_to_weights(np.zeros(len(edges)), most, 16) >= 1


def test_the_threshold_allows_for_all_rows_of_a_unit():
    one = releases.category_threshold(2.0, 1e-6)
    assert one == pytest.approx(1 + 2.0 * norm.isf(1e-6))
    assert releases.category_threshold(2.0, 1e-6 / 50) > one


def test_a_unit_with_many_rare_categories_shows_any_of_them_with_probability_delta_at_most():
    """Each of its rows may name a category that nobody else has: the threshold leaves delta / rows for each."""
    noise, delta, rows = 1.0, 0.2, 50
    assert norm.sf((releases.category_threshold(noise, delta / rows) - 1) / noise) * rows <= delta * (1 + 1e-9)
    mechanism = Mechanism("categories: x", "gaussian", 1.0, noise, 1, 1.0, delta)
    names, counts = [f"rare {i}" for i in range(rows)], np.full(rows, 1.0 / rows)
    shown = [bool(releases.thresholded_names(names, counts, mechanism, rows, NoiseKey(seed))[0]) for seed in range(400)]
    assert np.mean(shown) < delta


def test_rates_are_positive_add_up_to_one_and_keep_a_floor():
    rates = releases.noisy_rates(np.array([90.0, 10.0, -3.0]), floor=1e-3)
    assert rates.sum() == pytest.approx(1.0)
    assert rates.min() >= 0.9e-3
    assert releases.noisy_rates(np.array([-1.0, -2.0]), 1e-3).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("noisy", "divisor"), [(120.4, 120.4), (-3.0, 1.0), (0.2, 1.0), (math.nan, 1.0)])
def test_a_noisy_count_is_a_usable_divisor(noisy, divisor):
    assert releases.at_least_one(noisy) == divisor
