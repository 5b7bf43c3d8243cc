"""Releases that share a budget cost what one release of all of it would."""

import math

import dp_accounting
import numpy as np
import pytest
from scipy import stats

from dpcgan_fast.baselines.budget import Budget, noise_multiplier
from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import account


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-7])
def test_the_noise_multiplier_meets_epsilon_and_no_smaller_one_does(epsilon, delta):
    multiplier = noise_multiplier(epsilon, delta)

    def delta_of(sigma: float) -> float:  # Balle and Wang, theorem 8, written out again
        below, above = (stats.norm.cdf(sign / (2 * sigma) - epsilon * sigma) for sign in (1, -1))
        return below - math.exp(epsilon) * above

    assert delta_of(multiplier) <= delta
    assert delta_of(multiplier * (1 - 1e-4)) > delta
    event = dp_accounting.GaussianDpEvent(multiplier)
    accountant = dp_accounting.pld.PLDAccountant(value_discretization_interval=1e-4).compose(event)
    assert accountant.get_epsilon(delta) == pytest.approx(epsilon, abs=2e-3)


@pytest.mark.parametrize(("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (1, 0), (1, 1), (1, None)])
def test_what_is_no_privacy_guarantee_is_bad_input(epsilon, delta):
    message = rf"An epsilon above 0 and a delta between 0 and 1 are needed \(epsilon {epsilon:g}, delta {delta}\)"
    with pytest.raises(InputError, match=message):
        noise_multiplier(epsilon, delta)


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.5), (0.05, 0.15, 0.8)])
def test_the_accountant_finds_that_all_shares_together_cost_the_epsilon(shares):
    budget = Budget(noise_multiplier(2.0, 1e-6), NoiseKey())
    for share in shares:
        budget.release("counts", np.zeros(3), 7.0, share)
    assert account(budget.mechanisms, 1e-6).epsilon_pld == pytest.approx(2.0, abs=5e-3)


def test_noise_is_in_proportion_to_the_sensitivity_and_grows_as_the_share_falls():
    budget = Budget(1.5, NoiseKey())
    for share, sensitivity in ((0.25, 2.0), (0.5, 1.0)):
        release = budget.release("zeros", np.zeros((2, 50_000)), sensitivity, share)
        assert release.values.shape == (2, 50_000)
        assert (
            release.std
            == pytest.approx(1.5 * sensitivity / math.sqrt(share), rel=1e-5)
            == budget.std(sensitivity, share)
        )
        # 1e-9 band of a chi-square with 100,000 degrees of freedom
        low, high = np.sqrt(stats.chi2.ppf([5e-10, 1 - 5e-10], release.values.size) / release.values.size)
        assert low < release.values.std() / release.std < high


def test_there_is_a_little_more_noise_than_was_asked_for_so_that_rounding_spends_nothing():
    """Of sums of 1/rows, and of shares: at most 1e-9 each."""
    budget = Budget(1.5, NoiseKey())
    for _ in range(3):
        budget.release("counts", np.zeros(3), 1.0, 1 / 3 + 1e-10)
    spent = sum(1 / one.noise_multiplier**2 for one in budget.mechanisms)
    assert (1 - 1e-5) / 1.5**2 < spent < (1 - 1e-6) / 1.5**2


def test_no_more_is_spent_than_there_is():
    budget = Budget(1.0, NoiseKey())
    budget.release("first", np.zeros(2), 1.0, 0.7)
    for share in (0.31, 0.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="share"):
            budget.release("second", np.zeros(2), 1.0, share)
    budget.release("second", np.zeros(2), 1.0, 0.1 + 0.2)  # a little more than 0.3, by rounding
    assert [mechanism.mechanism for mechanism in budget.mechanisms] == ["first", "second"]


def test_without_noise_values_come_back_as_they_are():
    values = np.arange(6.0).reshape(2, 3)
    release = Budget(noise_multiplier(math.inf, None), NoiseKey()).release("counts", values, 1.0, 1.0)
    assert np.array_equal(release.values, values)
    assert release.std == 0
