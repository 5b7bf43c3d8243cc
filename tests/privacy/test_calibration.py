"""The noise multiplier that a budget asks for: never too small, and hardly too large."""

import math

import pytest

from dpcgan_fast.privacy import Mechanism, account, calibrate_noise_multiplier
from dpcgan_fast.privacy.accountant import rdp_epsilon


def composition(rate, steps, fixed_noise=None):
    def mechanisms(noise):
        parts = [Mechanism("steps", "poisson_gaussian", rate, noise, steps, 1.0)]
        if fixed_noise is not None:
            parts.append(Mechanism("release", "gaussian", 1.0, fixed_noise, 1, 1.0))
        return parts

    return mechanisms


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"),
    [(0.1, 0.02, 1500), (1.0, 0.2, 200), (1.0, 0.001, 5000), (3.0, 0.02, 1500), (10.0, 0.02, 500), (50.0, 0.2, 200)],
)
def test_spends_at_most_the_budget_and_nearly_all_of_it(epsilon, rate, steps):
    mechanisms = composition(rate, steps, fixed_noise=60 / epsilon)
    noise = calibrate_noise_multiplier(mechanisms, epsilon, 1e-5)
    spent = account(mechanisms(noise), 1e-5).epsilon
    assert spent <= epsilon
    assert spent >= 0.999 * epsilon


def test_is_rounded_up_to_five_digits():
    noise = calibrate_noise_multiplier(composition(0.02, 1500), 3.0, 1e-5)
    assert noise == float(f"{noise:.5g}")
    assert account(composition(0.02, 1500)(noise * 0.9995), 1e-5).epsilon > 3.0


def test_infinite_epsilon_needs_no_noise():
    assert calibrate_noise_multiplier(composition(0.02, 100), math.inf, 1e-5) == 0.0


@pytest.mark.parametrize("epsilon", [0.0, -1.0, math.nan])
def test_a_bad_epsilon_is_refused(epsilon):
    with pytest.raises(ValueError, match="Expected epsilon"):
        calibrate_noise_multiplier(composition(0.02, 100), epsilon, 1e-5)


def test_a_budget_that_the_fixed_parts_exceed_is_refused():
    with pytest.raises(ValueError, match="what does not depend on it spends more"):
        calibrate_noise_multiplier(composition(0.02, 100, fixed_noise=0.5), 1.0, 1e-5)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0])
def test_a_release_that_only_privacy_loss_distributions_allow_leaves_room_for_the_rest(epsilon):
    """By Renyi DP the release alone costs more than epsilon, so that no bound of that kind brackets the multiplier."""
    alone = calibrate_noise_multiplier(lambda sigma: [Mechanism("r", "gaussian", 1.0, sigma, 1, 1.0)], epsilon, 1e-5)
    release = Mechanism("r", "gaussian", 1.0, 1.01 * alone, 1, 1.0)
    assert rdp_epsilon([release], 1e-5) > epsilon

    def composition(sigma):
        return [release, Mechanism("steps", "poisson_gaussian", 0.02, sigma, 300, 1.0)]

    sigma = calibrate_noise_multiplier(composition, epsilon, 1e-5)
    assert 0.999 * epsilon <= account(composition(sigma), 1e-5).epsilon <= epsilon
    assert account(composition(0.9 * sigma), 1e-5).epsilon > epsilon
