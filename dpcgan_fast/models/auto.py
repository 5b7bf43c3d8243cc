"""Networks for records of any width and mixed types, conditional on the label.

The autoencoder is variational (arXiv 1312.6114): it maps a record to a distribution over short codes near a standard
normal, and a code back to one distribution a column (`heads.RecordHead`). Its decoder adds two sets of logits: those of
a transposed convolution over the columns, which carry the dependence through the code, and those of a linear map of
the label, which carry each class's own marginals and learn fast under noise. The generator starts as the identity, so
that its first records are those of the autoencoder, and moves codes to where the critic scores higher. The critic sees
records and labels. No module mixes rows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.models.heads import RecordHead
from dpcgan_fast.models.layers import ConvSpec, conv_length, conv_stack, leaky_relu
from dpcgan_fast.models.networks import Networks

CODE_DIM = 32
DECODER_CHANNELS = 32
GENERATOR_CHANNELS = 32
TRUNK_CHANNELS = (16, 32, 64, 64, 64, 64)
PRIOR_SCALE = 8.0  # raises the share of the label's own logits in the clipped gradient
_UPSAMPLING = 8  # of the decoder's three transposed convolutions
_LAST_LENGTH = 16  # the trunk halves and quarters a record until it is at most this long


def trunk(in_channels: int, length: int) -> tuple[nn.Sequential, int, int]:
    """Strided convolutions (B, in_channels, length) -> (B, C, L) with L at most 16; returns also C and L."""
    specs = [ConvSpec(TRUNK_CHANNELS[0], min(8, length + 4), 4, 2)]
    length = conv_length(length, specs[0])
    for channels in TRUNK_CHANNELS[1:]:
        if len(specs) > 1 and length <= _LAST_LENGTH:
            break
        spec = ConvSpec(channels, 4, 2, 1, norm=True) if length >= 2 else ConvSpec(channels, 1)
        specs.append(spec)
        length = conv_length(length, spec)
    return conv_stack(in_channels, specs, leaky_relu()), specs[-1].channels, length


class Encoder(nn.Module):
    """Records (B, F) and labels (B, K) -> mean and log variance of the code, (B, CODE_DIM) each."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.trunk, channels, length = trunk(1, width)
        self.out = nn.Linear(channels * length + classes, 2 * CODE_DIM)

    def forward(self, records: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(records.unsqueeze(1) - 0.5).flatten(1)  # (B, 1, F) -> (B, C L)
        mean, log_variance = self.out(torch.cat([features, labels], 1)).chunk(2, dim=1)
        return mean, log_variance.clamp(-8.0, 4.0)


class Decoder(nn.Module):
    """Codes (B, CODE_DIM) and labels (B, K) -> logits (B, n_blocks, cells)."""

    def __init__(self, n_blocks: int, cells: int, classes: int):
        super().__init__()
        self.n_blocks, self.cells = n_blocks, cells
        self.length = max(2, math.ceil(n_blocks / _UPSAMPLING))
        self.inner = nn.Linear(CODE_DIM + classes, DECODER_CHANNELS * self.length)
        up = ConvSpec(DECODER_CHANNELS, 4, 2, 1, norm=True)
        self.columns = conv_stack(DECODER_CHANNELS, (up, up, ConvSpec(cells, 4, 2, 1)), None, transposed=True)
        self.prior = nn.Linear(classes, n_blocks * cells, bias=False)
        nn.init.zeros_(self.prior.weight)
        last = self.columns[-1]
        assert isinstance(last, nn.ConvTranspose1d)
        nn.init.normal_(last.weight, std=0.02)  # at first the code says next to nothing: logits start near zero

    def hidden(self, codes: Tensor, labels: Tensor) -> Tensor:
        """What the transposed convolutions are given, (B, C, L)."""
        hidden = self.inner(torch.cat([codes, labels], 1))
        return nn.functional.leaky_relu(hidden, 0.2).unflatten(1, (DECODER_CHANNELS, self.length))

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        logits = self.columns(self.hidden(codes, labels))
        logits = logits[:, :, : self.n_blocks].transpose(1, 2)  # (B, cells, 8 L) -> (B, n_blocks, cells)
        return logits + PRIOR_SCALE * self.prior(labels).unflatten(1, (self.n_blocks, self.cells))


class AutoEncoder(nn.Module):
    """Records, labels and standard normal noise (B, CODE_DIM) -> logits, and mean and log variance of the code."""

    encoder: Encoder
    decoder: Decoder

    def __init__(self, encoder: Encoder, decoder: Decoder):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, records: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.encoder(records, labels)
        return self.decoder(mean + torch.exp(0.5 * log_variance) * noise, labels), mean, log_variance


class Generator(nn.Module):
    """Latent (B, CODE_DIM) and labels (B, K) -> codes (B, CODE_DIM): the latent, moved by transposed convolutions."""

    def __init__(self, classes: int):
        super().__init__()
        self.length = CODE_DIM // 8
        self.inner = nn.Linear(CODE_DIM + classes, 2 * GENERATOR_CHANNELS * self.length)
        up = ConvSpec(GENERATOR_CHANNELS, 4, 2, 1, norm=True)
        self.moves = conv_stack(2 * GENERATOR_CHANNELS, (up, up, ConvSpec(1, 4, 2, 1)), None, transposed=True)
        last = self.moves[-1]
        assert isinstance(last, nn.ConvTranspose1d)
        nn.init.zeros_(last.weight)

    def hidden(self, latent: Tensor, labels: Tensor) -> Tensor:
        """What the transposed convolutions are given, (B, C, CODE_DIM / 8)."""
        hidden = nn.functional.leaky_relu(self.inner(torch.cat([latent, labels], 1)), 0.2)
        return hidden.unflatten(1, (2 * GENERATOR_CHANNELS, self.length))

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        return latent + self.moves(self.hidden(latent, labels)).squeeze(1)  # (B, 1, CODE_DIM) -> (B, CODE_DIM)


class Critic(nn.Module):
    """Records (B, F) and labels (B, K) -> scores (B,); the labels are channels that are constant along the record."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        layers, channels, length = trunk(1 + classes, width)
        self.layers = nn.Sequential(*layers, nn.Conv1d(channels, 1, length))  # one run: the fused path takes it whole

    def forward(self, records: Tensor, labels: Tensor) -> Tensor:
        along = labels.unsqueeze(2).expand(-1, -1, records.shape[1])  # (B, K) -> (B, K, F)
        return self.layers(torch.cat([2 * records.unsqueeze(1) - 1, along], 1)).flatten(1).squeeze(1)


class AutoNetworks(Networks):
    """Networks for any record layout."""

    latent_dim = CODE_DIM
    autoencoder: AutoEncoder
    generator: Generator
    critic: Critic

    def __init__(self, blocks: Sequence[Block], n_classes: int):
        super().__init__()
        self.head = RecordHead(blocks)
        width = blocks[-1].stop
        decoder = Decoder(len(blocks), self.head.max_cells, n_classes)
        self.autoencoder = AutoEncoder(Encoder(width, n_classes), decoder)
        self.generator = Generator(n_classes)
        self.critic = Critic(width, n_classes)

    def autoencoder_noise(self, rows: int, randomness: torch.Generator) -> Tensor:
        """Standard normal noise of the codes, (B, CODE_DIM)."""
        return torch.randn(rows, CODE_DIM, generator=randomness, device=randomness.device)

    def autoencoder_loss(self, output: tuple[Tensor, Tensor, Tensor], records: Tensor) -> Tensor:
        """Negative evidence lower bound of each row, in nats; (B,). Source: arXiv 1312.6114, equation 10."""
        logits, mean, log_variance = output
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(1)
        return self.head.nll(logits, records) + divergence

    def decode(self, codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:
        """Records drawn from the decoder's distributions."""
        return self.head.draw(self.autoencoder.decoder(codes, labels), randomness)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """All parameters of the decoder."""
        return list(self.autoencoder.decoder.parameters())
