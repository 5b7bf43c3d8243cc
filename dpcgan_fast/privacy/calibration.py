"""The smallest noise multiplier for which a whole composition stays within (epsilon, delta)."""

import math
from collections.abc import Callable

import dp_accounting
from scipy.optimize import brentq

from dpcgan_fast.privacy.accountant import COARSE_INTERVAL, FINE_INTERVAL, account, pld_epsilon, rdp_epsilon
from dpcgan_fast.privacy.mechanism import Mechanism

Composition = Callable[[float], list[Mechanism]]

_LARGEST_MULTIPLIER = 1e6
_SMALLEST = 1e-3
_SMALLEST_LOG = math.log(_SMALLEST)
_MOST_EXPONENT = 600.0  # beyond about 709 its exponential is no float64
_TOLERANCE = 4e-4  # of epsilon that may be left unspent
_FINE_ROUNDS = 6
_DIGITS = 5  # significant digits of the result, rounded up


def calibrate_noise_multiplier(composition: Composition, epsilon: float, delta: float) -> float:
    """Noise multiplier sigma such that `composition(sigma)` spends at most epsilon, and at least 99.9 % of it,
    or 99.8 % where next to nothing depends on sigma.

    composition: mechanisms as a function of the noise multiplier that is sought
    epsilon:     > 0; inf gives 0, that is, no noise
    delta:       in (0, 1)

    Raises ValueError if epsilon is not positive, or if what does not depend on sigma already spends more.
    """
    if not epsilon > 0:
        raise ValueError(f"Expected epsilon={epsilon} > 0.")
    if math.isinf(epsilon):
        return 0.0

    start, interval = _upper_multiplier(composition, epsilon, delta)

    def coarse_excess(log_sigma: float) -> float:
        mechanisms = composition(math.exp(log_sigma))
        bound = min(rdp_epsilon(mechanisms, delta), pld_epsilon(mechanisms, delta, interval))
        return math.log(bound / epsilon)

    # The coarse grid, ten times quicker, gives the neighbourhood and the slope; the fine one then settles the digits.
    upper = math.log(start)
    lower = upper - 0.05
    while coarse_excess(lower) < 0 and lower > _SMALLEST_LOG:
        lower -= 0.1
    log_sigma: float = lower
    if coarse_excess(lower) > 0:
        log_sigma = float(brentq(coarse_excess, lower, upper, xtol=1e-4))  # type: ignore[arg-type]  no full_output
    slope = (coarse_excess(log_sigma + 0.05) - coarse_excess(log_sigma - 0.05)) / 0.1
    for _ in range(_FINE_ROUNDS):
        excess = math.log(account(composition(rounded_up(math.exp(log_sigma))), delta).epsilon / epsilon)
        if -_TOLERANCE <= excess <= 0 or slope >= 0:
            break
        log_sigma -= (excess + 0.5 * _TOLERANCE) / slope
    sigma = rounded_up(math.exp(log_sigma))
    step = 1e-4
    while account(composition(sigma), delta).epsilon > epsilon:
        sigma, step = rounded_up(sigma * (1 + step)), 2 * step
    return sigma


def _upper_multiplier(composition: Composition, epsilon: float, delta: float) -> tuple[float, float]:
    """A noise multiplier that meets epsilon, and the grid of a PLD by which it does.

    It meets it by RDP, to one part in a thousand, or else by PLD, and is then a little above. Raises ValueError if none
    does.
    """
    largest = composition(_LARGEST_MULTIPLIER)
    if rdp_epsilon(largest, delta) <= epsilon:
        return _rdp_multiplier(composition, epsilon, delta), COARSE_INTERVAL
    grids = (COARSE_INTERVAL, FINE_INTERVAL)
    met = next((grid for grid in grids if pld_epsilon(largest, delta, grid) <= epsilon), None)
    if met is None:
        raise ValueError(
            f"No noise multiplier meets epsilon={epsilon} at delta={delta}: what does not depend on it spends more."
        )
    upper, step = _clt_multiplier(composition, epsilon, delta), 1.02
    while pld_epsilon(composition(upper), delta, met) > epsilon:
        upper, step = min(upper * step, _LARGEST_MULTIPLIER), step * step
    return upper, met


def _clt_multiplier(composition: Composition, epsilon: float, delta: float) -> float:
    """About the noise multiplier that meets epsilon: where a PLD, which costs a hundred times as much, begins to look.

    Source: central limit theorem of Gaussian differential privacy, Bu et al., arXiv 1911.11607.
    """
    left = delta - sum(mechanism.delta for mechanism in composition(1.0))
    wanted = 1 / float(dp_accounting.get_sigma_gaussian(epsilon, left)) ** 2

    def excess(log_sigma: float) -> float:
        squares = 0.0
        for one in composition(math.exp(log_sigma)):
            square = 1 / max(one.noise_multiplier, _SMALLEST) ** 2
            ratio = math.expm1(min(square, _MOST_EXPONENT)) * one.sample_rate**2
            squares += one.steps * (ratio if one.sample_rate < 1 else square)
        return squares - wanted

    lowest, highest = _SMALLEST_LOG, math.log(_LARGEST_MULTIPLIER)
    if excess(highest) > 0:
        return 1.0  # the caller finds that none does
    return math.exp(float(brentq(excess, lowest, highest)))  # type: ignore[arg-type]  no full_output


def _rdp_multiplier(composition: Composition, epsilon: float, delta: float) -> float:
    """A noise multiplier that meets epsilon by RDP, to about one part in a thousand. There must be one."""
    upper = 1.0
    while rdp_epsilon(composition(upper), delta) > epsilon:
        upper *= 2
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


def rounded_up(value: float) -> float:
    """Up to the next number of `_DIGITS` significant digits: a multiplier is never rounded down."""
    scale = 10.0 ** (_DIGITS - 1 - math.floor(math.log10(value)))
    return math.ceil(value * scale - 1e-9) / scale
