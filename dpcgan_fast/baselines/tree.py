"""Columns that depend on the class and, along a tree, on one other column each, where that shows above the noise.

What the tree leaves of how columns depend on each other is added as correlations, see `residuals`.
Source of the idea: Chow and Liu 1968; chosen and measured by noisy tables as in MST, McKenna et al., arXiv 2108.04978.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.groups import Grouping, grouping, kept_grouping
from dpcgan_fast.baselines.histograms import (
    kept_shares,
    release_histograms,
    shares_of,
    totals_of,
    width_of,
)
from dpcgan_fast.baselines.near import chances_near, fitted, given_first, shares_near
from dpcgan_fast.baselines.pairs import MEAN_OF_NORMAL, Edge, Shown, forest, scores_of
from dpcgan_fast.baselines.parts import SETTLED, Totals, checked_chances, values_of
from dpcgan_fast.baselines.residuals import Atoms, Residuals, Step, drawn_along, release_residuals
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.baselines.within_bins import (
    WithinBins,
    checked_within,
    piece_edges,
    pieces_of,
    release_within_bins,
)
from dpcgan_fast.data.schema import Column
from dpcgan_fast.privacy.denoising import closest_histogram

MOST_COLUMNS = 64  # beyond it the scores of all pairs take most of the noise
# Of what the tree may spend; the rest is for the tables of its edges.
_HISTOGRAMS_SHARE, _SCORES_SHARE, _RESIDUALS_SHARE = 0.55, 0.06, 0.15
_LEAST_STRENGTH = 60.0  # rows over the noise of a histogram's cell, below which pairs would show next to nothing
_WITHIN_SHARE = 0.1  # likewise, for how bins are filled, where the data are enough to tell
_GROUPS = (20, 12, 8, 6, 4, 3, 2)  # of the cells of a column in an edge's table, the finest that the noise allows
_NOISE = 0.5  # of an edge's score: what the noise of its table may amount to
_CLEAR = 3.0  # standard deviations of the noise by which an edge's score must exceed what independence would give
# Rows over the noise of a histogram's cell between which classes are taken to be alike, see `near`. Measured: .007 of
# AUROC gained on SUPPORT2 at 270 of them (epsilon 1), .003 lost at 2,000 (epsilon 10); on Cervical lost at 25, nothing
# gained at 160. Between the two bounds, sums over classes of where rows lie in each column tell what the histograms
# leave to the noise: over 30 draws of SUPPORT2 at epsilon 1 .0025 of AUROC and .006 of average precision gained; at 100
# nothing.
_ALIKE = (200.0, 500.0)
_ALIKE_RESIDUALS_SHARE, _MEAN_WEIGHT = 0.2, 6.0


@dataclass(frozen=True)
class Table:
    """A noisy table of an edge: counts (class_count, parent's groups, child's groups), and how cells are grouped."""

    edge: Edge
    groups: tuple[Grouping, Grouping]
    counts: np.ndarray
    std: float


@dataclass
class Tree:
    """The part of two or more columns along a tree."""

    columns: tuple[Column, ...]

    @property
    def weight(self) -> float:
        """As the columns weigh on their own."""
        return float(len(self.columns))

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnTree":
        """Histograms, how bins are filled, scores of all pairs, tables of those that are chosen, what these leave."""
        noisy, std = release_histograms(rows, self.columns, budget, share * _HISTOGRAMS_SHARE)
        shown = Shown.of(self.columns, noisy, std)
        left = share * (1 - _HISTOGRAMS_SHARE)
        if shown.totals.sum() < _LEAST_STRENGTH * std:
            return self._alone(rows, noisy, std, budget, left, None)
        numeric = tuple(column for column in self.columns if column.type == "numeric")
        within = release_within_bins(rows, numeric, shown.totals, budget, share * _WITHIN_SHARE)
        if within is not None:
            left -= share * _WITHIN_SHARE
        edges = self._edges(rows, shown, budget, share * _SCORES_SHARE)
        left -= share * _SCORES_SHARE
        alike = rows.class_count > 1 and _ALIKE[0] * std <= shown.totals.sum() < _ALIKE[1] * std
        for_residuals = share * (_ALIKE_RESIDUALS_SHARE if alike else _RESIDUALS_SHARE)
        for_tables = left - for_residuals
        edges = _worth_their_noise(edges, shown, rows.class_count, budget, for_tables)
        if not edges:
            return self._alone(rows, noisy, std, budget, left, within)
        tables = [_measured(rows, edge, shown, budget, for_tables / len(edges)) for edge in edges]
        drawn = _DrawnTree(self.columns, noisy, totals_of(noisy, std), tables, within, std=std, alike=alike)
        drawn.settle(shown.totals)
        atoms = [self._atoms(rows, column, within) for column in self.columns]
        weight = _MEAN_WEIGHT if alike else 0.0
        drawn.residuals = release_residuals(rows, drawn.steps(), atoms, shown.totals, budget, for_residuals, weight)
        return drawn

    def _alone(
        self, rows: Rows, noisy: list[np.ndarray], std: float, budget: Budget, left: float, within: WithinBins | None
    ) -> "_DrawnTree":
        """Columns that are independent given the class: what is left buys the histograms once more."""
        again, std_again = release_histograms(rows, self.columns, budget, left)
        first = std_again**2 / (std**2 + std_again**2) if std else 0.5
        noisy = [first * one + (1 - first) * two for one, two in zip(noisy, again, strict=True)]
        std = std * std_again / math.hypot(std, std_again) if std else 0.0
        return _DrawnTree(self.columns, noisy, totals_of(noisy, std), [], within)

    def _atoms(self, rows: Rows, column: Column, within: WithinBins | None) -> Atoms:
        width, classes = width_of(column), rows.class_count
        if within is None or column.type != "numeric":
            cell, of_row, chances = np.arange(width), rows.cells(column), np.ones((classes, width))
        else:
            _, bins = piece_edges(column)
            missing = np.arange(bins[-1] + 1, width)
            cell, of_row = np.append(bins, missing), pieces_of(rows, column)
            chances = np.append(within.given[column.name], np.ones((classes, len(missing))), axis=1)
        # A cell that is missing in a column that has none is in no histogram; such a row counts as in the last one.
        return Atoms(of_row, cell, chances)

    def restored(self, arrays: Mapping[str, np.ndarray]) -> "_DrawnTree":
        """See `KeptPart.restored`."""
        shares = kept_shares(self.columns, arrays)
        tables: list[Table] = []
        given: dict[int, np.ndarray] = {}
        edges = arrays["edges"]
        drawn_before = set(range(len(self.columns))) - set(edges[:, 1].tolist())
        for number, (parent, child) in enumerate(edges.tolist()):
            if parent not in drawn_before or child in drawn_before or child not in range(len(self.columns)):
                raise ValueError("Expected edges of a tree, parents before their children.")
            drawn_before.add(child)
            groups = (
                kept_grouping(self.columns[parent], arrays[f"parent.{number}"]),
                kept_grouping(self.columns[child], arrays[f"child.{number}"]),
            )
            tables.append(Table(Edge(parent, child, 0.0), groups, np.empty(0), 0.0))
            sizes = len(shares[0]), groups[0].count, groups[1].count
            given[child] = checked_chances(arrays[f"given.{number}"], *sizes)
        residuals = None
        if "factors" in arrays or "means" in arrays:
            sizes = len(shares[0]), len(self.columns)
            residuals = Residuals.checked(arrays["factors"], arrays.get("means"), *sizes)
        return _DrawnTree(self.columns, [], SETTLED, tables, self._kept_within(arrays), residuals, shares, given)

    def _kept_within(self, arrays: Mapping[str, np.ndarray]) -> WithinBins | None:
        names = {f"within.{place}": column for place, column in enumerate(self.columns) if column.type == "numeric"}
        if not any(name in arrays for name in names):
            return None
        classes = len(arrays["shares.0"])
        return WithinBins(
            {column.name: checked_within(arrays[name], column, classes) for name, column in names.items()}
        )

    def _edges(self, rows: Rows, shown: "Shown", budget: Budget, share: float) -> list[Edge]:
        """The forest of the greatest sum of gains, of pairs that differ from independence more than noise would."""
        pairs = list(itertools.combinations(range(len(self.columns)), 2))
        # The tables of independence are made of released numbers alone, so that a unit moves each score by at most 1.
        noisy = budget.release("scores of pairs", scores_of(rows, pairs, shown), math.sqrt(len(pairs)), share)
        gains = noisy.values - np.array([shown.by_chance(pair) for pair in pairs])
        clear = gains > max(_CLEAR * noisy.std, 1e-9)
        return forest([pair for pair, kept in zip(pairs, clear, strict=True) if kept], gains[clear], len(self.columns))


def _table(
    rows: Rows, pair: tuple[int, int], shown: Shown, groups: tuple[Grouping, Grouping]
) -> np.ndarray:  # fmt: skip
    """Weight of the rows in each pair of groups of two columns: (class_count, first's groups, second's groups)."""
    first, second = (own.of_cell[rows.cells(shown.columns[place])] for own, place in zip(groups, pair, strict=True))
    counts = rows.histogram(first * groups[1].count + second, groups[0].count * groups[1].count)
    return counts.reshape(rows.class_count, groups[0].count, groups[1].count)


def _groups_of(edge: Edge, shown: Shown, most: int) -> tuple[Grouping, Grouping]:
    parent, child = (
        grouping(shown.columns[place], shown.totals @ shown.shares[place], most) for place in (edge.parent, edge.child)
    )
    return parent, child


def _noise_of(groups: tuple[Grouping, Grouping], classes: int, std: float) -> float:
    """Expected sum of the noise of an edge's table, without its sign."""
    return MEAN_OF_NORMAL * std * classes * groups[0].count * groups[1].count


