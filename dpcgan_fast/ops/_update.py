"""Noise and the optimizer's update in one pass over all parameters."""

import math
from collections.abc import Sequence

from torch import Tensor

from dpcgan_fast.ops._backend import op
from dpcgan_fast.ops._noise import NoiseKey
from dpcgan_fast.ops._reference import NORMALS_PER_BLOCK


def noisy_update_(
    parameters: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], sums: Sequence[Tensor],
    public_sums: Sequence[Tensor], std: float, key: NoiseKey, divisor: float, public_divisor: float, optimizer: str,
    settings: Sequence[float],
) -> None:  # fmt: skip
    """Moves parameters by an optimizer's rule with (sums + N(0, std^2)) / divisor + public_sums / public_divisor.

    parameters:    float32 on the CPU, contiguous, without requires_grad
    first, second: the optimizer's moments, float32, or empty where it has none
    sums:          float64; public_sums likewise, or empty
    std:           as in `gaussian_noise_`, whose noise this is for the same key
    optimizer:     "sgd" (settings lr, weight_decay, momentum), "adam" (lr, weight_decay, beta1, beta2, eps and the two
                   bias corrections) or "rmsprop" (lr, weight_decay, alpha, eps)

    Formal guarantee: as `gaussian_noise_`; the sums themselves are left as they are and must not be released.
    Raises ValueError if std is negative or not finite, RuntimeError for tensors that do not fit.
    """
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"Expected a finite std >= 0, got {std}.")
    blocks = sum(math.ceil(tensor.numel() / NORMALS_PER_BLOCK) for tensor in sums) if std > 0 else 0
    words, counter = key.take(blocks)
    op("noisy_update_")(
        list(parameters), list(first), list(second), list(sums), list(public_sums), std, words, counter, divisor,
        public_divisor, optimizer, list(settings),
    )  # fmt: skip
