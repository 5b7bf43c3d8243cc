"""Poisson sampling: its law, and what a draw depends on."""

import math

import numpy as np
import pytest
from scipy import stats

from dpcgan_fast.privacy import PoissonSampler, sampling_key


def sampler(units, rate, seed=0):
    return PoissonSampler(units, rate, sampling_key("test", seed))


def test_batch_sizes_have_the_binomial_law_and_each_unit_its_rate():
    draws = [sampler(10_000, 0.01).draw(step) for step in range(2000)]
    sizes = np.array([len(draw) for draw in draws])
    assert 98.665 < sizes.mean() < 101.335
    assert 80.21 < sizes.var() < 117.79
    counts = np.bincount(np.concatenate(draws), minlength=10_000)
    expected = 2000 * 0.01
    chi2 = ((counts - expected) ** 2 / (expected * 0.99)).sum()
    assert stats.chi2.sf(chi2, 10_000) > 1e-9
    assert stats.chi2.cdf(chi2, 10_000) > 1e-9, "a shuffle would make the counts too equal"


def test_successive_batches_overlap_as_independent_ones_do():
    """A shuffled epoch never repeats a unit before all were seen; Poisson batches do, 1995 times in 400 steps here."""
    repeats, previous = 0, np.array([], dtype=np.int64)
    poisson = sampler(2000, 0.05, seed=1)
    for step in range(400):
        drawn = poisson.draw(step)
        repeats += len(np.intersect1d(previous, drawn))
        previous = drawn
    assert abs(repeats - 399 * 2000 * 0.05**2) < 6.1 * math.sqrt(399 * 2000 * 0.05**2)


def test_pairs_of_units_are_drawn_independently():
    poisson, hits = sampler(2, 0.3, seed=2), np.zeros((2, 2))
    for step in range(20_000):
        drawn = poisson.draw(step)
        hits[int(0 in drawn), int(1 in drawn)] += 1
    assert stats.chi2_contingency(hits).pvalue > 1e-9
    assert abs(hits[1].sum() / 20_000 - 0.3) < 0.03


def test_draws_cross_the_borders_of_blocks_evenly():
    """Units are drawn block by block of 65,536; no block, and no end of one, is favoured."""
    units = 3 * 65_536 + 100
    counts = np.zeros(units)
    poisson = sampler(units, 0.01, seed=3)
    for step in range(300):
        counts[poisson.draw(step)] += 1
    for part in (slice(0, 1000), slice(65_000, 66_000), slice(131_000, 132_000), slice(196_608, None)):
        size = len(counts[part])
        assert abs(counts[part].sum() - 3 * size) < 6.1 * math.sqrt(3 * size)


def test_a_draw_depends_on_key_and_step_alone():
    one, again, other = sampler(5000, 0.02), sampler(5000, 0.02), sampler(5000, 0.02, seed=9)
    late = one.draw(7)
    for step in range(7):
        again.draw(step)
    assert np.array_equal(again.draw(7), late)
    assert not np.array_equal(one.draw(8), late)
    assert not np.array_equal(other.draw(7), late)


def test_adding_units_changes_no_other_units_draw():
    """Whether a unit is drawn does not depend on the units after it."""
    few, more = sampler(70_000, 0.02), sampler(140_000, 0.02)
    for step in range(5):
        drawn = more.draw(step)
        assert np.array_equal(few.draw(step), drawn[drawn < 70_000])


@pytest.mark.parametrize("units", [0, 1, 65_536, 65_537])
def test_edge_cases(units):
    assert len(sampler(units, 1.0).draw(0)) == units
    drawn = sampler(units, 1e-9).draw(0)
    assert len(drawn) <= 1
    assert drawn.dtype == np.int64
    drawn = sampler(units, 0.5).draw(3)
    assert (np.diff(drawn) > 0).all()
    assert ((drawn >= 0) & (drawn < units)).all()


def test_secret_keys_differ_and_seeded_keys_differ_by_purpose():
    assert sampling_key("a") != sampling_key("a")
    assert sampling_key("a", 1) == sampling_key("a", 1)
    assert len({sampling_key("a", 1), sampling_key("b", 1), sampling_key("a", 2)}) == 3
    assert sampling_key("a").hex() not in repr(PoissonSampler(1, 0.5, sampling_key("a")))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_bad_rate_is_refused(rate):
    with pytest.raises(ValueError, match="Expected sample_rate"):
        sampler(10, rate)
