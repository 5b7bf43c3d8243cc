"""How far a synthetic table is from real rows: single columns, pairs of columns, and all columns at once."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.public_cells import cell_shares, modelled_columns, sample_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.features import encode
from dpcgan_fast.evaluate.joint_cells import joint_tv_mean
from dpcgan_fast.evaluate.two_sample import c2st, c2st_by_learner

CORRELATION_ROWS = 50_000
CORRELATION_FEATURES = 2_000
MIN_PAIRS = 20
ROUNDING = 1e-9  # a smaller relative spread is that of rounding: the column is constant


@dataclass(frozen=True)
class Fidelity:
    """Distances between two tables; all are smaller the closer the tables are.

    marginal_tv_mean: mean over the columns of the total variation distance of their public cells, in [0, 1]
    correlation_mae:  mean absolute difference of the pairwise correlations of the encoded columns, in [0, 2]
    pairs_tv_mean:    mean over pairs of columns of the total variation distance of their joint cells, in [0, 1]
    triples_tv_mean:  the same over triples; each None where columns are fewer (see `joint_cells.joint_tv_mean`)
    c2st:             AUROC of a classifier that tells the tables apart; 0.5: it cannot
    c2st_binned:      the same on public cells, blind to how finely numbers are written; None without enough rows
    c2st_by:          c2st by each of several classifiers, "gb" being c2st; None without enough rows
    marginal_tv:      total variation distance of each column
    """

    marginal_tv_mean: float
    correlation_mae: float
    pairs_tv_mean: float | None
    triples_tv_mean: float | None
    c2st: float | None
    c2st_binned: float | None
    c2st_by: dict[str, float] | None
    marginal_tv: dict[str, float]


def fidelity(table: pa.Table, real: pa.Table, schema: Schema) -> Fidelity:
    """All distances of a table from real rows. Raises InputError if a table does not fit the schema."""
    per_column = marginal_tv(table, real, schema)
    matrix, real_matrix = (correlations(t, schema)[0] for t in (table, real))
    told_apart = c2st_by_learner(table, real, schema)
    return Fidelity(
        marginal_tv_mean=float(np.mean(list(per_column.values()))),
        correlation_mae=correlation_mae(matrix, real_matrix),
        pairs_tv_mean=joint_tv_mean(table, real, schema, 2),
        triples_tv_mean=joint_tv_mean(table, real, schema, 3),
        c2st=None if told_apart is None else told_apart["gb"],
        c2st_binned=c2st(table, real, schema, binned=True),
        c2st_by=told_apart,
        marginal_tv=per_column,
    )


def marginal_tv(table: pa.Table, real: pa.Table, schema: Schema) -> dict[str, float]:
    """Total variation distance, column by column, between the shares of the public cells; 1 for a table without rows.

    The cells of a numeric column are 20 bins of equal width between the schema's bounds and one cell for missing; those
    of other columns are the schema's categories and missing.
    """
    if table.num_rows == 0:
        return {column.name: 1.0 for column in modelled_columns(schema)}
    return {
        column.name: float(np.abs(cell_shares(table, column) - cell_shares(real, column)).sum() / 2)
        for column in modelled_columns(schema)
    }


def correlations(table: pa.Table, schema: Schema) -> tuple[np.ndarray, tuple[str, ...]]:
    """Pearson correlations of the encoded columns, and the features' names.

    Returns (features, features) float64 in [-1, 1]. A pair is computed on the rows where both are present; a constant
    column, or fewer than 20 such rows, counts as correlation 0. At most 50,000 rows and 2,000 features, evenly spaced,
    are used.
    """
    encoded = encode(sample_of(table, CORRELATION_ROWS), schema)
    features = encoded.values.shape[1]
    kept = np.unique(np.linspace(0, features - 1, min(features, CORRELATION_FEATURES)).astype(int))
    return pairwise_correlations(encoded.values[:, kept]), tuple(encoded.names[index] for index in kept)


def pairwise_correlations(values: np.ndarray) -> np.ndarray:
    """Pearson correlation of every pair of columns over the rows where both are present (see `correlations`).

    values: (rows, features) float64, NaN where missing
    """
    present = ~np.isnan(values)
    mask = present.astype(np.float64)
    counts = np.maximum(mask.sum(axis=0), 1)
    largest = np.abs(np.where(present, values, 0.0)).max(axis=0, initial=0.0)
    # Scaled and centred columns keep the sums below small, so that a large mean does not cost digits.
    scaled = np.where(present, values, 0.0) / np.where(largest > 0, largest, 1.0)
    centred = np.where(present, scaled - scaled.sum(axis=0) / counts, 0.0)
    spread = np.sqrt((centred**2).sum(axis=0) / counts)
    centred = np.where(spread > ROUNDING, centred / np.where(spread > 0, spread, 1.0), 0.0)
    pairs = mask.T @ mask
    shared = np.maximum(pairs, 1)
    sums = centred.T @ mask  # [i, j]: column i over the rows where j is present too
    squares = (centred**2).T @ mask
    covariance = centred.T @ centred - sums * sums.T / shared
    variance = squares - sums**2 / shared
    constant = variance <= ROUNDING * shared
    usable = ~(constant | constant.T) & (pairs >= MIN_PAIRS)
    scale = np.sqrt(np.where(usable, variance * variance.T, 1.0))
    return np.clip(np.where(usable, covariance / scale, 0.0), -1.0, 1.0)


def correlation_mae(matrix: np.ndarray, real_matrix: np.ndarray) -> float:
    """Mean absolute difference of two correlation matrices over all pairs of different features; 0 with one feature."""
    upper = np.triu_indices(len(matrix), k=1)
    return float(np.abs(matrix - real_matrix)[upper].mean()) if len(upper[0]) else 0.0
