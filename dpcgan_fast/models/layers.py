"""Stacks of 1-D convolutions, built from short specifications, and the normal codes of variational autoencoders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEAKY_SLOPE = 0.2
# Of a code's log variance, whose exponential noisy weights could send to infinity: standard deviations from .02 to 7.4,
# on both sides of the standard normal's 1.
_LOG_VARIANCE = (-8.0, 4.0)


@dataclass(frozen=True)
class ConvSpec:
    """A convolution or transposed convolution: output channels, kernel, stride, padding, and whether a norm follows."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    norm: bool = False


def conv_length(length: int, spec: ConvSpec) -> int:
    """Output length of a convolution."""
    return (length + 2 * spec.padding - spec.kernel) // spec.stride + 1


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in the place of the published BatchNorm: it has the same parameters and never mixes rows."""
    return nn.GroupNorm(max(1, min(8, channels // 4)), channels, eps=1e-5)


def batch_norm(channels: int) -> nn.BatchNorm1d:
    """BatchNorm for the generator alone, which never sees data."""
    return nn.BatchNorm1d(channels, eps=1e-4, momentum=0.01)


def leaky_relu() -> nn.Module:
    """The activation between layers, unless a preset says otherwise."""
    return nn.LeakyReLU(LEAKY_SLOPE)


def hidden_layer(linear: nn.Linear, codes: Tensor, labels: Tensor) -> Tensor:
    """A linear layer of codes (B, D) and labels (B, K), and the activation: (B, linear.out_features)."""
    return nn.functional.leaky_relu(linear(torch.cat([codes, labels], 1)), LEAKY_SLOPE)


def normal_codes(out: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of codes (B, D) each, from what an encoder's last layer gives: (B, 2 D)."""
    mean, log_variance = out.chunk(2, dim=1)
    return mean, log_variance.clamp(*_LOG_VARIANCE)


def drawn_codes(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """Codes (B, D) from standard normal noise (B, D), so that gradients reach the distribution."""
    return mean + torch.exp(0.5 * log_variance) * noise


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each row's codes from the standard normal, in nats, (B,)."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)


def conv_stack(
    in_channels: int,
    specs: Sequence[ConvSpec],
    last: nn.Module | None,
    transposed: bool = False,
    norm: Callable[[int], nn.Module] = group_norm,
    between: Callable[[], nn.Module] = leaky_relu,
) -> nn.Sequential:
    """Convolution, norm where asked for, activation; the last convolution is followed by `last` alone.

    in:  (B, in_channels, L)
    out: (B, specs[-1].channels, L')
    """
    layers: list[nn.Module] = []
    for i, spec in enumerate(specs):
        kind = nn.ConvTranspose1d if transposed else nn.Conv1d
        layers.append(kind(in_channels, spec.channels, spec.kernel, spec.stride, spec.padding))
        if spec.norm:
            layers.append(norm(spec.channels))
        if i < len(specs) - 1:
            layers.append(between())
        in_channels = spec.channels
    if last is not None:
        layers.append(last)
    return nn.Sequential(*layers)
