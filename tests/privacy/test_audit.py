"""Bounds from guesses: published values, and how often ideal mechanisms of known epsilon are over- and underrated."""

import math
from functools import cache

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from scipy.special import expit
from scipy.stats import norm

from dpcgan_fast.privacy import audit as module
from dpcgan_fast.privacy.audit import REFUTING, SIGNIFICANCE, audit_scores, gaussian_epsilon, one_run_epsilon

REPEATS, DELTA = 2000, 1e-5
MOST_ALARMS = 131  # of 2000 at a significance of 0.05, three standard deviations above 100


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "pure", "with_delta"),
    [
        (100, 100, 100, 3.4930, 3.4902),
        (100, 100, 90, 1.6308, 1.6304),
        (256, 64, 64, 3.0382, 3.0310),
        (1000, 1000, 526, 0.0, 0.0),
        (1000, 1000, 600, 0.2975, 0.2972),
        (1000, 1000, 750, 0.9767, 0.9764),
        (1000, 100, 100, 3.4930, 3.4654),
        (1000, 1000, 1000, 5.8091, 5.7823),
        (2000, 200, 200, 4.1936, 4.1392),
        (5000, 1000, 1000, 5.8091, 5.6729),
    ],
)
def test_one_run_bounds_are_those_of_the_paper_s_formula(canaries, guesses, right, pure, with_delta):
    """Values by an independent implementation of arXiv 2305.08846, theorem 5.2."""
    assert one_run_epsilon(canaries, guesses, right, 0.0, 0.05) == pytest.approx(pure, abs=1e-4)
    assert one_run_epsilon(canaries, guesses, right, DELTA, 0.05) == pytest.approx(with_delta, abs=1e-4)


def test_perfect_guesses_have_the_epsilon_that_their_number_allows():
    assert one_run_epsilon(50, 50, 50, 0.0, 0.05) == pytest.approx(math.log(0.05 ** (1 / 50) / (1 - 0.05 ** (1 / 50))))
    assert one_run_epsilon(50, 0, 0, 0.0, 0.05) == 0.0
    assert gaussian_epsilon(50, 0, DELTA, 0.05) == 0.0
    separation = 2 * norm.ppf(0.05 ** (1 / 50))
    assert gaussian_epsilon(50, 50, DELTA, 0.05) == pytest.approx(
        dp_accounting.get_epsilon_gaussian(1 / separation, DELTA)
    )


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 4.0])
def test_of_ideal_randomised_response_the_one_run_bound_exceeds_epsilon_no_more_often_than_it_says(epsilon):
    bound = cache(lambda right: one_run_epsilon(1000, 1000, right, 0.0, 0.05))
    right = np.random.default_rng(0).binomial(1000, expit(epsilon), REPEATS)
    bounds = np.array([bound(int(one)) for one in right])
    assert (bounds > epsilon).sum() <= MOST_ALARMS
    assert (bounds > epsilon / 2).mean() >= 0.9, "a claim of half of it is refuted"


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_of_ideal_gaussians_the_gaussian_bound_exceeds_epsilon_no_more_often_than_it_says(epsilon):
    separation = 1 / dp_accounting.get_sigma_gaussian(epsilon, DELTA)
    bound = cache(lambda right: gaussian_epsilon(4000, right, DELTA, 0.05))
    right = np.random.default_rng(0).binomial(4000, norm.cdf(separation / 2), REPEATS)
    bounds = np.array([bound(int(one)) for one in right])
    assert (bounds > epsilon).sum() <= MOST_ALARMS
    assert (bounds > epsilon / 2).mean() >= 0.9


@pytest.mark.parametrize("delta", [1e-6, 1e-3])
@pytest.mark.parametrize(
    ("rate", "noise", "steps"),
    [(0.001, 0.5, 1), (0.01, 0.7, 10), (0.1, 0.4, 1), (0.1, 1.0, 100), (0.3, 3.0, 1000), (0.9, 2.0, 3), (1.0, 0.8, 1)],
)
def test_sampled_gaussians_are_guessed_no_better_than_a_gaussian_of_their_epsilon(rate, noise, steps, delta):
    """So that the Gaussian bound is one for everything that a ledger holds. Best guesses are right as often as the
    total variation says, which is delta at epsilon 0; all by dp-accounting's privacy loss distributions.
    """
    one = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=1e-3
    )
    all_of_them = one.self_compose(steps)
    right = (1 + all_of_them.get_delta_for_epsilon(0.0)) / 2
    of_gaussian = dp_accounting.get_epsilon_gaussian(1 / (2 * norm.ppf(right)), delta)
    assert of_gaussian <= all_of_them.get_epsilon_for_delta(delta) * 1.005 + 1e-3


