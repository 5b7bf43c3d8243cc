"""What a vector of noisy counts says of the counts: post-processing, which costs no privacy.

Among thousands of codes most are rarer than the noise. Taken as they are, or cut off at zero, their noisy counts would
add up to many times what the data hold.
"""

import numpy as np

_GRID = 90  # counts that a true one may be, evenly spaced in their logarithm, and none
_SMALLEST, _LARGEST = 0.02, 1e15  # the latter can be squared in single precision, and is no count
_ROUNDS = 80
_RATIOS, _RATIO_ROUNDS, _BLOCK = 41, 25, 1 << 16
CLEAR_SHARE = 0.06  # counts whose noise is a smaller share of them stay as they are: the grid is coarser


def denoised_counts(noisy: np.ndarray, std: float) -> np.ndarray:
    """Expected counts given their noisy ones, (n,) float64, none negative.

    noisy: (n,) float64, counts with N(0, std^2) added to each
    The counts' own distribution is estimated from all of them: the mixture over a grid under which the noisy counts are
    most likely. Source: nonparametric maximum likelihood, Kiefer and Wolfowitz 1956, by the EM steps of Laird 1978.
    """
    if std == 0 or not len(noisy):
        return np.maximum(noisy, 0.0)
    grid = np.concatenate([[0.0], np.geomspace(_SMALLEST, max(1.0, noisy.max()), _GRID)])
    exponents = -0.5 * ((noisy[:, None] - grid) / std) ** 2  # (n, grid)
    likelihood = np.exp(exponents - exponents.max(1, keepdims=True))
    share = np.full(len(grid), 1 / len(grid))
    chances = likelihood
    for _ in range(_ROUNDS):
        chances = likelihood * share
        chances /= chances.sum(1, keepdims=True)
        share = chances.mean(0)
    return np.where(std < CLEAR_SHARE * noisy, noisy, chances @ grid)


def denoised_ratios(noisy: np.ndarray, expected: np.ndarray, std: float, largest: float) -> np.ndarray:
    """How many times as large as expected each count is, given its noisy one: float64 of the same shape, positive.

    noisy:    counts with N(0, std^2) added to each
    expected: of the same shape, positive: the counts if all ratios were 1
    largest:  ratios lie between 1 / largest and largest, but for those of counts that stand clear of the noise (see
              `CLEAR_SHARE`), which are taken as they are
    The ratios' own distribution is estimated from all of them, as in `denoised_counts`. What a count varies by itself,
    by its mean as a Poisson count, is taken for noise as well.
    """
    if noisy.size == 0:
        return np.ones(noisy.shape)
    grid = np.exp(np.linspace(-np.log(largest), np.log(largest), _RATIOS)).astype(np.float32)
    observed, expected = np.clip(noisy, -_LARGEST, _LARGEST).ravel(), np.clip(expected, _SMALLEST, _LARGEST)
    likelihood = np.empty((noisy.size, _RATIOS), np.float32)
    for first in range(0, noisy.size, _BLOCK):
        block = slice(first, first + _BLOCK)
        mean = expected.ravel()[block, None].astype(np.float32) * grid
        variance = np.float32(std**2) + mean
        exponents = -0.5 * (observed[block, None].astype(np.float32) - mean) ** 2 / variance
        exponents -= 0.5 * np.log(variance)
        likelihood[block] = np.exp(exponents - exponents.max(1, keepdims=True))
    share = np.full(len(grid), 1 / len(grid), np.float32)
    for _ in range(_RATIO_ROUNDS):
        share *= likelihood.T @ (1 / (likelihood @ share)) / np.float32(len(likelihood))
    found = (likelihood @ (share * grid)) / (likelihood @ share)
    return np.where(std < CLEAR_SHARE * noisy, noisy / expected, found.reshape(noisy.shape).astype(np.float64))


def closest_histogram(noisy: np.ndarray, total: float) -> np.ndarray:
    """The non-negative histogram with sum `total` that is nearest to a noisy one in L2 norm: (cells,) float64.

    Under Gaussian noise it is the most likely one. Merely setting negative counts to zero would leave the positive half
    of the noise in every empty cell. Source: Duchi et al., ICML 2008, figure 1.
    """
    falling = np.sort(noisy)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, len(noisy) + 1)
    above = np.flatnonzero(falling > excess)
    last = above[-1] if len(above) else 0  # the largest count is above its excess but for rounding
    return np.maximum(noisy - excess[last], 0.0)
