"""Columns that are independent given the class: a noisy histogram of each, over public cells."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.parts import SETTLED, Totals, checked_chances, evenly, values_of
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.public_cells import cell_count
from dpcgan_fast.data.schema import Column
from dpcgan_fast.privacy.denoising import closest_histogram


def width_of(column: Column) -> int:
    """Public cells of a column; whether it has missing ones is public, too: one that is empty is not released."""
    return cell_count(column) if column.missing else cell_count(column) - 1


def has_cells(column: Column) -> bool:
    """Whether a column can hold anything but missing cells: a list of categories that was released may be empty."""
    return width_of(column) > column.missing


def histograms_of(rows: Rows, columns: tuple[Column, ...]) -> list[np.ndarray]:
    """Histogram of each column within each class: (class_count, width_of(column)) float64 each.

    Formal guarantee: a unit moves all of them together by at most sqrt(len(columns)) in L2 norm.
    """
    return [rows.histogram(rows.cells(column), cell_count(column))[:, : width_of(column)] for column in columns]


def release_histograms(
    rows: Rows, columns: tuple[Column, ...], budget: Budget, share: float
) -> tuple[list[np.ndarray], float]:  # fmt: skip
    """Noisy `histograms_of`, by one release, and the standard deviation of the noise of each cell."""
    found = histograms_of(rows, columns)
    joint = np.concatenate(found, axis=1)
    noisy = budget.release("histograms", joint, math.sqrt(len(columns)), share)
    return np.split(noisy.values, np.cumsum([part.shape[1] for part in found])[:-1], axis=1), noisy.std


def totals_of(histograms: list[np.ndarray], std: float) -> Totals:
    """What noisy histograms of the same rows say together of the classes: the mean of their sums, by precision."""
    precision = np.array([1 / part.shape[1] for part in histograms])
    sums = np.array([part.sum(axis=1) for part in histograms])
    return Totals(precision @ sums / precision.sum(), std**2 / precision.sum())


def shares_of(noisy: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Share of each cell within each class: (class_count, cells), from noisy counts of the same shape."""
    shares = np.array([closest_histogram(own, total) for own, total in zip(noisy, totals, strict=True)])
    return shares / shares.sum(axis=1, keepdims=True)


def kept_shares(columns: tuple[Column, ...], arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Shares of each column's cells within each class that were kept. Raises KeyError or ValueError for others."""
    classes = len(arrays["shares.0"])
    return [
        checked_chances(arrays[f"shares.{place}"], classes, width_of(column)) for place, column in enumerate(columns)
    ]


def drawn_cells(shares: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cell for each row, by the shares (groups, cells) of its group, `evenly`: (rows,) int64."""
    found = np.zeros(len(groups), np.int64)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        found[members] = cells_at(shares[group], evenly(rng.random(len(members)), rng))[0]
    return found


def cells_at(chances: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells by their chances (cells,), and where within the cell each row lies, in [0, 1): (rows,) each.

    at: (rows,) uniform in [0, 1]
    """
    possible = np.flatnonzero(chances > 0)
    ends = np.cumsum(chances[possible])
    at = at * ends[-1]
    number = np.minimum(np.searchsorted(ends, at, side="right"), len(possible) - 1)
    inside = 1 - (ends[number] - at) / chances[possible[number]]
    return possible[number], np.clip(inside, 0.0, 1 - 1e-12)


def drawn_within(
    given: np.ndarray, starts: np.ndarray, bins: np.ndarray, uniform: np.ndarray, classes: np.ndarray
) -> np.ndarray:  # fmt: skip
    """A piece of each row's bin, by the chances of the pieces in the row's class: (rows,) int64.

    given:  (class_count, pieces) chances, which sum to 1 in each bin
    starts: (bins + 1,) first piece of each bin, and the number of pieces
    bins, uniform, classes: (rows,) each; uniform in [0, 1)
    """
    ends = np.cumsum(given, axis=1)  # each bin's begin at a whole number
    pieces = np.empty(len(bins), np.int64)
    for index, own in enumerate(ends):
        members = np.flatnonzero(classes == index)
        pieces[members] = np.searchsorted(own, bins[members] + uniform[members], side="right")
    return np.clip(pieces, starts[bins], starts[bins + 1] - 1)  # rounding leads out of no bin


@dataclass
class Histograms:
    """The part of columns of which each is drawn on its own. At least one column."""

    columns: tuple[Column, ...]

    @property
    def weight(self) -> float:
        """As the columns weigh on their own."""
        return float(len(self.columns))

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnHistograms":
        """One release of all histograms."""
        noisy, std = release_histograms(rows, self.columns, budget, share)
        return _DrawnHistograms(self.columns, noisy, totals_of(noisy, std))

    def restored(self, arrays: Mapping[str, np.ndarray]) -> "_DrawnHistograms":
        """See `KeptPart.restored`."""
        return _DrawnHistograms(self.columns, [], SETTLED, kept_shares(self.columns, arrays))


@dataclass
class _DrawnHistograms:
    columns: tuple[Column, ...]
    noisy: list[np.ndarray]
    totals: Totals
    _shares: list[np.ndarray] = field(default_factory=list)

    def settle(self, totals: np.ndarray) -> None:
        self._shares = [shares_of(part, totals) for part in self.noisy]

    def arrays(self) -> dict[str, np.ndarray]:
        """See `KeptDrawn.arrays`."""
        return {f"shares.{place}": shares for place, shares in enumerate(self._shares)}

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        return {
            column.name: values_of(column, drawn_cells(shares, classes, rng), rng)
            for column, shares in zip(self.columns, self._shares, strict=True)
        }


@dataclass
class Classes:
    """The part of a table that has a label and nothing else: how many units have each class."""

    weight: float = 1.0

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnClasses":
        """The label's histogram."""
        noisy = budget.release("label histogram", rows.histogram(np.zeros_like(rows.classes), 1), 1.0, share)
        return _DrawnClasses(Totals(noisy.values[:, 0], noisy.std**2))

    def restored(self, arrays: Mapping[str, np.ndarray]) -> "_DrawnClasses":  # noqa: ARG002
        """See `KeptPart.restored`."""
        return _DrawnClasses(SETTLED)


@dataclass
class _DrawnClasses:
    totals: Totals

    def settle(self, totals: np.ndarray) -> None:
        """Nothing is drawn."""

    def arrays(self) -> dict[str, np.ndarray]:
        """See `KeptDrawn.arrays`."""
        return {}

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:  # noqa: ARG002
        return {}
