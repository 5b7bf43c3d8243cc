"""The classifiers that judge tables, with fixed seeds."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits


def _imputer() -> SimpleImputer:
    return SimpleImputer(strategy="median")


# Gradient boosting treats NaN as a value of its own; the others get medians of their training table.
LEARNERS: dict[str, Callable[[], Any]] = {
    "gb": lambda: HistGradientBoostingClassifier(random_state=0),
    "rf": lambda: make_pipeline(
        _imputer(), RandomForestClassifier(n_estimators=200, min_samples_leaf=5, random_state=0, n_jobs=-1)
    ),
    "lr": lambda: make_pipeline(_imputer(), StandardScaler(), LogisticRegression(max_iter=1000)),
}
# Those of the two-sample tests are smaller: they are fitted many times.
TELLERS: dict[str, Callable[[], Any]] = {
    "gb": lambda: HistGradientBoostingClassifier(max_iter=50, random_state=0),
    "rf": lambda: make_pipeline(
        _imputer(), RandomForestClassifier(n_estimators=100, min_samples_leaf=5, random_state=0, n_jobs=-1)
    ),
    "lr": LEARNERS["lr"],
}
LEARNER_NAMES = {"gb": "gradient boosting", "rf": "random forest", "lr": "logistic regression"}


def guesses(learner: Any, x_train: np.ndarray, y_train: np.ndarray, x_test: np.ndarray) -> np.ndarray:
    """Fits a learner and gives its probability of every class, in rising order, for test rows: (rows, classes).

    x_train, x_test: (rows, features) float64, NaN where missing
    y_train:         (rows,) int64, at least two classes

    Features without any value in the training table are left out. Without features every class is as likely.
    """
    useful = ~np.isnan(x_train).all(axis=0)
    sizes = np.unique(y_train, return_counts=True)[1]
    if not useful.any():
        return np.full((len(x_test), len(sizes)), 1 / len(sizes))
    if sizes.min() == 1 and isinstance(learner, HistGradientBoostingClassifier):
        # Beyond 10,000 rows it would hold some of each class back, to see when to stop.
        learner.set_params(early_stopping=False)
    # One thread: the threads of boosting and of the linear algebra wait for each other actively, which on a busy
    # machine takes up to a hundred times as long as it saves. The forest's own threads do not.
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # A fit that has not converged after 1,000 rounds is a little rougher, and the user can do nothing about it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return learner.fit(x_train[:, useful], y_train).predict_proba(x_test[:, useful])
