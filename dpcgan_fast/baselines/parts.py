"""What a baseline is made of: parts, each of which releases some columns and then draws them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.cells import MOST_EXACT
from dpcgan_fast.data.public_cells import bin_edges, bounds_of, coded_values
from dpcgan_fast.data.schema import Column


@dataclass(frozen=True)
class Totals:
    """A noisy number of units of each class, (class_count,) float64, and the variance of each."""

    values: np.ndarray
    variance: float


SETTLED = Totals(np.empty(0), 0.0)  # of columns that were kept, which are not settled again


class Drawn(Protocol):
    """Columns that were released."""

    @property
    def totals(self) -> Totals:
        """What the release says of the classes."""
        ...

    def settle(self, totals: np.ndarray) -> None:
        """Makes of what was released what is drawn from. totals: (class_count,) at least 1, as all parts say."""
        ...

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        """The columns of new rows of these classes, (rows,) int64."""
        ...


class Part(Protocol):
    """Some columns of a table."""

    @property
    def weight(self) -> float:
        """Its share of the budget, in proportion to the other parts'."""
        ...

    def release(self, rows: Rows, budget: Budget, share: float) -> Drawn:
        """Spends a share of the budget on the columns."""
        ...


@runtime_checkable
class KeptDrawn(Drawn, Protocol):
    """Columns whose numbers can be kept in a file, once they are settled."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that `draw` needs beside the public facts."""
        ...


@runtime_checkable
class KeptPart(Part, Protocol):
    """A part that can be made again of what was kept."""

    def restored(self, arrays: Mapping[str, np.ndarray]) -> Drawn:
        """Columns to draw from, of what `KeptDrawn.arrays` gave. Raises KeyError or ValueError for anything else."""
        ...


def checked_chances(kept: np.ndarray, *shape: int) -> np.ndarray:
    """Chances (..., n) float64 that were kept, those of the last axis adding up to 1. Raises ValueError for others."""
    if kept.shape != shape or not (kept >= 0).all() or not np.allclose(kept.sum(axis=-1), 1.0):
        raise ValueError(f"Expected chances of shape {shape} that add up to 1.")
    return kept


def evenly(order: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uniform numbers in [0, 1) in the order of the given ones, one in each n-th of the interval: (n,) float64.

    order: (n,) of any scale; in no order of its own, each of the new numbers is uniform
    What is drawn by them is of each kind as often as it should be, but for less than one row: of independent draws,
    numbers differ by about their own root, which would be noise on top of that for privacy.
    Source: systematic sampling, Cochran, Sampling Techniques (1977), chapter 8.
    """
    count = len(order)
    places = np.empty(count)
    places[np.argsort(order, kind="stable")] = np.arange(count)
    return np.minimum((places + rng.random(count)) / max(count, 1), np.nextafter(1.0, 0.0))


def values_of(column: Column, found: np.ndarray, rng: np.random.Generator) -> pa.Array:
    """Values for public cells: whole or uniform numbers within the bin, names of categories, null where missing."""
    if column.type != "numeric":
        return coded_values(column, found)
    edges = bin_edges(column)
    missing = found == len(edges) - 1
    inside = np.where(missing, 0, found)
    return numbers_of(column, rng.uniform(edges[inside], edges[inside + 1]), missing)


def numbers_of(column: Column, values: np.ndarray, missing: np.ndarray | None = None) -> pa.Array:
    """Cells of a numeric column: whole numbers within the bounds if it has those alone."""
    if column.integer:
        lower, upper = bounds_of(column)
        whole = np.clip(np.rint(values), max(math.ceil(lower), -MOST_EXACT), min(math.floor(upper), MOST_EXACT))
        return pa.array(whole.astype(np.int64), mask=missing)
    return pa.array(values, mask=missing)
