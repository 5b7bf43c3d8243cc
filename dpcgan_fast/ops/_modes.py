"""Which of the three ways of getting a per-sample norm is cheapest for a layer: a cost model in FLOPs.

With C input channels, O output channels, k taps, stride s, L input and T output positions, p = C O k weights:
  materialise  forms each sample's gradient and keeps it; the clipped sum then only reads it again
  direct       forms each sample's gradient in registers, squares and drops it: 2 T p
  gram         never forms it; T^2 (C min(s, k) + O) with the polyphase view of x
"""

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


def check_norm_mode(mode: str) -> None:
    """Raises ValueError unless mode is one of `NORM_MODES`."""
    if mode not in NORM_MODES:
        raise ValueError(f"Expected mode to be one of {', '.join(NORM_MODES)}, got {mode!r}.")


def pick_norm_mode(problem: NormProblem, asked: NormMode = "auto") -> NormChoice:
    """The cheapest mode for a layer by the cost model, or the one that was asked for."""
    check_norm_mode(asked)
    if asked != "auto":
        return NormChoice(asked, "asked for by norm_mode")
    c, o, k, t = problem.in_channels, problem.out_channels, problem.kernel_size, problem.out_length
    weights = c * o * k
    activations = c * problem.in_length + o * t
    if weights <= activations:
        return NormChoice("materialise", f"{weights} weights are fewer than {activations} activations a sample")
    phases = min(problem.stride, k) if problem.dilation == 1 else k
    gram, direct = t * t * (c * phases + o), 2 * t * weights
    if gram < direct:
        return NormChoice("gram", f"{gram} FLOPs a sample are fewer than {direct} of direct")
    return NormChoice("direct", f"{direct} FLOPs a sample are at most {gram} of gram")
