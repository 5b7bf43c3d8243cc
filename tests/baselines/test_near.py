"""Classes are taken to be alike but for what shows above the noise."""

import numpy as np
import pytest

from dpcgan_fast.baselines.histograms import shares_of
from dpcgan_fast.baselines.near import chances_near, fitted, given_first, shares_near

EXPECTED = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])


@pytest.mark.parametrize("std", [1e-6, 1.0])
def test_counts_that_stand_clear_of_the_noise_are_believed_whatever_was_expected(std):
    counts = np.array([[400.0, 300.0, 200.0, 100.0], [50.0, 50.0, 350.0, 50.0]])
    totals = counts.sum(axis=1)
    assert shares_near(counts, std, totals, EXPECTED) == pytest.approx(counts / totals[:, None], abs=1e-6)


def test_counts_that_are_mostly_noise_leave_what_was_expected():
    rng = np.random.default_rng(0)
    totals = np.array([300.0, 200.0])
    noisy = totals[:, None] * EXPECTED + rng.normal(0, 100, EXPECTED.shape)
    near = shares_near(noisy, 100.0, totals, EXPECTED)
    assert near.min() > 0
    assert near.sum(axis=1) == pytest.approx(1)
    assert np.abs(near - EXPECTED).sum() < 0.3 * np.abs(shares_of(noisy, totals) - EXPECTED).sum()


OF_ALL = np.array([[0.8, 0.1, 0.1], [0.2, 0.2, 0.6]])
FIRST = np.array([[0.5, 0.5], [0.9, 0.1]])
SECOND = FIRST @ OF_ALL


def test_chances_that_are_those_of_all_classes_stay_so_under_much_noise():
    rng = np.random.default_rng(0)
    totals = np.array([300.0, 200.0])
    noisy = totals[:, None, None] * FIRST[:, :, None] * OF_ALL + rng.normal(0, 200, (2, 2, 3))
    near = chances_near(noisy, 200.0, totals, OF_ALL, FIRST, SECOND)
    assert near == pytest.approx(np.tile(OF_ALL, (2, 1, 1)), abs=0.1)


def test_chances_of_a_class_that_differ_clearly_are_its_own():
    totals = np.array([50_000.0, 50_000.0])
    own = np.array([OF_ALL, OF_ALL[::-1]])
    second = np.einsum("cf,cfs->cs", FIRST, own)
    noisy = totals[:, None, None] * FIRST[:, :, None] * own
    assert chances_near(noisy, 1.0, totals, OF_ALL, FIRST, second) == pytest.approx(own, abs=1e-3)


def test_a_fitted_table_has_both_sums_and_keeps_what_is_empty():
    joint = np.array([[0.4, 0.2], [0.4, 0.0]])
    found = fitted(joint, np.array([0.7, 0.3]), np.array([0.6, 0.4]))
    assert found.sum(axis=1) == pytest.approx([0.7, 0.3], abs=1e-3)
    assert found.sum(axis=0) == pytest.approx([0.6, 0.4])
    assert found[1, 1] == 0


def test_an_empty_row_of_a_table_has_the_shares_of_all():
    chances = given_first(np.array([[0.0, 0.0], [0.1, 0.3]]), np.array([0.5, 0.5]))
    assert chances == pytest.approx(np.array([[0.5, 0.5], [0.25, 0.75]]))
