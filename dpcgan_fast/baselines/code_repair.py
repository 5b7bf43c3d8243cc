"""What a model of records does not explain of the pairs of codes, mended by moving codes between records."""

from dataclasses import dataclass, replace

import numpy as np

from dpcgan_fast.baselines.code_pairs import PairCounts, code_matrix, pair_counts, pair_weights
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.ops import native_module

_CLEAR = 4.5  # standard deviations of its noise that a pair must be off by to be mended
_WORTH = 2.0  # standard deviations of its noise and of how drawing varies it, together, that it must be off by too
_LEAST_STD = 1.0  # records: without noise, what is less is chance
_MOST_PAIRS = 8000  # that are found at a time
_CLEAR_COUNT = 400.0  # of a count so large, half of what was drawn is believed
_SWEEPS = 3  # over all pairs, each time that records are mended
_LOOKS = 3  # at the pairs, with those mended that were found


@dataclass(frozen=True)
class ModelRecords:
    """Records that a model drew, (rows,) each but the sets. ratios: (clusters, vocabulary) float32"""

    sets: CodeRows
    classes: np.ndarray
    clusters: np.ndarray
    ratios: np.ndarray

    def held(self, width: int, class_count: int) -> np.ndarray:
        """How many records of each class have each code: (class_count, width or more) float64."""
        width = max(width, int(self.sets.positions.max(initial=0)) + 1)
        return self.sets.weighted_counts(width, np.ones(len(self.sets)), self.classes, class_count)


@dataclass(frozen=True)
class PairRepair:
    """Pairs of codes that a model draws too often or too seldom, and how often they should come.

    counted:       (c,) int64, positions in the vocabulary of all codes whose pairs were counted
    codes:         (d,) int64, of those that are in a pair
    first, second: (pairs,) int64 in [0, d): a pair's rarer code, and the one that is moved
    shares:        (pairs, class_count) float64 in [0, 1], weight of the pair by record of a class that has its rarer
                   code, so that more are to have both where by chance more have that one
    full:          pairs of a record that weigh in full
    """

    counted: np.ndarray
    codes: np.ndarray
    first: np.ndarray
    second: np.ndarray
    shares: np.ndarray
    full: int

    def check(self, class_count: int, vocabulary: int) -> None:
        """Raises ValueError if it does not fit the classes and the vocabulary."""
        places = [(self.counted, vocabulary), (self.codes, vocabulary)]
        places += [(self.first, len(self.codes)), (self.second, len(self.codes))]
        if any(own.ndim != 1 or ((own < 0) | (own >= end)).any() for own, end in places):
            raise ValueError("Expected positions of codes that there are.")
        if self.shares.shape != (len(self.first), class_count) or len(self.first) != len(self.second):
            raise ValueError("Expected two codes, and a weight in each class, of each pair.")
        if not (((self.shares >= 0) & (self.shares <= 1)).all() and self.full >= 1):
            raise ValueError("Expected weights of pairs from 0 to 1.")

    def mended(self, drawn: ModelRecords, seed: int, sweeps: int = _SWEEPS) -> CodeRows:
        """The records with codes moved between those of a class, so that the pairs come as often as they should.

        Each code stays as frequent in each class as it was.
        """
        sets = drawn.sets
        if not len(self.first):
            return sets
        found = code_matrix(sets, self.codes)
        has = np.ascontiguousarray(found.toarray().T.astype(np.uint8))
        counts = np.diff(code_matrix(sets, self.counted).indptr)
        rarer = drawn.held(int(self.codes.max()) + 1, self.shares.shape[1])[:, self.codes[self.first]].T
        native_module().swap_codes(
            has, drawn.classes, drawn.clusters, pair_weights(counts, self.full),
            np.diff(sets.starts).astype(np.float64), np.ascontiguousarray(drawn.ratios[:, self.codes]),
            self.first, self.second, np.ascontiguousarray(self.shares * rarer), sweeps, seed,
        )  # fmt: skip
        touched = np.zeros(int(max(self.codes.max(), sets.positions.max(initial=0))) + 1, bool)
        touched[self.codes] = True
        rest = ~touched[sets.positions]
        code, record = np.nonzero(has)
        rows = np.concatenate([sets.row_of_entry()[rest], record])
        return CodeRows.from_entries(rows, np.concatenate([sets.positions[rest], self.codes[code]]), len(sets))


