"""Noise and the optimizer's update in one pass over all parameters."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dpcgan_fast.ops._backend import op
from dpcgan_fast.ops._noise import NoiseKey
from dpcgan_fast.ops._reference import CONTROL, NORMALS_PER_BLOCK


class UpdateControl:
    """What an update reads from memory because it changes from step to step: key, counter, divisors and settings.

    A CUDA graph repeats its kernels with the arguments that they were captured with, but reads memory anew.

    tensor: (15,) int64 on the device, an `UpdateControl` of csrc/common/update_rule.h; from `arm` to the update it
            holds the key, and is as secret
    """

    def __init__(self, device: torch.device):
        self.tensor: Tensor = torch.zeros(CONTROL.itemsize // 8, dtype=torch.int64, device=device)

    def arm(self, key: NoiseKey, blocks: int, divisor: float, public_divisor: float, settings: Sequence[float]) -> None:
        """Reserves the noise of the next update and lets it happen, once.

        The blocks are the key's no more before the device hears of them, and the update clears the control, so that
        neither another call nor another replay can draw them again.
        Raises ValueError for divisors that are not positive.
        """
        if not (divisor > 0 and public_divisor > 0):
            raise ValueError(f"Expected positive divisors, got {divisor} and {public_divisor}.")
        words, counter = key.take(blocks)
        control = np.zeros(1, dtype=CONTROL)
        control["key"], control["counter"], control["armed"] = words.numpy().view(np.uint32), counter, 1
        control["divisor"], control["public_divisor"] = divisor, public_divisor
        control["settings"][0, : len(settings)] = settings
        packed = torch.as_tensor(control.view(np.int64))
        if self.tensor.is_cuda:
            # Pinned memory is not given out again before the copy is done, so an earlier step is never overwritten.
            packed = packed.pin_memory()
        self.tensor.copy_(packed, non_blocking=True)


def noise_blocks(tensors: Sequence[Tensor]) -> int:
    """ChaCha20 blocks that the noise of these tensors takes: each begins with a fresh one."""
    return sum(math.ceil(tensor.numel() / NORMALS_PER_BLOCK) for tensor in tensors)


def _check_std(std: float) -> None:
    if not (math.isfinite(std) and std >= 0):
        raise ValueError(f"Expected a finite std >= 0, got {std}.")


def noisy_update_(
    parameters: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], sums: Sequence[Tensor],
    public_sums: Sequence[Tensor], std: float, key: NoiseKey, divisor: float, public_divisor: float, optimizer: str,
    settings: Sequence[float], clamps: Sequence[float] = (),
) -> None:  # fmt: skip
    """Moves parameters by an optimizer's rule with (sums + N(0, std^2)) / divisor + public_sums / public_divisor.

    parameters:    float32, contiguous, without requires_grad, on one device
    first, second: the optimizer's moments, float32, or empty where it has none
    sums:          float64; public_sums likewise, or empty
    std:           as in `gaussian_noise_`, whose noise this is for the same key
    optimizer:     "sgd" (settings lr, weight_decay, momentum), "adam" (lr, weight_decay, beta1, beta2, eps and the two
                   bias corrections) or "rmsprop" (lr, weight_decay, alpha, eps)
    clamps:        of each parameter, which then lies in [-clamp, clamp], inf for none; or empty

    Formal guarantee: as `gaussian_noise_`; the sums themselves are left as they are and must not be released.
    Raises ValueError if std is negative or not finite, RuntimeError for tensors that do not fit.
    """
    _check_std(std)
    words, counter = key.take(noise_blocks(sums) if std > 0 else 0)
    op("noisy_update_")(
        list(parameters), list(first), list(second), list(sums), list(public_sums), std, words, counter, divisor,
        public_divisor, optimizer, list(settings), list(clamps),
    )  # fmt: skip


def noisy_update_armed_(
    parameters: Sequence[Tensor], first: Sequence[Tensor], second: Sequence[Tensor], sums: Sequence[Tensor],
    public_sums: Sequence[Tensor], std: float, control: UpdateControl, optimizer: str, clamps: Sequence[float] = (),
) -> None:  # fmt: skip
    """`noisy_update_` with key, divisors and settings from `control.arm`; without an `arm` before it, it does nothing.

    Formal guarantee: as `noisy_update_`, also when a CUDA graph repeats it: it moves the parameters once an `arm`.
    """
    _check_std(std)
    op("noisy_update_armed_")(
        list(parameters), list(first), list(second), list(sums), list(public_sums), std, control.tensor, optimizer,
        list(clamps),
    )  # fmt: skip
