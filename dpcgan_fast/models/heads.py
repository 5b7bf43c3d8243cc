"""From a decoder's logits to records: one categorical distribution for every column.

A numeric value is a distribution over equal bins with a uniform draw inside the bin, so that the decoder learns the
shape of a column and not its mean alone. Drawing is by Gumbel-softmax with a straight-through gradient (arXiv
1611.01144): records are as discrete as real ones, in training as in sampling, and gradients still pass.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dpcgan_fast.data.blocks import Block

NUMERIC_BINS = 24  # of a number, unless its block says otherwise
TEMPERATURE = 0.5  # that logits are divided by: the lower, the nearer are the soft draws to the hard ones
_NEVER = -1e9  # logit of what has no chance


def cells_of(block: Block) -> int:
    """Cells of a block's distribution: bins of a number, categories, or the two states of a flag."""
    if block.kind in ("categorical", "wide"):
        return block.width
    return {"numeric": block.cells or NUMERIC_BINS, "binary": 2, "absent": 2}[block.kind]


class RecordHead(nn.Module):
    """Draws records from logits, and measures how likely a record is under them.

    Logits are (B, n_blocks, max_cells), padded; a block's cells are the first `cells_of(block)` of its row. Positions
    are counted from the first block; `start` is where in a whole record that is.
    """

    unused: Tensor  # (n_blocks, max_cells) bool: padding
    last_cells: Tensor  # (n_blocks,), of each block
    numbers: Tensor  # blocks that are numbers
    number_positions: Tensor
    number_bins: Tensor  # how many each has
    flags: Tensor  # blocks that are flags
    flag_positions: Tensor
    hot_blocks: Tensor  # block, cell and position of every one-hot entry
    hot_cells: Tensor
    hot_positions: Tensor
    guarded: Tensor  # blocks that may say nothing
    guards: Tensor  # positions of the flags that say so
    flag_of: Tensor  # (F + 1,) position of each one's flag, or F
    idle: Tensor  # (F,) what a record has where a block says nothing

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self._runs: dict[str, slice] = {}
        self.start = blocks[0].start
        self.n_blocks, self.width = len(blocks), blocks[-1].stop - self.start
        blocks = [replace(block, start=block.start - self.start) for block in blocks]
        counts = torch.tensor([cells_of(block) for block in blocks])
        self.max_cells = int(counts.max())
        unused = torch.arange(self.max_cells).expand(self.n_blocks, -1) >= counts[:, None]
        self.padded = bool(unused.any())
        self.register_buffer("last_cells", counts - 1, persistent=False)
        self.register_buffer("unused", unused, persistent=False)
        numbers = [(i, block.start, cells_of(block)) for i, block in enumerate(blocks) if block.kind == "numeric"]
        flags = [(i, block.start) for i, block in enumerate(blocks) if block.kind in ("binary", "absent")]
        hot = [
            (i, cell, block.start + cell)
            for i, block in enumerate(blocks)
            if block.kind in ("categorical", "wide")
            for cell in range(block.width)
        ]
        guarded = [(i, block.guard) for i, block in enumerate(blocks) if block.guard is not None]
        self._index(numbers, "numbers", "number_positions", "number_bins")
        self._index(flags, "flags", "flag_positions")
        self._index(hot, "hot_blocks", "hot_cells", "hot_positions")
        self._index(guarded, "guarded", "guards")
        self.register_buffer("idle", torch.tensor([v for block in blocks for v in block.idle]), persistent=False)
        self._find_flags(blocks)

    def _index(self, entries: list[tuple[int, ...]], *names: str) -> None:
        """Keeps each column of `entries` as an index tensor; it moves with the module and is not saved."""
        for n, name in enumerate(names):
            column = [entry[n] for entry in entries]
            self.register_buffer(name, torch.tensor(column, dtype=torch.int64), persistent=False)
            if column and column == list(range(column[0], column[0] + len(column))):
                self._runs[name] = slice(column[0], column[0] + len(column))

    def _places(self, name: str) -> slice | Tensor:
        """An index tensor, or the slice that it stands for, which is read and written several times as fast."""
        return self._runs[name] if name in self._runs else getattr(self, name)

    def _find_flags(self, blocks: Sequence[Block]) -> None:
        """Keeps index tensors (F + 1,) from each position to that of its flag, and to the flag 1, 2, 4 flags further.

        They go so far that none is missed. The last position, F, stands for no flag.
        """
        way = torch.full((self.width + 1,), self.width)
        for block in blocks:
            if block.guard is not None and not block.hidden:
                way[block.start : block.stop] = block.guard
        self.register_buffer("flag_of", way, persistent=False)
        self.has_flags = bool((way < self.width).any())
        self.n_ways = 0
        while bool((way[self.flag_of] < self.width).any()):
            self.register_buffer(f"way_{self.n_ways}", way, persistent=False)
            self.n_ways += 1
            way = way[way]

    def masked(self, logits: Tensor) -> Tensor:
        """Logits with the padding ruled out; (B, n_blocks, max_cells)."""
        return logits.masked_fill(self.unused, _NEVER) if self.padded else logits

    def own(self, records: Tensor) -> Tensor:
        """The positions of this head's blocks, (B, width), of whole records (B, F)."""
        return records[:, self.start : self.start + self.width]

    def cells(self, records: Tensor) -> Tensor:
        """The cell of each block that a record lies in; (B, F) -> (B, n_blocks) int64."""
        records = self.own(records)
        cells = torch.zeros(records.shape[0], self.n_blocks, dtype=torch.int64, device=records.device)
        bins = (records[:, self.number_positions] * self.number_bins).long()
        cells[:, self.numbers] = torch.minimum(bins.clamp(min=0), self.number_bins - 1)
        cells[:, self.flags] = (records[:, self.flag_positions] > 0.5).long()
        hot = (records[:, self.hot_positions] > 0.5).long()
        return cells.index_add_(1, self.hot_blocks, hot * self.hot_cells)

    def nll(self, logits: Tensor, records: Tensor) -> Tensor:
        """Negative log likelihood of each record, summed over blocks that say something, in nats; (B,)."""
        log_p = F.log_softmax(self.masked(logits), dim=2)
        per_block = -log_p.gather(2, self.cells(records).unsqueeze(2)).squeeze(2)  # (B, n_blocks)
        weight = torch.ones_like(per_block)
        weight[:, self.guarded] = 1.0 - self.own(records)[:, self.guards]
        return (per_block * weight).sum(1)

    def silent(self, records: Tensor) -> Tensor:
        """Positions at which drawn records (B, F) say nothing, bool (B, F): a flag says so, or a flag of that flag."""
        says_so = F.pad(records > 0.5, (0, 1))  # (B, F + 1)
        for n in range(self.n_ways):
            says_so = says_so | says_so[:, self.get_buffer(f"way_{n}")]
        return says_so[:, self.flag_of[:-1]]

    def records_of(self, cells: Tensor, within: Tensor) -> Tensor:
        """Records (B, width) from the cell of each block, and where in its bin each number lies.

        cells: (B, n_blocks) float, whole numbers; NaN makes all that a block says NaN; within: (B, numbers) in [0, 1)
        """
        values = (cells[:, self._places("numbers")] + within).div_(self.number_bins)
        if len(self.numbers) == self.width:
            return values
        records = cells.new_empty(len(cells), self.width)
        records[:, self._places("number_positions")] = values
        for blocks, states, at in (("flags", 1, "flag_positions"), ("hot_blocks", self.hot_cells, "hot_positions")):
            if getattr(self, blocks).numel():
                own = cells[:, self._places(blocks)]
                records[:, self._places(at)] = (own == states) + (own - own)  # the latter is zero, or NaN
        return torch.where(self.silent(records), self.idle, records) if self.has_flags else records

    def draw(self, logits: Tensor, randomness: torch.Generator) -> Tensor:
        """Records (B, width) in [0, 1] drawn from the logits, with straight-through gradients."""
        uniform = torch.rand(logits.shape, generator=randomness, device=logits.device)
        within = torch.rand(len(logits), len(self.numbers), generator=randomness, device=logits.device)
        return _Draw.apply(logits, uniform, within, self)


