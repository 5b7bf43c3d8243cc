"""The yardstick for codes: each drawn on its own, as often as a noisy count of its class says.

What is counted, and how a unit's part is bounded, is as in the release that the model itself makes of codes.
"""

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.code_rows import CodeRows, CodeSets
from dpcgan_fast.data.schema import Column
from dpcgan_fast.evaluate.code_columns import code_sets, vocabulary_of
from dpcgan_fast.privacy.denoising import denoised_counts
from dpcgan_fast.privacy.releases import (
    FULL_WEIGHT_CODES,
    code_weights,
    lost_to_weights,
    number_bins,
    number_edges,
)


def weighted_counts(
    table: pa.Table, column: Column, classes: np.ndarray, weights: np.ndarray, class_count: int
) -> np.ndarray:
    """Weighted number of rows of each class that have each code: (classes, vocabulary) float64.

    classes, weights: (rows,) of each row
    Of a row at most max_codes count, and those of one with more than FULL_WEIGHT_CODES weigh less, so that a row of
    weight 1 moves the counts by at most sqrt(FULL_WEIGHT_CODES) in L2 norm.
    """
    rows = _capped(table, column)
    weights = weights * code_weights(np.diff(rows.starts), FULL_WEIGHT_CODES)
    return rows.weighted_counts(len(vocabulary_of(column)), weights, classes, class_count)


def number_histogram(
    table: pa.Table, column: Column, classes: np.ndarray, weights: np.ndarray, class_count: int
) -> np.ndarray:
    """Weighted number of rows of each class by how many codes they have: (classes, bins), see `number_edges`."""
    width = len(number_edges(column.max_codes))
    bins = number_bins(np.diff(_capped(table, column).starts), column.max_codes)
    return np.bincount(classes * width + bins, weights, minlength=class_count * width).reshape(class_count, width)


def prevalences(
    counts: np.ndarray, numbers: np.ndarray, totals: np.ndarray, std: float, column: Column
) -> np.ndarray:  # fmt: skip
    """Share of the rows of each class that have each code, from noisy counts: (classes, vocabulary) in [0, 1].

    counts, numbers: from `weighted_counts` and `number_histogram`, with noise of this standard deviation
    totals:          (classes,) noisy number of rows
    """
    edges = number_edges(column.max_codes)
    shares = []
    for own, records, total in zip(counts, numbers, totals, strict=True):
        lost = lost_to_weights(records, edges, column.max_codes, FULL_WEIGHT_CODES)
        shares.append(np.minimum(1.0, denoised_counts(own, std) * lost / max(total, 1.0)))
    return np.array(shares)


def independent_codes(
    shares: np.ndarray, classes: np.ndarray, column: Column, rng: np.random.Generator
) -> pa.LargeListArray:  # fmt: skip
    """A set of codes for each row of these classes (rows,), every code on its own, as often as the shares say."""
    rows, positions = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for index, own in enumerate(shares):
        members = np.flatnonzero(classes == index)
        counts = rng.binomial(len(members), own)
        for code in np.flatnonzero(counts):
            rows.append(members[rng.choice(len(members), counts[code], replace=False, shuffle=False)])
            positions.append(np.full(counts[code], code))
    sets = CodeRows.from_entries(np.concatenate(rows), np.concatenate(positions), len(classes))
    return CodeSets(sets, vocabulary_of(column)).lists()


def _capped(table: pa.Table, column: Column) -> CodeRows:
    """Each row's codes as training uses them."""
    return code_sets(table, column).capped(column.max_codes, vocabulary_of(column))
