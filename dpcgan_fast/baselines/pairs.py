"""Pairs of columns, and which of them a tree joins: those whose scores show above the noise."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import breadth_first_order, connected_components, minimum_spanning_tree

from dpcgan_fast.baselines.groups import Grouping, grouping
from dpcgan_fast.baselines.histograms import shares_of, totals_of
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.schema import Column

_SCORED_GROUPS = 4  # of a column's cells, while pairs of columns are compared
MEAN_OF_NORMAL = math.sqrt(2 / math.pi)  # of the absolute value of a standard normal


@dataclass(frozen=True)
class Edge:
    """A pair of columns by their places. gain: weight of rows, about, that independence puts into wrong cells."""

    parent: int
    child: int
    gain: float


@dataclass(frozen=True)
class Shown:
    """What the noisy histograms show of the columns.

    totals: (class_count,); shares: of each column's cells within each class; groups: of the cells, for scores
    errors: standard deviation, about, of the noise of each column's groups, summed over groups and classes
    """

    columns: tuple[Column, ...]
    totals: np.ndarray
    shares: list[np.ndarray]
    groups: list[Grouping]
    errors: list[float]

    @classmethod
    def of(cls, columns: tuple[Column, ...], noisy: list[np.ndarray], std: float) -> "Shown":
        """noisy: (class_count, cells) of each column, with N(0, std^2) added to each count."""
        totals = np.maximum(totals_of(noisy, std).values, 1.0)
        shares = [shares_of(part, totals) for part in noisy]
        groups = [grouping(column, totals @ own, _SCORED_GROUPS) for column, own in zip(columns, shares, strict=True)]
        errors = [std * len(totals) * float(np.sqrt(np.bincount(own.of_cell)).sum()) for own in groups]
        return cls(columns, totals, shares, groups, errors)

    def of_groups(self, place: int, groups: Grouping) -> np.ndarray:
        """Weight of each group of a column's cells within each class: (class_count, groups)."""
        return self.totals[:, None] * groups.sums(self.shares[place])

    def independent(self, pair: tuple[int, int]) -> np.ndarray:
        """The table of a pair of columns if they were independent given the class: (class_count, groups, groups)."""
        first, second = (self.of_groups(place, self.groups[place]) for place in pair)
        return first[:, :, None] * second[:, None, :] / self.totals[:, None, None]

    def by_chance(self, pair: tuple[int, int]) -> float:
        """The score that independent columns would have: by the number of rows, and the noise of the histograms."""
        drawn = np.sqrt(self.independent(pair)).sum()
        return MEAN_OF_NORMAL * float(drawn + self.errors[pair[0]] + self.errors[pair[1]])


def scores_of(rows: Rows, pairs: list[tuple[int, int]], shown: Shown) -> np.ndarray:
    """Sums of differences between the rows' own table of each pair of columns and that of independence: (pairs,).

    Formal guarantee: with `shown` given, a unit moves each by at most 1: its rows weigh 1, and each falls into one
    cell of a pair.
    """
    counts = [own.count for own in shown.groups]
    most = max(counts)
    tables = np.zeros((len(pairs), rows.class_count, most, most))
    for part, block in rows.blocks(len(counts)):
        cells = [rows.cells(column)[part] for column in shown.columns]
        of_row = [own.of_cell[found] for own, found in zip(shown.groups, cells, strict=True)]
        begins = [(block.classes * most + own) * most for own in of_row]
        for table, (first, second) in zip(tables, pairs, strict=True):
            both = begins[first] + of_row[second]
            table += np.bincount(both, block.weights, minlength=table.size).reshape(table.shape)
    return np.array([
        np.abs(table[:, : counts[first], : counts[second]] - shown.independent((first, second))).sum()
        for table, (first, second) in zip(tables, pairs, strict=True)
    ])  # fmt: skip


def forest(pairs: list[tuple[int, int]], gains: np.ndarray, count: int) -> list[Edge]:
    """Edges of the spanning forest of the greatest sum of gains, parents before their children."""
    if not pairs:
        return []
    first, second = np.array(pairs).T
    spanning = minimum_spanning_tree(coo_matrix((-gains, (first, second)), shape=(count, count)))
    weights = -(spanning + spanning.T).toarray()
    edges = []
    _, component = connected_components(spanning, directed=False)
    for root in np.unique(component, return_index=True)[1]:
        order, before = breadth_first_order(spanning, root, directed=False)
        edges += [Edge(int(before[child]), int(child), float(weights[before[child], child])) for child in order[1:]]
    return edges
