"""Which codes a record has, given how many, its class and its cluster: chances under which each is frequent enough."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dpcgan_fast.baselines.histograms import drawn_cells, drawn_within
from dpcgan_fast.privacy.releases import code_weights, number_edges

_TURNS, _SPARE_DRAWS = 6, 4  # of draws for all records, and draws more than twice as many as are missing
_ROUNDS = 16  # by what a race gives on average
_NEWTON_STEPS = 6
_LARGEST_STEP = 2.0  # of a logarithm in one round
_RACED_ROUNDS, _RACED = 3, 16384  # and records of each
_CLEAR_COUNT = 400.0  # raced: of a count so large, half of what it is off by is believed
_MOST_SCALED = 2.0
_RARE_KIND = 1e-5  # a smaller share of a class's records is left out while chances are settled
_TINY = 1e-12


@dataclass(frozen=True)
class CodeKinds:
    """Kinds of records: clusters, and how many codes a record has.

    sizes:  (class_count, clusters, bins) float64, the share of a class's records that are in a cluster and whose number
            of codes is in a bin, see `number_edges`; each class's sum to 1
    ratios: (clusters, vocabulary) float32, positive: how many times as likely a code is in a cluster
    within: (class_count, numbers) float64, the share of the records of a bin that have each number of codes, from 0 to
            the most that a record has
    """

    sizes: np.ndarray
    ratios: np.ndarray
    within: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """First number of each bin, and the number after the last one."""
        count = self.within.shape[1]
        return np.append(number_edges(count - 1), count)

    def inclusions(self, index: int, chances: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, Tensor]]:
        """Of each bin: its mean number, the shares of the clusters with it, and how likely a record has each code.

        index:   of the class; chances: (vocabulary,) logarithms, -inf for a code that never occurs
        Yields (mean number, (clusters,) float64, (clusters, vocabulary) float32); clusters and bins that hardly occur
        are left out.
        """
        weights = torch.from_numpy(np.exp(chances)).float() * torch.from_numpy(self.ratios)
        possible = float((weights[0] > 0).sum())
        weights /= weights.sum(1, keepdim=True)
        means = np.add.reduceat(self.within[index] * np.arange(self.within.shape[1]), self.edges[:-1])
        for column, mean in enumerate(np.minimum(means, possible)):
            used = np.flatnonzero(self.sizes[index, :, column] > _RARE_KIND)
            if mean > 0 and len(used):
                yield mean, self.sizes[index, used, column], _included(weights[used], float(mean), possible)

    def frequencies(self, index: int, chances: np.ndarray, full: int) -> np.ndarray:
        """Share of the records of a class that have each code, about, each record with its weight: (vocabulary,).

        index, chances: as for `inclusions`; full: codes of a record that weigh in full
        """
        found = np.zeros(len(chances))
        for mean, of_clusters, included in self.inclusions(index, chances):
            found += code_weights(np.array([mean]), full) * (of_clusters @ included.double().numpy())
        return found


def _included(weights: Tensor, count: float, possible: float) -> Tensor:
    """How likely each code is among the first `count`, about: (clusters, vocabulary). weights: rows sum to 1.

    1 - exp(-t w) at the time t by which so many have arrived on average.
    """
    if count >= possible:
        return (weights > 0).float()
    time = torch.full((len(weights), 1), count)
    for _ in range(_NEWTON_STEPS):  # from below: the number that has arrived is concave in time
        waiting = torch.exp(-time * weights)
        rate = (weights * waiting).sum(1, keepdim=True).clamp_min(1e-9)
        time = time + (count - (1 - waiting).sum(1, keepdim=True)) / rate
    return 1 - torch.exp(-time * weights)


def within_bins(shares: np.ndarray, most: int) -> np.ndarray:
    """Shares of the numbers of codes within their bins, (numbers,), from those of the bins: (bins,).

    The logarithm of how frequent a number is runs straight between the middles of the bins; each bin's sum to 1.
    """
    edges, numbers = np.append(number_edges(most), most + 1), np.arange(most + 1)
    middles, widths = (edges[1:] + edges[:-1] - 1) / 2, np.diff(edges)
    logs = np.interp(numbers, middles, np.log(np.maximum(shares / widths, _TINY)))
    dense = np.exp(logs - logs.max())
    return dense / np.repeat(np.add.reduceat(dense, edges[:-1]), widths)


@dataclass(frozen=True)
class WantedCodes:
    """How frequent codes are to be: (class_count, vocabulary) each.

    shares: of a class's rows, each row with its weight, see `code_weights`
    sure:   whether a share is hardly noise; the others are scaled to what the numbers of codes say there are in all
    full:   codes of a record that weigh in full
    """

    shares: np.ndarray
    sure: np.ndarray
    full: int

    def of_class(self, index: int, total: float) -> np.ndarray:
        """Shares that add up to a total, but where sure ones alone are more or much less than that."""
        own, sure = self.shares[index], self.sure[index]
        sure = sure if (own[~sure] > 0).any() else np.zeros_like(sure)
        scale = (total - own[sure].sum()) / max(own[~sure].sum(), _TINY)
        return np.minimum(np.where(sure, own, own * np.clip(scale, 1 / _MOST_SCALED, _MOST_SCALED)), 1.0)


def settled_chances(kinds: CodeKinds, wanted: WantedCodes, rng: np.random.Generator) -> np.ndarray:
    """Log chances, (class_count, vocabulary), under which codes are as frequent in each class as is wanted.

    By what a race gives on average, about; then frequent codes by what some races gave, of records that nobody sees.
    """
    chances = np.full(wanted.shares.shape, -np.inf)
    for index, own in enumerate(wanted.shares):
        possible = own > _TINY
        if not possible.any():
            continue
        chances[index, possible] = np.log(own[possible])
        for _ in range(_ROUNDS):
            found = kinds.frequencies(index, chances[index], wanted.full)
            goal = wanted.of_class(index, found.sum())
            step = np.log(goal[possible] / np.maximum(found[possible], _TINY))
            chances[index, possible] += np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        for turn in range(_RACED_ROUNDS):
            step = _raced_step(kinds, chances, wanted, index, rng)[possible] / (1 + turn)
            chances[index, possible] += np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
    return chances


def _raced_step(
    kinds: CodeKinds, chances: np.ndarray, wanted: WantedCodes, index: int, rng: np.random.Generator
) -> np.ndarray:  # fmt: skip
    """By how much each code's chance is to rise, of which the less is believed the rarer it was: (vocabulary,)."""
    drawn = raced(kinds, chances, np.full(_RACED, index), rng)
    weights = code_weights(np.bincount(drawn.rows, minlength=_RACED), wanted.full)
    found = np.bincount(drawn.positions, weights[drawn.rows], minlength=chances.shape[1])
    goal = wanted.of_class(index, found.sum() / _RACED) * _RACED
    return np.log((goal + _TINY) / (found + _TINY)) * found / (found + _CLEAR_COUNT)


