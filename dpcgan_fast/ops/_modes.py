"""Which of the three ways of getting a per-sample norm is cheapest for a layer: a cost model in FLOPs.

The model knows nothing of caches and instruction widths, so it also names the modes that come near its choice; the
engine may time those (`engine/norm_picker.py`). A GPU has a simple rule of its own.

With C input channels, O output channels, k taps, stride s, L input and T output positions, p = C O k weights:
  materialise  forms each sample's gradient and keeps it; the clipped sum then only reads it again
  direct       forms each sample's gradient in registers, squares and drops it: 2 T p
  gram         never forms it; T^2 (C q + O) with q phases of x: s where kernels overlap on many positions, else k
"""

import math
from dataclasses import dataclass
from typing import Literal

NormMode = Literal["auto", "direct", "gram", "materialise"]
NORM_MODES: tuple[NormMode, ...] = ("auto", "direct", "gram", "materialise")


@dataclass(frozen=True)
class NormChoice:
    """A mode and the reason for it, as `PrivateStep.last` shows them."""

    mode: NormMode
    reason: str


@dataclass(frozen=True)
class NormProblem:
    """Sizes of one layer's per-sample gradient, per channel group: C, L, O, T, k, s and the dilation."""

    in_channels: int
    in_length: int
    out_channels: int
    out_length: int
    kernel_size: int
    stride: int
    dilation: int


def gram_phases(positions: int, kernel_size: int, stride: int, dilation: int) -> tuple[int, int]:
    """Phases and folds of the polyphase view that a Gram norm takes, as in `csrc/common/conv_geometry.h`."""
    folds = math.ceil(kernel_size / stride)
    columns = positions + folds - 1
    fewer = columns * (columns + 1) * stride < positions * (positions + 1) * kernel_size
    return (stride, folds) if dilation == 1 and stride < kernel_size and fewer else (kernel_size, 1)


def check_norm_mode(mode: str) -> None:
    """Raises ValueError unless mode is one of `NORM_MODES`."""
    if mode not in NORM_MODES:
        raise ValueError(f"Expected mode to be one of {', '.join(NORM_MODES)}, got {mode!r}.")


_KEPT_FLOPS = 16  # of keeping one gradient: stored, read twice, squared and added up, at the speed of memory
_NEAR = 3.0  # a mode that the model finds more than this many times dearer than its choice is not near
_MOST_KEPT = 2.0  # gradients are not kept that are more than this many times as large as the activations


def pick_norm_mode(problem: NormProblem, asked: NormMode = "auto") -> NormChoice:
    """The cheapest mode for a layer by the cost model, or the one that was asked for."""
    check_norm_mode(asked)
    if asked != "auto":
        return NormChoice(asked, "asked for by norm_mode")
    weights, activations = _weights(problem), _activations(problem)
    if weights <= activations:
        return NormChoice("materialise", f"{weights} weights are fewer than {activations} activations a sample")
    gram, direct = _gram(problem), _direct(problem)
    if gram < direct:
        return NormChoice("gram", f"{gram} FLOPs a sample are fewer than {direct} of direct")
    return NormChoice("direct", f"{direct} FLOPs a sample are at most {gram} of gram")


# FLOPs and bytes a second, and what a launch costs in a graph. Source: measured on an H100
# (`bench/results/step_h100.md`).
_GPU_FLOPS, _GPU_BYTES, _GPU_LAUNCH = 45e12, 2.2e12, 3e-6
_MOST_GPU_BYTES = 2**32  # that one layer may take on a GPU beyond its activations


def pick_gpu_norm_mode(problem: NormProblem, groups: int, rows: float, quick_doubles: bool) -> NormChoice:
    """The mode for a layer on a GPU, whose library forms gradients, or their Gram products, quicker than other kernels.

    groups: channel groups of the layer  rows: public expected batch size
    quick_doubles: whether the GPU's double products are about as quick as its single ones
    """
    weights, positions = groups * _weights(problem), problem.out_length
    taps, outputs = groups * problem.in_channels * problem.kernel_size, groups * problem.out_channels
    kept, window = 4 * weights * rows, taps * positions * rows
    form = 2 * positions * weights * rows / _GPU_FLOPS
    materialise = form + (3 * kept + 3 * 4 * window) / _GPU_BYTES + 6 * _GPU_LAUNCH
    products = 2 * positions**2 * (taps + outputs) * rows / _GPU_FLOPS
    doubles = 8 * rows * (6 * taps * positions + 8 * outputs * positions + 4 * groups * positions**2)
    gram = form + products + doubles / _GPU_BYTES + 30 * _GPU_LAUNCH
    fits = 8 * (window + groups * positions**2 * rows) <= _MOST_GPU_BYTES
    if quick_doubles and fits and (gram < materialise or kept > _MOST_GPU_BYTES):
        return NormChoice("gram", f"by the GPU's library in double: {_instead(gram, materialise)} of keeping gradients")
    if kept <= _MOST_GPU_BYTES:
        return NormChoice("materialise", f"formed by the GPU's library: {kept / 1e6:,.1f} MB for the expected batch")
    return NormChoice("direct", f"formed twice in registers: to keep gradients would take {kept / 1e9:,.1f} GB")


def _instead(seconds: float, other: float) -> str:
    return f"about {1e3 * seconds:.2f} ms for the expected batch in place of {1e3 * other:.2f}"


def near_norm_modes(problem: NormProblem) -> list[NormMode]:
    """The mode that the cost model picks, and after it those that it finds at most three times dearer.

    `materialise` is near only where the gradients are at most twice as large as the activations: beyond, the memory of
    a step would pay for its speed.
    """
    costs: dict[NormMode, float] = {"direct": _direct(problem), "gram": _gram(problem)}
    if _weights(problem) <= _MOST_KEPT * _activations(problem):
        costs["materialise"] = _KEPT_FLOPS * _weights(problem)
    picked = pick_norm_mode(problem).mode
    return [picked, *(mode for mode, cost in costs.items() if mode != picked and cost <= _NEAR * costs[picked])]


def _weights(problem: NormProblem) -> int:
    return problem.in_channels * problem.out_channels * problem.kernel_size


def _activations(problem: NormProblem) -> int:
    return problem.in_channels * problem.in_length + problem.out_channels * problem.out_length


def _gram(problem: NormProblem) -> int:
    phases, _ = gram_phases(problem.out_length, problem.kernel_size, problem.stride, problem.dilation)
    return problem.out_length**2 * (problem.in_channels * phases + problem.out_channels)


def _direct(problem: NormProblem) -> int:
    return 2 * problem.out_length * _weights(problem)
