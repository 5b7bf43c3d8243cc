"""Which norm mode a layer of the layerwise path takes: the one asked for, or by the cost model, confirmed by timing.

Where the cost model finds several modes near each other, each is timed once on made-up rows of the layer's shape. How
many rows follows from the public expected batch size: neither the rows that were drawn nor their number enter, so that
the choice tells nothing of the data. The result is kept for the life of the process.

All modes agree up to rounding, and a run that must be the same bit by bit cannot depend on a clock. So modes are timed
only where the noise is secret, and no bit is reproducible anyway; with a seeded key, without noise, or where torch was
asked for deterministic algorithms, the cost model alone decides. `DPCGAN_NORM_TIMING=0` has it decide everywhere. On a
GPU a rule decides, and nothing is timed.
"""

import math
import os
import time
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from dpcgan_fast import ops
from dpcgan_fast.engine.layer_gradients import LayerGradient
from dpcgan_fast.engine.rules_conv import ConvGradient
from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import ConvProblem, NormChoice, NormMode, NormProblem

TIMING_VARIABLE = "DPCGAN_NORM_TIMING"
_FEWEST_ROWS, _MOST_ROWS = 16, 256
_REPEATS = 3
_CLEARLY = 0.9  # the model's choice stays unless another mode takes less than this share of its time


def timing_refused(noise_std: float, seeded: bool) -> str:
    """Why modes are not timed, and the cost model decides; empty if they are.

    Raises InputError, a ValueError, for a value of DPCGAN_NORM_TIMING other than 0 or 1.
    """
    asked = os.environ.get(TIMING_VARIABLE, "1")
    if asked not in ("0", "1"):
        raise InputError(f"Expected 0 or 1, got {asked!r}", TIMING_VARIABLE, "Set it to one of them, or unset it.")
    if asked == "0":
        return f"{TIMING_VARIABLE}=0"
    if seeded:
        return "the noise key is seeded"
    if noise_std == 0:
        return "there is no noise"
    return "torch uses deterministic algorithms" if torch.are_deterministic_algorithms_enabled() else ""


class NormPicker:
    """Picks the norm mode of each layer.

    asked:         as `norm_mode` of PrivateStep
    expected_rows: public expected batch size, from which the number of made-up rows follows
    not_timed:     why the cost model decides alone, from `timing_refused`; empty if modes are timed
    """

    def __init__(self, asked: NormMode, expected_rows: float, not_timed: str):
        self._asked: NormMode = asked
        self._expected_rows = expected_rows
        self._rows = min(_MOST_ROWS, max(_FEWEST_ROWS, 2 ** math.ceil(math.log2(expected_rows))))
        self._not_timed = not_timed

    @property
    def chooses(self) -> bool:
        """Whether no mode was asked for."""
        return self._asked == "auto"

    def __call__(self, gradient: LayerGradient, grouped: bool) -> NormChoice:
        """The mode for one layer, with the reason.

        grouped: whether rows are grouped into units; the cost model decides then, since made-up rows have no units
        """
        if self._asked != "auto" or not isinstance(gradient, ConvGradient):
            return gradient.choose(self._asked, grouped)
        x, g = gradient.x, gradient.g
        if ops.gpu_ops(x.device):
            return ops.pick_gpu_norm_mode(
                gradient.problem.sizes(x, g), gradient.problem.groups, self._expected_rows,
                quick_doubles=not grouped and _quick_doubles(x.device),
            )  # fmt: skip
        if self._not_timed or grouped:
            return _modelled(gradient.problem.sizes(x, g), self._not_timed or "rows are grouped into units")
        return _confirmed(
            gradient.problem, self._rows, tuple(x.shape[1:]), tuple(g.shape[1:]), x.dtype,
            torch.get_num_threads(), ops.backend(),
        )  # fmt: skip


@lru_cache
def _quick_doubles(device: torch.device) -> bool:
    """Whether a GPU's double products are about as quick as its single ones: A100, H100 and H200, B200."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) in ((8, 0), (9, 0), (10, 0))


@lru_cache(maxsize=4096)
def _modelled(sizes: NormProblem, not_timed: str) -> NormChoice:
    """The mode that the cost model picks, and why it decides alone where others come near."""
    choice = ops.pick_norm_mode(sizes)
    alone = len(ops.near_norm_modes(sizes)) == 1
    return choice if alone else NormChoice(choice.mode, f"{choice.reason}; not timed: {not_timed}")


@lru_cache(maxsize=4096)
def _confirmed(
    problem: ConvProblem, rows: int, x_shape: tuple[int, ...], g_shape: tuple[int, ...], dtype: torch.dtype,
    threads: int, backend: str,
) -> NormChoice:  # fmt: skip
    """The quickest of the modes that the cost model finds near each other."""
    randomness = torch.Generator().manual_seed(0)
    x, g = (torch.rand(rows, *shape, generator=randomness, dtype=dtype) - 0.5 for shape in (x_shape, g_shape))
    sizes = problem.sizes(x, g)
    modelled = ops.pick_norm_mode(sizes)
    near = ops.near_norm_modes(sizes)
    if len(near) == 1:
        return modelled
    seconds = {mode: _seconds(_work(problem, mode, x, g)) for mode in near}
    quickest = min(near, key=seconds.__getitem__)
    mode = quickest if seconds[quickest] < _CLEARLY * seconds[modelled.mode] else modelled.mode
    figures = ", ".join(f"{name} {1e3 * taken:.2f} ms" for name, taken in seconds.items())
    return NormChoice(mode, f"timed on {rows} made-up rows, {threads} threads, ops {backend}: {figures}")


def _work(problem: ConvProblem, mode: NormMode, x: Tensor, g: Tensor) -> Callable[[], object]:
    """All that a step does with a layer's x and g in one mode: norms, and the weighted sum."""
    factor = torch.ones(x.shape[0], dtype=torch.float64, device=x.device)

    def materialise() -> object:
        grads = [grad for grad in problem.per_sample_grad(x, g) if grad.numel() > 0]
        return ops.rows_sq_norm(grads), [ops.rows_weighted_sum(grad, factor) for grad in grads]

    def measure() -> object:
        return problem.sq_norm(x, g, mode), problem.weighted_grad(x, g, factor)

    return materialise if mode == "materialise" else measure


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of a few runs, after one that warms up."""

    def run() -> float:
        begin = time.perf_counter()
        work()
        return time.perf_counter() - begin

    run()
    return min(run() for _ in range(_REPEATS))