def find_repair(counts: PairCounts, units: float, drawn: ModelRecords, frequencies: np.ndarray) -> PairRepair:
    """The pairs that a model's records have clearly more or less often than was counted; post-processing.

    units:       that were counted, about
    drawn:       by the model, of classes as frequent as they are
    frequencies: (class_count, vocabulary) float64, the share of a class's records that the model gives each code
    Pairs are mended in the records, and looked at again, for whoever mends one pair changes others. What a pair is off
    by is taken less for true the nearer it is to the noise (James and Stein 1961).
    """
    codes, scale, std = counts.codes, units / len(drawn.sets), max(counts.std, _LEAST_STD)
    upper, class_count = np.triu_indices(len(codes), 1), len(frequencies)
    found: dict[tuple[int, int], tuple[float, np.ndarray]] = {}
    members = np.bincount(drawn.classes, minlength=class_count)
    expected = _expected(frequencies * members[:, None], drawn)[:, codes]
    sets = drawn.sets
    for turn in range(_LOOKS):
        parts = [sets.take(np.flatnonzero(drawn.classes == index)) for index in range(class_count)]
        of_class = [pair_counts(part, codes, np.ones(len(part)), counts.full) for part in parts]
        held = np.array([code_matrix(part, codes).sum(0) for part in parts])
        current = np.sum(of_class, axis=0)
        off = (counts.values - scale * current)[upper]
        chance = np.sqrt(std**2 + scale**2 * current[upper] / 2)
        clear = np.flatnonzero((np.abs(off) > _CLEAR * std) & (np.abs(off) > _WORTH * chance))
        clear = clear[np.argsort(-np.abs(off[clear]), kind="stable")][:_MOST_PAIRS]
        new = False
        for place in clear:
            first, second = int(upper[0][place]), int(upper[1][place])
            if held[:, first].sum() > held[:, second].sum():
                first, second = second, first
            if (first, second) in found or (second, first) in found:
                continue
            new = True
            both = np.array([own[first, second] for own in of_class])
            shift = off[place] * (1 - (std / off[place]) ** 2) / scale
            able = np.maximum(held[:, first] - both, 0.0) if shift > 0 else both
            wanted = both + shift * able / max(able.sum(), 1e-9)
            found[first, second] = abs(off[place]), np.clip(wanted / np.maximum(expected[:, first], 1e-9), 0.0, 1.0)
        if not new:
            break
        if turn < _LOOKS - 1:
            sets = _repair_of(found, counts, class_count).mended(replace(drawn, sets=sets), turn, 1)
    return _repair_of(found, counts, class_count)


def _expected(counts: np.ndarray, drawn: ModelRecords) -> np.ndarray:
    """How often the model gives each code to so many records as it drew: (class_count, vocabulary) float64.

    counts: the same, about, by the model; of those that are large, what was drawn says more
    """
    return counts * (drawn.held(counts.shape[1], len(counts)) + _CLEAR_COUNT) / (counts + _CLEAR_COUNT)


def _repair_of(
    found: dict[tuple[int, int], tuple[float, np.ndarray]], counts: PairCounts, class_count: int
) -> PairRepair:  # fmt: skip
    """Pairs that are farthest off come last, so that what is done for others does not undo them."""
    listed = sorted(found.items(), key=lambda item: (item[1][0], item[0]))
    places = np.array([pair for pair, _ in listed], np.int64).reshape(-1, 2)
    shares = np.array([own for _, (_, own) in listed]).reshape(-1, class_count)
    used, renamed = np.unique(places, return_inverse=True)
    first, second = np.ascontiguousarray(renamed.reshape(-1, 2).T)
    return PairRepair(counts.codes, counts.codes[used], first, second, shares, counts.full)
