"""Classifier two-sample tests: can a classifier tell a table's rows from real ones?

Source: Lopez-Paz and Oquab, arXiv 1610.06545.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from dpcgan_fast.data.public_cells import NUMERIC_BINS, cells, modelled_columns, numbers, sample_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.features import encode
from dpcgan_fast.evaluate.learners import TELLERS, guesses

C2ST_ROWS = 5_000  # a side, at most: of so many, an AUROC of 0.5 is known to .006, one standard deviation
MIN_ROWS = 20  # a side: ten in each fold


def c2st(table: pa.Table, real: pa.Table, schema: Schema, binned: bool = False) -> float | None:
    """AUROC of gradient boosting, cross-fitted in two folds, that tells table from real.

    0.5 means that it cannot tell them apart, 1 that it always can. Both sides have the same number of rows, at most
    5,000. None with fewer than 20 rows a side.
    binned: whether it sees public cells in place of exact values
    """
    sides = _sides(table, real, schema, binned)
    return None if sides is None else _told_apart(TELLERS["gb"](), *sides)


def c2st_by_learner(table: pa.Table, real: pa.Table, schema: Schema) -> dict[str, float] | None:
    """As `c2st`, by each of several classifiers: {"gb": ..., "rf": ..., "lr": ...}; they see different differences.

    A linear one sees that columns have other means; forests and boosting also how columns depend on each other.
    """
    sides = _sides(table, real, schema, binned=False)
    return None if sides is None else {name: _told_apart(make(), *sides) for name, make in TELLERS.items()}


def c2st_quantile_bins(table: pa.Table, real: pa.Table, schema: Schema) -> float | None:
    """As `c2st`, by a classifier that sees of a number only which of 20 bins of the real rows it lies in.

    The edges between the bins are the quantiles 1/20, ..., 19/20 of all real values that are present, equal ones taken
    once; an edge belongs to the bin above. Missing cells are a bin of their own. Other columns are seen as `cells`.
    Unlike the schema's bins of equal width these are as fine as real rows are dense.
    """
    rows = _equal_rows(table, real)
    if rows is None:
        return None
    own, other = sample_of(table, rows), sample_of(real, rows)
    features = []
    for column in modelled_columns(schema):
        if column.type == "numeric":
            edges = inner_quantiles(numbers(real, column))
            features.append([_bins(numbers(side, column), edges) for side in (other, own)])
        else:
            features.append([cells(side, column) for side in (other, own)])
    x = np.stack([np.concatenate(sides) for sides in features], axis=1)
    return _told_apart(TELLERS["gb"](), x, np.repeat([0, 1], rows))


def inner_quantiles(values: np.ndarray) -> np.ndarray:
    """Edges between 20 bins that hold as many of the values each, rising and different; (rows,) NaN where missing."""
    present = values[~np.isnan(values)]
    if len(present) == 0:
        return np.empty(0)
    return np.unique(np.quantile(present, np.linspace(0, 1, NUMERIC_BINS + 1)[1:-1]))


def _bins(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(values), -1, np.searchsorted(edges, values, side="right"))


def _equal_rows(table: pa.Table, real: pa.Table) -> int | None:
    """How many rows of each are looked at; None if they are too few."""
    rows = min(table.num_rows, real.num_rows, C2ST_ROWS)
    return None if rows < MIN_ROWS else rows


def _sides(table: pa.Table, real: pa.Table, schema: Schema, binned: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """Features of equally many rows of both, and which of them are of the table; None if there are too few."""
    rows = _equal_rows(table, real)
    if rows is None:
        return None
    sides = []
    for side in (sample_of(real, rows), sample_of(table, rows)):
        if binned:
            sides.append(np.stack([cells(side, column) for column in modelled_columns(schema)], axis=1))
        else:
            sides.append(encode(side, schema).values)
    return np.concatenate(sides), np.repeat([0, 1], rows)


def _told_apart(learner: Any, x: np.ndarray, y: np.ndarray) -> float:
    """Cross-fitted AUROC of a classifier; it is fitted anew for each of the two folds."""
    probabilities = np.empty(len(y))
    for fitted, held_out in StratifiedKFold(2, shuffle=True, random_state=0).split(x, y):
        probabilities[held_out] = guesses(learner, x[fitted], y[fitted], x[held_out])[:, 1]
    return float(roc_auc_score(y, probabilities))
