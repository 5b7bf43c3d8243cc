"""Cells of a column put together into fewer, so that a table of two columns is not mostly noise."""

from dataclasses import dataclass

import numpy as np

from dpcgan_fast.baselines.histograms import width_of
from dpcgan_fast.data.public_cells import cell_count
from dpcgan_fast.data.schema import Column


@dataclass(frozen=True)
class Grouping:
    """of_cell: (cell_count,) int64, the group of each public cell; most: groups that were asked for."""

    of_cell: np.ndarray
    most: int

    @property
    def count(self) -> int:
        """Number of groups."""
        return int(self.of_cell.max()) + 1

    def sums(self, shares: np.ndarray) -> np.ndarray:
        """Shares of groups, (..., groups), out of shares of released cells, (..., cells)."""
        return shares @ np.eye(self.count)[self.of_cell[: shares.shape[-1]]]

    def within(self, shares: np.ndarray) -> np.ndarray:
        """Chance of each cell within each group and class: (class_count, groups, cells), each row summing to 1.

        shares: (class_count, cells); a group that is empty by them has each of its cells alike
        """
        member = np.eye(self.count)[self.of_cell[: shares.shape[-1]]].T  # (groups, cells)
        own = shares[:, None, :] * member
        own = np.where(own.sum(axis=2, keepdims=True) > 0, own, member)
        return own / own.sum(axis=2, keepdims=True)


def grouping(column: Column, weights: np.ndarray, most: int) -> Grouping:
    """At most `most` groups of a column's cells, and one for missing cells if there are any.

    weights: (released cells,) non-negative, by which groups of numbers weigh about the same. Of categories the heaviest
             stay on their own, and the others are one group.
    """
    present = width_of(column) - (1 if column.missing else 0)
    own = weights[:present]
    if present <= most:
        groups = np.arange(present)
    elif column.type == "numeric":
        middle = np.cumsum(own) - own / 2
        groups = np.minimum((middle / max(own.sum(), 1e-300) * most).astype(np.int64), most - 1)
        groups = np.unique(groups, return_inverse=True)[1]
    else:
        groups = np.full(present, most - 1)
        heaviest = np.argsort(-own, kind="stable")[: most - 1]
        groups[heaviest] = np.arange(most - 1)
    # A missing cell of a column that has none is in no table, whatever its group.
    rest = np.full(cell_count(column) - present, groups.max() + 1 if column.missing else 0)
    return Grouping(np.concatenate([groups, rest]).astype(np.int64), most)


def kept_grouping(column: Column, of_cell: np.ndarray) -> Grouping:
    """Groups of a column's cells that were kept. Raises ValueError for what are none."""
    found = np.unique(of_cell[: width_of(column)])
    whole = of_cell.shape == (cell_count(column),) and of_cell.dtype == np.int64
    if not (whole and np.array_equal(found, np.arange(len(found))) and np.isin(of_cell, found).all()):
        raise ValueError("Expected a group of each cell, and in each group a cell that is released.")
    return Grouping(of_cell, len(found))
