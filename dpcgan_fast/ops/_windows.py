"""Weight gradients of convolutions in two and three dimensions, by the windows of the input that each output position
sees: a row's gradient is one product of its output gradient and its windows.

On the CPU ops of ours take the products straight from the input, in the dtype of the operands, and measure them in
registers: to store them row by row, or to clip and add up a row while its gradients are in the cache. On a GPU, in the
reference back end, and for norms without these gradients, windows, which take k times the memory of the input, are
copied a few rows at a time.

What is summed must be what was measured: where positions cancel, a gradient in single precision is mostly rounding, of
which a norm in double knows nothing. So the sums in double have norms of their own, and those of registers theirs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dpcgan_fast.ops._backend import backend
from dpcgan_fast.ops._conv import ConvProblem
from dpcgan_fast.ops._modes import NormMode
from dpcgan_fast.ops._products import parts, product_into, rows_at_a_time
from dpcgan_fast.ops._spare import borrow
from dpcgan_fast.ops._units import UnitGroups

_WINDOWS_AT_A_TIME = 2**23  # elements, where norms and sums need them


@dataclass(frozen=True)
class FormedWindows:
    """Per-sample gradients, and what cost nothing beside them; elsewhere that is None.

    weight:  (B, O, C / groups, *kernel_size) in the dtype of the operands, not always contiguous
    bias:    (B, O), the sums of g over positions, if they were asked for
    sq_norm: (B,) float64, squared norms of the gradients of both
    """

    weight: Tensor
    bias: Tensor | None
    sq_norm: Tensor | None


@dataclass(frozen=True)
class WindowProblem:
    """Geometry of the weight gradient G[o, c, j] = sum_t g[o, t] x[c, stride t + dilation j - padding].

    t and j are indices in as many dimensions as the convolution has, 2 or 3. x, (B, C, ...), is sampled at strided
    positions; g, (B, O, ...), has one value a position; both are float32 or both float64. For a transposed convolution,
    x is the gradient of its output and g its input.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def in_registers(self, x: Tensor) -> bool:
        """Whether gradients are formed in registers, so that to measure them is not to store them."""
        return x.is_cpu and backend() == "native"

    def taps(self, x: Tensor) -> int:
        """Values of one channel group of x that one position sees."""
        return x.shape[1] // self.groups * math.prod(self.kernel_size)

    def formed(self, x: Tensor, g: Tensor, bias: bool = False) -> FormedWindows:
        """Per-sample gradients, and what comes on the way. bias: whether the sums of g over positions are wanted."""
        rows, outputs, inputs = g.shape[0], g.shape[1], x.shape[1] // self.groups
        if self.in_registers(x):
            channels_last = borrow((rows, outputs, *self.kernel_size, inputs), x)
            sq_norm = x.new_zeros(rows, dtype=torch.float64)
            sums = x.new_empty(rows, outputs) if bias else None
            torch.ops.dpcgan_fast.window_per_sample_grad_(channels_last, sq_norm, sums, x, g, *self._geometry)
            return FormedWindows(channels_last.movedim(-1, 2), sums, sq_norm)
        out = borrow((rows, outputs, inputs, *self.kernel_size), x)
        self._multiply_copied_windows(x, g, out)
        return FormedWindows(out, None, None)

    def sq_norm(self, x: Tensor, g: Tensor, mode: NormMode, units: UnitGroups | None = None) -> Tensor:
        """Squared norm of each unit's gradient without storing one, (U,) float64: `direct` or `gram`, in double."""
        # Rows of a unit may lie anywhere.
        flat = self._flat_parts(x, g) if units is None else [(slice(None), *self._flat(x, g))]
        return torch.cat([self._pointwise.sq_norm(windows, grad, mode, units) for _, windows, grad in flat])

    def weighted_grad(self, x: Tensor, g: Tensor, factor: Tensor) -> Tensor:
        """sum_n factor[n] G_n, (O, C / groups, *kernel_size) float64, in double: of what `sq_norm` measures.

        factor: (B,) float64; rows of factor 0 are not read
        """
        shape = g.shape[1], x.shape[1] // self.groups, *self.kernel_size
        total = torch.zeros(shape, dtype=torch.float64, device=x.device)
        for part, windows, grad in self._flat_parts(x, g):
            total += self._pointwise.weighted_grad(windows, grad, factor[part])[0].view_as(total)
        return total

    @property
    def _geometry(self) -> tuple[object, ...]:
        return self.kernel_size, self.stride, self.padding, self.dilation, self.groups

    @property
    def _pointwise(self) -> ConvProblem:
        """The problem as one of windows and g over flat positions."""
        return ConvProblem(1, groups=self.groups)

    def _multiply_copied_windows(self, x: Tensor, g: Tensor, out: Tensor) -> None:
        """Writes the per-sample gradients to out, contiguous."""
        rows, outputs, positions = g.shape[0], g.shape[1], g.shape[2:]
        taps, count = self.taps(x), math.prod(positions)
        at_a_time = rows_at_a_time(self.groups * taps * count, x.device)
        sides = list(zip(self.padding, x.shape[2:], strict=True))
        padded = x.new_zeros(at_a_time, x.shape[1], *(size + 2 * width for width, size in sides))
        inside = padded[(..., *(slice(width, width + size) for width, size in sides))]
        buffer = x.new_empty(at_a_time, x.shape[1], *self.kernel_size, *positions)
        by_group = buffer.view(at_a_time * self.groups, taps, count).transpose(1, 2)
        for part, filled in parts(rows, at_a_time):
            inside.copy_(filled(x))
            buffer.copy_(self._view(padded, positions))
            grad = filled(g).reshape(at_a_time * self.groups, outputs // self.groups, count)
            product_into(out[part].view(-1, outputs // self.groups, taps), grad, by_group)

    def _flat_parts(self, x: Tensor, g: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """All rows, a few at a time, as `_flat` has them."""
        a_row = self.groups * self.taps(x) * g.shape[2:].numel()
        count = max(1, _WINDOWS_AT_A_TIME // max(1, a_row))
        for begin in range(0, max(1, x.shape[0]), count):  # no rows are one part
            part = slice(begin, begin + count)
            yield part, *self._flat(x[part], g[part])

    def _flat(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """What each of the positions sees, (B, C k, T), channel groups one after another, a copy; and g, (B, O, T)."""
        both_sides = [side for width in reversed(self.padding) for side in (width, width)]
        view = self._view(F.pad(x, both_sides).contiguous(), g.shape[2:])
        return view.reshape(x.shape[0], self.groups * self.taps(x), g.shape[2:].numel()), g.flatten(2)

    def _view(self, padded: Tensor, positions: torch.Size) -> Tensor:
        """(B, C, *k, *T) view of a padded, contiguous x."""
        over = padded.stride()[2:]
        taps = [step * by for step, by in zip(over, self.dilation, strict=True)]
        moves = [step * by for step, by in zip(over, self.stride, strict=True)]
        sizes = (*padded.shape[:2], *self.kernel_size, *positions)
        return padded.as_strided(sizes, (*padded.stride()[:2], *taps, *moves))


@dataclass(frozen=True)
class WindowLayer:
    """One layer of `windows_clipped_sum`: its geometry, x and g, and whether it has a bias, whose gradient g adds up
    to."""

    problem: WindowProblem
    x: Tensor
    g: Tensor
    bias: bool


class ClippedWindows(NamedTuple):
    """factor: clip factors, (B,); of each layer, weights: (O, C / groups, *kernel_size), biases: (O,) or (0,); all
    float64."""

    factor: Tensor
    weights: list[Tensor]
    biases: list[Tensor]


def windows_clipped_sum(
    layers: Sequence[WindowLayer], others_sq_norm: Tensor, max_grad_norm: float, scale: float = 1.0
) -> ClippedWindows:
    """The clipped sums of convolutions whose gradients are formed `in_registers`, once: of what `formed` would store.

    layers:         of one dtype and number of rows B
    others_sq_norm: (B,) float64, what the gradients of all other layers add to the squared norm
    scale:          of the sums, not of the factors

    Formal guarantees: as `clip_factor`, of the norm over these layers and all others.
    """
    geometry: list[int] = []
    for layer in layers:
        sizes = layer.problem
        geometry += [*sizes.kernel_size, *sizes.stride, *sizes.padding, *sizes.dilation, sizes.groups, layer.bias]
    x, g = [layer.x for layer in layers], [layer.g for layer in layers]
    factor, weights, biases = torch.ops.dpcgan_fast.windows_clipped_sum(
        x, g, geometry, others_sq_norm, max_grad_norm, scale
    )
    shaped = [
        weight.view(*weight.shape[:2], *layer.problem.kernel_size)
        for layer, weight in zip(layers, weights, strict=True)
    ]
    return ClippedWindows(factor, shaped, biases)
