"""Per-sample weight gradients of convolutions in any number of dimensions, by the windows of the input that each output
position sees: a row's gradient is one product of its output gradient and its windows.

On the CPU an op of ours takes the products straight from the input, and measures them. Elsewhere windows, which take k
times the memory of the input, are copied a few rows at a time, into one buffer. Every product takes the same number of
rows, filled up with zeros: the library rounds a row that is alone otherwise, and what a row adds must not depend on how
many others there are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpcgan_fast.ops._backend import backend
from dpcgan_fast.ops._spare import borrow

# Elements of the windows that are copied at a time. Fewer would cost no more on idle cores; on busy ones every product
# waits for the thread that comes last.
_BUFFER = {"cpu": 2**21, "cuda": 2**26}
_FEWEST_ROWS, _MOST_ROWS = 2, 32


def rows_at_a_time(elements: int, device: torch.device) -> int:
    """Rows of a product whose larger operand has this many elements a row."""
    return min(_MOST_ROWS, max(_FEWEST_ROWS, _BUFFER.get(device.type, _BUFFER["cpu"]) // max(1, elements)))


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """left[n] right[n]^T for each row; left: (B, O, T), right: (B, P, T), of one dtype; out: (B, O, P)."""
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[1])
    for part, filled in _parts(left.shape[0], rows_at_a_time(right[:1].numel(), out.device)):
        _product_into(out[part], filled(left), filled(right).transpose(1, 2))
    return out


def _product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Writes left[n] right[n] for each row of out; left and right may have more rows."""
    with torch.autocast(out.device.type, enabled=False):
        if len(out) == len(left):
            torch.bmm(left, right, out=out)
        else:
            out.copy_(torch.bmm(left, right)[: len(out)])


def _parts(rows: int, count: int) -> Iterator[tuple[slice, "_Filled"]]:
    """All rows, `count` at a time, and what takes those of a tensor."""
    for begin in range(0, rows, count):
        yield slice(begin, begin + count), _Filled(begin, count)


@dataclass(frozen=True)
class _Filled:
    """Takes `count` rows of a tensor, zeros where it has no more."""

    begin: int
    count: int

    def __call__(self, x: Tensor) -> Tensor:
        part = x[self.begin : self.begin + self.count]
        missing = self.count - part.shape[0]
        return part if missing == 0 else torch.cat([part, part.new_zeros(missing, *part.shape[1:])])


@dataclass(frozen=True)
class WindowProblem:
    """Geometry of the weight gradient G[o, c, j] = sum_t g[o, t] x[c, stride t + dilation j - padding].

    t and j are indices in as many dimensions as the convolution has, 1 to 3. x is sampled at strided positions, g has
    one value a position: for a transposed convolution, x is the gradient of its output and g its input.
    """

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1

    def taps(self, x: Tensor) -> int:
        """Values of one channel group of x, (B, C, ...), that one position sees."""
        return x.shape[1] // self.groups * math.prod(self.kernel_size)

    def has_op(self, x: Tensor) -> bool:
        """Whether an op of ours takes products straight from x."""
        return x.device.type == "cpu" and backend() == "native" and len(self.kernel_size) > 1

    @property
    def _geometry(self) -> tuple[object, ...]:
        return self.kernel_size, self.stride, self.padding, self.dilation, self.groups

    def windows(self, x: Tensor, positions: tuple[int, ...]) -> Tensor:
        """(B, C, ...) -> (B, C k, T), a copy: what each of the positions sees, channel groups one after another."""
        both_sides = [side for width in reversed(self.padding) for side in (width, width)]
        view = self._view(F.pad(x, both_sides).contiguous(), positions)
        return view.reshape(x.shape[0], self.groups * self.taps(x), math.prod(positions))

    def per_sample_grad(self, x: Tensor, g: Tensor) -> Tensor:
        """Per-sample gradients of the weight, in the dtype of x; not always contiguous.

        x:   (B, C, ...) float32 or float64
        g:   (B, O, ...) of the same dtype
        out: (B, O, C / groups, *kernel_size)
        """
        return self.measured_grad(x, g)[0]

    def measured_grad(self, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor | None]:
        """`per_sample_grad`, and its squared norms, (B,) float64, where they cost nothing beside it; else None."""
        rows, outputs, inputs = g.shape[0], g.shape[1], x.shape[1] // self.groups
        if self.has_op(x):
            channels_last = borrow((rows, outputs, *self.kernel_size, inputs), x)
            sq_norm = x.new_zeros(rows, dtype=torch.float64)
            torch.ops.dpcgan_fast.window_per_sample_grad_(channels_last, sq_norm, x, g, *self._geometry)
            return channels_last.movedim(-1, 2), sq_norm
        out = borrow((rows, outputs, inputs, *self.kernel_size), x)
        self._copied_windows(x, g, out)
        return out, None

    def sq_norm(self, x: Tensor, g: Tensor) -> Tensor:
        """Squared norms of the gradients, (B,) float64, which are formed and dropped; only where `has_op`."""
        return torch.ops.dpcgan_fast.window_sq_norm(x, g, *self._geometry)

    def weighted_grad(self, x: Tensor, g: Tensor, factor: Tensor) -> Tensor:
        """sum_n factor[n] G_n of the gradients as `per_sample_grad` has them, in float64; only where `has_op`."""
        return torch.ops.dpcgan_fast.window_weighted_grad(x, g, factor, *self._geometry)

    def _copied_windows(self, x: Tensor, g: Tensor, out: Tensor) -> None:
        """Writes the gradients by products of copied windows."""
        rows, outputs, positions = g.shape[0], g.shape[1], g.shape[2:]
        taps, count = self.taps(x), math.prod(positions)
        at_a_time = rows_at_a_time(self.groups * taps * count, x.device)
        sides = list(zip(self.padding, x.shape[2:], strict=True))
        padded = x.new_zeros(at_a_time, x.shape[1], *(size + 2 * width for width, size in sides))
        inside = padded[(..., *(slice(width, width + size) for width, size in sides))]
        buffer = x.new_empty(at_a_time, x.shape[1], *self.kernel_size, *positions)
        by_group = buffer.view(at_a_time * self.groups, taps, count).transpose(1, 2)
        for part, filled in _parts(rows, at_a_time):
            inside.copy_(filled(x))
            buffer.copy_(self._view(padded, positions))
            grad = filled(g).reshape(at_a_time * self.groups, outputs // self.groups, count)
            _product_into(out[part].view(-1, outputs // self.groups, taps), grad, by_group)

    def _view(self, padded: Tensor, positions: tuple[int, ...]) -> Tensor:
        """(B, C, *k, *T) view of a padded, contiguous x."""
        over = padded.stride()[2:]
        taps = [step * by for step, by in zip(over, self.dilation, strict=True)]
        moves = [step * by for step, by in zip(over, self.stride, strict=True)]
        sizes = (*padded.shape[:2], *self.kernel_size, *positions)
        return padded.as_strided(sizes, (*padded.stride()[:2], *taps, *moves))
