"""Counts out of noisy ones: closer to the truth than these, above all where most are rarer than the noise."""

import numpy as np
import pytest

from dpcgan_fast.privacy.denoising import denoised_counts

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