class _Draw(torch.autograd.Function):
    """Gumbel-softmax draws of all blocks, hard forward and soft backward.

    As hard + soft - soft.detach(), but the one-hot rows, which are many times as large as the records, are never made,
    forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, uniform: Tensor, within: Tensor, head: RecordHead) -> Tensor:
        """logits, uniform: (B, n_blocks, max_cells), uniform is overwritten; within: (B, numbers) -> records (B, F)."""
        gumbel = uniform.clamp_(1e-9, 1 - 1e-7).log_().neg_().log_().neg_()
        # Where a cell is unused the sum is _NEVER itself: it is too large for a float to hold more.
        noisy = gumbel.add_(logits)
        if head.padded:
            noisy.masked_fill_(head.unused, _NEVER)
        soft = F.softmax(noisy.div_(TEMPERATURE), dim=2)
        chance, cells = soft.max(2)  # (B, n_blocks)
        spread = chance - chance  # zero; NaN where a logit is, so that no draw hides it
        records = head.records_of(cells.to(logits.dtype) + spread, within)
        ctx.head = head
        ctx.save_for_backward(soft, head.silent(records) if head.has_flags else None)
        return records

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None, None]:  # type: ignore[override]  decorated
        """Through the softmax, as if the soft rows had been taken for the hard ones."""
        (grad,), (soft, silent), head = grads, ctx.saved_tensors, ctx.head
        grad = grad if silent is None else grad.masked_fill(silent, 0.0)
        towards = torch.zeros_like(soft)  # gradient of the one-hot rows
        cells = torch.arange(head.max_cells, device=soft.device, dtype=soft.dtype)
        numbers = grad[:, head.number_positions] / head.number_bins
        towards.index_copy_(1, head.numbers, numbers.unsqueeze(2) * cells)  # (B, numbers, max_cells)
        if head.flags.numel() > 0:
            towards[:, head.flags, 1] = grad[:, head.flag_positions]
        towards[:, head.hot_blocks, head.hot_cells] = grad[:, head.hot_positions]
        through = torch.ops.aten._softmax_backward_data(towards, soft, 2, soft.dtype).div_(TEMPERATURE)
        return through.masked_fill_(head.unused, 0.0) if head.padded else through, None, None, None
