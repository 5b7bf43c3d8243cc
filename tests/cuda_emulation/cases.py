"""Inputs for every CUDA op: odd shapes, strides, groupings and values. Shared by the test and its sanitized twin."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpcgan_fast.ops import _reference as reference


@dataclass(frozen=True)
class Call:
    """One call of an op; `rtol` is for results in float64, relative to the largest magnitude of each result."""

    label: str
    op: str
    args: tuple[Any, ...]
    rtol: float = 1e-12


@dataclass(frozen=True)
class ConvShape:
    """Sizes of one conv gradient; `positions` where T is not what Conv1d gives (as in ConvTranspose1d)."""

    rows: int
    channels: int
    length: int
    outputs: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: int = reference.BIAS_FROM_GRAD
    positions: int | None = None
    layout: str = "contiguous"
    units: str = "rows"

    def geometry(self) -> tuple[int, ...]:
        return self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias

    def out_length(self) -> int:
        if self.positions is not None:
            return self.positions
        return (self.length + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1


NONE, GRAD, INPUT = reference.BIAS_NONE, reference.BIAS_FROM_GRAD, reference.BIAS_FROM_INPUT
CONV_SHAPES = {
    "plain": ConvShape(3, 4, 17, 5, 3, bias=NONE),
    "no rows": ConvShape(0, 4, 17, 5, 3),
    "one row": ConvShape(1, 3, 9, 2, 4, stride=2, padding=1),
    "first layer": ConvShape(2, 1, 178, 16, 8, stride=4),
    "second layer": ConvShape(3, 16, 44, 32, 8, stride=4, units="grouped"),
    "large tiles": ConvShape(2, 33, 9, 70, 4, stride=2, units="grouped"),
    "transposed layer": ConvShape(3, 6, 23, 7, 5, stride=3, padding=1, bias=INPUT, positions=8, units="grouped"),
    "groups, dilation": ConvShape(4, 6, 31, 9, 3, stride=2, padding=2, dilation=3, groups=3, units="grouped"),
    "depthwise": ConvShape(2, 7, 12, 7, 3, padding=1, groups=7, bias=INPUT),
    "stride over kernel": ConvShape(3, 5, 40, 6, 2, stride=7, layout="sliced", units="grouped"),
    "phases left over": ConvShape(2, 3, 50, 4, 8, stride=3, layout="sliced"),
    "linear": ConvShape(5, 40, 1, 35, 1, units="grouped"),
    "linear on sequences": ConvShape(3, 9, 6, 11, 1, layout="channels last"),
    "one row for all": ConvShape(3, 4, 11, 5, 3, layout="expanded", units="grouped"),
    "long": ConvShape(2, 1, 150, 2, 5, bias=INPUT),
    "long slices": ConvShape(9, 2, 40, 3, 3, layout="channels last", units="grouped"),
    "tiny, padded": ConvShape(2, 2, 1, 3, 3, padding=3),
    "most folds": ConvShape(1, 1, 194, 2, 65),
    "too many folds": ConvShape(1, 1, 398, 1, 140, stride=2),
    "beyond the end": ConvShape(2, 3, 5, 2, 3, stride=2, positions=6),
    "no positions": ConvShape(2, 3, 5, 2, 3, bias=INPUT, positions=0),
    "no channels": ConvShape(2, 0, 5, 2, 3, positions=3),
    "no outputs": ConvShape(2, 3, 5, 0, 3, bias=INPUT, positions=3),
}


# Rows and bounds of two units of a batch of three rows, and which of the two units point outside the batch.
UNIT_INDICES = [
    ((0, 1, 2), (0, 2, 3), (False, False)),
    ((0, 1, 3), (0, 2, 3), (False, True)),
    ((-1, 1, 2), (0, 2, 3), (True, False)),
    ((0, 3, 2), (0, 2, 3), (True, False)),
    ((0, 1, 2), (0, 2, 4), (False, True)),
    ((0, 1, 2), (-1, 2, 3), (True, False)),
    ((0, 1, 2), (0, 3, 2), (False, True)),
]


def _random(shape: tuple[int, ...], layout: str, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    rows, channels, length = shape
    draw = lambda *size: torch.randn(*size, dtype=dtype, generator=generator)  # noqa: E731
    if layout == "channels last":
        return draw(rows, length, channels).transpose(1, 2)
    if layout == "sliced":
        return draw(rows + 1, 2 * channels + 1, 3 * length + 2)[1:, 1::2, 2::3]
    if layout == "expanded":
        return draw(1, channels, length).expand(rows, channels, length)
    return draw(rows, channels, length)


def _units(kind: str, rows: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor | None]:
    """Rows dealt to units of 1, 2, 3, ... rows in a random order, and a unit without rows."""
    if kind == "rows":
        return None, None
    offsets = [0]
    while offsets[-1] < rows:
        offsets.append(min(rows, offsets[-1] + len(offsets)))
    return torch.randperm(rows, generator=generator), torch.tensor([0, *offsets])


def _conv_calls(label: str, shape: ConvShape, dtype: torch.dtype, generator: torch.Generator) -> Iterator[Call]:
    x = _random((shape.rows, shape.channels, shape.length), shape.layout, dtype, generator)
    g = _random((shape.rows, shape.outputs, shape.out_length()), shape.layout, dtype, generator)
    order, offsets = _units(shape.units, shape.rows, generator)
    geometry = shape.geometry()
    for mode in ("direct", "gram"):
        yield Call(f"{label}, {mode}", "conv_sq_norm", (x, g, *geometry, mode, order, offsets))
    yield Call(label, "conv_per_sample_grad", (x, g, *geometry))
    factor = torch.rand(shape.rows, dtype=torch.float64, generator=generator)
    factor[1::3] = 0
    # A row of factor 0 must not be read. Rows that share memory cannot be spoilt one by one.
    if shape.layout != "expanded":
        x, g = x.clone(), g.clone()
        x[1::3], g[1::3] = math.nan, math.inf
    yield Call(label, "conv_weighted_grad", (x, g, factor, *geometry))


def _value_calls(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Call]:
    """Values that a norm must survive: cancelling sums, rows that are not finite, and zeros."""
    shape = ConvShape(4, 3, 40, 5, 4, stride=2, padding=0, groups=1)
    x = _random((4, 3, 40), "contiguous", dtype, generator)
    g = _random((4, 5, shape.out_length()), "contiguous", dtype, generator)
    spoilt_x, spoilt_g = x.clone(), g.clone()
    spoilt_x[0, 1, 7], spoilt_g[2, 3, 3] = math.nan, math.inf
    zero = torch.zeros_like(g)
    # x nearly constant along the positions and g centred: products of some thousand times the gradient cancel, which is
    # too much for a Gram norm, and too little for the norm to be a share of what cancels.
    level = 5e3
    centred = g - g.mean(2, keepdim=True)
    order, offsets = torch.tensor([2, 0, 3, 1]), torch.tensor([0, 1, 4])
    for mode in ("direct", "gram"):
        yield Call(f"not finite, {mode}", "conv_sq_norm", (spoilt_x, spoilt_g, *shape.geometry(), mode, None, None))
        yield Call(f"zero, {mode}", "conv_sq_norm", (x, zero, *shape.geometry(), mode, None, None))
        for units in ((None, None), (order, offsets)):
            args = (x + level, centred, *shape.geometry(), mode, *units)
            yield Call(f"cancelling, {mode}", "conv_sq_norm", args, rtol=1e-5)


def _clip_calls(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Call]:
    draw = lambda *size: torch.randn(*size, dtype=dtype, generator=generator)  # noqa: E731
    for rows in (0, 1, 7, 40):
        grads = [draw(rows, 3, 5, 2), draw(rows), draw(rows, 0), draw(2, rows, 300).transpose(0, 1), draw(rows, 1025)]
        yield Call(f"{rows} rows", "rows_sq_norm", (grads, None, None))
        yield Call(f"{rows} rows in units", "rows_sq_norm", (grads, *_units("grouped", rows, generator)))
        factor = torch.rand(rows, dtype=torch.float64, generator=generator)
        factor[::3] = 0
        for grad in grads:
            spoilt = grad.clone()
            spoilt[::3] = math.nan
            yield Call(f"{tuple(grad.shape)}", "rows_weighted_sum", (spoilt, factor))
    sq_norm = torch.tensor([0.0, 5e-324, 1e-8, 0.25, 1.0, 9.0, 1e300, math.inf, math.nan], dtype=torch.float64)
    for max_grad_norm in (1e-3, 1.0, 1e200, math.inf):
        yield Call(f"{max_grad_norm}", "clip_factor", (sq_norm, max_grad_norm))
    for valid in (0, 4, 9, 2**40):
        yield Call(f"{valid} valid", "clip_factor", (sq_norm, 1.0, torch.tensor(valid)))
    yield Call("no units", "clip_factor", (sq_norm[:0], 1.0))


# Layers of one step: all forms and tiles, groups, layers without a bias, and more of them than one launch holds.
STEPS = {
    "two rows": (2, ("first layer", "large tiles", "groups, dilation", "linear"), 1),
    "more rows": (5, ("plain", "transposed layer"), 1),
    "more than a launch": (3, ("tiny, padded", "linear on sequences"), 10),
    "no rows": (0, ("plain",), 1),
    "rows alone": (5, (), 1),
}


def _sum_sizes(x: list[Tensor], g: list[Tensor], geometry: list[int], grads: list[Tensor]) -> list[int]:
    """Numbers of the sums of weights, biases and gradients."""
    weights, biases = [], []
    for i, (a, b) in enumerate(zip(x, g, strict=True)):
        kernel_size, groups, bias = geometry[7 * i], geometry[7 * i + 4], geometry[7 * i + 5]
        weights.append(a.shape[1] * b.shape[1] * kernel_size // groups)
        biases.append({NONE: 0, GRAD: b.shape[1], INPUT: a.shape[1]}[bias])
    return [*weights, *biases, *(math.prod(grad.shape[1:]) for grad in grads)]


def _step_calls(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Call]:
    for label, (rows, names, times) in STEPS.items():
        x, g, geometry = [], [], []
        for i, name in enumerate(names * times):
            shape = CONV_SHAPES[name]
            # Some layers nearly constant along the positions with centred g: their Gram norms are taken again. A norm
            # of the gradient as float32 sums it has another rounding than the reference, and
            # `test_what_is_added_up_is_what_was_measured` sees to those.
            level = 1e4 if i % 6 == 1 else 0.0
            x.append(_random((rows, shape.channels, shape.length), shape.layout, dtype, generator) + level)
            drawn = _random((rows, shape.outputs, shape.out_length()), shape.layout, dtype, generator)
            g.append(drawn - drawn.mean(2, keepdim=True) if level else drawn)
            geometry += [*shape.geometry(), i % 2]
        grads = [torch.randn(rows, *size, dtype=dtype, generator=generator) for size in ((3,), (2, 0), (1025,), ())]
        spoilt = [grad.clone() for grad in grads]
        if rows > 3:
            spoilt[0][1], spoilt[2][3, 7] = math.nan, math.inf
        for kind in ("rows", "grouped"):
            order, offsets = _units(kind, rows, generator)
            units = rows if offsets is None else len(offsets) - 1
            factor = torch.rand(rows, dtype=torch.float64, generator=generator)
            factor[1::3] = 0
            totals = [
                torch.rand(n, dtype=torch.float64, generator=generator) for n in _sum_sizes(x, g, geometry, grads)
            ]
            into = totals[: len(x)], totals[len(x) : 2 * len(x)], totals[2 * len(x) :]
            yield Call(f"{label}, {kind}", "step_weighted_sum_", (x, g, geometry, grads, factor, *into), rtol=1e-5)
            limits = ((math.inf, None), (3.0, units // 2)) if kind == "rows" else ((3.0, None), (3.0, 0))
            for max_grad_norm, valid in limits:
                count = None if valid is None else torch.tensor(valid)
                args = (x, g, geometry, spoilt if valid is None else grads, max_grad_norm, order, offsets, count)
                yield Call(f"{label}, {kind}, {valid} valid", "step_clip_factor", args, rtol=1e-5)


def _norm_affine_calls(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Call]:
    op = "group_norm_per_sample_grad"
    shapes = [(0, 4, 5, 2), (1, 4, 1, 2), (2, 6, 37, 3), (3, 5, 700, 5), (2, 70, 9, 1), (2, 4, 0, 2), (2, 0, 3, 1)]
    for rows, channels, length, groups in shapes:
        for layout in ("contiguous", "sliced"):
            x = _random((rows, channels, length), layout, dtype, generator) + 3
            g = _random((rows, channels, length), layout, dtype, generator)
            yield Call(f"{(rows, channels, length, groups)}, {layout}", op, (x, g, groups, 1e-5))
    op = "layer_norm_per_sample_grad"
    for shape in [(0, 2, 3), (1, 1, 1), (2, 1, 33), (3, 20, 70), (2, 9, 300), (2, 0, 4), (2, 3, 0)]:
        for layout in ("contiguous", "channels last"):
            x, g = _random(shape, layout, dtype, generator) + 3, _random(shape, layout, dtype, generator)
            yield Call(f"{shape}, {layout}", op, (x, g, 1e-5))


def _noise_calls(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Call]:
    key = torch.randint(-(2**31), 2**31, (8,), generator=generator).to(torch.int32)
    sizes = [(1,), (0,), (7,), (8,), (3, 3), (17, 5, 29)]
    for std_dev, counter in [(1.0, 0), (0.37, 2**32 - 3), (1e-4, 2**63 - 1000), (7e5, 12345)]:
        tensors = [torch.randn(size, dtype=dtype, generator=generator) for size in sizes]
        tensors.append(torch.zeros(5, dtype=torch.float64))
        yield Call(f"std {std_dev}", "gaussian_noise_", (tensors, std_dev, key, counter), rtol=0.0)
    yield Call("no tensors", "gaussian_noise_", ([], 1.0, key, 0))


UPDATE_RULES = {
    "sgd": (False, False, [0.1, 0.01, 0.0]),
    "sgd with momentum": (True, False, [0.1, 0.01, 0.9]),
    "adam": (True, True, [0.1, 0.01, 0.9, 0.99, 1e-3, 0.1, 0.01]),
    "rmsprop": (False, True, [0.1, 0.01, 0.9, 1e-3]),
}


def _update_calls(dtype: torch.dtype, generator: torch.Generator) -> Iterator[Call]:  # noqa: ARG001  parameters are float32
    """Every rule with and without noise and public sums; sizes around a ChaCha20 block; more tensors than a launch."""
    key = torch.randint(-(2**31), 2**31, (8,), generator=generator).to(torch.int32)

    def lists(sizes: list[int], kind: torch.dtype = torch.float32) -> list[Tensor]:
        return [torch.rand(size, dtype=kind, generator=generator) for size in sizes]

    for rule, (first, second, settings) in UPDATE_RULES.items():
        for sizes, std, counter in [([1, 0, 8, 9, 0, 700], 0.0, 0), ([3] * 50 + [0, 17], 0.37, 2**32 - 20)]:
            sums, public = lists(sizes, torch.float64), lists(sizes, torch.float64)
            for given in ([], public):
                tensors = (lists(sizes), lists(sizes) if first else [], lists(sizes) if second else [], sums, given)
                name, label = rule.split()[0], f"{rule}, std {std}, {len(given)} public sums"
                clamps = [math.inf, *(0.5 for _ in sizes[1:])] if given else []
                args = (*tensors, std, key, counter, 7.0, 3.0, name, settings, clamps)
                yield Call(label, "noisy_update_", args, rtol=2e-6)
                for armed in (0, 1):
                    control = np.zeros(1, dtype=reference.CONTROL)
                    control["key"], control["counter"], control["armed"] = key.numpy().view(np.uint32), counter, armed
                    control["divisor"], control["public_divisor"] = 7.0, 3.0
                    control["settings"][0, : len(settings)] = settings
                    memory = torch.from_numpy(control.view(np.int64))
                    args = (*tensors, std, memory, name, clamps)
                    yield Call(f"{label}, armed {armed}", "noisy_update_armed_", args, rtol=2e-6 if armed else 0.0)
    yield Call("no parameters", "noisy_update_", ([], [], [], [], [], 1.0, key, 0, 1.0, 1.0, "sgd", [0.1, 0.0, 0.0]))


FORMED = ("second layer", "transposed layer", "groups, dilation", "linear on sequences", "long slices", "large tiles")


def formed_layer(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """x, g and geometry of a layer without a bias whose sums over positions cancel."""
    shape = replace(CONV_SHAPES[name], bias=NONE)
    generator = torch.Generator().manual_seed(21)
    x = _random((shape.rows, shape.channels, shape.length), shape.layout, torch.float32, generator) + 1e4
    g = _random((shape.rows, shape.outputs, shape.out_length()), shape.layout, torch.float32, generator)
    return x.to(dtype), (g - g.mean(2, keepdim=True)).to(dtype), shape.geometry()


def operands_of(shape: ConvShape) -> tuple[Tensor, Tensor]:
    """x and g of a conv gradient, in float32."""
    generator = torch.Generator().manual_seed(22)
    x = _random((shape.rows, shape.channels, shape.length), shape.layout, torch.float32, generator)
    return x, _random((shape.rows, shape.outputs, shape.out_length()), shape.layout, torch.float32, generator)


def norms_of_single_rows(namespace: Any, x: Tensor, g: Tensor, geometry: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Squared norms as the step measures them, and those of what it adds up for each row alone; without a bias."""
    numbers = [*geometry, 0]
    measured, _ = namespace.step_clip_factor([x], [g], numbers, [], 1.0, None, None, None)
    added = []
    for row in range(len(x)):
        factor = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        factor[row] = 1.0
        weights = g.shape[1] * (x.shape[1] // geometry[4]) * geometry[0]
        total = torch.zeros(weights, dtype=torch.float64, device=x.device)
        namespace.step_weighted_sum_([x], [g], numbers, [], factor, [total], [total[:0]], [])
        added.append(total.square().sum())
    return measured, torch.stack(added)


TAKES_BFLOAT16 = (
    *("conv_sq_norm", "conv_per_sample_grad", "conv_weighted_grad", "step_clip_factor", "step_weighted_sum_"),
    *("group_norm_per_sample_grad", "layer_norm_per_sample_grad"),
)


def bfloat16_calls(op: str) -> list[Call]:
    """The calls of one op with x and g rounded to bfloat16; materialised gradients stay float32."""

    def rounded(args: tuple[Any, ...]) -> tuple[Any, ...]:
        round_ = lambda x: [t.bfloat16() for t in x] if isinstance(x, list) else x.bfloat16()  # noqa: E731
        return round_(args[0]), round_(args[1]), *args[2:]

    return [replace(call, args=rounded(call.args)) for call in calls(op, torch.float32)]


def calls(op: str, dtype: torch.dtype) -> list[Call]:
    """All calls of one op, the same at each time."""
    generator = torch.Generator().manual_seed(20)
    made = [call for label, shape in CONV_SHAPES.items() for call in _conv_calls(label, shape, dtype, generator)]
    for family in (_value_calls, _clip_calls, _norm_affine_calls, _noise_calls, _update_calls, _step_calls):
        made += family(dtype, generator)
    return [call for call in made if call.op == op]


OPS = (
    *("conv_sq_norm", "conv_per_sample_grad", "conv_weighted_grad", "group_norm_per_sample_grad"),
    *("layer_norm_per_sample_grad", "rows_sq_norm", "rows_weighted_sum", "clip_factor", "gaussian_noise_"),
    *("noisy_update_", "noisy_update_armed_", "step_clip_factor", "step_weighted_sum_"),
)


def run(namespace: Any, call: Call) -> list[Tensor]:
    """Results of a call, or what it left in its arguments if it works in place. The call's own tensors stay."""
    args = copy.deepcopy(call.args) if call.op.endswith("_") else call.args
    result = getattr(namespace, call.op)(*args)
    if result is None:
        lists = [arg if isinstance(arg, list) else [arg] for arg in args]
        return [tensor for entries in lists for tensor in entries if isinstance(tensor, Tensor)]
    return [result] if isinstance(result, Tensor) else list(result)


def assert_close(call: Call, got: list[Tensor], expected: list[Tensor]) -> None:
    """Compares with the reference: shape, dtype, values, and the same places not finite."""
    for g, e in zip(got, expected, strict=True):
        assert (g.shape, g.dtype) == (e.shape, e.dtype), call.label
        if not g.dtype.is_floating_point or call.rtol == 0:
            assert torch.equal(g, e), call.label
            continue
        # Where one is NaN and the other infinite, both say that the unit is to be dropped.
        finite = torch.isfinite(e)
        assert torch.equal(torch.isfinite(g), finite), call.label
        # Two float32 values of one real number differ by a rounding, more than two sums in double do.
        rtol = max(call.rtol, 1e-7 if g.dtype == torch.float32 else 0.0)
        scale = e[finite].abs().max() if finite.any() else 0.0
        error = (g - e)[finite].abs().max() if finite.any() else 0.0
        assert error <= rtol * scale, f"{call.op}, {call.label}: error {error} at scale {scale}"
