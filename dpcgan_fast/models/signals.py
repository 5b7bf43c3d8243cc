"""Networks for records that are one signal, conditional on the label: how strong a record is, and its shape, apart.

The strength of a record is its root mean square about the middle of the bounds, its shape what is left at strength 1.
Both are functions of one record that need no data. The generator draws the logarithm of the strength from a normal
distribution of each label, which a small net may bend, and the shape by transposed convolutions of a latent code, to
which filtered white noise is added: a classifier tells rows without noise from real ones at once. The critic looks at
the shape by convolutions, and at the strength by a few soft bins for each label, so that a few hundred noisy steps are
enough to place the strengths. No module mixes rows, and no convolution is followed by a norm.

The autoencoder (variational, arXiv 1312.6114) is for the generator's start: its decoder is a part of the generator.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.models.layers import (
    LEAKY_SLOPE,
    ConvSpec,
    conv_length,
    conv_stack,
    divergence,
    drawn_codes,
    hidden_layer,
    leaky_relu,
    normal_codes,
)
from dpcgan_fast.models.networks import Networks

SHAPE_DIM = 32
CHANNELS = 16
NOISE_CHANNELS = 4
STRENGTH_BINS, _BIN_WIDTH = 9, 0.25  # soft, of the logarithm of the strength, scaled to [-1, 1]
_STRENGTH_RANGE = math.log(400.0)  # from the strongest record that the bounds allow down to the weakest that is told
_WEAKEST_SQUARE = 1e-7  # added to mean squares; with half the width of the bounds as the unit
_LARGEST_LEVEL = 1.2  # of a drawn record: beyond what is told apart by a tenth of the range, 1.8 times as strong
_SHAPE_SCALE = 0.5  # of what the critic's convolutions see
_HIDDEN = 32
_UPSAMPLING = 16  # of four transposed convolutions
_LAST_LENGTH = 16  # of the critic's and the encoder's convolutions, at most
_FILTER = 7  # taps


def strengths_of(values: Tensor) -> tuple[Tensor, Tensor]:
    """Strengths (B, 1) and shapes (B, L) of values (B, L) in [-1, 1]; a record of zeros has a shape of zeros."""
    strengths = (values.square().mean(1, keepdim=True) + _WEAKEST_SQUARE).sqrt()
    return strengths, values / strengths


def _values_of(records: Tensor) -> Tensor:
    """From [0, 1] to [-1, 1], the middle of the bounds at zero."""
    return 2 * records - 1


def _level(strengths: Tensor) -> Tensor:
    """Logarithms of strengths, scaled so that the range of what is told apart is [-1, 1]."""
    return 2 * strengths.log() / _STRENGTH_RANGE + 1


def _trunk(length: int) -> tuple[nn.Sequential, int]:
    """Strided convolutions (B, 1, length) -> (B, C L'), flat, with L' at most `_LAST_LENGTH`; returns also C L'."""
    specs = [ConvSpec(CHANNELS, 8, 4)]
    length = conv_length(length, specs[0])
    while length > _LAST_LENGTH:
        specs.append(ConvSpec(2 * CHANNELS, 5, 3))
        length = conv_length(length, specs[-1])
    stack = conv_stack(1, specs, leaky_relu())
    return nn.Sequential(*stack, nn.Flatten()), specs[-1].channels * length


class LevelledDecoder(nn.Module):
    """A decoder of codes (B, code_dim) and labels (B, K) to signals (B, length).

    It knows also each label's normal distribution of the level, from a start that says little: `level_of`.
    """

    length: int
    code_dim: int
    level: nn.Linear

    def start_levels(self, classes: int) -> None:
        """Makes the parameters of the levels, (2, K): mean, logarithm of the deviation over the first one."""
        self.level = nn.Linear(classes, 2, bias=False)
        nn.init.zeros_(self.level.weight)

    def level_of(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, 1) of the level; at first 0 and a third of the half of its range."""
        mean, log_deviation = self.level(labels).chunk(2, dim=1)
        return mean, torch.exp(log_deviation.clamp(-4.0, 1.0)) / 3


class ShapeDecoder(LevelledDecoder):
    """Latent codes (B, SHAPE_DIM) and labels (B, K) -> signals (B, L) by transposed convolutions."""

    code_dim = SHAPE_DIM

    def __init__(self, length: int, classes: int):
        super().__init__()
        self.length, self.start = length, math.ceil(length / _UPSAMPLING)
        self.inner = nn.Linear(SHAPE_DIM + classes, 2 * CHANNELS * self.start)
        up = ConvSpec(CHANNELS, 4, 2, 1)
        self.along = conv_stack(2 * CHANNELS, (up, up, up, up), leaky_relu(), transposed=True)
        self.out = nn.Conv1d(CHANNELS, 1, _FILTER, padding=_FILTER // 2)
        self.start_levels(classes)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        hidden = hidden_layer(self.inner, codes, labels).unflatten(1, (2 * CHANNELS, self.start))
        return self.out(self.along(hidden)).squeeze(1)[:, : self.length]  # (B, C, 16 L') -> (B, L)


class SignalAutoEncoder(nn.Module):
    """Records, labels and normal noise (B, code_dim) -> shapes, means and deviations of the level, of the code."""

    trunk: nn.Module
    decoder: LevelledDecoder

    def __init__(self, length: int, classes: int):
        super().__init__()
        self.trunk, features = _trunk(length)
        self.code = nn.Linear(features, 2 * SHAPE_DIM)
        self.decoder = ShapeDecoder(length, classes)

    def forward(self, records: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        _, shapes = strengths_of(_values_of(records))
        mean, log_variance = normal_codes(self.code(self.trunk(shapes.unsqueeze(1))))
        decoded = self.decoder(drawn_codes(mean, log_variance, noise), labels)
        return decoded, *self.decoder.level_of(labels), mean, log_variance


class SignalGenerator(nn.Module):
    """Latent (B, 1 + latent_dim) and labels (B, K) -> the same, with the first number, for the level, bent by a net.

    noise: a filter of NOISE_CHANNELS channels of white noise, (B, NOISE_CHANNELS, L) -> (B, 1, L), which `decode` adds
    """

    def __init__(self, classes: int, latent_dim: int = SHAPE_DIM):
        super().__init__()
        last = nn.Linear(_HIDDEN, 1, bias=False)
        nn.init.zeros_(last.weight)
        self.bend = nn.Sequential(nn.Linear(1 + latent_dim + classes, _HIDDEN), leaky_relu(), last)
        self.noise = nn.Conv1d(NOISE_CHANNELS, 1, _FILTER, padding=_FILTER // 2, bias=False)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        level = latent[:, :1] + self.bend(torch.cat([latent, labels], 1))
        return torch.cat([level, latent[:, 1:]], 1)


class SignalSight(nn.Module):
    """What a critic sees of records (B, L): scaled shapes (B, 1, L), and soft bins of strengths (B, STRENGTH_BINS)."""

    centres: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centres", torch.linspace(-1.0, 1.0, STRENGTH_BINS), persistent=False)

    def forward(self, records: Tensor) -> tuple[Tensor, Tensor]:
        strengths, shapes = strengths_of(_values_of(records))
        bins = torch.exp(-0.5 * ((_level(strengths) - self.centres) / _BIN_WIDTH).square())
        return _SHAPE_SCALE * shapes.unsqueeze(1), bins


class SignalCritic(nn.Module):
    """Records (B, L) and labels (B, K) -> scores (B,)."""

    def __init__(self, length: int, classes: int):
        super().__init__()
        self.sight = SignalSight()
        self.trunk, features = _trunk(length)
        self.inner = nn.Linear(features + classes * (1 + STRENGTH_BINS), _HIDDEN)
        self.out = nn.Linear(_HIDDEN, 1)

    def forward(self, records: Tensor, labels: Tensor) -> Tensor:
        shapes, bins = self.sight(records)
        of_label = (labels.unsqueeze(2) * bins.unsqueeze(1)).flatten(1)  # (B, K STRENGTH_BINS)
        seen = torch.cat([self.trunk(shapes), labels, of_label], 1)
        return self.out(F.leaky_relu(self.inner(seen), LEAKY_SLOPE)).squeeze(1)


class SignalNetworks(Networks):
    """Networks for records that are one signal of at least `data.schema.LEAST_SIGNAL` samples."""

    latent_dim = 1 + SHAPE_DIM
    autoencoder: SignalAutoEncoder
    generator: SignalGenerator
    critic: nn.Module

    def __init__(self, blocks: Sequence[Block], n_classes: int):
        super().__init__()
        length = blocks[-1].stop
        self.autoencoder = SignalAutoEncoder(length, n_classes)
        self.generator = SignalGenerator(n_classes)
        self.critic = SignalCritic(length, n_classes)

    def autoencoder_noise(self, rows: int, randomness: torch.Generator) -> Tensor:
        """Standard normal noise of the codes, (B, code_dim)."""
        return torch.randn(rows, self.autoencoder.decoder.code_dim, generator=randomness, device=randomness.device)

    def autoencoder_loss(self, output: tuple[Tensor, ...], records: Tensor) -> Tensor:
        """Negative evidence lower bound of each row, in nats, but for a constant; (B,). A shape has unit variance."""
        decoded, level, deviation, mean, log_variance = output
        strengths, shapes = strengths_of(_values_of(records))
        loss = divergence(mean, log_variance) + 0.5 * (shapes - decoded).square().sum(1)
        return loss + (0.5 * ((_level(strengths) - level) / deviation).square() + deviation.log()).squeeze(1)

    def decode(self, codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:
        """Records in [0, 1]: the decoder's shape and the generator's noise, at the strength of the codes."""
        decoder = self.autoencoder.decoder
        shape = (len(codes), NOISE_CHANNELS, decoder.length)
        white = torch.randn(shape, generator=randomness, device=codes.device)
        _, shapes = strengths_of(decoder(codes[:, 1:], labels) + self.generator.noise(white).squeeze(1))
        mean, deviation = decoder.level_of(labels)
        level = (mean + deviation * codes[:, :1]).clamp(-_LARGEST_LEVEL, _LARGEST_LEVEL)
        values = shapes * torch.exp((level - 1) * (_STRENGTH_RANGE / 2))
        return (values.clamp(-1.0, 1.0) + 1) / 2

    def decoder_parameters(self) -> list[nn.Parameter]:
        """All parameters of the decoder."""
        return list(self.autoencoder.decoder.parameters())
