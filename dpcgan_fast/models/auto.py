"""Networks for records of any width and mixed types, conditional on the label.

The autoencoder is variational (arXiv 1312.6114): it maps a record to a distribution over short codes near a standard
normal, and a code back to one distribution a column (`heads.RecordHead`). Its decoder adds two sets of logits: those of
a transposed convolution over the columns, which carry the dependence through the code, and those of a linear map of
the label, which carry each class's own marginals and learn fast under noise. The generator starts as the identity, so
that its first records are those of the autoencoder, and moves codes to where the critic scores higher. The critic sees
records and labels. No module mixes rows.

Codes have logits of their own: a transposed convolution along the vocabulary, and a bias for each code that is not
trained. It follows from released frequencies, which say more of a rare code than any number of noisy gradients.
Columns of many categories are embedded where they come in, and have logits of low rank and such a bias (`wide`).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.models.code_head import CodesHead
from dpcgan_fast.models.heads import RecordHead
from dpcgan_fast.models.layers import (
    ConvSpec,
    conv_length,
    conv_stack,
    divergence,
    drawn_codes,
    hidden_layer,
    leaky_relu,
    normal_codes,
)
from dpcgan_fast.models.layouts import RecordLayout
from dpcgan_fast.models.networks import LabelDraws, Networks
from dpcgan_fast.models.wide import PRIOR_SCALE, RecordInput, WideDecoder

CODE_DIM = 32
DECODER_CHANNELS = 32
GENERATOR_CHANNELS = 32
TRUNK_CHANNELS = (16, 32, 64, 64, 64, 64)
CODES_CHANNELS = 8
_UPSAMPLING = 8  # of the decoder's three transposed convolutions
_LAST_LENGTH = 16  # the trunk halves and quarters a record until it is at most this long
_LONG = 256  # what is longer is quartered
_USUAL_CODES = 10.0  # of a record, where nothing says how many; public
_RATES = (1e-7, 0.99)  # that a code's bias can stand for
_CALIBRATION_ROWS, _CALIBRATION_ROUNDS = 4096, 8
_LEAST_CALIBRATION_ROWS = 64  # of a class
_ROWS_AT_A_TIME = 256


def trunk(in_channels: int, length: int) -> tuple[nn.Sequential, int, int]:
    """Strided convolutions (B, in_channels, length) -> (B, C, L) with L at most 16; returns also C and L."""
    specs = [ConvSpec(TRUNK_CHANNELS[0], min(8, length + 4), 4, 2)]
    length = conv_length(length, specs[0])
    for channels in TRUNK_CHANNELS[1:]:
        if len(specs) > 1 and length <= _LAST_LENGTH:
            break
        kernel, stride = (8, 4) if length > _LONG else (4, 2)
        spec = ConvSpec(channels, kernel, stride, stride // 2, norm=True) if length >= 2 else ConvSpec(channels, 1)
        specs.append(spec)
        length = conv_length(length, spec)
    return conv_stack(in_channels, specs, leaky_relu()), specs[-1].channels, length


class Encoder(nn.Module):
    """Records (B, F) and labels (B, K) -> mean and log variance of the code, (B, CODE_DIM) each."""

    def __init__(self, layout: RecordLayout, classes: int):
        super().__init__()
        self.input = RecordInput(layout)
        self.trunk, channels, length = trunk(1, self.input.length)
        self.out = nn.Linear(channels * length + classes, 2 * CODE_DIM)

    def forward(self, records: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(self.input(records).unsqueeze(1)).flatten(1)  # (B, 1, L) -> (B, C L')
        return normal_codes(self.out(torch.cat([features, labels], 1)))


class Decoder(nn.Module):
    """Latent codes (B, CODE_DIM) and labels (B, K) -> logits of columns (B, n_blocks, cells)."""

    def __init__(self, n_blocks: int, cells: int, classes: int):
        super().__init__()
        self.n_blocks, self.cells = n_blocks, cells
        self.length = max(2, math.ceil(n_blocks / _UPSAMPLING))
        self.inner = nn.Linear(CODE_DIM + classes, DECODER_CHANNELS * self.length)
        self.columns = _upsampling(DECODER_CHANNELS, cells)
        self.prior = nn.Linear(classes, n_blocks * cells, bias=False)
        nn.init.zeros_(self.prior.weight)

    def hidden(self, codes: Tensor, labels: Tensor) -> Tensor:
        """What the transposed convolutions are given, (B, C, L)."""
        return hidden_layer(self.inner, codes, labels).unflatten(1, (DECODER_CHANNELS, self.length))

    def of_label(self) -> Tensor:
        """The logits that each label alone adds, (K, n_blocks, cells)."""
        return PRIOR_SCALE * self.prior.weight.t().unflatten(1, (self.n_blocks, self.cells))

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        logits = self.columns(self.hidden(codes, labels))
        logits = logits[:, :, : self.n_blocks].transpose(1, 2)  # (B, cells, 8 L) -> (B, n_blocks, cells)
        return logits + PRIOR_SCALE * self.prior(labels).unflatten(1, (self.n_blocks, self.cells))


class CodesDecoder(nn.Module):
    """Latent codes (B, CODE_DIM) and labels (B, K) -> logits of medical codes (B, V).

    rates: (V,) how many records have each code, between 0 and 1
    bias:  (V,) added to the logits; not trained
    """

    rates: Tensor
    bias: Tensor

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.width, self.length = width, max(2, math.ceil(width / _UPSAMPLING))
        self.inner = nn.Linear(CODE_DIM + classes, CODES_CHANNELS * self.length)
        self.along = _upsampling(CODES_CHANNELS, 1)
        self.register_buffer("rates", torch.full((width,), min(0.5, _USUAL_CODES / width)))
        self.register_buffer("bias", self.rates.logit())

    def hidden(self, codes: Tensor, labels: Tensor) -> Tensor:
        """What the transposed convolutions are given, (B, C, L)."""
        return hidden_layer(self.inner, codes, labels).unflatten(1, (CODES_CHANNELS, self.length))

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        return self.along(self.hidden(codes, labels)).squeeze(1)[:, : self.width] + self.bias

    @torch.no_grad()
    def start_at(self, rates: Tensor) -> None:
        """Takes rates (V,), public or paid, for those of the codes."""
        self.rates.copy_(rates.clamp(*_RATES))
        self.bias.copy_(self.rates.logit())

    @torch.no_grad()
    def calibrate(self, codes: Tensor, labels: Tensor, there: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        """Moves the bias until each code is as frequent, over these latent codes and labels, as its rate says.

        there: for latent codes and labels where there is room for each code, (B, V); None if there is everywhere
        It is post-processing: what moves the bias are the rates and the weights alone.
        """
        for _ in range(_CALIBRATION_ROUNDS):
            found = torch.zeros_like(self.bias)
            for part, own in zip(codes.split(_ROWS_AT_A_TIME), labels.split(_ROWS_AT_A_TIME), strict=True):
                chances = torch.sigmoid(self(part, own))
                found += (chances if there is None else chances * there(part, own)).sum(0) / len(codes)
            self.bias += self.rates.logit() - found.clamp(*_RATES).logit()


def _upsampling(channels: int, out_channels: int) -> nn.Sequential:
    """Transposed convolutions (B, channels, L) -> (B, out_channels, 8 L), near zero: at first the code says nothing."""
    up = ConvSpec(channels, 4, 2, 1, norm=True)
    stack = conv_stack(channels, (up, up, ConvSpec(out_channels, 4, 2, 1)), None, transposed=True)
    last = stack[-1]
    assert isinstance(last, nn.ConvTranspose1d)
    nn.init.normal_(last.weight, std=0.02)
    return stack


class AutoEncoder(nn.Module):
    """Records, labels and standard normal noise (B, CODE_DIM) -> the parts' logits, then mean and log variance.

    decoder: of the columns, None if there is none but wide ones and codes
    wide:    of the columns with many categories, None if there are none
    codes:   of the medical codes, None if there are none
    """

    encoder: Encoder
    decoder: Decoder | None
    wide: WideDecoder | None
    codes: CodesDecoder | None

    def __init__(self, encoder: Encoder, decoder: Decoder | None, wide: WideDecoder | None, codes: CodesDecoder | None):
        super().__init__()
        self.encoder, self.decoder, self.wide, self.codes = encoder, decoder, wide, codes

    def parts(self) -> list[Decoder | WideDecoder | CodesDecoder]:
        """Decoders of the parts of a record, in order: columns, wide columns, codes."""
        return [part for part in (self.decoder, self.wide, self.codes) if part is not None]

    def logits(self, codes: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Logits of each part of a record, in order."""
        return tuple(part(codes, labels) for part in self.parts())

    def forward(self, records: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        mean, log_variance = self.encoder(records, labels)
        return *self.logits(drawn_codes(mean, log_variance, noise), labels), mean, log_variance


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
        return hidden_layer(self.inner, latent, labels).unflatten(1, (2 * GENERATOR_CHANNELS, self.length))

    def forward(self, latent: Tensor, labels: Tensor) -> Tensor:
        return latent + self.moves(self.hidden(latent, labels)).squeeze(1)  # (B, 1, CODE_DIM) -> (B, CODE_DIM)


class Critic(nn.Module):
    """Records (B, F) and labels (B, K) -> scores (B,); the labels are channels that are constant along the record."""

    def __init__(self, layout: RecordLayout, classes: int):
        super().__init__()
        self.input = RecordInput(layout)
        layers, channels, length = trunk(1 + classes, self.input.length)
        self.layers = nn.Sequential(*layers, nn.Conv1d(channels, 1, length))  # one run: the fused path takes it whole

    def forward(self, records: Tensor, labels: Tensor) -> Tensor:
        inputs = 2 * self.input(records).unsqueeze(1)  # (B, 1, L)
        along = labels.unsqueeze(2).expand(-1, -1, inputs.shape[2])  # (B, K) -> (B, K, L)
        return self.layers(torch.cat([inputs, along], 1)).flatten(1).squeeze(1)


class AutoNetworks(Networks):
    """Networks for any record layout."""

    latent_dim = CODE_DIM
    autoencoder: AutoEncoder
    generator: Generator
    critic: Critic

    def __init__(self, blocks: Sequence[Block], n_classes: int):
        super().__init__()
        layout = RecordLayout.of(blocks)
        columns = [block for block in blocks if block.stop <= layout.first_wide]
        wide = [block for block in blocks if block.kind == "wide"]
        medical = [block for block in blocks if block.kind == "codes"]
        self.columns_head = head = RecordHead(columns) if columns else None
        self.wide_head = many = RecordHead(wide) if wide else None
        self.codes_head = sets = CodesHead(medical) if medical else None
        self.autoencoder = AutoEncoder(
            Encoder(layout, n_classes),
            None if head is None else Decoder(head.n_blocks, head.max_cells, n_classes),
            None if many is None else WideDecoder(CODE_DIM, many.n_blocks, many.max_cells, n_classes),
            None if sets is None else CodesDecoder(sets.width, n_classes),
        )
        self.generator = Generator(n_classes)
        self.critic = Critic(layout, n_classes)

    @property
    def heads(self) -> list[RecordHead | CodesHead]:
        """Of each part of a record, in the order of `AutoEncoder.logits`."""
        return [head for head in (self.columns_head, self.wide_head, self.codes_head) if head is not None]

    def autoencoder_noise(self, rows: int, randomness: torch.Generator) -> Tensor:
        """Standard normal noise of the codes, (B, CODE_DIM)."""
        return torch.randn(rows, CODE_DIM, generator=randomness, device=randomness.device)

    def autoencoder_loss(self, output: tuple[Tensor, ...], records: Tensor) -> Tensor:
        """Negative evidence lower bound of each row, in nats; (B,). Source: arXiv 1312.6114, equation 10."""
        *logits, mean, log_variance = output
        loss = divergence(mean, log_variance)
        for head, own in zip(self.heads, logits, strict=True):
            loss = loss + head.nll(own, records)
        return loss

    def decode(self, codes: Tensor, labels: Tensor, randomness: torch.Generator) -> Tensor:
        """Records drawn from the decoder's distributions."""
        parts = zip(self.heads, self.autoencoder.logits(codes, labels), strict=True)
        drawn = [head.draw(logits, randomness) for head, logits in parts]
        if self.codes_head is not None and self.codes_head.has_flags:
            drawn[-1] = drawn[-1].where(self.codes_head.there(drawn[0]), 0.0)
        return drawn[0] if len(drawn) == 1 else torch.cat(drawn, 1)

    def decoder_parameters(self) -> list[nn.Parameter]:
        """All parameters that lead from latent codes to records."""
        return [parameter for part in self.autoencoder.parts() for parameter in part.parameters()]

    def start_codes(self, rates: Tensor) -> None:
        """See `Networks.start_codes`."""
        if self.autoencoder.codes is not None:
            self.autoencoder.codes.start_at(rates)

    def start_categories(self, rates: Sequence[Tensor | None]) -> None:
        """See `Networks.start_categories`."""
        if self.autoencoder.wide is not None:
            padded = torch.zeros_like(self.autoencoder.wide.rates)
            for i, own in enumerate(rates):
                if own is not None:
                    padded[:, i, : own.shape[1]] = own
            self.autoencoder.wide.start_at(padded)

    def calibrate(self, draw_labels: LabelDraws, randomness: torch.Generator) -> None:
        """See `Networks.calibrate`."""
        codes, wide = self.autoencoder.codes, self.autoencoder.wide
        with torch.no_grad():
            if codes is not None:
                labels = draw_labels(_CALIBRATION_ROWS, randomness)
                there = partial(self._there, randomness) if self.codes_head and self.codes_head.has_flags else None
                codes.calibrate(self.generator(self.latent(len(labels), randomness), labels), labels, there)
            if wide is not None:
                one_hot = torch.eye(len(wide.bias), device=wide.bias.device)
                rows = max(_LEAST_CALIBRATION_ROWS, _CALIBRATION_ROWS // len(one_hot))
                labels = [row.expand(rows, -1) for row in one_hot]
                wide.calibrate([self.generator(self.latent(rows, randomness), own) for own in labels])

    def _there(self, randomness: torch.Generator, codes: Tensor, labels: Tensor) -> Tensor:
        """Where records drawn from latent codes (B, CODE_DIM) and labels (B, K) leave room for codes, (B, V)."""
        assert self.columns_head is not None
        assert self.codes_head is not None
        assert self.autoencoder.decoder is not None
        columns = self.columns_head.draw(self.autoencoder.decoder(codes, labels), randomness)
        return self.codes_head.there(columns)
