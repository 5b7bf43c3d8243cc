"""From a decoder's logits to records: one categorical distribution for every column.

A numeric value is a distribution over equal bins with a uniform draw inside the bin, so that the decoder learns the
shape of a column and not its mean alone. Drawing is by Gumbel-softmax with a straight-through gradient (arXiv
1611.01144): records are as discrete as real ones, in training as in sampling, and gradients still pass.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcgan_fast.data.blocks import Block

NUMERIC_BINS = 24
TEMPERATURE = 0.5
_NEVER = -1e9


def cells_of(block: Block) -> int:
    """Cells of a block's distribution: bins of a number, categories, or the two states of a flag."""
    return {"numeric": NUMERIC_BINS, "binary": 2, "absent": 2, "categorical": block.width}[block.kind]


class RecordHead(nn.Module):
    """Draws records from logits, and measures how likely a record is under them.

    Logits are (B, n_blocks, max_cells), padded; a block's cells are the first `cells_of(block)` of its row.
    """

    unused: Tensor  # (n_blocks, max_cells) bool: padding
    numbers: Tensor  # blocks that are numbers
    number_positions: Tensor
    flags: Tensor  # blocks that are flags
    flag_positions: Tensor
    hot_blocks: Tensor  # block, cell and position of every one-hot entry
    hot_cells: Tensor
    hot_positions: Tensor
    guarded: Tensor  # blocks of numbers that may be absent
    guards: Tensor  # positions of the flags that say so

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.n_blocks, self.width = len(blocks), blocks[-1].stop
        counts = torch.tensor([cells_of(block) for block in blocks])
        self.max_cells = int(counts.max())
        unused = torch.arange(self.max_cells).expand(self.n_blocks, -1) >= counts[:, None]
        self.register_buffer("unused", unused, persistent=False)
        numbers = [(i, block.start) for i, block in enumerate(blocks) if block.kind == "numeric"]
        flags = [(i, block.start) for i, block in enumerate(blocks) if block.kind in ("binary", "absent")]
        hot = [
            (i, cell, block.start + cell)
            for i, block in enumerate(blocks)
            if block.kind == "categorical"
            for cell in range(block.width)
        ]
        flag_of = {block.name: block.start for block in blocks if block.kind == "absent"}
        guarded = [(i, flag_of[b.name]) for i, b in enumerate(blocks) if b.kind == "numeric" and b.name in flag_of]
        self._index(numbers, "numbers", "number_positions")
        self._index(flags, "flags", "flag_positions")
        self._index(hot, "hot_blocks", "hot_cells", "hot_positions")
        self._index(guarded, "guarded", "guards")

    def _index(self, entries: list[tuple[int, ...]], *names: str) -> None:
        """Keeps each column of `entries` as an index tensor; it moves with the module and is not saved."""
        for n, name in enumerate(names):
            column = torch.tensor([entry[n] for entry in entries], dtype=torch.int64)
            self.register_buffer(name, column, persistent=False)

    def masked(self, logits: Tensor) -> Tensor:
        """Logits with the padding ruled out; (B, n_blocks, max_cells)."""
        return logits.masked_fill(self.unused, _NEVER)

    def cells(self, records: Tensor) -> Tensor:
        """The cell of each block that a record lies in; (B, F) -> (B, n_blocks) int64."""
        cells = torch.zeros(records.shape[0], self.n_blocks, dtype=torch.int64, device=records.device)
        bins = (records[:, self.number_positions] * NUMERIC_BINS).long()
        cells[:, self.numbers] = bins.clamp(0, NUMERIC_BINS - 1)
        cells[:, self.flags] = (records[:, self.flag_positions] > 0.5).long()
        hot = (records[:, self.hot_positions] > 0.5).long()
        return cells.index_add_(1, self.hot_blocks, hot * self.hot_cells)

    def nll(self, logits: Tensor, records: Tensor) -> Tensor:
        """Negative log likelihood of each record, summed over blocks, in nats; (B,). Absent numbers count nothing."""
        log_p = F.log_softmax(self.masked(logits), dim=2)
        per_block = -log_p.gather(2, self.cells(records).unsqueeze(2)).squeeze(2)  # (B, n_blocks)
        weight = torch.ones_like(per_block)
        weight[:, self.guarded] = 1.0 - records[:, self.guards]
        return (per_block * weight).sum(1)

    def draw(self, logits: Tensor, randomness: torch.Generator) -> Tensor:
        """Records (B, F) in [0, 1] drawn from the logits, with straight-through gradients."""
        rows, device = logits.shape[0], logits.device
        uniform = torch.rand(logits.shape, generator=randomness, device=device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
        soft = F.softmax((self.masked(logits) + gumbel) / TEMPERATURE, dim=2)
        hard = F.one_hot(soft.argmax(2), self.max_cells).to(soft.dtype)
        chosen = hard + (soft - soft.detach())  # (B, n_blocks, max_cells); the bracket is exactly zero
        within = torch.rand(rows, len(self.numbers), generator=randomness, device=device)
        cells = torch.arange(self.max_cells, device=device, dtype=logits.dtype)
        records = torch.zeros(rows, self.width, device=device, dtype=logits.dtype)
        records[:, self.number_positions] = ((chosen[:, self.numbers] * cells).sum(2) + within) / NUMERIC_BINS
        records[:, self.flag_positions] = chosen[:, self.flags, 1]
        records[:, self.hot_positions] = chosen[:, self.hot_blocks, self.hot_cells]
        return records
