"""Per-sample gradients of an embedding's weight, without the (B, vocabulary, features) tensor that they would fill.

A row's gradient is zero but for the tokens that it holds. Its norm needs the gradients of equal tokens added up first:
tokens are sorted by unit and id, and each run of equal ones is one vector.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dpcgan_fast.ops._reference import at_least_share
from dpcgan_fast.ops._units import UnitGroups

_AT_A_TIME = 2**22  # elements of g that are turned into doubles at a time


@dataclass(frozen=True, eq=False)
class TokenGradients:
    """Gradients G_n[v] = sum of g[n, t] over the positions t where ids[n, t] = v.

    ids:        (B, T) int64
    g:          (B, T, D) float32 or float64
    vocabulary: number of ids
    """

    ids: Tensor
    g: Tensor
    vocabulary: int

    def sq_norm(self, units: UnitGroups | None = None) -> Tensor:
        """Squared norm of each unit's gradient, (U,) float64, summed in double."""
        if units is not None:
            return _sq_norms(self.ids, self.g, self.vocabulary, units.unit_of_row, len(units.unit_ids))
        parts = [
            _sq_norms(self.ids[part], self.g[part], self.vocabulary, torch.arange(rows, device=self.g.device), rows)
            for part, rows in self._parts()
        ]
        return torch.cat(parts)

    def weighted_grad(self, factor: Tensor) -> Tensor:
        """sum_n factor[n] G_n, (vocabulary, D) float64; factor: (B,) float64, rows of factor 0 are not read."""
        total = torch.zeros(self.vocabulary, self.g.shape[2], dtype=torch.float64, device=self.g.device)
        for part, _ in self._parts():
            by = factor[part, None, None]
            weighted = torch.where(by == 0, 0.0, self.g[part].double() * by)  # 0 times NaN is NaN
            total.index_add_(0, self.ids[part].flatten(), weighted.flatten(0, 1))
        return total

    def per_sample_grad(self) -> Tensor:
        """The gradients, (B, vocabulary, D) in the dtype of g."""
        rows, _, features = self.g.shape
        total = self.g.new_zeros(rows * self.vocabulary, features)
        first = torch.arange(rows, device=self.g.device) * self.vocabulary
        total.index_add_(0, (self.ids + first[:, None]).flatten(), self.g.flatten(0, 1))
        return total.view(rows, self.vocabulary, features)

    def _parts(self) -> Iterator[tuple[slice, int]]:
        """All rows, a few at a time, with their number; one empty part if there are none."""
        rows = self.g.shape[0]
        count = max(1, _AT_A_TIME // max(1, self.g[:1].numel()))
        for begin in range(0, max(1, rows), count):
            yield slice(begin, begin + count), min(count, rows - begin)


def _sq_norms(ids: Tensor, g: Tensor, vocabulary: int, owner: Tensor, owners: int) -> Tensor:
    """Squared norms by owner, (owners,) float64; owner: (B,) int64.

    No shape depends on the ids, so that a GPU need not be waited for.
    """
    keys, order = (ids + owner[:, None] * vocabulary).flatten().sort()  # equal tokens of one owner side by side
    run = torch.zeros_like(keys)
    torch.cumsum(keys[1:] != keys[:-1], 0, out=run[1:])
    run_of_token = torch.empty_like(run)
    run_of_token[order] = run
    tokens = g.flatten(0, 1).double()
    sums, sizes = torch.zeros(2, len(keys), g.shape[2], dtype=torch.float64, device=g.device)
    sums.index_add_(0, run_of_token, tokens)
    sizes.index_add_(0, run_of_token, tokens.abs())
    owner_of_run = torch.zeros_like(run)
    owner_of_run[run] = keys // vocabulary
    norms = torch.zeros(owners, dtype=torch.float64, device=g.device)
    return norms.index_add_(0, owner_of_run, at_least_share(sums.square().sum(1), sizes.square().sum(1)))
