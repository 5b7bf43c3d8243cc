"""Per-sample gradient norms and clipped sums for Conv1d, ConvTranspose1d and Linear.

The three share one form of weight gradient (see `csrc/common/conv_geometry.h`); `ConvProblem` holds it, and the
functions below map each layer kind to it. x is sampled at strided positions, g has one value a position.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpcgan_fast.ops._backend import gpu_ops, op
from dpcgan_fast.ops._modes import NormMode, NormProblem, pick_norm_mode
from dpcgan_fast.ops._products import row_products
from dpcgan_fast.ops._reference import BIAS_FROM_GRAD, BIAS_FROM_INPUT, BIAS_NONE
from dpcgan_fast.ops._units import UnitGroups

_LEAST_SHARE = 2.0**-32  # kLeastShare of csrc/common/cancellation.h, squared
_PRODUCTS = 32  # that a weighted sum of rows is cut into


@dataclass(frozen=True)
class ConvProblem:
    """Geometry of the weight gradient G[o, c, j] = sum_t g[o, t] x[c, stride t + dilation j - padding]."""

    kernel_size: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias_role: int = BIAS_NONE

    def sizes(self, x: Tensor, g: Tensor) -> NormProblem:
        """Sizes for the cost model, per channel group; x: (B, C, L), g: (B, O, T)."""
        return NormProblem(
            in_channels=x.shape[1] // self.groups,
            in_length=x.shape[2],
            out_channels=g.shape[1] // self.groups,
            out_length=g.shape[2],
            kernel_size=self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
        )

    def geometry(self) -> tuple[int, int, int, int, int, int]:
        """Its numbers as the ops take them."""
        return self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.bias_role

    def sq_norm(self, x: Tensor, g: Tensor, mode: NormMode, units: UnitGroups | None = None) -> Tensor:
        """Squared norm of each unit's gradient without storing one, (U,) float64: `direct` or `gram`."""
        order, offsets = (None, None) if units is None else (units.row_order, units.unit_offsets)
        return op("conv_sq_norm")(x, g, *self.geometry(), mode, order, offsets)

    def _pointwise(self, x: Tensor) -> bool:
        """Whether the gradient is a plain product over positions, which the library forms best on the CPU.

        Not while a graph is traced: the product is taken some rows at a time, and the graph would be one for each size.
        """
        if self.kernel_size != 1 or x.shape[2] <= 1 or self.geometry()[:5] != (1, 1, 0, 1, 1):
            return False
        return not gpu_ops(x.device) and not torch.compiler.is_compiling()

    def per_sample_grad(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Per-sample gradients in the dtype of x, or float32 for bfloat16.

        out: weight (B, O, C/groups, k), bias (B, O or C or 0)
        """
        if self._pointwise(x) and self.bias_role != BIAS_FROM_INPUT:
            bias = g.new_zeros(g.shape[0], 0) if self.bias_role == BIAS_NONE else sum_positions(g)
            return row_products(g, x).unsqueeze(3), bias
        return op("conv_per_sample_grad")(x, g, *self.geometry())

    def library_grad(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """`per_sample_grad` as a GPU forms it quickest, in the precision of its library.

        A product a row, of g (O, T) and windows of x (C k, T).
        """
        x, g = (side.to(torch.promote_types(side.dtype, torch.float32)) for side in (x, g))
        rows, positions = x.shape[0], g.shape[2]
        windows = self._windows(x, positions).transpose(1, 2)
        outputs = g.reshape(rows * self.groups, g.shape[1] // self.groups, positions)
        with torch.autocast(x.device.type, enabled=False):
            # The library's products of two vectors take several times as long as it takes to write what they give.
            weight = outputs * windows if positions == 1 else torch.bmm(outputs, windows)
        summed = self._summed(x, g)
        bias = g.new_zeros(rows, 0) if summed is None else summed.sum(2)
        return weight.view(rows, g.shape[1], x.shape[1] // self.groups, self.kernel_size), bias

    def gram_products(self, x: Tensor, g: Tensor) -> Tensor:
        """Squared norms of the rows by two products of the library each, in double; (B,) float64.

        For few positions T and many weights on a GPU whose double products are quick. Where terms cancel, the norm is
        not below the true one: what rounding may hide is added, and a norm is at least 2^-16 of the sizes that are
        added up to it, as in `csrc/common/cancellation.h`.
        """
        rows, positions = x.shape[0], g.shape[2]
        windows = self._windows(x.double(), positions)
        outputs = g.double().reshape(rows * self.groups, g.shape[1] // self.groups, positions)
        if positions == 1:
            products = [side.square().sum(1, keepdim=True) for side in (windows, outputs)]
        else:
            with torch.autocast(x.device.type, enabled=False):
                products = [torch.bmm(side.transpose(1, 2), side) for side in (windows, outputs)]
        squares = [product.diagonal(dim1=1, dim2=2) for product in products]
        sizes = (squares[0] * squares[1]).sqrt().sum(1).square()
        depth = windows.shape[1] + outputs.shape[1] + 3 * positions
        weight = (products[0] * products[1]).sum((1, 2)) + depth * 2.0**-52 * sizes
        total = torch.maximum(weight, _LEAST_SHARE * sizes).view(rows, self.groups).sum(1)
        summed = self._summed(x, g)
        if summed is None:
            return total
        bias, sizes = (side.sum(2).square().sum(1) for side in (summed.double(), summed.double().abs()))
        return total + torch.maximum(bias, _LEAST_SHARE * sizes)

    def weighted_products(self, x: Tensor, g: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """`weighted_grad` by products of the library in double, as many as keep a GPU busy."""
        rows, positions = x.shape[0], g.shape[2]
        x, g = (torch.where(factor.view(-1, 1, 1) != 0, side, 0).double() for side in (x, g))  # 0 times NaN is NaN
        g = g * factor.view(-1, 1, 1)
        parts = math.gcd(rows, _PRODUCTS) or 1
        apart = parts, rows // parts, self.groups
        windows, outputs = (
            side.reshape(*apart, size, positions).permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)
            for side, size in ((self._windows(x, positions), self._taps(x)), (g, g.shape[1] // self.groups))
        )
        with torch.autocast(x.device.type, enabled=False):
            weight = torch.bmm(outputs, windows.transpose(1, 2))
        weight = weight.view(parts, g.shape[1], x.shape[1] // self.groups, self.kernel_size).sum(0)
        summed = self._summed(x * factor.view(-1, 1, 1), g)
        return weight, weight.new_empty(0) if summed is None else summed.sum((0, 2))

    def _summed(self, x: Tensor, g: Tensor) -> Tensor | None:
        """The side whose sum over positions is the gradient of the bias, None without one."""
        return {BIAS_FROM_GRAD: g, BIAS_FROM_INPUT: x}.get(self.bias_role)

    def _windows(self, x: Tensor, positions: int) -> Tensor:
        """(B groups, C/groups k, T): what each tap reads at each position, zero beyond the ends of x."""
        reach = self.stride * (positions - 1) + self.dilation * (self.kernel_size - 1) + 1 if positions else 0
        missing = max(0, reach - self.padding - x.shape[2])
        if self.padding or missing:
            x = torch.nn.functional.pad(x, (self.padding, missing))
        row, channel, position = x.stride()
        size = x.shape[0], x.shape[1], self.kernel_size, positions
        taps = x.as_strided(size, (row, channel, self.dilation * position, self.stride * position))
        return taps.reshape(x.shape[0] * self.groups, self._taps(x), positions)

    def _taps(self, x: Tensor) -> int:
        return x.shape[1] // self.groups * self.kernel_size

    def weighted_grad(self, x: Tensor, g: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
        """sum_n factor[n] G_n in float64: weight (O, C/groups, k), bias (O or C or 0).

        factor: (B,) float64; rows of factor 0 are not read
        """
        weights, activations = x.shape[1] * g.shape[1], x.shape[1] * x.shape[2] + g.shape[1] * g.shape[2]
        if self._pointwise(x) and weights > activations:  # each position is a row: one product of matrices in double
            factor = factor.repeat_interleave(x.shape[2])
            x, g = (side.transpose(1, 2).reshape(len(factor), side.shape[1], 1) for side in (x, g))
        return op("conv_weighted_grad")(x, g, factor, *self.geometry())


def _public_sq_norm(problem: ConvProblem, x: Tensor, g: Tensor, mode: NormMode, dtype: torch.dtype) -> Tensor:
    dtype = torch.promote_types(dtype, torch.float32)
    mode = pick_norm_mode(problem.sizes(x, g), mode).mode
    if mode == "materialise":
        return rows_sq_norm(problem.per_sample_grad(x, g)).to(dtype)
    return problem.sq_norm(x, g, mode).to(dtype)


def sum_positions(g: Tensor) -> Tensor:
    """(B, C, ...) -> (B, C) in the same dtype, float32 or float64: per-sample gradients of a bias.

    In double, where the order in which torch adds up matters least. One sum alone it splits among threads, and rounds
    otherwise than several; so it is never alone.
    """
    if g.shape[0] * g.shape[1] == 1:
        return sum_positions(torch.cat([g, g]))[:1]
    return g.flatten(2).sum(2, dtype=torch.float64).to(g.dtype)


def rows_sq_norm(grads: Sequence[Tensor], units: UnitGroups | None = None) -> Tensor:
    """Squared norm over all tensors of each unit's sum of rows; grads[i]: (B, ...), out: (U,) float64."""
    order, offsets = (None, None) if units is None else (units.row_order, units.unit_offsets)
    return op("rows_sq_norm")(list(grads), order, offsets)


def _check_shape(name: str, tensor: Tensor, expected: tuple[int | str, ...]) -> None:
    fits = tensor.dim() == len(expected) and all(
        isinstance(want, str) or want == got for want, got in zip(expected, tensor.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(str(size) for size in expected)
        raise ValueError(f"Expected {name} of shape ({shape}), got {tuple(tensor.shape)}.")


def _single(name: str, value: int | Sequence[int]) -> int:
    if isinstance(value, int):
        return value
    if len(value) != 1:
        raise ValueError(f"Expected {name} to be an int or a sequence of one, got {tuple(value)}.")
    return value[0]


def conv1d_sq_norm(
    x: Tensor,
    grad_out: Tensor,
    weight_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    mode: NormMode = "auto",
) -> Tensor:
    """Squared L2 norm of each sample's gradient of Conv1d's weight, and of its bias if `bias`.

    x:            (B, C, L) float32 or float64, on a GPU also bfloat16
    grad_out:     (B, O, T), T = floor((L + 2 padding - dilation (k - 1) - 1) / stride) + 1
    weight_shape: (O, C / groups, k)
    mode:         "auto", "direct", "gram" or "materialise"; they differ in cost, not in value
    out:          (B,) in the dtype of x, or float32 for bfloat16, in squared gradient units

    Formal guarantee: the norm is not smaller than that of the gradient as float arithmetic sums it.
    Raises ValueError for shapes that do not belong together, RuntimeError for other dtypes.
    Source: arXiv 1510.01799 (the outer-product trick), extended to strided convolutions by a polyphase view of x.
    """
    outputs, channels, kernel_size = weight_shape
    stride, padding, dilation = _single("stride", stride), _single("padding", padding), _single("dilation", dilation)
    _check_shape("x", x, ("B", channels * groups, "L"))
    length = (x.shape[2] + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
    _check_shape("grad_out", grad_out, (x.shape[0], outputs, length))
    problem = ConvProblem(kernel_size, stride, padding, dilation, groups, BIAS_FROM_GRAD if bias else BIAS_NONE)
    return _public_sq_norm(problem, x, grad_out, mode, x.dtype)


def conv_transpose1d_sq_norm(
    x: Tensor,
    grad_out: Tensor,
    weight_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    bias: bool = True,
    mode: NormMode = "auto",
) -> Tensor:
    """Squared L2 norm of each sample's gradient of ConvTranspose1d's weight, and of its bias if `bias`.

    x:            (B, C, T) float32 or float64, on a GPU also bfloat16
    grad_out:     (B, O, L), L = (T - 1) stride - 2 padding + dilation (k - 1) + output_padding + 1
    weight_shape: (C, O / groups, k)
    out:          (B,) in the dtype of x, or float32 for bfloat16, in squared gradient units

    Modes, guarantee, errors and source as in `conv1d_sq_norm`.
    """
    channels, outputs, kernel_size = weight_shape
    stride, padding, dilation = _single("stride", stride), _single("padding", padding), _single("dilation", dilation)
    _check_shape("x", x, ("B", channels, "T"))
    length = (x.shape[2] - 1) * stride - 2 * padding + dilation * (kernel_size - 1) + 1
    length += _single("output_padding", output_padding)
    _check_shape("grad_out", grad_out, (x.shape[0], outputs * groups, length))
    problem = ConvProblem(kernel_size, stride, padding, dilation, groups, BIAS_FROM_INPUT if bias else BIAS_NONE)
    return _public_sq_norm(problem, grad_out, x, mode, x.dtype)


def linear_sq_norm(x: Tensor, grad_out: Tensor, bias: bool = True, mode: NormMode = "auto") -> Tensor:
    """Squared L2 norm of each sample's gradient of Linear's weight, and of its bias if `bias`.

    x:        (B, ..., I) float32 or float64, on a GPU also bfloat16; dimensions in between are positions that share the
              weight
    grad_out: (B, ..., O)
    out:      (B,) in the dtype of x, or float32 for bfloat16, in squared gradient units

    Modes, guarantee, errors and source as in `conv1d_sq_norm`.
    """
    _check_shape("grad_out", grad_out, (*x.shape[:-1], "O"))
    if x.dim() < 2:
        raise ValueError(f"Expected x of shape (B, ..., I), got {tuple(x.shape)}.")
    problem = ConvProblem(1, bias_role=BIAS_FROM_GRAD if bias else BIAS_NONE)
    return _public_sq_norm(problem, as_channels(x), as_channels(grad_out), mode, x.dtype)


def as_channels(features_last: Tensor) -> Tensor:
    """(B, ..., F) -> (B, F, positions), a view where possible: Linear as a convolution of kernel size 1."""
    if features_last.dim() == 2:
        return features_last.unsqueeze(2)
    rows, features = features_last.shape[0], features_last.shape[-1]
    positions = features_last.shape[1:-1].numel()
    return features_last.reshape(rows, positions, features).transpose(1, 2)


def clip_factor(sq_norm: Tensor, max_grad_norm: float, valid: Tensor | None = None) -> Tensor:
    """Factor that clips a gradient to `max_grad_norm`: min(1, max_grad_norm (1 - 2^-20) / norm).

    sq_norm: (U,) float64, squared norms
    valid:   () int64 on the device of sq_norm: units from this number on get factor 0, whatever they hold; None: all
             units count
    out:     (U,) float64 in [0, 1]

    | sq_norm      | factor |
    |--------------|--------|
    | 0            | 1      |
    | inf or NaN   | 0: the unit is dropped |

    max_grad_norm may be `inf`, which clips nothing. Raises RuntimeError if it is not positive.
    Source: arXiv 1607.00133, algorithm 1; the factor (1 - 2^-20) leaves room for the rounding of the sum.
    """
    return op("clip_factor")(sq_norm.to(torch.float64), max_grad_norm, valid)


@dataclass(frozen=True)
class LayerNorms:
    """A layer whose squared norms are wanted without its gradients: `direct` or `gram`; x and g as in `sq_norm`."""

    problem: ConvProblem
    x: Tensor
    g: Tensor
    mode: NormMode


def step_clip_factor(
    layers: Sequence[LayerNorms],
    grads: Sequence[Tensor],
    max_grad_norm: float,
    units: UnitGroups | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """`clip_factor` of the norms over all layers and materialised gradients of a step, in one launch.

    layers: those without stored gradients
    grads:  materialised gradients, (B, ...) each
    out:    (U,) float64

    In float32 and bfloat16, the norm of a direct layer is that of its gradient as float32 sums it, for which
    `step_weighted_sum_` must add the layer up. On the GPU alone; the reference back end takes any device.
    Raises RuntimeError for tensors that do not fit.
    """
    order, offsets = (None, None) if units is None else (units.row_order, units.unit_offsets)
    return op("step_clip_factor")(*_step(layers), list(grads), max_grad_norm, order, offsets, valid)[1]


def step_weighted_sum_(
    layers: Sequence[LayerNorms],
    grads: Sequence[Tensor],
    factor: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    sums: Sequence[Tensor],
) -> None:
    """Adds sum_n factor[n] G_n of all layers and materialised gradients of a step, in one launch and one for slices.

    layers, grads:   as `step_clip_factor` took them
    factor:          (B,) float64, one a row; rows of factor 0 are not read
    weights, biases: of the layers, float64 and contiguous; a bias of no elements where the layer has none
    sums:            of grads

    On the GPU alone; the reference back end takes any device. Raises RuntimeError for tensors that do not fit, and
    then adds nothing.
    """
    op("step_weighted_sum_")(*_step(layers), list(grads), factor, list(weights), list(biases), list(sums))


def _step(layers: Sequence[LayerNorms]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """x, g and geometry of all layers, as the ops take them."""
    geometry = [n for layer in layers for n in (*layer.problem.geometry(), int(layer.mode == "gram"))]
    return [layer.x for layer in layers], [layer.g for layer in layers], geometry
