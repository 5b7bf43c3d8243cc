"""A mixture of clusters of records, each with its own frequencies of codes: found by noisy rounds of EM.

It carries what many codes have to do with each other at once: illnesses, and kinds of patients.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.privacy.denoising import denoised_ratios
from dpcgan_fast.privacy.releases import code_weights, number_bins, number_edges

# Source of all: measured on the made-up table of `bench/paper/code_world.py`, 40,000 x 1,071, which suits mixtures.
_CLASS_WEIGHT = 1.5  # of a record's class, beside its codes, in what a round releases
_SHARPER = 1.5  # power of the likelihood: codes of a record come together, and are less than so many observations
_ANCHOR = 30.0  # how many times as likely its own code is in a cluster at first
_LAST_SHARE, _CLUSTER_NUMBERS_SHARE = 0.35, 0.05  # of the last round, and of the numbers of codes of each cluster
_LARGEST_RATIO = float(np.exp(4.0))
_FEWEST = 20.0  # records that a cluster counts as having
BLOCK_ROWS = 1 << 14


@dataclass(frozen=True)
class MixturePlan:
    """How much a mixture tries to find, from public facts.

    clusters, rounds: at least 1
    full:             codes of a record that weigh in full
    """

    clusters: int
    rounds: int
    full: int


@dataclass(frozen=True)
class CodeRecords:
    """Records that a mixture is made of.

    sets:    at most `most` codes each
    classes: (rows,) int64 in [0, class_count)
    weights: (rows,) float64; a unit's sum to at most 1
    """

    sets: CodeRows
    classes: np.ndarray
    weights: np.ndarray
    class_count: int
    most: int

    def blocks(self, width: int) -> "list[tuple[sparse.csr_array, slice]]":
        """Codes as (rows, width) matrices of ones, and which rows they are."""
        found, first = [], 0
        for block in self.sets.blocks(BLOCK_ROWS):
            found.append((block.matrix(width), slice(first, first + len(block))))
            first += len(block)
        return found


@dataclass(frozen=True)
class Mixture:
    """Clusters of records.

    ratios:  (clusters, vocabulary) float64, positive: how many times as likely a code is in a cluster as in all
    rates:   (class_count, clusters) float64, shares of a class's records
    numbers: (clusters, bins) float64, positive: how many times as likely a number of codes is in a cluster as in all
    """

    ratios: np.ndarray
    rates: np.ndarray
    numbers: np.ndarray

    def members(self, matrix: sparse.csr_array, classes: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """How likely each record is in each cluster: (rows, clusters) float64, rows sum to 1, or less.

        Formal guarantee: finite, and a record's sum to at most 1, whatever the clusters are: a cell that is not a
        number would tell who has which code, noise or not.
        """
        likely = self.ratios * shares
        logs = np.log(likely / likely.sum(1, keepdims=True)) - np.log(shares / shares.sum())
        found = _SHARPER * (matrix @ logs.T) + np.log(self.rates.T[:, classes].T + 1e-9)
        found = np.exp(found - found.max(1, keepdims=True))
        return np.nan_to_num(found / found.sum(1, keepdims=True), nan=0.0, posinf=0.0, neginf=0.0)


Memberships = Callable[[sparse.csr_array, slice], np.ndarray]
"""How likely each record of a block is in each cluster: codes of these rows, and which rows they are, to
(rows, clusters) float64.