@dataclass(frozen=True)
class DrawnCodes:
    """Codes of new records: rows and positions (entries,) int64, and the cluster of each record (rows,) int64."""

    rows: np.ndarray
    positions: np.ndarray
    clusters: np.ndarray


def raced(kinds: CodeKinds, chances: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> DrawnCodes:
    """Clusters, numbers and codes of new records of these classes, (rows,) int64.

    A record's codes are drawn one after another, in proportion to their weights in its class and cluster, until it has
    as many different ones as it should: what is drawn again does not count.
    """
    kind = drawn_cells(kinds.sizes.reshape(len(kinds.sizes), -1), classes, rng)
    clusters, found = np.divmod(kind, kinds.sizes.shape[2])
    possible = np.isfinite(chances).sum(1)
    numbers = drawn_within(kinds.within, kinds.edges, found, rng.random(len(classes)), classes)
    numbers = np.minimum(numbers, possible[classes])
    order = np.lexsort((clusters, classes))
    same = classes[order] * len(kinds.ratios) + clusters[order]
    rows, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for own in np.split(order, np.flatnonzero(np.diff(same)) + 1):
        if len(own):
            weights = np.exp(chances[classes[own[0]]]) * kinds.ratios[clusters[own[0]]]
            records, codes = _different(weights, numbers[own], rng)
            rows.append(own[records])
            positions.append(codes)
    return DrawnCodes(np.concatenate(rows), np.concatenate(positions), clusters)


def _different(weights: np.ndarray, numbers: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """So many different codes of each record: records and codes, (entries,) int64 each.

    weights: (vocabulary,), at least as many positive ones as the largest of numbers, (records,)
    """
    ends, width = np.cumsum(weights), len(weights)
    keys, missing = np.empty(0, np.int64), numbers  # keys: record * width + code, of what was found
    if not numbers.any():
        return keys, keys
    for _ in range(_TURNS):
        count = np.where(missing > 0, 2 * missing + _SPARE_DRAWS, 0)
        records = np.repeat(np.arange(len(numbers)), count)
        codes = np.searchsorted(ends, rng.random(len(records)) * ends[-1], side="right")
        keys = _first_ones(np.concatenate([keys, records * width + np.minimum(codes, width - 1)]), numbers, width)
        missing = numbers - np.bincount(keys // width, minlength=len(numbers))
        if not missing.any():
            return np.divmod(keys, width)
    return np.divmod(np.concatenate([keys, _others(weights, keys, missing, rng)]), width)


def _first_ones(keys: np.ndarray, numbers: np.ndarray, width: int) -> np.ndarray:
    """The first so many different keys of each record, in the order in which they were drawn."""
    _, first = np.unique(keys, return_index=True)
    keys = keys[np.sort(first)]
    records = keys // width
    keys = keys[np.argsort(records, kind="stable")]
    counts = np.bincount(records, minlength=len(numbers))
    place = np.arange(len(keys)) - np.repeat(np.cumsum(counts) - counts, counts)
    return keys[place < np.repeat(numbers, counts)]


def _others(weights: np.ndarray, keys: np.ndarray, missing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Keys of the codes that records still miss, where those that they have are nearly all that is ever drawn.

    Each of the others arrives at an exponential time of its own rate, and the first ones are taken, which is the same
    as drawing them in turn. Source: Efraimidis and Spirakis 2006.

    keys: those that records have, record after record
    """
    width, found = len(weights), [np.empty(0, np.int64)]
    records, codes = np.divmod(keys, width)
    starts = np.searchsorted(records, np.arange(len(missing) + 1))
    with np.errstate(divide="ignore"):
        for record in np.flatnonzero(missing):
            times = rng.exponential(size=width) / weights
            times[codes[starts[record] : starts[record + 1]]] = np.inf
            found.append(record * width + np.argpartition(times, missing[record] - 1)[: missing[record]])
    return np.concatenate(found)
