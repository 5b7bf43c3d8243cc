"""The range of the settings of a noisy clipped sum, wherever they are given."""

import math

LEAST_NORM = 1e-12  # squares of smaller norms lose digits
_LEAST_STD = 1e-100  # far below, noise is rounded to nothing


def noise_std(max_grad_norm: float, noise_multiplier: float) -> float:
    """noise_multiplier * max_grad_norm, in gradient units; 0 where no noise is asked for.

    Raises ValueError for settings out of range; among them are those that would pass for "no noise".
    """
    if not max_grad_norm >= LEAST_NORM:
        raise ValueError(f"Expected max_grad_norm={max_grad_norm} >= {LEAST_NORM}; it bounds what one unit adds.")
    if not (math.isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ValueError(f"Expected a finite noise_multiplier={noise_multiplier} >= 0.")
    if math.isinf(max_grad_norm) and noise_multiplier > 0:
        raise ValueError("Expected noise_multiplier=0 with max_grad_norm=inf, since no noise covers what is unbounded.")
    std = noise_multiplier * max_grad_norm if noise_multiplier > 0 else 0.0
    if noise_multiplier > 0 and std < _LEAST_STD:
        raise ValueError(
            f"Expected noise_multiplier={noise_multiplier} times max_grad_norm={max_grad_norm} >= {_LEAST_STD}, or 0 "
            "for no noise."
        )
    return std
