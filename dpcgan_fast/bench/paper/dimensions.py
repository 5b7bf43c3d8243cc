"""The paper's unsupervised measures, on tables as matrices: dimension by dimension, and both tables as wholes."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.metrics import average_precision_score

from dpcgan_fast.data.public_cells import without_codes
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.code_structure import code_flags, pearson
from dpcgan_fast.evaluate.features import encode

MMD_ROWS = 1000
_RIDGE = 1e-2  # on correlations
_LEAST_SHARE = 0.002  # of test rows on either side for a dimension to be predicted
_PREDICTED = 200  # dimensions at most, evenly spaced


@dataclass(frozen=True)
class Matrix:
    """A table as numbers: (rows, dimensions) float64 in [0, 1], a missing cell is one half."""

    values: np.ndarray


def matrix_of(table: pa.Table, schema: Schema) -> Matrix:
    """Flags of all codes, then every other column as `evaluate` encodes it, the label among them."""
    parts = [code_flags(table, column).toarray() for column in schema.codes_columns()]
    codes = sum(part.shape[1] for part in parts)
    if schema.label is not None or not codes:
        parts.append(np.nan_to_num(encode(table, without_codes(schema)).values, nan=0.5))
    return Matrix(np.concatenate(parts, axis=1))


def dimension_probability(drawn: Matrix, test: Matrix) -> dict[str, float | None]:
    """How the means of all dimensions agree: their Pearson correlation, and their mean absolute difference.

    For flags the means are the Bernoulli success rates of Choi et al., arXiv 1703.06490, section 4.2. r is None where
    all means of a table are equal.
    """
    own, real = drawn.values.mean(axis=0), test.values.mean(axis=0)
    return {"r": pearson(own, real), "mae": float(np.abs(own - real).mean())}


def dimension_prediction(drawn: Matrix, train: Matrix, test: Matrix) -> dict[str, float | None]:
    """How well each dimension is predicted from all others, after synthetic and after real training rows.

    Scores are average precisions on the test rows; a dimension that is no flag counts as one where it lies above the
    median of the real training rows. Ridge regressions stand for the logistic ones of arXiv 1703.06490: those of all
    dimensions follow from one inverse. Codes are predicted by `evaluate.code_structure`.

    Returns the mean score, the same after real rows, and their ratio; None where no dimension can be judged.
    """
    thresholds = np.median(train.values, axis=0)
    flags = ((train.values == 0) | (train.values == 1)).all(axis=0)
    thresholds[flags] = 0.5
    truth = test.values > thresholds
    shares = truth.mean(axis=0)
    chosen = np.flatnonzero((shares >= _LEAST_SHARE) & (shares <= 1 - _LEAST_SHARE))
    if len(chosen) > _PREDICTED:
        chosen = chosen[np.linspace(0, len(chosen) - 1, _PREDICTED).astype(int)]
    if not len(chosen):
        return {"ap": None, "real_ap": None, "ratio": None}
    scores = []
    for source in (drawn, train):
        guesses = _ridge_guesses(source.values, test.values, chosen)
        each = [average_precision_score(truth[:, place], guesses[:, i]) for i, place in enumerate(chosen)]
        scores.append(float(np.mean(each)))
    return {"ap": scores[0], "real_ap": scores[1], "ratio": scores[0] / scores[1]}


def _ridge_guesses(source: np.ndarray, test: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Of each chosen dimension its prediction from all others by ridge regression on `source`: (rows, chosen).

    With P the inverse of the regularised correlation matrix, the best linear prediction of x_j is x_j - (x P)_j / P_jj.
    """
    mean, spread = source.mean(axis=0), source.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    standard = (source - mean) / scale
    inverse = np.linalg.inv(standard.T @ standard / max(1, len(source)) + _RIDGE * np.eye(source.shape[1]))
    of_test = (test - mean) / scale
    return of_test[:, chosen] - of_test @ inverse[:, chosen] / np.diag(inverse)[chosen]


def mmd(drawn: Matrix, test: Matrix) -> float:
    """Squared maximum mean discrepancy, unbiased, on 1,000 rows a side; 0 where tables cannot be told apart.

    Gaussian kernel, its width the median distance of the real rows. Source: Gretton et al., JMLR 13 (2012), lemma 6.
    """
    sides = []
    for side in (drawn.values, test.values):
        rows = np.random.default_rng(0).permutation(len(side))[:MMD_ROWS]
        sides.append(side[rows])
    own, real = sides
    among = cdist(real, real, "sqeuclidean")
    width = float(np.median(among[np.triu_indices(len(real), 1)])) or 1.0

    def mean_kernel(distances: np.ndarray, off_diagonal: bool) -> float:
        kernel = np.exp(-distances / width)
        rows = len(kernel)
        return float((kernel.sum() - rows) / (rows * (rows - 1)) if off_diagonal else kernel.mean())

    inside = mean_kernel(cdist(own, own, "sqeuclidean"), True) + mean_kernel(among, True)
    return inside - 2 * mean_kernel(cdist(own, real, "sqeuclidean"), False)


def ks(drawn: Matrix, test: Matrix) -> float:
    """Mean over the dimensions of the Kolmogorov-Smirnov distance, in [0, 1]; of flags that of their rates."""
    distances = []
    for own, real in zip(drawn.values.T, test.values.T, strict=True):
        places = np.unique(np.concatenate([own, real]))
        shares = [np.searchsorted(np.sort(side), places, side="right") / len(side) for side in (own, real)]
        distances.append(np.abs(shares[0] - shares[1]).max())
    return float(np.mean(distances))


def violated(has: sparse.csr_array, implications: tuple[tuple[int, int], ...]) -> float | None:
    """Share of the occurrences of codes that imply another where that one is missing; None if there are none.

    has: (rows, vocabulary) 0 or 1
    """
    if not implications:
        return None
    first, implied = np.array(implications).T
    cases = has[:, first].sum()
    return float(1 - has[:, first].multiply(has[:, implied]).sum() / cases) if cases else None
