"""The published networks of signals, trained as preset `auto` trains its own networks of signals.

Generator, decoder, encoder and critic have the published sizes, but that the critic has a score for each class: a label
at the end of a record is beyond its last strides. They make and see shapes; strengths are apart, and every row has
noise of its own, as in `dpcgan_fast.models.signals`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.models import initial_weights
from dpcgan_fast.models.layers import batch_norm, conv_stack
from dpcgan_fast.models.published import LATENT_DIM, UCI
from dpcgan_fast.models.signals import STRENGTH_BINS, LevelledDecoder, SignalGenerator, SignalNetworks, SignalSight

_LABEL_WEIGHT = 3.0  # of a label's one among the standard normal numbers of the latent code
_BINS_SCALE = 4.0  # of what the critic sees of strengths: steps are few, and every weight moves by the same small rate
_CODE_CHANNELS = UCI.encoder[-1].channels


class _Generator(SignalGenerator):
    """Latent (B, 1 + LATENT_DIM) and labels (B, K) -> levels and codes (B, 1 + C).

    Levels are bent by the label alone: among as many numbers of the shape the bend would not find it in a few steps.
    The labels take the place of the last K of these numbers.
    """

    def __init__(self, classes: int):
        super().__init__(classes, 0)
        self.stack = conv_stack(LATENT_DIM, UCI.generator, UCI.generator_last(), transposed=True, norm=batch_norm)

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        level = super().forward(latent[:, :1], labels)
        given = torch.cat([latent[:, 1 : latent.shape[1] - labels.shape[1]], _LABEL_WEIGHT * labels], 1)
        codes = self.stack(given.unsqueeze(2)).flatten(1)  # (B, Z) -> (B, Z, 1) -> (B, 1, C) -> (B, C)
        return torch.cat([level, codes], 1)


class _Decoder(LevelledDecoder):
    """Codes (B, C) -> signals (B, L); without the published sigmoid, since what it makes is a shape."""

    def __init__(self, length: int, classes: int):
        super().__init__()
        self.length, self.code_dim = length, _CODE_CHANNELS
        self.stack = conv_stack(_CODE_CHANNELS, UCI.decoder, None, transposed=True, between=UCI.decoder_between)
        self.start_levels(classes)

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002
        return self.stack(codes.unsqueeze(2)).squeeze(1)[:, : self.length]  # (B, C) -> (B, 1, L') -> (B, L)


class _Critic(nn.Module):
    """Records (B, L) and labels (B, K) -> scores (B,): of each class one of the shape, and one of the strength.

    That of the strength is linear in its bins and starts at zero: the generator would follow a random opinion away from
    the data, and a few noisy steps, clipped together with the convolutions, would not bring it back.
    """

    def __init__(self, classes: int):
        super().__init__()
        self.sight = SignalSight()
        *convolutions, last = UCI.critic
        self.stack = conv_stack(1, (*convolutions, replace(last, channels=classes)), None)
        self.strength = nn.Linear(STRENGTH_BINS, classes, bias=False)
        nn.init.zeros_(self.strength.weight)

    def forward(self, records: Tensor, labels: Tensor) -> Tensor:
        shapes, bins = self.sight(records)
        of_classes = self.stack(shapes).squeeze(2) + self.strength(_BINS_SCALE * bins)  # (B, K, 1) -> (B, K)
        return (of_classes * labels).sum(1)


class RecipeNetworks(SignalNetworks):
    """Networks for one signal of one position less than the published record, where the label was."""

    latent_dim = 1 + LATENT_DIM
    generator_mixes_rows = True

    def __init__(self, blocks: Sequence[Block], n_classes: int):
        super().__init__(blocks, n_classes)
        encoder = conv_stack(1, UCI.encoder, UCI.encoder_last())
        self.autoencoder.trunk = nn.Sequential(*encoder, nn.Flatten())
        self.autoencoder.code = nn.Linear(_CODE_CHANNELS, 2 * _CODE_CHANNELS)
        self.autoencoder.decoder = _Decoder(blocks[-1].stop, n_classes)
        self.generator = _Generator(n_classes)
        self.critic = _Critic(n_classes)


def make_recipe(_preset: str, blocks: Sequence[Block], n_classes: int, seed: int | None = None) -> RecipeNetworks:
    """Fresh networks in the place of preset `auto`'s; as `dpcgan_fast.models.make_networks`."""
    with initial_weights(seed):
        return RecipeNetworks(blocks, n_classes)
