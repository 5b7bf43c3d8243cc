"""Codes by noisy counts of each class: each drawn on its own, or as many of them as a record has.

What is counted, and how a unit's part is bounded, is as in the release that the model itself makes of codes.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import torch

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.histograms import drawn_cells, shares_of
from dpcgan_fast.baselines.parts import Totals
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.code_rows import CodeRows, CodeSets
from dpcgan_fast.data.public_cells import code_sets, vocabulary_of
from dpcgan_fast.data.schema import Column
from dpcgan_fast.privacy.denoising import denoised_counts
from dpcgan_fast.privacy.releases import (
    FULL_WEIGHT_CODES,
    code_weights,
    lost_to_weights,
    number_bins,
    number_edges,
)

# Of what a column of codes may spend, the share of the histogram of how many a record has, where they are drawn by it.
# Source: measured on a table of 50,000 x 1,071 codes; at 8 % it costs the counts next to nothing.
_NUMBERS_SHARE = 0.08
_CELLS = 1 << 24  # of records by codes that are drawn at a time
_TRIED = 5000  # records by which the chances are settled
_ROUNDS = 12
_PRIOR = 3.0  # records with each code beside those tried
_Races = Iterator[tuple[np.ndarray, np.ndarray]]


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


def prevalences(
    counts: np.ndarray, numbers: np.ndarray, totals: np.ndarray, std: float, column: Column
) -> np.ndarray:  # fmt: skip
    """Share of the rows of each class that have each code, from noisy counts: (class_count, vocabulary) in [0, 1].

    counts, numbers: from `weighted_counts` and `number_histogram`, the counts with noise of this standard deviation
    totals:          (class_count,) noisy number of rows
    """
    edges = number_edges(column.max_codes)
    shares = []
    for own, records, total in zip(counts, numbers, totals, strict=True):
        lost = lost_to_weights(records, edges, column.max_codes, FULL_WEIGHT_CODES)
        shares.append(np.minimum(1.0, denoised_counts(own, std) * lost / max(total, 1.0)))
    return np.array(shares)


@dataclass
class Codes:
    """The part of a column of codes. sized: whether a record first draws how many codes it has."""

    column: Column
    sized: bool
    weight: float = 1.0 + FULL_WEIGHT_CODES

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnCodes":
        """Not sized, both have noise alike, which is the least where all that counts is the sum of squares."""
        of_numbers = share * (_NUMBERS_SHARE if self.sized else 1.0 / self.weight)
        name, sets = self.column.name, capped_codes(rows, self.column)
        histogram, found = number_histogram(rows, sets, self.column), weighted_counts(rows, sets, self.column)
        numbers = budget.release(f"numbers of codes: {name}", histogram, 1.0, of_numbers)
        counts = budget.release(f"code counts: {name}", found, math.sqrt(FULL_WEIGHT_CODES), share - of_numbers)
        totals = Totals(numbers.values.sum(axis=1), numbers.std**2 * numbers.values.shape[1])
        drawn = _DrawnSizedCodes if self.sized else _DrawnCodes
        return drawn(self.column, counts.values, counts.std, numbers.values, totals)


@dataclass
class _DrawnCodes:
    """Every code on its own, as often as its count says."""

    column: Column
    counts: np.ndarray
    std: float
    numbers: np.ndarray
    totals: Totals
    _shares: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))

    def settle(self, totals: np.ndarray) -> None:
        self._shares = prevalences(self.counts, self.numbers, totals, self.std, self.column)

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        rows, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for index, own in enumerate(self._shares):
            members = np.flatnonzero(classes == index)
            counts = rng.binomial(len(members), own)
            for code in np.flatnonzero(counts):
                rows.append(members[rng.choice(len(members), counts[code], replace=False, shuffle=False)])
                positions.append(np.full(counts[code], code))
        return {self.column.name: _lists(rows, positions, len(classes), self.column)}


@dataclass
class _DrawnSizedCodes(_DrawnCodes):
    """First how many codes a record has, then so many, by chances under which each is as frequent as its count says."""

    _sizes: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    _chances: list[np.ndarray] = field(default_factory=list)  # log chances of a class, each drawn from in turn

    def settle(self, totals: np.ndarray) -> None:
        super().settle(totals)
        self._sizes = shares_of(self.numbers, totals)
        rng = np.random.default_rng(0)  # of records that nobody sees
        self._chances = [self._settled(index, rng) for index in range(len(self._sizes))]

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        rows, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for index, chances in enumerate(self._chances):
            members = np.flatnonzero(classes == index)
            for record, codes in self._raced(index, chances, len(members), rng):
                rows.append(members[record])
                positions.append(codes)
        return {self.column.name: _lists(rows, positions, len(classes), self.column)}

    def _settled(self, index: int, rng: np.random.Generator) -> np.ndarray:
        """Log chances by which codes are included as often as their shares say: a fixed point of what is drawn."""
        with np.errstate(divide="ignore"):
            wanted = np.log(self._shares[index])
        chances, possible = wanted.copy(), np.isfinite(wanted)
        if not possible.any():
            return chances
        for _ in range(_ROUNDS):
            found = np.zeros(len(chances))
            for _, codes in self._raced(index, chances, _TRIED, rng):
                found += np.bincount(codes, minlength=len(chances))
            # How many codes there are is the numbers' to say; records that count as often as wanted keep codes that
            # are rarer than the records tried from running away.
            expected = self._shares[index] * found.sum() / self._shares[index].sum()
            chances[possible] += np.log((expected[possible] + _PRIOR) / (found[possible] + _PRIOR))
        return chances

    def _raced(self, index: int, chances: np.ndarray, count: int, rng: np.random.Generator) -> _Races:
        """Records and codes of `count` new records of a class, in blocks: (record, code) int64 each.

        Each code arrives at an exponential time of its own rate, and the first ones are taken. Source: sampling without
        replacement by exponential clocks, Efraimidis and Spirakis 2006.
        """
        edges, possible = number_edges(self.column.max_codes), int(np.isfinite(chances).sum())
        ends = np.append(edges[1:], self.column.max_codes + 1)
        bins = drawn_cells(self._sizes[index : index + 1], np.zeros(count, np.int64), rng)
        sizes = np.minimum(rng.integers(edges[bins], ends[bins]), possible)
        logits = torch.from_numpy(chances).float()
        randomness = torch.Generator().manual_seed(int(rng.integers(2**62)))
        block = max(1, _CELLS // max(1, len(chances)))
        for first in range(0, count, block):
            own = torch.from_numpy(sizes[first : first + block])
            most = int(own.max())
            times = torch.empty(len(own), len(chances)).exponential_(generator=randomness).log_()
            codes = (logits - times).topk(most, dim=1).indices
            taken = torch.arange(most) < own[:, None]
            yield first + taken.nonzero()[:, 0].numpy(), codes[taken].numpy()


def _lists(rows: list[np.ndarray], positions: list[np.ndarray], count: int, column: Column) -> pa.LargeListArray:
    sets = CodeRows.from_entries(np.concatenate(rows), np.concatenate(positions), count)
    return CodeSets(sets, vocabulary_of(column)).lists()
