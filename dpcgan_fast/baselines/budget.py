"""One epsilon spent on several releases that together cost exactly it."""

import math

import dp_accounting
import numpy as np
import torch
from scipy.stats import norm

from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import NoiseKey, gaussian_noise_
from dpcgan_fast.privacy import releases
from dpcgan_fast.privacy.mechanism import Mechanism
from dpcgan_fast.privacy.releases import Release

# Covers the rounding of sums of normals, waves and memberships in clusters (numbers such as 1/3: some 1e-10 of a
# sensitivity at 10 million rows), and that of shares.
_SAFETY = 1 + 1e-6
_ROUNDING = 1e-9  # of shares, and of the solver, whose tolerance is 1e-12


def noise_multiplier(epsilon: float, delta: float | None) -> float:
    """Standard deviation over L2 sensitivity of one Gaussian release at (epsilon, delta); 0 for epsilon = inf.

    Source: the analytic Gaussian mechanism, Balle and Wang, arXiv 1805.06530, theorem 8. Raises InputError for an
    epsilon that is not positive or a delta outside (0, 1).
    """
    if epsilon == math.inf:
        return 0.0
    if not epsilon > 0 or delta is None or not 0 < delta < 1:
        raise InputError(
            "An epsilon above 0 and a delta between 0 and 1 are needed",
            f"epsilon {epsilon:g}, delta {delta}",
            "Correct the one that is out of range.",
        )
    return float(dp_accounting.get_sigma_gaussian(epsilon, delta)) * (1 + _ROUNDING)


class Budget:
    """What Gaussian releases may cost together: as much as a single one with this noise multiplier.

    Formal guarantee: a release of share s has noise_multiplier / sqrt(s), so that it is sqrt(s) mu-GDP where a single
    one of the whole budget is mu-GDP. Releases whose shares add up to at most 1 are mu-GDP together, also if what is
    released, and its share, are chosen by what those before it gave. Source: Dong, Roth and Su, arXiv 1905.02383,
    corollary 3.3, for shares that are fixed; Smith and Thakurta, arXiv 2210.17520, for those that are chosen.

    mechanisms: those of the releases that were made
    """

    def __init__(self, noise_multiplier: float, key: NoiseKey, unit: str = "row"):
        self.noise_multiplier, self._key, self._unit = noise_multiplier * _SAFETY, key, unit
        self.mechanisms: list[Mechanism] = []
        self._spent = 0.0

    def std(self, sensitivity: float, share: float) -> float:
        """Standard deviation of the noise that a release of this share would have."""
        return self.noise_multiplier / math.sqrt(share) * sensitivity

    def release(self, name: str, values: np.ndarray, sensitivity: float, share: float) -> Release:
        """Values with noise. values: of any shape, to which a unit contributes at most `sensitivity` in L2 norm.

        Raises ValueError if the shares would exceed the whole.
        """
        if not (share > 0 and self._spent + share <= 1 + _ROUNDING):
            raise ValueError(f"Expected a share in (0, {1 - self._spent}] of the budget, got {share}.")
        self._spent += share
        multiplier = self.std(1.0, share)
        noisy = releases.noisy_release(name, values.ravel(), sensitivity, multiplier, self._key, self._unit)
        self.mechanisms.append(noisy.mechanism)
        return Release(noisy.values.reshape(values.shape), noisy.std, noisy.mechanism)

    def some_of(self, count: int, rate: float) -> np.ndarray | None:
        """Poisson subsample: rising places of those drawn, each of `count` with probability `rate`; None if `rate` is 1
        or more, for all of them.

        rate: above 0. The draws come from the noise's own stream.
        Formal guarantee: what is released of those that are drawn is as private as without the draw, and no more is
        claimed. Draws are independent of each other and of the rows, so that given the draws of all other rows
        neighbouring tables give neighbouring or equal ones; a bound on the trade-off of each such pair holds for
        their mixture, since it is convex.
        """
        if rate >= 1:
            return None
        draws = torch.zeros(count, dtype=torch.float64)
        gaussian_noise_([draws], 1.0, self._key)
        return np.flatnonzero(draws.numpy() < norm.ppf(rate))
