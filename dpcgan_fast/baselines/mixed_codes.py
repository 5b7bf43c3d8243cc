"""The part of codes that have to do with each other: how many a record has, clusters of records, and pairs of codes.

Source: the mixture is a multinomial one, found by EM with Gaussian noise as in Park et al., arXiv 1605.06995. Numbers
first, counts of pairs and their repair are our own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.code_drawing import CodeDrawing
from dpcgan_fast.baselines.code_mixture import ClusterFinder, CodeRecords, Mixture, MixturePlan, release_mixture
from dpcgan_fast.baselines.code_pairs import PairCounts, release_pairs
from dpcgan_fast.baselines.code_races import CodeKinds, WantedCodes, settled_chances, within_bins
from dpcgan_fast.baselines.code_repair import find_repair
from dpcgan_fast.baselines.codes import CodeCounts, capped_codes, entries_of, release_counts, release_numbers
from dpcgan_fast.baselines.parts import SETTLED, Totals
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.code_rows import CodeRows, CodeSets
from dpcgan_fast.data.public_cells import vocabulary_of
from dpcgan_fast.data.schema import Column
from dpcgan_fast.ops import native_module
from dpcgan_fast.privacy.releases import FULL_WEIGHT_CODES

_NUMBERS_SHARE = 0.08  # of the budget, for how many codes a record has: what pairs there are goes by its square
# Of records, that a code counts as having while clusters are looked for; among 40,000 less than one.
_LEAST_PREVALENCE = 2e-5
_MOST_PAIRED = 1500  # codes, the most frequent ones, whose pairs are counted: 18 MB
_LEAST_CLUSTER = 250  # units that a cluster has on average at least
_SIMULATED = 50_000  # records by which a model's pairs are found
_ENTRIES = 1 << 22  # codes in all records that clusters and pairs are looked for in; of more records some are drawn
_FITTING_ROUNDS, _TINY = 10, 1e-30  # of clusters and numbers to how frequent both are; no division by nothing
_LEAST, _MEASURED = 6_000.0, 10_000.0  # strength below which counts take all; that of 40,000 units at epsilon 1


@dataclass(frozen=True)
class CodesPlan:
    """How the budget is spent on codes.

    counts, pairs: shares of it; the mixture has the rest
    """

    counts: float
    pairs: float
    mixture: MixturePlan
    full_pairs: int

    @classmethod
    def of(cls, units: float, noise_multiplier: float, vocabulary: int) -> "CodesPlan | None":
        """By the strength of what can be found: released units over the noise of a count of sensitivity 1.

        None where it is too weak for anything but counts. Source: fitted to what was best on the made-up table of
        `bench/paper/code_world.py`, 40,000 x 1,071 codes at four epsilons, and on 10,000 of its rows.
        """
        strength = min(units / max(noise_multiplier, 1e-9), 40 * _MEASURED)
        if strength < _LEAST or vocabulary < 2:
            return None
        times = strength / _MEASURED
        counts = max(0.2, 0.3 * times**-0.3)
        mixture = min(0.4, 0.3 * times**0.08)
        clusters = int(min(20 * times**0.35, units / _LEAST_CLUSTER, vocabulary))
        plan = MixturePlan(max(1, clusters), round(9 * times**0.13), round(5 * times**0.36))
        return cls(counts, 1 - counts - mixture, plan, round(35 * times**0.5))


@dataclass
class MixedCodes:
    """mixed: whether there are clusters and pairs, where the data are enough for these; else counts alone

    clusters: what finds them
    """

    column: Column
    mixed: bool
    weight: float = 1.0 + FULL_WEIGHT_CODES
    clusters: ClusterFinder = release_mixture

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnMixedCodes":
        """Numbers of codes first, for by them is chosen what the rest is spent on."""
        if self.mixed:
            native_module()  # which moves codes: refused before anything is paid for
        column, sets = self.column, capped_codes(rows, self.column)
        numbers = release_numbers(rows, sets, column, budget, share * _NUMBERS_SHARE)
        left, rate = share * (1 - _NUMBERS_SHARE), min(1.0, _ENTRIES / entries_of(numbers.values, column))
        units = max(1.0, float(numbers.values.sum())) * rate
        plan = CodesPlan.of(units, budget.std(1.0, left), len(vocabulary_of(column))) if self.mixed else None
        of_counts = left if plan is None else left * plan.counts
        counts = release_counts(rows, sets, column, budget, of_counts)
        found = CodeCounts(column, numbers.values, numbers.std, counts.values, counts.std)
        if plan is None:
            return _DrawnMixedCodes(column, found)
        records = _looked_at(rows, sets, column, budget.some_of(len(sets), rate))
        totals = np.maximum(found.totals.values, 1.0)
        shares = np.maximum(totals / totals.sum() @ found.prevalences(totals), _LEAST_PREVALENCE)
        of_pairs = left * plan.pairs
        mixture = self.clusters(records, shares, plan.mixture, budget, left - of_counts - of_pairs)
        codes = np.sort(np.argsort(-shares, kind="stable")[:_MOST_PAIRED])
        pairs = release_pairs(records, codes, plan.full_pairs, budget, of_pairs)
        return _DrawnMixedCodes(column, found, mixture, pairs, rate)

    def restored(self, arrays: Mapping[str, np.ndarray]) -> "_DrawnMixedCodes":
        """See `parts.KeptPart`."""
        drawing = CodeDrawing.of_arrays(arrays, len(vocabulary_of(self.column)), self.column.max_codes)
        return _DrawnMixedCodes(self.column, drawing=drawing)


def _looked_at(rows: Rows, sets: CodeRows, column: Column, kept: np.ndarray | None) -> CodeRecords:
    """The records that clusters and pairs are looked for in: those at some places, or all."""
    if kept is None:
        return CodeRecords(sets, rows.classes, rows.weights, rows.class_count, column.max_codes)
    return CodeRecords(sets.take(kept), rows.classes[kept], rows.weights[kept], rows.class_count, column.max_codes)


@dataclass
class _DrawnMixedCodes:
    """counts, mixture and pairs are what was released, these two of a record with a chance of `rate`, and None where
    people are few for the noise; drawing is what they were settled to.
    """

    column: Column
    counts: CodeCounts | None = None
    mixture: Mixture | None = None
    pairs: PairCounts | None = None
    rate: float = 1.0
    drawing: CodeDrawing | None = None

    @property
    def totals(self) -> Totals:
        return SETTLED if self.counts is None else self.counts.totals

    def settle(self, totals: np.ndarray) -> None:
        assert self.counts is not None
        kinds = self._kinds(self.counts.number_shares())
        wanted = WantedCodes(self.counts.weighted_shares(totals), self.counts.sure(), FULL_WEIGHT_CODES)
        rng = np.random.default_rng(0)  # of records that nobody sees
        chances = settled_chances(kinds, wanted, rng)
        self.drawing = CodeDrawing(kinds, chances)
        if self.pairs is not None:
            classes = rng.choice(len(totals), size=_SIMULATED, p=totals / totals.sum())
            model = self.drawing.records(classes, rng)
            frequencies = np.array([kinds.frequencies(i, own, self.column.max_codes) for i, own in enumerate(chances)])
            repair = find_repair(self.pairs, float(totals.sum()) * self.rate, model, frequencies)
            self.drawing = replace(self.drawing, repair=repair)

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        assert self.drawing is not None
        return {self.column.name: CodeSets(self.drawing.draw(classes, rng), vocabulary_of(self.column)).lists()}

    def arrays(self) -> dict[str, np.ndarray]:
        """See `parts.KeptDrawn`."""
        assert self.drawing is not None
        return self.drawing.arrays()

    def _kinds(self, numbers: np.ndarray) -> CodeKinds:
        """numbers: (class_count, bins), shares of a class's records by how many codes they have"""
        within = np.array([within_bins(own, self.column.max_codes) for own in numbers])
        if self.mixture is None:
            width = len(vocabulary_of(self.column))
            return CodeKinds(numbers[:, None], np.ones((1, width), np.float32), within)
        rates = self.mixture.rates[:, :, None]
        sizes = rates * self.mixture.numbers * numbers[:, None]
        for _ in range(_FITTING_ROUNDS):  # to both margins; the numbers of codes, which are surer, last
            sizes *= rates / np.maximum(sizes.sum(2, keepdims=True), _TINY)
            sizes *= numbers[:, None] / np.maximum(sizes.sum(1, keepdims=True), _TINY)
        return CodeKinds(sizes, self.mixture.ratios.astype(np.float32), within)


def counts_alone(drawn: object) -> bool:
    """Whether a part that was just released is codes of people who were too few for clusters and pairs."""
    return isinstance(drawn, _DrawnMixedCodes) and drawn.mixture is None