def test_bounds_that_refute_share_their_significance(monkeypatch):
    given = []

    def bound(*arguments):
        given.append(arguments[-1])
        return 0.0

    monkeypatch.setattr(module, "one_run_epsilon", bound)
    monkeypatch.setattr(module, "gaussian_epsilon", bound)
    audit_scores(np.arange(200) - 100.0, np.arange(200) % 2 == 0, 1.0, DELTA)
    shown, refuting = given[: len(given) // 2], given[len(given) // 2 :]
    assert sum(shown) == pytest.approx(2 * SIGNIFICANCE)  # each for itself
    assert sum(refuting) == pytest.approx(REFUTING)  # both together


def gaussian_scores(separation, canaries, rng):
    included = rng.random(canaries) < 0.5
    return separation * (rng.normal(size=canaries) + included * separation) - separation**2 / 2, included


def test_scores_of_a_claim_that_holds_refute_nothing_and_those_of_twice_its_signal_refute_it():
    """Of 60 audits each; the bound of either kind is below the claim in nearly all, and above it where it is broken."""
    rng = np.random.default_rng(0)
    separation = 1 / dp_accounting.get_sigma_gaussian(1.0, DELTA)
    held = [audit_scores(*gaussian_scores(separation, 4000, rng), 1.0, DELTA) for _ in range(60)]
    broken = [audit_scores(*gaussian_scores(2 * separation, 4000, rng), 1.0, DELTA) for _ in range(60)]
    assert not any(audit.refuted for audit in held)
    assert sum(audit.lower_gaussian > 1.0 for audit in held) <= 9
    assert not any(audit.lower > 1.0 for audit in held)
    assert sum(audit.refuted for audit in broken) >= 57
    assert np.mean([audit.lower_gaussian for audit in held]) > 0.55


def test_scores_are_guessed_by_their_sign_and_the_surest_first():
    """Ten canaries in a hundred are told for sure, and the others not at all: only few guesses show it."""
    included = np.arange(1000) % 2 == 0
    scores = np.where(np.arange(1000) < 100, np.where(included, 50.0, -50.0), np.where(np.arange(1000) % 4 < 2, 1, -1))
    audit = audit_scores(scores, included, 1.0, DELTA)
    assert audit.right == 100 + 450
    assert audit.lower == pytest.approx(one_run_epsilon(1000, 100, 100, DELTA, 0.05 / 6), abs=1e-5)
    flipped = audit_scores(-scores, included, 1.0, DELTA)
    assert (flipped.right, flipped.lower, flipped.lower_gaussian) == (450, 0.0, 0.0)


def test_scores_that_are_all_below_zero_are_held_against_their_mean():
    """As those of a mechanism without noise, by the likelihoods of one that has it."""
    included = np.arange(1000) % 3 > 0
    audit = audit_scores(np.where(included, -5.0, -6.0), included, 1.0, DELTA)
    assert audit.right == 1000
    assert audit.refuted


def test_a_score_without_end_is_the_surest_and_one_that_is_no_number_is_refused():
    included = np.arange(200) % 2 == 0
    audit = audit_scores(np.where(included, np.inf, -np.inf), included, 1.0, DELTA)
    assert audit.right == 200
    assert audit.refuted
    with pytest.raises(ValueError, match="NaN"):
        audit_scores(np.full(3, np.nan), np.ones(3, bool), 1.0, DELTA)
    with pytest.raises(ValueError, match="one score a canary"):
        audit_scores(np.zeros(3), np.ones(2, bool), 1.0, DELTA)
    with pytest.raises(ValueError, match="guesses"):
        one_run_epsilon(10, 11, 5, DELTA, 0.05)
    with pytest.raises(ValueError, match="right"):
        gaussian_epsilon(10, 11, DELTA, 0.05)
