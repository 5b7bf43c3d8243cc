"""The fused path of a sequential net: one call forward, and one backward that measures, clips and sums its rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dpcgan_fast.ops._backend import native_module
from dpcgan_fast.ops._modes import gram_phases

Kind = Literal["conv1d", "conv_transpose1d", "group_norm", "leaky_relu", "tanh", "sigmoid", "silu"]

_KINDS: dict[str, int] = {"conv1d": 0, "conv_transpose1d": 1, "group_norm": 2}
_ACTIVATIONS = {"leaky_relu": 0, "tanh": 1, "sigmoid": 2, "silu": 3}
_LANES = {"portable": 4, "avx2": 8, "avx512": 16}
# Cycles for a vector of rows, measured on a server core with 2 MiB of second-level cache:
_GRAM_CYCLES = 1.6  # of one product of a Gram norm, which is in double
_SUM_CYCLES = 3.5  # of one gradient that is summed without being kept: widened and added up
_KEPT_CYCLES = 8.0  # of one kept gradient: stored, squared, weighted and added up
_FAR_CYCLES = 40.0  # likewise, where those of a layer do not fit in the cache
_NEAR_WEIGHTS = (1 << 20) // (4 * 16)  # weights of a layer whose kept gradients do


@dataclass(frozen=True)
class FusedLayer:
    """One layer of a fused net.

    in_channels, in_length: of the input, (B, in_channels, in_length)
    channels, length:       of the output, (B, channels, length)
    groups:                 of a convolution, or of a GroupNorm
    number:                 slope of a leaky ReLU, eps of a GroupNorm
    """

    kind: Kind
    in_channels: int
    in_length: int
    channels: int
    length: int
    kernel_size: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    bias: bool = False
    number: float = 0.0

    @property
    def is_conv(self) -> bool:
        """Whether it has a weight that is shared among positions."""
        return self.kind in ("conv1d", "conv_transpose1d")

    @property
    def positions(self) -> int:
        """Positions that share the weight, of a convolution."""
        return self.length if self.kind == "conv1d" else self.in_length

    @property
    def weights(self) -> int:
        """Elements of the weight, of a convolution."""
        return self.in_channels * self.channels // self.groups * self.kernel_size

    @cached_property
    def norm_mode(self) -> tuple[Literal["materialise", "gram"], str]:
        """How rows are measured, and why: by the cost of both ways in cycles for a vector of rows."""
        if not self.is_conv:
            return "materialise", "an affine pair is small"
        forward = self.kind == "conv1d"
        x_channels = (self.in_channels if forward else self.channels) // self.groups
        g_channels = (self.channels if forward else self.in_channels) // self.groups
        positions, weights = self.positions, self.weights // self.groups
        phases, folds = gram_phases(positions, self.kernel_size, self.stride, self.dilation)
        pairs = positions * (positions + 1) / 2
        column_pairs = pairs + positions * (folds - 1)
        gram = _GRAM_CYCLES * (column_pairs * x_channels * phases + pairs * g_channels)
        gram += _SUM_CYCLES * weights
        kept = (_KEPT_CYCLES if self.weights <= _NEAR_WEIGHTS else _FAR_CYCLES) * weights
        if gram < kept:
            return "gram", f"{gram:.0f} cycles of Gram are fewer than {kept:.0f} of keeping {weights} gradients"
        return "materialise", f"{kept:.0f} cycles of keeping {weights} gradients are at most {gram:.0f} of Gram"

    def integers(self) -> list[int]:
        """The layer as the kernels take it."""
        if self.kind in _ACTIVATIONS:
            return [3, self.channels, 1, 1, 0, 1, 1, 0, _ACTIVATIONS[self.kind], self.length]
        mode = int(self.norm_mode[0] == "gram")
        return [_KINDS[self.kind], self.channels, self.kernel_size, self.stride, self.padding, self.dilation,
                self.groups, int(self.bias), mode, self.length]  # fmt: skip


_INTEGERS = 10  # a layer: kind, channels, kernel, stride, padding, dilation, groups, bias, mode or activation, length


def fused_output(integers: Sequence[int], channels: int, length: int) -> tuple[int, int]:
    """Channels and length of a fused net's output, from the integers of its layers."""
    for start in range(0, len(integers), _INTEGERS):
        if integers[start] in (0, 1):
            channels, length = integers[start + 1], integers[start + 9]
    return channels, length


def fused_parameters(integers: Sequence[int], channels: int) -> int:
    """Number of parameters of a fused net."""
    total = 0
    for start in range(0, len(integers), _INTEGERS):
        kind, out, kernel, *_, groups, bias, _mode, _length = integers[start : start + _INTEGERS]
        if kind in (0, 1):
            total += channels * out // groups * kernel + bias * out
            channels = out
        elif kind == 2:
            total += 2 * channels
    return total