Formal guarantee that each has to give: finite, not negative, and a record's sum to at most 1, whatever was released.
"""
ClusterFinder = Callable[[CodeRecords, np.ndarray, MixturePlan, Budget, float], Mixture]
"""What spends a share of the budget on clusters, as `release_mixture` does."""


def release_mixture(
    records: CodeRecords, shares: np.ndarray, plan: MixturePlan, budget: Budget, share: float
) -> Mixture:
    """Spends a share of the budget on a mixture.

    shares: (vocabulary,) positive, released: how frequent each code is
    """
    width, clusters = len(shares), plan.clusters
    ratios = np.ones((clusters, width))
    ratios[np.arange(clusters), np.argsort(-shares, kind="stable")[:clusters]] = _ANCHOR
    bins = len(number_edges(records.most))
    mixture = Mixture(ratios, np.full((records.class_count, clusters), 1 / clusters), np.ones((clusters, bins)))
    blocks = records.blocks(width)

    def members(matrix: sparse.csr_array, rows: slice) -> np.ndarray:
        return mixture.members(matrix, records.classes[rows], shares)

    of_round = (1 - _LAST_SHARE - _CLUSTER_NUMBERS_SHARE) / max(1, plan.rounds - 1)
    for number in range(plan.rounds):
        own = share * (of_round if number < plan.rounds - 1 else _LAST_SHARE)
        mixture = release_clusters(members, records, blocks, shares, plan, budget, own)
    return with_numbers(mixture, members, records, blocks, budget, share * _CLUSTER_NUMBERS_SHARE)


def release_clusters(
    members: Memberships, records: CodeRecords, blocks: list[tuple[sparse.csr_array, slice]], shares: np.ndarray,
    plan: MixturePlan, budget: Budget, share: float,
) -> Mixture:  # fmt: skip
    """Spends a share of the budget on the codes and classes of clusters; numbers of codes are as in all.

    Formal guarantee: what is released of each record are its memberships times its weighted codes and its class. A
    record's memberships sum to at most 1 and a unit's weights to at most 1, so that a unit moves it by at most
    sqrt(full + _CLASS_WEIGHT^2) in L2 norm, whatever the memberships follow from.
    """
    clusters, width = plan.clusters, len(shares)
    codes, classes = np.zeros((width, clusters)), np.zeros((records.class_count, clusters))
    for matrix, rows in blocks:
        found = members(matrix, rows) * records.weights[rows, None]
        codes += matrix.T @ (found * code_weights(np.diff(matrix.indptr), plan.full)[:, None])
        np.add.at(classes, records.classes[rows], found)
    joint = np.concatenate([codes, _CLASS_WEIGHT * classes])
    noisy = budget.release("clusters of codes", joint, float(np.sqrt(plan.full + _CLASS_WEIGHT**2)), share)
    codes, classes = noisy.values[:width].T, np.maximum(noisy.values[width:] / _CLASS_WEIGHT, _FEWEST)
    of_cluster = classes.sum(0)
    expected = of_cluster[:, None] * shares * (max(codes.sum(), 1.0) / (of_cluster.sum() * shares.sum()))
    ratios = np.maximum(denoised_ratios(codes, expected, noisy.std, _LARGEST_RATIO), 1 / _LARGEST_RATIO)
    bins = len(number_edges(records.most))
    return Mixture(ratios, classes / classes.sum(1, keepdims=True), np.ones((clusters, bins)))


def with_numbers(
    mixture: Mixture, members: Memberships, records: CodeRecords, blocks: list[tuple[sparse.csr_array, slice]],
    budget: Budget, share: float,
) -> Mixture:  # fmt: skip
    """The mixture with numbers of codes of each cluster, on which a share of the budget is spent.

    Formal guarantee: a unit moves these by at most 1 in L2 norm.
    """
    counts = np.zeros(mixture.numbers.T.shape)
    for matrix, rows in blocks:
        found = members(matrix, rows) * records.weights[rows, None]
        np.add.at(counts, number_bins(np.diff(matrix.indptr), records.most), found)
    noisy = budget.release("numbers of codes of clusters", counts.T, 1.0, share)
    of_all = np.maximum(noisy.values.sum(0), 1.0)
    expected = np.maximum(noisy.values.sum(1), _FEWEST)[:, None] * (of_all / of_all.sum())
    return replace(mixture, numbers=denoised_ratios(noisy.values, expected, noisy.std, _LARGEST_RATIO))
