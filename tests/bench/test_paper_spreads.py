"""Means over runs of the comparison: their intervals know that runs of one seed have the same noise."""

import math

import numpy as np
import pytest
from scipy.stats import t

from dpcgan_fast.bench.paper.spreads import spread_of, spread_over
from dpcgan_fast.evaluate.spread import spread

SEEDS, SPLITS = 5, 3


def values(figure) -> list[tuple[int, float]]:
    """Of every seed and split, with the seed. figure: of both"""
    return [(seed, float(figure(seed, split))) for seed in range(SEEDS) for split in range(SPLITS)]


def half_of(figures) -> float:
    return float(t.ppf(0.975, len(figures) - 1) * np.std(figures, ddof=1) / math.sqrt(len(figures)))


def test_where_noise_decides_the_runs_of_a_seed_are_one_draw():
    by_seed = np.array([0.7, 0.8, 0.9, 0.75, 0.85])
    found = spread_over(values(lambda seed, _: by_seed[seed]))
    assert found.mean == pytest.approx(0.8)
    assert found.half == pytest.approx(half_of(by_seed))
    assert found.half > 2 * spread(np.repeat(by_seed, SPLITS).tolist()).half


def test_where_splits_decide_the_interval_is_that_over_runs():
    by_split = np.array([0.7, 0.8, 0.9])
    found = spread_over(values(lambda _, split: by_split[split]))
    assert found == spread([by_split[split] for _ in range(SEEDS) for split in range(SPLITS)])


def test_runs_of_different_seeds_have_the_interval_of_student():
    runs = [0.5, 0.75, 0.625]
    found, of_runs = spread_over(list(enumerate(runs))), spread(runs)
    assert (found.mean, found.half) == (of_runs.mean, pytest.approx(of_runs.half))


def test_runs_of_one_seed_or_none_have_that_of_their_splits():
    for seed in (0, None):  # the real rows have no seed
        assert spread_over([(seed, 0.5), (seed, 0.75)]) == spread([0.5, 0.75])
    assert spread_over([(0, 0.5)]) == spread([0.5])
    assert spread_over([]) is None


def test_the_mean_is_that_of_runs_also_where_seeds_have_different_numbers_of_them():
    assert spread_over([(0, 0.0), (0, 0.0), (1, 0.75)]).mean == pytest.approx(0.25)


def test_runs_without_the_figure_do_not_count():
    runs = [{"seed": seed, "figures": {"mmd": own}} for seed, own in enumerate((0.25, None, 0.75))]
    assert spread_of(runs, ("mmd",)) == spread([0.25, 0.75])


@pytest.mark.parametrize("of_noise", [1.0, 0.5, 0.0])
def test_nineteen_of_twenty_intervals_hold_the_truth_however_much_of_the_variance_is_shared_noise(of_noise):
    rng, trials = np.random.default_rng(0), 2000
    noise = rng.normal(0, math.sqrt(of_noise), (trials, SEEDS, 1))
    drawn = noise + rng.normal(0, math.sqrt(1 - of_noise), (trials, SEEDS, SPLITS))
    found = [spread_over(values(lambda seed, split, own=own: own[seed, split])) for own in drawn]
    held = np.mean([abs(one.mean) <= one.half for one in found])
    assert held > 0.95 - 6.2 * math.sqrt(0.95 * 0.05 / trials)
    if of_noise:
        naive = np.mean([abs(own.mean()) <= spread(own.ravel().tolist()).half for own in drawn])
        assert naive < 0.85, "the interval over runs, as if each had noise of its own"
