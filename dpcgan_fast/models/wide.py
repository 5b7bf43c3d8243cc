"""Categories of columns that have many: embedded before convolutions, and drawn from logits of low rank.

As positions of a convolution, hundreds of categories would make records long; as cells beside those of numbers, they
would pad every other column to their number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dpcgan_fast.models.layers import hidden_layer
from dpcgan_fast.models.layouts import RecordLayout

EMBEDDING = 16  # numbers that stand for all wide columns of a record together
RANK = 16  # of the logits, beside those that the label adds
PRIOR_SCALE = 8.0  # raises the share of the label's own logits in the clipped gradient
_LEAST = 1e-7  # rate that a bias can stand for
_CALIBRATION_ROUNDS = 4
_ROWS_AT_A_TIME = 256


class RecordInput(nn.Module):
    """Records (B, F) -> what convolutions run along, (B, `length`): centred, and wide categories embedded."""

    middle: Tensor

    def __init__(self, layout: RecordLayout):
        super().__init__()
        self.layout = layout
        wide = layout.first_code - layout.first_wide
        middle = torch.cat([torch.full((layout.first_wide,), 0.5), torch.zeros(layout.width - layout.first_wide)])
        self.register_buffer("middle", middle, persistent=False)
        self.embedding = nn.Linear(wide, EMBEDDING, bias=False) if wide else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=0.25)
        self.length = layout.width - wide + EMBEDDING * bool(wide)

    def forward(self, records: Tensor) -> Tensor:
        centred = records - self.middle
        if self.embedding is None:
            return centred
        first_wide, first_code = self.layout.first_wide, self.layout.first_code
        embedded = self.embedding(centred[:, first_wide:first_code])
        return torch.cat([centred[:, :first_wide], embedded, centred[:, first_code:]], 1)


class WideDecoder(nn.Module):
    """Latent codes (B, D) and labels (B, K) -> logits of wide columns (B, n_blocks, cells).

    rates: (K, n_blocks, cells), of the categories in each class; all 0 for a column of which nothing was released
    bias:  (K, n_blocks, cells), added to the logits of each class where rates were released; not trained. Elsewhere a
           linear map of the label takes its place, which is
    """

    rates: Tensor
    bias: Tensor

    def __init__(self, code_dim: int, n_blocks: int, cells: int, classes: int):
        super().__init__()
        self.n_blocks, self.cells = n_blocks, cells
        self.inner = nn.Linear(code_dim + classes, RANK)
        self.table = nn.Linear(RANK, n_blocks * cells, bias=False)
        nn.init.normal_(self.table.weight, std=0.02)
        self.prior = nn.Linear(classes, n_blocks * cells, bias=False)
        nn.init.zeros_(self.prior.weight)
        self.register_buffer("rates", torch.zeros(classes, n_blocks, cells))
        self.register_buffer("bias", torch.zeros(classes, n_blocks, cells))

    def of_codes(self, codes: Tensor, labels: Tensor) -> Tensor:
        """The logits without what the label alone adds."""
        return self.table(hidden_layer(self.inner, codes, labels)).unflatten(1, (self.n_blocks, self.cells))

    def of_label(self) -> Tensor:
        """The logits that each label alone adds, (K, n_blocks, cells)."""
        return self._of_label(self.bias, self.prior.weight.t())

    def forward(self, codes: Tensor, labels: Tensor) -> Tensor:
        return self.of_codes(codes, labels) + self._of_label(labels @ self.bias.flatten(1), self.prior(labels))

    def _of_label(self, given: Tensor, learned: Tensor) -> Tensor:
        shape = (-1, self.n_blocks, self.cells)
        return torch.where(self._released(), given.reshape(shape), PRIOR_SCALE * learned.reshape(shape))

    def _released(self) -> Tensor:
        """Of which columns rates were released, bool (n_blocks, 1)."""
        return (self.rates[0] > 0).any(1, keepdim=True)

    @torch.no_grad()
    def start_at(self, rates: Tensor) -> None:
        """Takes rates (K, n_blocks, cells), paid, for those of the categories."""
        self.rates.copy_(rates)
        self._move_bias(torch.ones_like(rates))

    @torch.no_grad()
    def calibrate(self, codes: Sequence[Tensor]) -> None:
        """Moves the bias until each category is as frequent in each class, over its latent codes, as its rate says.

        codes: of each class, (N, D)
        It is post-processing: what moves the bias are the rates and the weights alone.
        """
        for _ in range(_CALIBRATION_ROUNDS):
            found = torch.zeros_like(self.rates)
            for label, own in enumerate(codes):
                one_hot = torch.eye(len(codes), device=own.device)[label]
                for part in own.split(_ROWS_AT_A_TIME):
                    logits = self(part, one_hot.expand(len(part), -1))
                    found[label] += torch.softmax(logits, 2).sum(0) / len(own)
            self._move_bias(found)

    def _move_bias(self, found: Tensor) -> None:
        """Raises the bias where rates are above those that were found."""
        self.bias += self.rates.clamp(min=_LEAST).log() - found.clamp(min=_LEAST).log()
