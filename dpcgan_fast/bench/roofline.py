"""Roofline: each op of a step against what the machine can compute and move.

Ops are timed where PyTorch dispatches them, by their names: our native ops, and the convolutions of the layerwise path.
What they must compute and move comes from shapes (`work`), so a kernel that computes something twice is not credited
with it. An op that `work` does not know is timed all the same and has no FLOPs. Ops so short that timing them costs as
much as they do, and those below a hundredth of the step, are counted with what is outside of ops.
"""

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from dpcgan_fast.bench.contenders import PLAIN, own_step, plain_step
from dpcgan_fast.bench.timing import WARM_UPS, interleaved, milliseconds
from dpcgan_fast.bench.work import ConvShape, Mode, conv_shapes, fused_work, plain_flops
from dpcgan_fast.engine.report import StepReport

OUTSIDE, WHOLE = "all else (short ops, Python, autograd)", "whole step"
_SHORT = 0.05  # ms a call
_LEAST_SHARE = 0.01  # of the step
_SCRATCH = "workspace"  # an argument that is a kernel's own memory; `fused_work` says what must be kept in it
_MATRIX_SIDES = (512, 1024, 2048)
_STREAM_FLOATS = 2**24  # of each of three arrays: 64 MiB, beyond every cache


@dataclass(frozen=True)
class Peaks:
    """What the machine reaches at the threads in use."""

    gflop_per_s: float
    gb_per_s: float


def machine_peaks(device: torch.device) -> Peaks:
    """Best of a float32 matrix product, and of c = a + s b on arrays beyond the caches (two reads and a write).

    The product is the vendor library's, which comes close to the peak of fused multiply-adds.
    """
    flops = 0.0
    for side in _MATRIX_SIDES:
        a, b, c = (torch.rand(side, side, device=device) for _ in range(3))
        flops = max(flops, 2.0 * side**3 / _least_seconds(lambda a=a, b=b, c=c: torch.mm(a, b, out=c)))
    a, b, c = (torch.rand(_STREAM_FLOATS, device=device) for _ in range(3))
    seconds = _least_seconds(lambda: torch.add(a, b, alpha=0.5, out=c))
    return Peaks(flops / 1e9, 3 * a.nbytes / seconds / 1e9)


def _least_seconds(run: Callable[[], object], calls: int = 12) -> float:
    return min(milliseconds(run)[0] for _ in range(calls)) / 1e3


@dataclass
class _Seen:
    """One op in one step: its time, and the FLOPs and bytes of its calls; FLOPs are None if it is not known."""

    milliseconds: float = 0.0
    calls: int = 0
    flops: int | None = 0
    bytes: int = 0


