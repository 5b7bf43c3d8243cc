"""Two-sample tests that the comparison has beside those of `evaluate`: of signals, and a large one of codes.

Rows, features and classifiers are those with which the targets were set: a larger or other test reads another AUROC.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from dpcgan_fast.data.public_cells import bounds_of, numbers, sample_of, signal_columns
from dpcgan_fast.data.schema import Schema, Signal
from dpcgan_fast.evaluate.code_structure import Flags
from dpcgan_fast.evaluate.learners import guesses
from dpcgan_fast.evaluate.two_sample import C2ST_ROWS, MIN_ROWS

SIGNAL_TREES, SIGNAL_TEST_SHARE = 60, 0.4
LARGE_TREES, LARGE_BINS, LARGE_RATE = 200, 64, 0.15
LARGE_ROWS, LARGE_TEST_SHARE = 40_000, 0.2  # of each side
LARGE_CODES = 300
_FLOOR = 1 / 2000  # of the width of the bounds


def c2st_signals(table: pa.Table, real: pa.Table, schema: Schema) -> float | None:
    """AUROC of gradient boosting that tells the signals of a table from real ones by samples, strength and roughness.

    Features are all samples, the log mean square and the log mean absolute difference of neighbours of each signal; the
    label is not seen. As many rows of each side, at most 5,000, 60 % of them to learn from. Rows of the table are drawn
    with replacement, as they were for the targets: some stand in both parts, and real training rows have about 0.56.
    None without signals or with fewer than 20 rows a side.
    """
    rows = min(table.num_rows, real.num_rows, C2ST_ROWS)
    if rows < MIN_ROWS or not schema.signals:
        return None
    drawn = table.take(np.random.default_rng(0).integers(0, table.num_rows, rows))
    sides = [
        np.concatenate([_features(side, signal) for signal in schema.signals], axis=1)
        for side in (sample_of(real, rows), drawn)
    ]
    x, y = np.concatenate(sides), np.repeat([0, 1], rows)
    order = np.random.default_rng(1).permutation(len(y))
    tested, learned = np.split(order, [round(SIGNAL_TEST_SHARE * len(y))])
    learner = HistGradientBoostingClassifier(max_iter=SIGNAL_TREES, random_state=0)
    return _auroc(learner, x[learned], x[tested], y[learned], y[tested])


def _features(table: pa.Table, signal: Signal) -> np.ndarray:
    """Samples, log mean square and log mean absolute difference, in widths of the bounds: (rows, samples + 2)."""
    columns = signal_columns(signal)
    lower, upper = bounds_of(columns[0])
    values = np.stack([numbers(table, column) for column in columns], axis=1) / (upper - lower)
    strength = np.log(np.maximum((values**2).mean(axis=1), _FLOOR**2))
    roughness = np.log(np.abs(np.diff(values, axis=1)).mean(axis=1) + _FLOOR)
    return np.column_stack([values, strength, roughness])


class LargeTest:
    """The large test of codes, against further real patients, of whom a generator gives as many as are asked for.

    fresh:    (rows, vocabulary) 0 or 1 of patients who are in neither part of the table: LARGE_ROWS in the comparison
    frequent: places of the codes that are seen, beside the number of codes
    """

    def __init__(self, fresh: Flags, frequent: np.ndarray):
        self._frequent = frequent
        self._fresh = self._features(fresh)

    def _features(self, has: Flags) -> np.ndarray:
        return np.column_stack([has[:, self._frequent].toarray(), np.diff(has.indptr)]).astype(np.float32)

    def auroc(self, has: Flags) -> float | None:
        """AUROC of gradient boosting, up to 200 trees, on a fifth of the rows of each side after the rest of them.

        has: (rows, vocabulary) 0 or 1 of synthetic patients, of whom a fixed random choice is looked at, as many as
             there are fresh ones; None if they are fewer
        """
        rows = len(self._fresh)
        if has.shape[0] < rows:
            return None
        own = self._features(has)[np.random.default_rng(0).permutation(has.shape[0])[:rows]]
        learned = rows - round(LARGE_TEST_SHARE * rows)
        parts = slice(learned), slice(learned, None)
        x = [np.concatenate([self._fresh[part], own[part]]) for part in parts]
        y = [np.repeat([0, 1], len(part) // 2) for part in x]
        learner = HistGradientBoostingClassifier(
            max_iter=LARGE_TREES, max_bins=LARGE_BINS, learning_rate=LARGE_RATE, random_state=0
        )
        return _auroc(learner, *x, *y)


def _auroc(learner: Any, x_train: np.ndarray, x_test: np.ndarray, y_train: np.ndarray, y_test: np.ndarray) -> float:
    return float(roc_auc_score(y_test, guesses(learner, x_train, y_train, x_test)[:, 1]))
