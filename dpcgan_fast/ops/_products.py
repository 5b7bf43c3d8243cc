"""Products of matrices, one for each row of a batch, a few rows at a time.

Every product takes the same number of rows, filled up with zeros: the library rounds a row that is alone otherwise, and
what a row adds must not depend on how many others there are.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of an operand that is taken at a time. Fewer would cost no more on idle cores; on busy ones every product
# waits for the thread that comes last.
_BUFFER = {"cpu": 2**21, "cuda": 2**26}
_FEWEST_ROWS, _MOST_ROWS = 2, 32


def rows_at_a_time(elements: int, device: torch.device) -> int:
    """Rows of a product whose larger operand has this many elements a row."""
    return min(_MOST_ROWS, max(_FEWEST_ROWS, _BUFFER.get(device.type, _BUFFER["cpu"]) // max(1, elements)))


def row_products(left: Tensor, right: Tensor) -> Tensor:
    """left[n] right[n]^T for each row; left: (B, O, T), right: (B, P, T), of one dtype; out: (B, O, P)."""
    out = left.new_empty(left.shape[0], left.shape[1], right.shape[1])
    for part, filled in parts(left.shape[0], rows_at_a_time(right[:1].numel(), out.device)):
        product_into(out[part], filled(left), filled(right).transpose(1, 2))
    return out


def product_into(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Writes left[n] right[n] for each row of out; left and right may have more rows."""
    with torch.autocast(out.device.type, enabled=False):
        if len(out) == len(left):
            torch.bmm(left, right, out=out)
        else:
            out.copy_(torch.bmm(left, right)[: len(out)])


def parts(rows: int, count: int) -> Iterator[tuple[slice, "Filled"]]:
    """All rows, `count` at a time, and what takes those of a tensor."""
    for begin in range(0, rows, count):
        yield slice(begin, begin + count), Filled(begin, count)


@dataclass(frozen=True)
class Filled:
    """Takes `count` rows of a tensor, zeros where it has no more."""

    begin: int
    count: int

    def __call__(self, x: Tensor) -> Tensor:
        part = x[self.begin : self.begin + self.count]
        missing = self.count - part.shape[0]
        return part if missing == 0 else torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
