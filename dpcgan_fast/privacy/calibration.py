"""The smallest noise multiplier for which a whole composition stays within (epsilon, delta)."""

import math
from collections.abc import Callable

from scipy.optimize import brentq

from dpcgan_fast.privacy.accountant import account, rdp_epsilon
from dpcgan_fast.privacy.mechanism import Mechanism

Composition = Callable[[float], list[Mechanism]]

_LARGEST_MULTIPLIER = 1e6
_DIGITS = 5  # significant digits of the result, rounded up


def calibrate_noise_multiplier(composition: Composition, epsilon: float, delta: float) -> float:
    """Noise multiplier sigma such that `composition(sigma)` spends at most epsilon, and at least 99.9 % of it.

    composition: mechanisms as a function of the noise multiplier that is sought
    epsilon:     > 0; inf gives 0, that is, no noise
    delta:       in (0, 1)

    Raises ValueError if epsilon is not positive, or if what does not depend on sigma already spends more.
    """
    if not epsilon > 0:
        raise ValueError(f"Expected epsilon={epsilon} > 0.")
    if math.isinf(epsilon):
        return 0.0

    def excess(log_sigma: float) -> float:
        return math.log(account(composition(math.exp(log_sigma)), delta).epsilon / epsilon)

    upper = _rdp_multiplier(composition, epsilon, delta)
    lower = upper
    while excess(math.log(lower)) < 0:  # RDP is the looser bound, so the root lies a little below its own
        upper = lower
        lower *= 0.9
        if lower < 1e-3:
            return _rounded_up(upper)
    if lower == upper:
        return _rounded_up(upper)
    root = brentq(excess, math.log(lower), math.log(upper), xtol=1e-5)
    sigma = _rounded_up(math.exp(root))
    while account(composition(sigma), delta).epsilon > epsilon:
        sigma = _rounded_up(sigma * (1 + 2e-5))
    return sigma


def _rdp_multiplier(composition: Composition, epsilon: float, delta: float) -> float:
    """A noise multiplier that meets epsilon by RDP, to about one part in a thousand."""
    upper = 1.0
    while rdp_epsilon(composition(upper), delta) > epsilon:
        upper *= 2
        if upper > _LARGEST_MULTIPLIER:
            raise ValueError(
                f"No noise multiplier meets epsilon={epsilon} at delta={delta}: what does not depend on it spends more."
            )
    lower = upper / 2
    while lower > 1e-2 and rdp_epsilon(composition(lower), delta) <= epsilon:
        upper, lower = lower, lower / 2
    while upper / lower > 1.001:
        middle = math.sqrt(lower * upper)
        if rdp_epsilon(composition(middle), delta) <= epsilon:
            upper = middle
        else:
            lower = middle
    return upper


def _rounded_up(value: float) -> float:
    """Up to the next number of `_DIGITS` significant digits: a multiplier is never rounded down."""
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(value)))
    return math.ceil(value * scale - 1e-9) / scale
