"""From a decoder's logits to sets of codes: one independent flag for each code, given the latent code and the label."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.models.heads import TEMPERATURE

_SMALLEST = 1e-7  # of uniform numbers, so that their logits are finite


class CodesHead(nn.Module):
    """Draws the codes of records from logits, and measures how likely they are under them.

    Codes of a visit count where there is the visit, and are drawn nowhere else.

    blocks: of codes, one after another up to the record's end
    start, width: where in a record they stand
    """

    flag_of: Tensor  # (width,) position of the flag that there is no such visit; `start` where there is none

    def __init__(self, blocks: Sequence[Block]):
        super().__init__()
        self.start, self.width = blocks[0].start, blocks[-1].stop - blocks[0].start
        flags = [self.start if block.guard is None else block.guard for block in blocks for _ in range(block.width)]
        self.register_buffer("flag_of", torch.tensor(flags), persistent=False)
        self.has_flags = any(block.guard is not None for block in blocks)

    def there(self, columns: Tensor) -> Tensor:
        """Where a record's first positions, which have all flags, leave room for each code, bool (B, width)."""
        says_so = columns[:, : self.start] > 0.5
        return ~F.pad(says_so, (0, self.start + 1 - says_so.shape[1]))[:, self.flag_of]

    def nll(self, logits: Tensor, records: Tensor) -> Tensor:
        """Negative log likelihood of the codes of records (B, F) under logits (B, width), in nats; (B,)."""
        codes = records[:, self.start : self.start + self.width]
        each = F.binary_cross_entropy_with_logits(logits, codes, reduction="none")
        return (each * self.there(records) if self.has_flags else each).sum(1)

    def draw(self, logits: Tensor, randomness: torch.Generator) -> Tensor:
        """Codes (B, width), 0 or 1, drawn from logits (B, width), with straight-through gradients."""
        uniform = torch.rand(logits.shape, generator=randomness, device=logits.device)
        return _Draw.apply(logits, uniform)


class _Draw(torch.autograd.Function):
    """Draws of flags, hard forward and soft backward. Source: binary Concrete, arXiv 1611.00712, appendix B."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, uniform: Tensor) -> Tensor:
        """logits, uniform: (B, width) -> (B, width); NaN where a logit is, so that no draw hides it."""
        noisy = uniform.clamp_(_SMALLEST, 1 - _SMALLEST).logit_().add_(logits)
        ctx.save_for_backward(torch.sigmoid(noisy / TEMPERATURE))
        return (noisy > 0) + (noisy - noisy)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:  # type: ignore[override]  decorated
        """Through the sigmoid, as if the soft flags had been taken for the hard ones."""
        (grad,), (soft,) = grads, ctx.saved_tensors
        return grad * soft * (1 - soft) / TEMPERATURE, None
