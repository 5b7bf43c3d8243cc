"""Fully connected networks, to compare convolutions with: those of DP-GAN (arXiv 1802.06739), and with an autoencoder.

They take the records, losses and steps of the published presets. DP-GAN is what they are without a step of the
autoencoder: its decoder is then the last two layers of the generator.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.models import Networks, initial_weights
from dpcgan_fast.models.layers import leaky_relu
from dpcgan_fast.models.published import CRITIC_CLAMP, LATENT_DIM, reconstruction_loss

CODE_DIM, HIDDEN = 64, 128


def _dense(inputs: int, outputs: int, last: Callable[[], nn.Module] | None) -> nn.Sequential:
    layers = [nn.Linear(inputs, HIDDEN), leaky_relu(), nn.Linear(HIDDEN, outputs)]
    return nn.Sequential(*layers, *([] if last is None else [last()]))


class _Autoencoder(nn.Module):
    """Records (B, F) -> records (B, F); labels and noise are not used."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, records: Tensor, *_: Tensor) -> Tensor:
        return self.decoder(self.encoder(records))


class _Conditional(nn.Module):
    """Layers of a vector (B, n) and labels (B, K), where K may be 0."""

    def __init__(self, layers: nn.Module):
        super().__init__()
        self.layers = layers

    def forward(self, given: Tensor, labels: Tensor) -> Tensor:
        return self.layers(torch.cat([given, labels], 1))


class _Critic(_Conditional):
    def forward(self, given: Tensor, labels: Tensor) -> Tensor:
        return super().forward(given, labels).squeeze(1)  # (B, 1) -> (B,)


class DenseNetworks(Networks):
    """Autoencoder, generator and critic of linear layers with one hidden layer each, for records of any width.

    classes: of the label, 0 where it is part of the record
    binary:  binary cross-entropy in the autoencoder, instead of squared error
    """

    latent_dim = LATENT_DIM
    autoencoder: _Autoencoder
    generator: _Conditional
    critic: _Critic

    def __init__(self, width: int, classes: int, binary: bool):
        super().__init__()
        self.binary = binary
        self.autoencoder = _Autoencoder(_dense(width, CODE_DIM, nn.Tanh), _dense(CODE_DIM, width, nn.Sigmoid))
        self.generator = _Conditional(_dense(LATENT_DIM + classes, CODE_DIM, nn.Tanh))
        self.critic = _Critic(_dense(width + classes, 1, None))

    def autoencoder_loss(self, output: Tensor, records: Tensor) -> Tensor:
        """As the published nets have it."""
        return reconstruction_loss(output, records, self.binary)

    def decode(self, codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:  # noqa: ARG002
        """The decoder's output as it is; (B, CODE_DIM) -> (B, F)."""
        return self.autoencoder.decoder(codes)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """All parameters of the decoder."""
        return list(self.autoencoder.decoder.parameters())

    @property
    def critic_clamp(self) -> dict[nn.Parameter, float]:
        """All weights and biases of the critic."""
        return dict.fromkeys(self.critic.parameters(), CRITIC_CLAMP)


def make_dense(preset: str, blocks: Sequence[Block], _n_classes: int, seed: int | None = None) -> DenseNetworks:
    """Fresh fully connected networks in the place of a published preset's; as `dpcgan_fast.models.make_networks`."""
    with initial_weights(seed):
        return DenseNetworks(blocks[-1].stop, classes=0, binary=preset == "rdpcgan-mimic")