@dataclass
class FusedNet:
    """A sequential net for the fused kernels, with a pool of workspaces.

    channels, length: of the input, (B, channels, length) float32
    flat:             whether the net's output is flattened
    flat_input:       whether its input is (B, channels), seen as length 1
    """

    layers: tuple[FusedLayer, ...]
    channels: int
    length: int
    flat: bool = False
    flat_input: bool = False
    _pool: list[Tensor] = field(default_factory=list[Tensor], repr=False)

    def __post_init__(self) -> None:
        self._integers = [number for layer in self.layers for number in layer.integers()]
        self._numbers = [layer.number for layer in self.layers]
        self._lanes = _LANES[native_module().simd_level()]
        self._floats_of_groups: dict[int, int] = {}

    def _workspace(self, rows: int) -> Tensor:
        groups = math.ceil(rows / self._lanes)
        if groups not in self._floats_of_groups:
            self._floats_of_groups[groups] = native_module().fused_workspace_floats(
                self._integers, self._numbers, self._lanes, groups * self._lanes, self.channels, self.length
            )
        floats = self._floats_of_groups[groups]
        for index, workspace in enumerate(self._pool):
            if workspace.numel() >= floats:
                return self._pool.pop(index)
        self._pool.clear()  # none of them is large enough any more
        return torch.empty(floats, dtype=torch.float32)

    def forward(self, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Output (B, O, T), and the workspace that holds what backward needs.

        x:          (B, channels, length) float32
        parameters: weights and biases in the order of the layers, contiguous float32
        """
        workspace = self._workspace(x.shape[0])
        with torch.no_grad():
            out = torch.ops.dpcgan_fast.fused_forward(
                x, parameters, self._integers, self._numbers, self._lanes, workspace
            )
        return out, workspace

    def infer(self, x: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """The same output, (B, O, T) float32, where nothing goes backward: quicker, since no layer's values are kept.

        x: (B, C, L) float32; parameters: as for `forward`
        """
        return torch.ops.dpcgan_fast.fused_infer(x, parameters, self._integers, self._numbers, self._lanes)

    def draw(
        self, x: Tensor, parameters: Sequence[Tensor], prior: Tensor, classes: Tensor, uniform: Tensor,
        last_cells: Tensor,
    ) -> Tensor:  # fmt: skip
        """One cell of each block, drawn by inversion from the distributions softmax(output + prior[class]) over cells.

        The output, (B, cells, T), has a channel a cell; its first `blocks` positions count.

        prior:      (K, blocks, cells) float32; -inf for a cell that a block does not have
        classes:    (B,) int64 in [0, K); fastest where rows of a class lie side by side
        uniform:    (B, blocks) float32 in [0, 1): where in the cumulated chances the draw falls
        last_cells: (blocks,) int64, the last cell of each block
        out:        (B, blocks) float32, numbers of cells; NaN where a block's logits are not finite

        Raises RuntimeError for tensors that do not fit.
        """
        return torch.ops.dpcgan_fast.fused_draw(
            x, parameters, self._integers, self._numbers, self._lanes, prior, classes, uniform, last_cells
        )

    @property
    def out_shape(self) -> tuple[int, int]:
        """Channels and length of the output."""
        return self.layers[-1].channels, self.layers[-1].length

    def sq_norm(
        self, grad_out: Tensor, workspace: Tensor, measure: bool = True, input_grad: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Squared gradient norms (B,) float64; rows (B,) bool that cancel; and the gradient of the input.

        Runs backward through the workspace, which `weighted_sum` needs too; it may be called again. Rows that cancel
        must be taken by another path. Without `measure` a norm is 0, or NaN for a row that is not finite. Without
        `input_grad` the last has no rows.
        """
        return torch.ops.dpcgan_fast.fused_sq_norm(
            grad_out, self._integers, self._numbers, self._lanes, self.channels, self.length, measure, input_grad,
            workspace,
        )  # fmt: skip

    def clipped_sum(self, grad_out: Tensor, workspace: Tensor, max_grad_norm: float) -> tuple[Tensor, Tensor, Tensor]:
        """The sum over rows of clipped gradients, all parameters in order, (P,) float64; and as `sq_norm` does the
        rows' squared norms and those that cancel, which are left out of the sum."""
        return torch.ops.dpcgan_fast.fused_clipped_sum(
            grad_out, None, max_grad_norm, self._integers, self._numbers, self._lanes, self.channels, self.length,
            workspace,
        )  # fmt: skip

    def weighted_sum(self, grad_out: Tensor, workspace: Tensor, factor: Tensor) -> Tensor:
        """sum_n factor[n] G_n over all parameters in order, (P,) float64; rows of factor 0 are not read."""
        return torch.ops.dpcgan_fast.fused_clipped_sum(
            grad_out, factor, math.inf, self._integers, self._numbers, self._lanes, self.channels, self.length,
            workspace,
        )[0]  # fmt: skip

    def release(self, workspace: Tensor) -> None:
        """Gives a workspace back for a later forward."""
        self._pool.append(workspace)
