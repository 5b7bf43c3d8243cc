"""How often two codes occur together: noisy counts."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.code_mixture import BLOCK_ROWS, CodeRecords
from dpcgan_fast.data.code_rows import CodeRows
from dpcgan_fast.privacy.releases import code_weights


def pair_weights(counts: np.ndarray, full: int) -> np.ndarray:
    """Weight of each record's pairs, (N,): 1 for up to `full` pairs, and less the more there are.

    counts: (N,) codes of each record
    Formal guarantee: a record's weighted pairs, each in a cell of its own, have an L2 norm of at most sqrt(full).
    Weights are those of `code_weights`, of pairs in the place of codes.
    """
    return code_weights(counts * (counts - 1.0) / 2, full)


@dataclass(frozen=True)
class PairCounts:
    """Noisy weighted numbers of records that have two codes.

    codes:  (d,) int64, positions of the codes in the vocabulary
    values: (d, d) float64, symmetric, 0 on the diagonal
    std:    of the noise of each
    full:   pairs of a record that weigh in full
    """

    codes: np.ndarray
    values: np.ndarray
    std: float
    full: int


def release_pairs(records: CodeRecords, codes: np.ndarray, full: int, budget: Budget, share: float) -> PairCounts:
    """Spends a share of the budget on all pairs of some codes. codes: (d,) int64, chosen by what was released."""
    upper = np.triu_indices(len(codes), 1)
    counted = pair_counts(records.sets, codes, records.weights, full)[upper]
    noisy = budget.release("pairs of codes", counted, float(np.sqrt(full)), share)
    values = np.zeros((len(codes), len(codes)))
    values[upper] = noisy.values
    return PairCounts(codes, values + values.T, noisy.std, full)


def pair_counts(sets: CodeRows, codes: np.ndarray, weights: np.ndarray, full: int) -> np.ndarray:
    """Weighted number of records that have both of two codes: (d, d) float64, symmetric, 0 on the diagonal.

    weights: (rows,); a record's pairs weigh by `pair_weights` of how many of the codes it has
    """
    counts, first = np.zeros((len(codes), len(codes))), 0
    for block in sets.blocks(BLOCK_ROWS):
        own = code_matrix(block, codes)
        weighted = pair_weights(np.diff(own.indptr), full) * weights[first : first + len(block)]
        counts += (own.T @ (own.multiply(weighted[:, None])).tocsr()).toarray()
        first += len(block)
    np.fill_diagonal(counts, 0.0)
    return counts


def code_matrix(sets: CodeRows, codes: np.ndarray) -> sparse.csr_array:
    """Which of the codes each record has: (rows, d) of ones. codes: (d,) int64, positions in the vocabulary"""
    width = int(max(codes.max(initial=0), sets.positions.max(initial=0))) + 1
    return sets.matrix(width)[:, codes]