def _worth_their_noise(
    edges: list[Edge], shown: Shown, classes: int, budget: Budget, share: float
) -> list[Edge]:  # fmt: skip
    """The edges without those of the least gain, as long as the coarsest table would be mostly noise."""
    kept = sorted(edges, key=lambda edge: edge.gain)
    while kept:
        std = budget.std(1.0, share / len(kept))
        if _noise_of(_groups_of(kept[0], shown, _GROUPS[-1]), classes, std) <= _NOISE * kept[0].gain:
            break
        kept = kept[1:]
    return [edge for edge in edges if edge in kept]


def _measured(rows: Rows, edge: Edge, shown: Shown, budget: Budget, share: float) -> Table:
    std = budget.std(1.0, share)
    groups = next(
        groups
        for groups in (_groups_of(edge, shown, most) for most in _GROUPS)
        if groups[0].most == _GROUPS[-1] or _noise_of(groups, rows.class_count, std) <= _NOISE * edge.gain
    )
    own = _table(rows, (edge.parent, edge.child), shown, groups)
    names = f"{shown.columns[edge.parent].name} and {shown.columns[edge.child].name}"
    noisy = budget.release(f"table: {names}", own, 1.0, share)
    return Table(edge, groups, noisy.values, noisy.std)


def _chances(counts: np.ndarray, total: float, parent: np.ndarray, child: np.ndarray, noise: float) -> np.ndarray:
    """Chances of the child's groups given the parent's: (parent's groups, child's groups), from noisy counts of both.

    total: number of rows; parent, child: shares of the groups of either; noise: standard deviation of that of a count
    """
    joint = closest_histogram(counts.ravel(), total).reshape(counts.shape)
    # As many rows as the noise amounts to are taken to be independent: no chance is an accident of the noise.
    joint = joint + (noise * len(parent) + 1e-6) * np.outer(parent, child)
    return given_first(fitted(joint / joint.sum(), parent, child), child)  # as both histograms say


