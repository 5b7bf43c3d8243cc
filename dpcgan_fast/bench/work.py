"""What a step must compute and move: FLOPs and bytes from shapes alone, whatever a kernel does beyond that.

A multiply-add is 2 FLOPs, and taps that read padding count, as in torch.utils.flop_counter. Only what grows with
channels times taps counts: not biases, norms of layers, activations or noise, which cost time all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dpcgan_fast import ops

Mode = Literal["direct", "gram", "materialise"]

_FLOAT = 4


@dataclass(frozen=True)
class ConvShape:
    """A layer whose weight is shared among positions, for one row, in the roles of csrc/common/conv_geometry.h.

    channels:             C of x, which is sampled at strided positions
    outputs, positions:   O and T of g, one value a position: the output of Conv1d, the input of ConvTranspose1d
    in_floats, out_floats: of the layer's own input and output
    """

    channels: int
    outputs: int
    positions: int
    kernel_size: int
    stride: int
    dilation: int
    groups: int
    in_floats: int
    out_floats: int

    @property
    def weights(self) -> int:
        """p = O C / groups k."""
        return self.outputs * self.channels // self.groups * self.kernel_size

    @property
    def pass_flops(self) -> int:
        """Of the forward, of the input's gradient, or of the weight's gradient: each is 2 T p."""
        return 2 * self.positions * self.weights

    def norm_flops(self, mode: Mode) -> int:
        """Of the squared norm of one row's weight gradient.

        direct, materialise: the gradient and its squares
        gram: sum over t <= t' of (g^T g)[t, t'] A[t, t'], with A from the products of pairs of columns of the
              polyphase view of x (performance notes of csrc/cpu/conv_sq_norm.cpp)
        """
        if mode != "gram":
            return self.pass_flops + 2 * self.weights
        phases, folds = ops.gram_phases(self.positions, self.kernel_size, self.stride, self.dilation)
        pairs = self.positions * (self.positions + 1) // 2
        column_pairs = pairs + self.positions * (folds - 1)  # those whose distance is below T
        inputs = 2 * column_pairs * phases * self.channels // self.groups + pairs * (folds - 1)
        outputs = 2 * pairs * self.outputs // self.groups
        return self.groups * (inputs + outputs + 2 * pairs)

    def sum_flops(self, mode: Mode) -> int:
        """Of one row's share of the weighted sum: a kept gradient is only read again."""
        return 2 * self.weights if mode == "materialise" else self.pass_flops


def conv_shape(module: nn.Module, x: Tensor, out: Tensor) -> ConvShape | None:
    """The shape of a Conv1d, ConvTranspose1d or Linear from its input and output; None for other layers."""
    floats = x[0].numel(), out[0].numel()
    if isinstance(module, nn.Conv1d):
        (k,), (s,), (d,) = module.kernel_size, module.stride, module.dilation
        return ConvShape(module.in_channels, module.out_channels, out.shape[2], k, s, d, module.groups, *floats)
    if isinstance(module, nn.ConvTranspose1d):
        (k,), (s,), (d,) = module.kernel_size, module.stride, module.dilation
        return ConvShape(module.out_channels, module.in_channels, x.shape[2], k, s, d, module.groups, *floats)
    if isinstance(module, nn.Linear):
        positions = x.shape[1:-1].numel()
        return ConvShape(module.in_features, module.out_features, positions, 1, 1, 1, 1, *floats)
    return None


def conv_shapes(module: nn.Module, x: Tensor) -> dict[str, ConvShape]:
    """The shapes of a module's weight-sharing layers by name, in the order of a forward of x."""
    shapes: dict[str, ConvShape] = {}

    def note(name: str):
        def hook(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            shape = conv_shape(layer, args[0], out)
            assert shape is not None
            shapes[name] = shape

        return hook

    kinds = (nn.Conv1d, nn.ConvTranspose1d, nn.Linear)
    handles = [layer.register_forward_hook(note(n)) for n, layer in module.named_modules() if isinstance(layer, kinds)]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


@dataclass(frozen=True)
class Work:
    """FLOPs, and bytes that go between a kernel and memory beside its arguments."""

    flops: int
    kept_bytes: int


def plain_flops(shapes: Mapping[str, ConvShape], rows: int) -> int:
    """Of a plain step: forward, gradients of all inputs but the first layer's, gradients of the weights."""
    return rows * (3 * sum(s.pass_flops for s in shapes.values()) - next(iter(shapes.values())).pass_flops)


def fused_work(
    shapes: Mapping[str, ConvShape], modes: Mapping[str, Mode], rows: int, whole: bool = True
) -> dict[str, Work]:
    """Work of the fused ops that a step calls, by name.

    shapes: of the layers of the fused runs, in order; the first one's input needs no gradient
    modes:  how each layer's norm is taken, by name; {} where nothing is clipped and the sum alone is asked for
    whole:  one run has all layers that count for the norm: its backward measures, clips and sums. Otherwise the norms
            take a backward of their own, and the sum another one, which forms the gradients anew

    Bytes are those of one pass each way. Forward leaves the outputs of the weight-sharing layers, from which the rest
    is cheaply had again. A backward reads them, the rows and the weights; gradients need not leave the caches.
    """
    layers = list(shapes.values())
    forward = sum(shape.pass_flops for shape in layers)
    backward = forward - layers[0].pass_flops
    norms = sum(shape.norm_flops(modes[name]) for name, shape in shapes.items() if name in modes)
    sums = sum(shape.sum_flops(modes[name]) if name in modes else shape.pass_flops for name, shape in shapes.items())
    outs = sum(shape.out_floats for shape in layers[:-1])  # the last one's is the op's own output
    weights = sum(shape.weights for shape in layers)
    read = _FLOAT * (rows * (layers[0].in_floats + outs) + weights)
    work = {"fused_forward": Work(rows * forward, _FLOAT * rows * outs)}
    if whole:
        return work | {"fused_clipped_sum": Work(rows * (backward + norms + sums), read)}
    return work | {
        "fused_sq_norm": Work(rows * (backward + norms), read),
        "fused_clipped_sum": Work(rows * (backward + forward), read),
    }
