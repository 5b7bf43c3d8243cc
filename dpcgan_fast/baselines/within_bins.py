"""Where within their public bins the numbers of columns lie: values that many rows share, and how a bin is filled.

A bin of a table is wide, and real numbers are not even within it: blood pressures are 120 or 130, not 124.
"""

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.histograms import drawn_within
from dpcgan_fast.baselines.parts import numbers_of
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.public_cells import bin_edges, numbers
from dpcgan_fast.data.schema import Column
from dpcgan_fast.privacy.denoising import denoised_counts, denoised_ratios

# With pieces in place of even bins, gradient boosting on quantile bins told rows apart at .59, not .82 (Cardio, epsilon
# 1), and at .72, not .81 (SUPPORT2, epsilon 10).
_PIECES = 32  # of a bin at most; of whole numbers each is one where there are no more
_LARGEST_RATIO = math.exp(3.0)  # as in `near`, of a class's count in a piece: 20, or a twentieth
_EVEN = 1.0  # standard deviations of the noise of a piece by which bins are filled evenly
_LEAST_STRENGTH = 50.0  # rows over that noise, below which it would show next to nothing
_CLASS_STRENGTH = 150.0  # likewise, of how classes differ


def piece_edges(column: Column) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the pieces of a numeric column's bins, (pieces + 1,) float64, and the bin of each, (pieces,) int64.

    Between whole numbers if the column has those alone, so that every piece has at least one.
    """
    edges = bin_edges(column)
    found = []
    for lower, upper in itertools.pairwise(edges):
        if column.integer:
            count = int(max(1, min(_PIECES, round(upper - lower))))
            inner = np.floor(np.linspace(lower, upper, count + 1)[1:-1]) + 0.5
        else:
            share = np.linspace(0, 1, _PIECES + 1)[1:-1]
            inner = lower * (1 - share) + upper * share
        # Rounding may lead back between near bounds, and out of the bin.
        found.append(np.maximum.accumulate(np.clip(np.append(lower, inner), lower, upper)))
    bins = np.repeat(np.arange(len(found)), [len(own) for own in found])
    return np.append(np.concatenate(found), edges[-1]), bins


@dataclass(frozen=True)
class WithinBins:
    """Chances of the pieces of each column's bins.

    given: by the column's name, (class_count, pieces) float64; those of a bin sum to 1 in each class
    """

    given: dict[str, np.ndarray]

    def draw(
        self, column: Column, found: np.ndarray, inside_cell: np.ndarray, classes: np.ndarray, rng: np.random.Generator
    ) -> pa.Array:
        """Cells of a numeric column from its public cells and the classes of their rows, (rows,) int64 each.

        inside_cell: (rows,) uniform in [0, 1), by which the piece of the bin is taken
        """
        edges, bins = piece_edges(column)
        missing = found == bins[-1] + 1
        inside = np.where(missing, 0, found)
        starts = np.append(_starts(bins), len(bins))
        pieces = drawn_within(self.given[column.name], starts, inside, inside_cell, classes)
        return numbers_of(column, rng.uniform(edges[pieces], edges[pieces + 1]), missing)


def checked_within(given: np.ndarray, column: Column, class_count: int) -> np.ndarray:
    """Chances of the pieces of a column's bins as they were kept. Raises ValueError if they are none."""
    _, bins = piece_edges(column)
    if given.shape != (class_count, len(bins)) or not (given >= 0).all():
        raise ValueError("Expected chances of the pieces of each bin.")
    if not np.allclose(np.add.reduceat(given, _starts(bins), axis=1), 1.0):
        raise ValueError("Expected chances that add up to 1 in each bin.")
    return given


def release_within_bins(
    rows: Rows, columns: tuple[Column, ...], totals: np.ndarray, budget: Budget, share: float
) -> WithinBins | None:
    """Spends a share of the budget on how the bins of some numeric columns are filled in each class.

    totals: (class_count,) released numbers of rows
    None, and nothing is spent, where the noise would hide it all. Counts of all classes together tell how a bin is
    filled, and those of one how much more or less so there, if the rows are enough for that too.
    Formal guarantee: a unit moves the release by at most sqrt(len(columns)) in L2 norm: its rows weigh 1 in each
    column, and each falls into one piece or none.
    """
    sensitivity = math.sqrt(len(columns))
    std = budget.std(sensitivity, share) if columns else 0.0
    if not columns or totals.sum() < _LEAST_STRENGTH * std:
        return None
    counts = [_pieces(rows, column) for column in columns]
    noisy = budget.release("within bins", np.concatenate(counts, axis=1), sensitivity, share)
    parts = np.split(noisy.values, np.cumsum([part.shape[1] for part in counts])[:-1], axis=1)
    alike = totals.sum() < _CLASS_STRENGTH * std
    return WithinBins(
        {column.name: _given(part, column, noisy.std, alike) for column, part in zip(columns, parts, strict=True)}
    )


def pieces_of(rows: Rows, column: Column) -> np.ndarray:
    """The piece of each row's number, (rows,) whole numbers; the number of pieces where it is missing."""
    edges, bins = piece_edges(column)

    def found() -> np.ndarray:
        values = numbers(rows.table, column)
        return np.where(np.isnan(values), len(bins), np.searchsorted(edges[1:-1], values, side="right"))

    return rows.once(f"pieces: {column.name}", len(bins) + 1, found)


def _pieces(rows: Rows, column: Column) -> np.ndarray:
    """Weight of the rows of each class in each piece: (class_count, pieces)."""
    pieces = len(piece_edges(column)[1])
    return rows.histogram(pieces_of(rows, column), pieces + 1)[:, :-1]


def _given(noisy: np.ndarray, column: Column, std: float, alike: bool) -> np.ndarray:
    """Chances of pieces given bin and class, (class_count, pieces), from their noisy counts. alike: in all classes"""
    edges, bins = piece_edges(column)
    widths = np.diff(edges) + 1e-300  # bounds as near as numbers can be have bins without any width
    even = widths / np.add.reduceat(widths, _starts(bins))[bins]
    of_all = denoised_counts(noisy.sum(0), std * math.sqrt(len(noisy)))
    counts = np.tile(of_all / len(noisy), (len(noisy), 1))
    possible = of_all > 0
    if not alike and len(noisy) > 1 and possible.any():
        of_class = np.maximum(noisy.sum(1), 1.0)
        expected = np.outer(of_class / of_class.sum(), of_all[possible])
        counts[:, possible] = expected * denoised_ratios(noisy[:, possible], expected, std, _LARGEST_RATIO)
    # As many rows as the noise of a piece amounts to fill each bin evenly: no chance is an accident of the noise.
    noise = std / math.sqrt(len(noisy)) if alike else std
    counts = counts + (_EVEN * noise + 1e-9) * even
    return counts / np.add.reduceat(counts, _starts(bins), axis=1)[:, bins]


def _starts(bins: np.ndarray) -> np.ndarray:
    """The first piece of each bin. bins: (pieces,) rising, each at least once"""
    return np.searchsorted(bins, np.arange(bins[-1] + 1))
