"""The networks of RDP-CGAN (arXiv 2012.11774) as presets, with GroupNorm where rows of data pass.

Layer sizes and parameter counts are those of the published code. The label, where there is one, is the record's last
feature: the nets are not conditional.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcgan_fast.models.layers import ConvSpec, batch_norm, conv_stack, leaky_relu
from dpcgan_fast.models.networks import Networks

LATENT_DIM = 128
CRITIC_CLAMP = 0.01


@dataclass(frozen=True)
class PublishedSpec:
    """Sizes of one published system; `record_length` includes the label where the record has one."""

    record_length: int
    encoder: tuple[ConvSpec, ...]
    encoder_last: Callable[[], nn.Module]
    decoder: tuple[ConvSpec, ...]
    decoder_between: Callable[[], nn.Module]
    generator: tuple[ConvSpec, ...]
    generator_last: Callable[[], nn.Module]
    critic: tuple[ConvSpec, ...]
    binary: bool  # binary cross-entropy instead of squared error


def _conv(channels: int, kernel: int, stride: int = 1, padding: int = 0) -> ConvSpec:
    return ConvSpec(channels, kernel, stride, padding)


def _conv_norm(channels: int, kernel: int, stride: int = 1, padding: int = 0) -> ConvSpec:
    return ConvSpec(channels, kernel, stride, padding, norm=True)


UCI = PublishedSpec(
    record_length=179,
    encoder=(_conv(4, 5, 2), _conv_norm(8, 5, 2), _conv_norm(16, 5, 3), _conv_norm(32, 5, 3), _conv(64, 3)),
    encoder_last=nn.ReLU,
    decoder=(_conv(32, 5), _conv_norm(16, 5, 4), _conv_norm(8, 7, 4), _conv(1, 7, 2)),
    decoder_between=leaky_relu,
    generator=(
        _conv_norm(64, 4), _conv_norm(32, 4, 2, 1), _conv_norm(16, 4, 2, 1), _conv_norm(8, 4, 2, 1), _conv(1, 4, 2, 1)
    ),
    generator_last=nn.ReLU,
    critic=(_conv(16, 8, 4, 1), _conv_norm(32, 8, 4, 1), _conv_norm(64, 8, 4, 1), _conv(1, 2)),
    binary=False,
)  # fmt: skip

MIMIC = PublishedSpec(
    record_length=1071,
    encoder=(
        _conv(4, 5, 2), _conv_norm(8, 5, 2), _conv_norm(16, 5, 3), _conv_norm(32, 5, 3), _conv_norm(64, 5, 3),
        _conv(128, 8),
    ),
    encoder_last=nn.Tanh,
    decoder=(
        _conv(64, 5), _conv_norm(32, 5, 4), _conv_norm(16, 7, 4), _conv_norm(8, 7, 3), _conv_norm(4, 7, 2),
        _conv(1, 3, 2),
    ),
    decoder_between=nn.ReLU,
    generator=(
        _conv_norm(64, 4), _conv_norm(32, 4, 2, 1), _conv_norm(16, 4, 2, 1), _conv_norm(8, 4, 2, 1),
        _conv_norm(4, 4, 2, 1), _conv(1, 4, 2, 1),
    ),
    generator_last=nn.Tanh,
    critic=(
        _conv(16, 8, 4, 1), _conv_norm(32, 8, 4, 1), _conv_norm(64, 8, 4, 1), _conv_norm(128, 8, 4, 1), _conv(1, 3)
    ),
    binary=True,
)  # fmt: skip


class _OnRecords(nn.Module):
    """Convolutions over a record as a signal of one channel; the labels are part of the record and not used."""

    stacks: nn.Sequential

    def __init__(self, *stacks: nn.Module):
        super().__init__()
        self.stacks = nn.Sequential(*stacks)

    def forward(self, records: Tensor, *_: Tensor) -> Tensor:
        return self.stacks(records.unsqueeze(1)).squeeze(1)  # (B, F) -> (B, 1, F) -> (B, 1, F') -> (B, F')


class _Critic(_OnRecords):
    def forward(self, records: Tensor, *_: Tensor) -> Tensor:
        return super().forward(records).squeeze(1)  # (B, 1) -> (B,)


class _Generator(nn.Module):
    def __init__(self, stack: nn.Module):
        super().__init__()
        self.stack = stack

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        return self.stack(latent.unsqueeze(2)).transpose(1, 2)  # (B, Z, 1) -> (B, 1, C) -> (B, C, 1)


def reconstruction_loss(output: Tensor, records: Tensor, binary: bool) -> Tensor:
    """Squared error or binary cross-entropy, summed over features; (B,)."""
    loss = F.binary_cross_entropy if binary else F.mse_loss
    return loss(output, records, reduction="none").sum(1)


class PublishedNetworks(Networks):
    """Autoencoder, generator and critic of one `PublishedSpec`."""

    latent_dim = LATENT_DIM
    generator_mixes_rows = True
    autoencoder: _OnRecords
    critic: _Critic

    def __init__(self, spec: PublishedSpec):
        super().__init__()
        encoder = conv_stack(1, spec.encoder, spec.encoder_last())
        code_channels = spec.encoder[-1].channels
        decoder = conv_stack(code_channels, spec.decoder, nn.Sigmoid(), transposed=True, between=spec.decoder_between)
        self.binary = spec.binary
        self.autoencoder = _OnRecords(encoder, decoder)
        generator = conv_stack(LATENT_DIM, spec.generator, spec.generator_last(), transposed=True, norm=batch_norm)
        self.generator = _Generator(generator)
        self.critic = _Critic(conv_stack(1, spec.critic, None))

    def autoencoder_loss(self, output: Tensor, records: Tensor) -> Tensor:
        """See `reconstruction_loss`."""
        return reconstruction_loss(output, records, self.binary)

    def decode(self, codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:  # noqa: ARG002
        """The decoder's output as it is; (B, C, 1) -> (B, F)."""
        return self.decoder(codes).squeeze(1)

    @property
    def decoder(self) -> nn.Module:
        """The second half of the autoencoder."""
        return self.autoencoder.stacks[1]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """All parameters of the decoder."""
        return list(self.decoder.parameters())

    @property
    def critic_clamp(self) -> dict[nn.Parameter, float]:
        """Weights and biases of the critic's convolutions, not of its norms."""
        convolutions = (module for module in self.critic.modules() if isinstance(module, nn.Conv1d))
        return {parameter: CRITIC_CLAMP for module in convolutions for parameter in module.parameters()}
