"""What the fused kernels take: the form of each kind of layer, and the net of a run of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dpcgan_fast.ops import FusedLayer, FusedNet

# Weights of layers with one position, such as Linear, that fused kernels sum no slower than products of matrices do;
# measured at 128 to 1024 rows. More are, where the other layers take at least half as many products.
_MOST_DENSE = 2**14
_DENSE_BESIDE_OTHERS = 2


class NotFusedError(Exception):
    """Why a module, or one call of it, does not take the fused path."""


@dataclass(frozen=True)
class _Value:
    """Shape of a value between layers; flat once the net has flattened it."""

    channels: int
    length: int
    flat: bool


def _conv1d(module: nn.Conv1d, value: _Value) -> FusedLayer:
    if value.flat:
        raise NotFusedError("a convolution follows a flattened value")
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        raise NotFusedError("a convolution pads by a mode or by name")
    (kernel,), (stride,), (padding,), (dilation,) = module.kernel_size, module.stride, module.padding, module.dilation
    length = (value.length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return FusedLayer(
        "conv1d", value.channels, value.length, module.out_channels, length, kernel, stride, padding, dilation,
        module.groups, module.bias is not None,
    )  # fmt: skip


def _conv_transpose1d(module: nn.ConvTranspose1d, value: _Value) -> FusedLayer:
    if value.flat:
        raise NotFusedError("a convolution follows a flattened value")
    (kernel,), (stride,), (dilation,), (extra,) = (
        module.kernel_size, module.stride, module.dilation, module.output_padding,
    )  # fmt: skip
    padding = module.padding[0]
    assert isinstance(padding, int)  # ConvTranspose1d takes no padding by name
    length = (value.length - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
    return FusedLayer(
        "conv_transpose1d", value.channels, value.length, module.out_channels, length, kernel, stride, padding,
        dilation, module.groups, module.bias is not None,
    )  # fmt: skip


def _linear(module: nn.Linear, value: _Value) -> FusedLayer:
    """A linear layer over a flattened value is a convolution as long as the value."""
    if not value.flat:
        raise NotFusedError("a linear layer acts on each position of a sequence")
    return FusedLayer(
        "conv1d", value.channels, value.length, module.out_features, 1, value.length, bias=module.bias is not None
    )


def _group_norm(module: nn.GroupNorm, value: _Value) -> FusedLayer:
    if value.flat and value.length != 1:
        raise NotFusedError("a norm follows a flattened value")
    if not module.affine:
        raise NotFusedError("a norm has no affine pair")
    return FusedLayer(
        "group_norm", value.channels, value.length, value.channels, value.length, groups=module.num_groups,
        number=module.eps,
    )  # fmt: skip


def _activation(kind: Any, slope: Callable[[Any], float] = lambda _: 0.0) -> Callable[[Any, _Value], FusedLayer]:
    def layer(module: nn.Module, value: _Value) -> FusedLayer:
        if slope(module) < 0:
            raise NotFusedError("a leaky ReLU has a negative slope")
        return FusedLayer(kind, value.channels, value.length, value.channels, value.length, number=slope(module))

    return layer


_FORMS: dict[type[nn.Module], Callable[[Any, _Value], FusedLayer]] = {
    nn.Conv1d: _conv1d,
    nn.ConvTranspose1d: _conv_transpose1d,
    nn.Linear: _linear,
    nn.GroupNorm: _group_norm,
    nn.LeakyReLU: _activation("leaky_relu", lambda module: module.negative_slope),
    nn.ReLU: _activation("leaky_relu"),
    nn.Tanh: _activation("tanh"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.SiLU: _activation("silu"),
}


def has_fused_form(module: nn.Module) -> bool:
    """Whether a layer's kind can be part of a fused net; its settings and its input may still rule it out."""
    return type(module) in _FORMS or (type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1))


def fused_net(modules: Sequence[tuple[str, nn.Module]], shape: tuple[int, ...]) -> FusedNet:
    """The net of layers that have a fused form, in order with their names, for rows of shape (C, L) or (F,).

    Raises NotFusedError if a layer's settings have no fused form, if it does not fit its input, or if the net is mostly
    of wide linear layers.
    """
    channels, *rest = shape
    length = rest[0] if rest else 1
    value = _Value(channels, length, flat=not rest)
    layers: list[FusedLayer] = []
    for name, module in modules:
        if type(module) is nn.Flatten:
            value = _Value(value.channels, value.length, flat=True)
            continue
        layer = _FORMS[type(module)](module, value)
        if layer.length < 1 or getattr(module, "in_channels", layer.in_channels) != layer.in_channels:
            raise NotFusedError(f"module {name!r} does not fit its input")
        layers.append(layer)
        value = _Value(layer.channels, layer.length, value.flat)
    _refuse_wide_linear(layers)
    return FusedNet(tuple(layers), channels, length, value.flat, flat_input=not rest)


def _refuse_wide_linear(layers: Sequence[FusedLayer]) -> None:
    products = [(layer.weights, layer.positions) for layer in layers if layer.is_conv]
    dense = sum(weights for weights, positions in products if positions == 1)
    others = sum(weights * positions for weights, positions in products if positions > 1)
    if dense > max(_MOST_DENSE, _DENSE_BESIDE_OTHERS * others):
        raise NotFusedError(f"{dense} weights of linear layers are summed faster layer by layer")
