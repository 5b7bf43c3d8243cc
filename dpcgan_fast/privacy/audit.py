"""Empirical lower bounds on epsilon: from how well one tells which canaries a mechanism was given.

Each of m canaries is given to the mechanism with probability 1/2, independently, and a score tells how likely it looks
to have been. The more guesses are right, the larger epsilon must be. Canaries may share one run of the mechanism, or
have a run each.
"""

from dataclasses import dataclass

import dp_accounting
import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import beta as beta_distribution
from scipy.stats import binom, norm

SIGNIFICANCE = 0.05  # of the bounds that are shown
REFUTING = 1e-6  # of those that refute a claim: one in a million of the claims that hold with nothing to spare
_GUESSED = (1.0, 0.1, 0.01)  # shares of the canaries that are guessed, the surest ones
_MOST_EPSILON = 100.0


@dataclass(frozen=True)
class Audit:
    """What an audit found of a claim of (epsilon, delta).

    canaries, right:  how many there were, and how many guesses were right, each canary being guessed, by the better of
                      two rules
    lower:            epsilon is at least this, whatever the mechanism is
    lower_gaussian:   epsilon is at least this if canaries are independent, and told apart no better than by a Gaussian
                      mechanism of that epsilon, as all that a ledger holds is: Gaussian mechanisms, also of Poisson
                      samples, and many together. Larger, since it needs no more than the share of right guesses
    refuted:          whether one of these bounds is above the claim at a significance of `REFUTING` for both together
    The bounds hold with probability 1 - `SIGNIFICANCE`, each for itself.
    """

    canaries: int
    right: int
    epsilon: float
    delta: float
    lower: float
    lower_gaussian: float
    refuted: bool


def audit_scores(scores: np.ndarray, included: np.ndarray, epsilon: float, delta: float) -> Audit:
    """Bounds from scores of canaries.

    scores:   (m,) float64, log likelihood ratios or what is like them: above 0 where a canary looks to have been given;
              of larger magnitude where that is surer
    included: (m,) bool, whether it was: drawn with probability 1/2, independently
    Raises ValueError for shapes that differ, no canaries or scores that are NaN.
    """
    if scores.shape != included.shape or scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"Expected one score a canary, got {scores.shape} and {included.shape}.")
    if np.isnan(scores).any():
        raise ValueError("Expected scores that are numbers, got NaN.")
    # Likelihoods are those of what is claimed. Where that is not what was done they may all be below 0, so that scores
    # are held against their own mean as well.
    finite = scores[np.isfinite(scores)]
    centres = (0.0, float(finite.mean()) if len(finite) else 0.0)
    right = [_right_guesses(scores - centre, included) for centre in centres]
    shown = [_bounds(right, delta, significance) for significance in (SIGNIFICANCE, REFUTING / 2)]
    most = max(int(one.sum()) for one in right)
    return Audit(len(scores), most, epsilon, delta, *shown[0], max(shown[1]) > epsilon)


def _right_guesses(scores: np.ndarray, included: np.ndarray) -> np.ndarray:
    """(m,) whether the guess of a canary is right, the surest first."""
    return ((scores > 0) == included)[np.argsort(-np.abs(scores), kind="stable")]


def _bounds(guesses: list[np.ndarray], delta: float, significance: float) -> tuple[float, float]:
    """Both lower bounds, each the largest of several that share its significance.

    guesses: (m,) each, by one rule of guessing: whether the guess of a canary is right, the surest first
    """
    numbers = sorted({max(1, round(share * len(guesses[0]))) for share in _GUESSED})
    tried = [(right, number) for right in guesses for number in numbers]
    one_run = max(
        one_run_epsilon(len(right), number, int(right[:number].sum()), delta, significance / len(tried))
        for right, number in tried
    )
    of_all = [gaussian_epsilon(len(right), int(right.sum()), delta, significance / len(guesses)) for right in guesses]
    return one_run, max(of_all)


def one_run_epsilon(canaries: int, guesses: int, right: int, delta: float, significance: float) -> float:
    """The largest epsilon that is refuted, at delta, by `right` of `guesses` guesses; 0 if none is.

    canaries: m, each given with probability 1/2; their presence may not depend on each other
    guesses:  how many were guessed, a number that was fixed before; of the others nothing is said

    Formal guarantee: a mechanism that is (epsilon, delta)-DP with respect to one canary gets a bound above epsilon with
    probability at most `significance`, also where all canaries are in one run.
    Source: Steinke, Nasr and Jagielski, arXiv 2305.08846, theorem 5.2.
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(f"Expected 0 <= right={right} <= guesses={guesses} <= canaries={canaries}.")

    def spare(epsilon: float) -> float:
        return significance - _one_run_p_value(canaries, guesses, right, epsilon, delta)

    if guesses == 0 or spare(0.0) <= 0:
        return 0.0
    if spare(_MOST_EPSILON) > 0:
        return _MOST_EPSILON
    return float(brentq(spare, 0.0, _MOST_EPSILON, xtol=1e-6))  # type: ignore[arg-type]  no full_output


def _one_run_p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    chance = expit(epsilon)
    tail = binom.sf(right - 1, guesses, chance)
    fewer = np.arange(1, right + 1)
    gains = (binom.sf(right - fewer - 1, guesses, chance) - tail) / fewer
    return min(1.0, float(tail + 2 * canaries * delta * np.max(gains, initial=0.0)))


def gaussian_epsilon(guesses: int, right: int, delta: float, significance: float) -> float:
    """Epsilon at delta of the least separated Gaussians between which so many guesses are right; 0 if chance is enough.

    Of canaries that are given with probability 1/2, no guess between N(0, 1) and N(mu, 1) is right with probability
    above Phi(mu / 2).
    Formal guarantee: if canaries are independent and the trade-off of each is that of a Gaussian mechanism or harder,
    a bound above its epsilon has probability at most `significance`.
    Source: Gaussian DP, Dong, Roth and Su, arXiv 1905.02383; auditing by a family of trade-offs, Nasr et al., arXiv
    2302.07956; the binomial bound is Clopper and Pearson's.
    """
    if not 0 <= right <= guesses:
        raise ValueError(f"Expected 0 <= right={right} <= guesses={guesses}.")
    share = float(beta_distribution.ppf(significance, right, guesses - right + 1)) if right > 0 else 0.0
    if share <= 0.5:
        return 0.0
    return float(dp_accounting.get_epsilon_gaussian(float(1 / (2 * norm.ppf(share))), delta))
