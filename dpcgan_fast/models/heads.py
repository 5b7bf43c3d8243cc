"""From a decoder's logits to records: one categorical distribution for every column.

A numeric value is a distribution over equal bins with a uniform draw inside the bin, so that the decoder learns the
shape of a column and not its mean alone. Drawing is by Gumbel-softmax with a straight-through gradient (arXiv
1611.01144): records are as discrete as real ones, in training as in sampling, and gradients still pass.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
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

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.blocks = tuple(blocks)
        self.width = blocks[-1].stop
        counts = torch.tensor([cells_of(block) for block in blocks])
        self.max_cells = int(counts.max())
        unused = torch.arange(self.max_cells).expand(len(blocks), -1) >= counts[:, None]
        self.register_buffer("unused", unused, persistent=False)  # (n_blocks, max_cells)
        self._register("numeric", [i for i, block in enumerate(blocks) if block.kind == "numeric"])
        self._register("flag", [i for i, block in enumerate(blocks) if block.kind in ("binary", "absent")])
        for name, kinds in (("numeric", ("numeric",)), ("flag", ("binary", "absent"))):
            starts = [block.start for block in blocks if block.kind in kinds]
            self._register(f"{name}_positions", starts)
        one_hot = [(i, k, block.start + k) for i, block in enumerate(blocks) if block.kind == "categorical" for k in range(block.width)]
        for n, name in enumerate(("one_hot_blocks", "one_hot_cells", "one_hot_positions")):
            self._register(name, [entry[n] for entry in one_hot])
        # The flag that says a number is absent follows its number directly.
        absent_flag = {block.name: i for i, block in enumerate(blocks) if block.kind == "absent"}
        self._register("guarded", [i for i, b in enumerate(blocks) if b.kind == "numeric" and b.name in absent_flag])
        self._register("guards", [blocks[absent_flag[b.name]].start for b in blocks if b.kind == "numeric" and b.name in absent_flag])

    def _register(self, name: str, indices: list[int]) -> None:
        self.register_buffer(name, torch.tensor(indices, dtype=torch.int64), persistent=False)

    def masked(self, logits: Tensor) -> Tensor:
        """Logits with the padding ruled out; (B, n_blocks, max_cells)."""
        return logits.masked_fill(self.unused, _NEVER)

    def cells(self, records: Tensor) -> Tensor:
        """The cell of each block that a record lies in; (B, F) -> (B, n_blocks) int64."""
        cells = torch.zeros(records.shape[0], len(self.blocks), dtype=torch.int64, device=records.device)
        numeric = (records[:, self.numeric_positions] * NUMERIC_BINS).long().clamp(0, NUMERIC_BINS - 1)
        cells[:, self.numeric] = numeric
        cells[:, self.flag] = (records[:, self.flag_positions] > 0.5).long()
        if len(self.one_hot_blocks):
            hot = records[:, self.one_hot_positions] > 0.5
            cells.index_put_((torch.arange(len(cells), device=cells.device)[:, None], self.one_hot_blocks[None]),
                             hot.long() * self.one_hot_cells, accumulate=True)
        return cells

    def nll(self, logits: Tensor, records: Tensor) -> Tensor:
        """Negative log likelihood of each record, summed over blocks, in nats; (B,). An absent number counts nothing."""
        log_p = F.log_softmax(self.masked(logits), dim=2)
        per_block = -log_p.gather(2, self.cells(records).unsqueeze(2)).squeeze(2)  # (B, n_blocks)
        weight = torch.ones_like(per_block)
        weight[:, self.guarded] = 1.0 - records[:, self.guards]
        return (per_block * weight).sum(1)

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Records (B, F) in [0, 1] drawn from the logits, with straight-through gradients."""
        uniform = torch.rand(logits.shape, generator=generator, device=logits.device)
        gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
        soft = F.softmax((self.masked(logits) + gumbel) / TEMPERATURE, dim=2)
        hard = F.one_hot(soft.argmax(2), self.max_cells).to(soft.dtype)
        chosen = hard + (soft - soft.detach())  # (B, n_blocks, max_cells); the bracket is exactly zero
        records = torch.zeros(logits.shape[0], self.width, device=logits.device, dtype=logits.dtype)
        within = torch.rand(logits.shape[0], len(self.numeric), generator=generator, device=logits.device)
        cells = torch.arange(self.max_cells, device=logits.device, dtype=logits.dtype)
        numeric = ((chosen[:, self.numeric] * cells).sum(2) + within) / NUMERIC_BINS
        records[:, self.numeric_positions] = numeric
        records[:, self.flag_positions] = chosen[:, self.flag, 1]
        records[:, self.one_hot_positions] = chosen[:, self.one_hot_blocks, self.one_hot_cells]
        return records