@dataclass
class _Watch(TorchDispatchMode):
    """Times ops as PyTorch dispatches them."""

    seen: dict[str, _Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        took, out = milliseconds(lambda: func(*args, **(kwargs or {})))
        namespace, name = func._schema.name.split("::")
        own = namespace == "dpcgan_fast"
        name = name if own else f"{namespace}::{name}"
        seen = self.seen.setdefault(name, _Seen())
        seen.milliseconds += took
        seen.calls += 1
        flops = None
        if own:
            flops = own_flops(name, args)
        elif func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        seen.flops = None if flops is None or seen.flops is None else seen.flops + flops
        seen.bytes += moved_bytes(func, args, out)
        return out


def own_flops(name: str, args: tuple[Any, ...]) -> int | None:
    """FLOPs of one call of an op of the layerwise path, from its arguments; None for other ops."""
    if name in ("conv_sq_norm", "conv_per_sample_grad", "conv_weighted_grad"):
        x, g, *rest = args
        k, stride, _padding, dilation, groups = rest[1:6] if name == "conv_weighted_grad" else rest[:5]
        shape = ConvShape(x.shape[1], g.shape[1], g.shape[2], k, stride, dilation, groups, 0, 0)
        return x.shape[0] * (shape.norm_flops(rest[6]) if name == "conv_sq_norm" else shape.pass_flops)
    if name == "rows_sq_norm":
        return 2 * sum(grad.numel() for grad in args[0])
    if name == "rows_weighted_sum":
        return 2 * args[0].numel()
    return None


def moved_bytes(func: Any, args: tuple[Any, ...], out: Any) -> int:
    """Bytes of the tensors that an op is given and gives, those that it changes twice; its scratch not at all."""
    total = sum(tensor.nbytes for tensor in tree_leaves(out) if isinstance(tensor, Tensor))
    for argument, value in zip(func._schema.arguments, args, strict=False):
        if argument.name != _SCRATCH:
            times = 2 if argument.alias_info is not None and argument.alias_info.is_write else 1
            total += times * sum(tensor.nbytes for tensor in tree_leaves(value) if isinstance(tensor, Tensor))
    return total


def measure_ops(module: nn.Module, x: Tensor, report: StepReport, peaks: Peaks, calls: int) -> list[dict[str, Any]]:
    """One line for each op of our private step, for all else in it, for the whole, and for the plain step.

    report: of such a step; tells which layers are fused, and how they are measured

    A line has the op's calls a step and median milliseconds; GFLOP and megabytes that it must do; the rates; and
    `of_roof`: the least time that the peaks allow, max(FLOPs / peak, bytes / peak), over the time taken. It may be
    above 1 where the data stay in a cache. Figures that are not known are None.
    """
    run = own_step(copy.deepcopy(module), x, private=True)[0]
    steps: list[dict[str, _Seen]] = []

    def watched() -> None:
        with _Watch() as watch:
            run()
        steps.append(watch.seen)

    turns = interleaved({PLAIN: plain_step(copy.deepcopy(module), x), WHOLE: run, "watched": watched}, calls)
    whole, plain = turns[WHOLE].median, turns[PLAIN].median
    del steps[:WARM_UPS]
    modes: dict[str, Mode] = {layer.name: layer.mode for layer in report.layers if layer.fused}  # type: ignore[misc]
    every = conv_shapes(module, x[:1])
    shapes = {name: shape for name, shape in every.items() if name in modes}
    work = fused_work(shapes, modes, len(x), whole="fused_sq_norm" not in steps[-1]) if shapes else {}
    lines, total = [], 0
    for name, seen in steps[-1].items():
        took = statistics.median(step[name].milliseconds for step in steps)
        flops, moved = seen.flops, seen.bytes
        if name in work:
            flops, moved = work[name].flops, moved + work[name].kept_bytes
        total += flops or 0
        if took >= max(_SHORT * seen.calls, _LEAST_SHARE * whole):
            lines.append(_line(name, seen.calls, took, flops, moved, peaks))
    lines.sort(key=lambda line: -line["milliseconds"])
    inside = sum(line["milliseconds"] for line in lines)
    lines.append(_line(OUTSIDE, 1, max(0.0, whole - inside), None, None, peaks))
    lines.append(_line(WHOLE, 1, whole, total, None, peaks))
    lines.append(_line(PLAIN, 1, plain, plain_flops(every, len(x)), None, peaks))
    return lines


def _line(name: str, calls: int, took: float, flops: int | None, moved: int | None, peaks: Peaks) -> dict[str, Any]:
    seconds = took / 1e3
    least = max((flops or 0) / (peaks.gflop_per_s * 1e9), (moved or 0) / (peaks.gb_per_s * 1e9))
    unknown = (flops is None and moved is None) or seconds == 0
    return {
        "op": name,
        "calls": calls,
        "milliseconds": took,
        "gflop": None if flops is None else flops / 1e9,
        "megabytes": None if moved is None else moved / 1e6,
        "gflop_per_s": None if flops is None or unknown else flops / 1e9 / seconds,
        "gb_per_s": None if moved is None or unknown else moved / 1e9 / seconds,
        "of_roof": None if unknown else least / seconds,
    }