@dataclass
class _DrawnTree:
    columns: tuple[Column, ...]
    noisy: list[np.ndarray]
    totals: Totals
    tables: list[Table]
    within: WithinBins | None  # None: bins are filled evenly
    residuals: Residuals | None = None  # what the tree leaves
    _shares: list[np.ndarray] = field(default_factory=list)
    _given: dict[int, np.ndarray] = field(default_factory=dict)  # by child, chances of its groups given the parent's
    std: float = 0.0  # of the noise of each cell of the histograms
    # Whether classes are taken to be alike: decided once, for what the tree leaves was measured beyond that.
    alike: bool = False

    def settle(self, totals: np.ndarray) -> None:
        if self.alike:
            self._settle_alike(totals)
            return
        self._shares = [shares_of(part, totals) for part in self.noisy]
        for table in self.tables:
            self._given[table.edge.child] = self._conditional(table, totals)

    def _settle_alike(self, totals: np.ndarray) -> None:
        """As `settle`: a column's histograms, and its chances given its parent, are near those of all classes, and the
        histograms near what follows from the parent's in each.
        """
        total = float(totals.sum())
        of_all = [closest_histogram(part.sum(axis=0), total) / total for part in self.noisy]
        alike = (np.tile(shares, (len(totals), 1)) for shares in of_all)
        self._shares = [shares_near(part, self.std, totals, own) for part, own in zip(self.noisy, alike, strict=True)]
        for table in self.tables:
            (parent, child), place = table.groups, table.edge.child
            of_parent, of_child = parent.sums(self._shares[table.edge.parent]), child.sums(of_all[place])
            noise = table.std * math.sqrt(len(totals))
            chances = _chances(table.counts.sum(axis=0), total, totals @ of_parent / total, of_child, noise)
            ratios = of_parent @ chances / np.maximum(of_child, 1e-12)
            expected = of_all[place] * ratios[:, child.of_cell[: len(of_all[place])]]
            expected /= np.maximum(expected.sum(axis=1, keepdims=True), 1e-300)
            self._shares[place] = shares_near(self.noisy[place], self.std, totals, expected)
            own = child.sums(self._shares[place])
            self._given[place] = chances_near(table.counts, table.std, totals, chances, of_parent, own)

    def _conditional(self, table: Table, totals: np.ndarray) -> np.ndarray:
        """Chances of the child's groups given class and parent's group: (class_count, parent's, child's groups)."""
        parents, children = (
            groups.sums(self._shares[place])
            for groups, place in zip(table.groups, (table.edge.parent, table.edge.child), strict=True)
        )
        return np.array([
            _chances(*own, noise=table.std)
            for own in zip(table.counts, totals, parents, children, strict=True)
        ])  # fmt: skip

    def arrays(self) -> dict[str, np.ndarray]:
        """See `KeptDrawn.arrays`."""
        edges = [(table.edge.parent, table.edge.child) for table in self.tables]
        kept = {"edges": np.array(edges, np.int64).reshape(-1, 2)}
        kept |= {f"shares.{place}": shares for place, shares in enumerate(self._shares)}
        for number, table in enumerate(self.tables):
            kept |= {f"parent.{number}": table.groups[0].of_cell, f"child.{number}": table.groups[1].of_cell}
            kept[f"given.{number}"] = self._given[table.edge.child]
        if self.within is not None:
            places = {column.name: place for place, column in enumerate(self.columns)}
            kept |= {f"within.{places[name]}": given for name, given in self.within.given.items()}
        return kept | (self.residuals.arrays() if self.residuals is not None else {})

    def steps(self) -> list[Step]:
        """How columns are drawn once they are settled, parents before their children."""
        children = {table.edge.child for table in self.tables}
        first = [place for place in range(len(self.columns)) if place not in children]
        steps = [Step(place, None, np.zeros(1, np.int64), self._shares[place][:, None]) for place in first]
        for table in self.tables:
            parent, child = table.groups
            place = table.edge.child
            chances = self._given[place] @ child.within(self._shares[place])
            steps.append(Step(place, table.edge.parent, parent.of_cell, chances))
        return steps

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        found, inside = drawn_along(self.steps(), self.residuals, classes, rng)
        drawn = {}
        for place, column in enumerate(self.columns):
            if self.within is not None and column.type == "numeric":
                drawn[column.name] = self.within.draw(column, found[place], inside[place], classes, rng)
            else:
                drawn[column.name] = values_of(column, found[place], rng)
        return drawn
