"""Codes by noisy counts of each class, and each drawn on its own.

What is counted, and how a unit's part is bounded, is as in the release that the model itself makes of codes.
"""

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.parts import Totals
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.code_rows import CodeRows, CodeSets
from dpcgan_fast.data.public_cells import code_sets, vocabulary_of
from dpcgan_fast.data.schema import Column
from dpcgan_fast.privacy.denoising import CLEAR_SHARE, denoised_counts, denoised_ratios
from dpcgan_fast.privacy.releases import (
    FULL_WEIGHT_CODES,
    Release,
    code_weights,
    lost_to_weights,
    number_bins,
    number_edges,
    number_middles,
)

_LARGEST_RATIO = math.exp(3.0)  # of the prevalence in a class to that in all


def capped_codes(rows: Rows, column: Column) -> CodeRows:
    """Each row's codes as training uses them."""
    return code_sets(rows.table, column).capped(column.max_codes, vocabulary_of(column))


def weighted_counts(rows: Rows, sets: CodeRows, column: Column) -> np.ndarray:
    """Weighted number of rows of each class that have each code: (class_count, vocabulary) float64.

    sets: from `capped_codes`
    Formal guarantee: of a row at most max_codes count, and those of one with more than FULL_WEIGHT_CODES weigh less, so
    that a unit moves the counts by at most sqrt(FULL_WEIGHT_CODES) in L2 norm.
    """
    weights = rows.weights * code_weights(np.diff(sets.starts), FULL_WEIGHT_CODES)
    return sets.weighted_counts(len(vocabulary_of(column)), weights, rows.classes, rows.class_count)


def number_histogram(rows: Rows, sets: CodeRows, column: Column) -> np.ndarray:
    """Weighted number of rows of each class by how many codes they have: (class_count, bins), see `number_edges`."""
    bins = number_bins(np.diff(sets.starts), column.max_codes)
    return rows.histogram(bins, len(number_edges(column.max_codes)))


@dataclass(frozen=True)
class CodeCounts:
    """What was released of the codes of a column by themselves.

    numbers: (class_count, bins) noisy number of records by how many codes they have, with noise of `numbers_std`
    counts:  (class_count, vocabulary) noisy `weighted_counts`, with noise of `std`
    """

    column: Column
    numbers: np.ndarray
    numbers_std: float
    counts: np.ndarray
    std: float

    @property
    def totals(self) -> Totals:
        """What the numbers of codes say of the classes."""
        return Totals(self.numbers.sum(axis=1), self.numbers_std**2 * self.numbers.shape[1])

    def number_shares(self) -> np.ndarray:
        """Share of the rows of each class by how many codes they have: (class_count, bins), each class's sum to 1.

        Of the many numbers that nobody has next to nothing is left, or a hundred codes of a few would be added to all.
        """
        found = denoised_counts(self.numbers.ravel(), self.numbers_std).reshape(self.numbers.shape)
        found = np.array([own if own.sum() > 0 else np.eye(len(own))[0] for own in found])
        return found / found.sum(1, keepdims=True)

    def weighted_shares(self, totals: np.ndarray) -> np.ndarray:
        """Share of the rows of each class that have each code, each row with its weight: (class_count, vocabulary).

        totals: (class_count,) noisy number of rows
        Counts of all classes together tell how frequent a code is, and those of one how much more or less so there.
        """
        totals, classes = np.maximum(totals, 1.0), len(totals)
        of_all = denoised_counts(self.counts.sum(0), self.std * math.sqrt(classes)) / totals.sum()
        shares = np.tile(of_all, (classes, 1))
        if classes > 1:
            possible = of_all > 0
            expected = (totals[:, None] * shares)[:, possible]
            shares[:, possible] *= denoised_ratios(self.counts[:, possible], expected, self.std, _LARGEST_RATIO)
        return np.clip(shares, 0.0, 1.0)

    def sure(self) -> np.ndarray:
        """Which counts stand so clear of their noise that they are taken as they are: (class_count, vocabulary)."""
        return self.std < CLEAR_SHARE * self.counts

    def prevalences(self, totals: np.ndarray) -> np.ndarray:
        """Share of the rows of each class that have each code: (class_count, vocabulary) in [0, 1]."""
        most = self.column.max_codes
        lost = [lost_to_weights(own, most, FULL_WEIGHT_CODES) for own in self.numbers]
        return np.minimum(1.0, self.weighted_shares(totals) * np.array(lost)[:, None])


def entries_of(numbers: np.ndarray, column: Column) -> float:
    """How many codes all records have together, about, and at least 1. numbers: (class_count, bins) noisy"""
    return max(1.0, float((np.maximum(numbers.sum(0), 0.0) * number_middles(column.max_codes)).sum()))


def release_numbers(rows: Rows, sets: CodeRows, column: Column, budget: Budget, share: float) -> Release:
    """How many codes records have, by class. sets: from `capped_codes`"""
    return budget.release(f"numbers of codes: {column.name}", number_histogram(rows, sets, column), 1.0, share)


def release_counts(rows: Rows, sets: CodeRows, column: Column, budget: Budget, share: float) -> Release:
    """How frequent each code is in each class. sets: from `capped_codes`"""
    counts = weighted_counts(rows, sets, column)
    return budget.release(f"code counts: {column.name}", counts, math.sqrt(FULL_WEIGHT_CODES), share)


@dataclass
class Codes:
    """The part of a column of codes."""

    column: Column
    weight: float = 1.0 + FULL_WEIGHT_CODES

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnCodes":
        """Both releases have noise alike, which is the least where all that counts is the sum of squares."""
        sets, of_numbers = capped_codes(rows, self.column), share / self.weight
        numbers = release_numbers(rows, sets, self.column, budget, of_numbers)
        counts = release_counts(rows, sets, self.column, budget, share - of_numbers)
        return _DrawnCodes(CodeCounts(self.column, numbers.values, numbers.std, counts.values, counts.std))


@dataclass
class _DrawnCodes:
    """Every code on its own, as often as its count says."""

    counts: CodeCounts
    _shares: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    @property
    def totals(self) -> Totals:
        return self.counts.totals

    def settle(self, totals: np.ndarray) -> None:
        self._shares = self.counts.prevalences(totals)

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        rows, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for index, own in enumerate(self._shares):
            members = np.flatnonzero(classes == index)
            counts = rng.binomial(len(members), own)
            for code in np.flatnonzero(counts):
                rows.append(members[rng.choice(len(members), counts[code], replace=False, shuffle=False)])
                positions.append(np.full(counts[code], code))
        sets = CodeRows.from_entries(np.concatenate(rows), np.concatenate(positions), len(classes))
        return {self.counts.column.name: CodeSets(sets, vocabulary_of(self.counts.column)).lists()}
