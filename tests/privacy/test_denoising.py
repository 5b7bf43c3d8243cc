"""Counts out of noisy ones: closer to the truth than these, above all where most are rarer than the noise."""

import numpy as np
import pytest

from dpcgan_fast.privacy.denoising import denoised_counts, denoised_ratios

CODES = 3000


def power_law(rng):
    return rng.permutation(20_000 / (1 + np.arange(CODES)) ** 1.1).round()


@pytest.mark.parametrize("std", [3.0, 30.0, 300.0])
def test_denoised_counts_are_nearer_to_the_truth_and_add_up(std):
    rng = np.random.default_rng(0)
    truth = power_law(rng)
    noisy = truth + rng.normal(0, std, CODES)
    denoised = denoised_counts(noisy, std)
    assert denoised.min() >= 0
    assert np.abs(denoised - truth).mean() < 0.8 * np.abs(np.maximum(noisy, 0) - truth).mean()
    assert denoised.sum() == pytest.approx(truth.sum(), abs=5 * std * np.sqrt(CODES))
    if std >= 30:
        assert np.maximum(noisy, 0).sum() > truth.sum() + 0.2 * std * CODES, "as cutting off at zero does not"


def test_counts_far_above_the_noise_stay_as_they_are():
    noisy = np.array([1000.0, 5000.0, *np.random.default_rng(0).normal(0, 3, 100)])
    assert denoised_counts(noisy, 3.0)[:2].tolist() == [1000.0, 5000.0]


def test_without_noise_counts_are_kept():
    assert denoised_counts(np.array([0.0, 2.5, 9.0]), 0.0).tolist() == [0.0, 2.5, 9.0]


@pytest.mark.parametrize("noisy", [[], [-5.0], [-5.0, -9.0, -1e6], [0.0, 1e12]])
def test_any_vector_gives_counts(noisy):
    denoised = denoised_counts(np.array(noisy), 2.0)
    assert denoised.shape == (len(noisy),)
    assert np.isfinite(denoised).all()
    assert (denoised >= 0).all()


# ---- ratios to what is expected


def reference_ratios(noisy, expected, std, largest):
    """The posterior means, in float64 and ratio by ratio, under the prior that EM gives in as many rounds."""
    grid = np.exp(np.linspace(-np.log(largest), np.log(largest), 41))
    likelihood = np.empty((len(noisy), len(grid)))
    for i, (count, mean) in enumerate(zip(noisy, expected, strict=True)):
        variance = std**2 + mean * grid
        likelihood[i] = np.exp(-0.5 * (count - mean * grid) ** 2 / variance) / np.sqrt(variance)
        likelihood[i] /= likelihood[i].max()
    share = np.full(len(grid), 1 / len(grid))
    for _ in range(25):
        chances = likelihood * share
        share = (chances / chances.sum(1, keepdims=True)).mean(0)
    chances = likelihood * share
    return chances @ grid / chances.sum(1)


def test_ratios_are_posterior_means():
    rng = np.random.default_rng(0)
    expected = rng.uniform(5, 60, 200)
    noisy = expected * np.exp(rng.normal(0, 0.7, 200)) + rng.normal(0, 10.0, 200)
    found = denoised_ratios(noisy, expected, 10.0, 20.0)
    unclear = 0.06 * noisy <= 10.0
    assert found[unclear] == pytest.approx(reference_ratios(noisy, expected, 10.0, 20.0)[unclear], rel=1e-3)


def test_ratios_are_nearer_to_the_truth_than_noisy_ones():
    rng = np.random.default_rng(0)
    expected = rng.uniform(5, 60, (4, 500))
    truth = np.exp(rng.normal(0, 0.5, (4, 500)))
    noisy = expected * truth + rng.normal(0, 20.0, (4, 500))
    found = denoised_ratios(noisy, expected, 20.0, 20.0)
    assert found.shape == (4, 500)
    assert np.abs(np.log(found / truth)).mean() < 0.45
    assert np.abs(found - truth).mean() < 0.6 * np.abs(noisy / expected - truth).mean()


def test_a_clear_count_keeps_its_ratio():
    found = denoised_ratios(np.array([3000.0, 0.0]), np.array([1000.0, 10.0]), 2.0, 20.0)
    assert found[0] == 3.0


@pytest.mark.parametrize("noisy", [[], [0.0], [-1e30, 1e30, 0.0], [1e300, -1e300], [-50.0] * 3])
def test_ratios_are_positive_numbers_whatever_the_counts(noisy):
    for std in (0.0, 1.0, 1e6):
        found = denoised_ratios(np.array(noisy), np.full(len(noisy), 3.0), std, 20.0)
        assert np.isfinite(found).all()
        assert (found > 0).all()
