"""Which codes occur together: what independent codes do not pass, however right their prevalences are.

A column of codes is a sparse matrix of flags here, a row a record and a column a code of the vocabulary, so that a
vocabulary of 10,000 codes and 10^5 rows take little memory.
"""

from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score

from dpcgan_fast.data.public_cells import code_sets, sample_of, vocabulary_of
from dpcgan_fast.data.schema import Column

STRUCTURE_ROWS = 100_000
LEARNED_ROWS = 50_000  # of a table that codes are predicted from
FREQUENT_CODES = 300  # whose pairs are compared
PREDICTED_CODES = 50
MID_RANKS = (60, 260)  # by falling frequency: common enough to be learned, rare enough to need others for it
MIN_POSITIVES = 10  # test rows that have, and lack, a code that is predicted
RIDGE = 30.0  # in rows
RARE = (0.0002, 0.005)  # prevalence of a rare code
MIN_RARE_ROWS = 5  # test rows that have it: fewer say little of its prevalence
RARE_FACTOR = 3.0
IMPLICATION_CODES = 1000
IMPLICATION_ROWS = 20  # test rows that have the code that implies another
IMPLICATION_SHARE = 0.99  # of them that have the other one
IMPLICATION_COMMON = 0.5  # a code that more rows have is implied by nearly any
Flags = Any  # a scipy.sparse.csr_array, whose members type checkers do not know
_CLOSE = 1e-6  # relative residual of the regressions
_CONSTANT = 1e-12  # spread of shares or correlations that are all the same
_MOST_STEPS = 500
_AT_ONCE = 25

# Why a figure is None, by its name.
REASONS = {
    "cooccurrence_error": "there are no two codes that some real test rows have and others lack",
    "cooccurrence_r": "all pairs of codes are equally correlated in one of the tables",
    "prediction_ap": f"no code is had by {MIN_POSITIVES} of the real test rows and lacked by as many",
    "prediction_chance": f"no code is had by {MIN_POSITIVES} of the real test rows and lacked by as many",
    "rare_recall": f"no code of a prevalence between {RARE[0]:.2%} and {RARE[1]:.1%} is had by {MIN_RARE_ROWS} of the "
    "real test rows",
    "implications_broken": "no code of the real test rows clearly implies another, or no row has one that does",
    "sizes_ks": "one of the tables has no rows, or the vocabulary is empty",  # and then all are
}


def code_structure(table: pa.Table, real: pa.Table, column: Column) -> dict[str, float | None]:
    """How far a table's codes are from those of real test rows in what occurs together.

    cooccurrence_error:  see `cooccurrence`; 0 at best, 1 for independent codes
    cooccurrence_r:      see `cooccurrence`; 1 at best
    prediction_ap:       see `prediction_ap`; the higher the better, and real training rows show what can be had
    prediction_chance:   mean prevalence of the codes that are predicted, the prediction_ap of guesses
    rare_recall:         see `rare_recall`; 1 at best
    implications_broken: see `broken_implications`; 0 at best
    sizes_ks:            largest difference of the shares of records with at most so many codes, over all numbers, in
                         [0, 1]: the statistic of Kolmogorov and Smirnov; 0 at best

    At most 100,000 rows of each table are looked at, and predictions are learned from 50,000. All are None if one of
    the tables has no rows.
    """
    if not (table.num_rows and real.num_rows and len(vocabulary_of(column))):
        return dict.fromkeys(REASONS)
    flags, real_flags = (code_flags(sample_of(part, STRUCTURE_ROWS), column) for part in (table, real))
    error, r = cooccurrence(flags, real_flags)
    targets = predicted_codes(real_flags)
    learned = flags if flags.shape[0] <= LEARNED_ROWS else code_flags(sample_of(table, LEARNED_ROWS), column)
    sizes, real_sizes = (np.minimum(np.diff(part.indptr), column.max_codes) for part in (flags, real_flags))
    return {
        "cooccurrence_error": error,
        "cooccurrence_r": r,
        "prediction_ap": prediction_ap(learned, real_flags, targets),
        "prediction_chance": float(_prevalences(real_flags)[targets].mean()) if len(targets) else None,
        "rare_recall": rare_recall(flags, real_flags),
        "implications_broken": broken_implications(flags, real_flags),
        "sizes_ks": sizes_ks(sizes, real_sizes),
    }


def code_flags(table: pa.Table, column: Column) -> Flags:
    """Which rows have which codes of the vocabulary: (rows, vocabulary) float64, 1 where they do."""
    return code_sets(table, column).matrix(len(vocabulary_of(column)))


def cooccurrence(flags: Flags, real_flags: Flags) -> tuple[float | None, float | None]:
    """Distance between the covariances of pairs of codes, and correlation between the correlations of pairs.

    flags, real_flags: (rows, vocabulary) 0 or 1; the pairs are those of the 300 codes most frequent in `real_flags`

    The distance is the Frobenius norm of the difference over that of the real covariances, both without the diagonal:
    independent codes, whose covariances are 0, have 1. The second is Pearson's, in [-1, 1], where every pair counts as
    much; a pair with a code that is constant in a table has the correlation 0 there.
    """
    codes = by_frequency(real_flags)[:FREQUENT_CODES]
    off_diagonal = ~np.eye(len(codes), dtype=bool)
    covariances, correlations = [], []
    for part in (flags, real_flags):
        matrix = _covariance(part[:, codes])
        spread = np.sqrt(np.diagonal(matrix))
        scale = np.outer(spread, spread)
        correlation = np.divide(matrix, scale, out=np.zeros_like(matrix), where=scale > 0)
        covariances.append(matrix[off_diagonal])
        correlations.append(correlation[off_diagonal])
    size = np.linalg.norm(covariances[1])
    error = float(np.linalg.norm(covariances[0] - covariances[1]) / size) if size > 0 else None
    return error, pearson(*correlations)


def predicted_codes(real_flags: Flags) -> np.ndarray:
    """Places of up to 50 codes of middle frequency, a fixed random choice: (codes,) int64, rising.

    They have the ranks 60 to 260 among the codes that enough rows have and lack; of few codes the rarer ones.
    """
    counts = np.bincount(real_flags.indices, minlength=real_flags.shape[1])
    usable = (counts >= MIN_POSITIVES) & (counts <= real_flags.shape[0] - MIN_POSITIVES)
    ranked = [code for code in by_frequency(real_flags) if usable[code]]
    first = min(MID_RANKS[0], max(0, len(ranked) - PREDICTED_CODES))
    middle = np.array(ranked[first : MID_RANKS[1]], dtype=np.int64)
    chosen = np.random.default_rng(0).choice(len(middle), min(PREDICTED_CODES, len(middle)), replace=False)
    return np.sort(middle[chosen])


def prediction_ap(flags: Flags, real_flags: Flags, targets: np.ndarray) -> float | None:
    """Dimension-wise prediction: mean average precision of predicting codes from all others of the same record.

    Each target is predicted by a ridge regression on all other codes that learned from `flags`, and scored on
    `real_flags`. Source of the idea: Choi et al., arXiv 1703.06490 (dimension-wise prediction).
    """
    found = []
    for first in range(0, len(targets), _AT_ONCE):  # which bounds the memory that the regressions take
        part = targets[first : first + _AT_ONCE]
        scores = real_flags @ leave_one_out_weights(flags, part)
        truth = real_flags[:, part].toarray()
        found += [average_precision_score(*pair) for pair in zip(truth.T, scores.T, strict=True)]
    return float(np.mean(found)) if found else None


def leave_one_out_weights(flags: Flags, targets: np.ndarray) -> np.ndarray:
    """Weights of the ridge regressions of each target on all other codes: (vocabulary, targets); 0 for itself.

    With G the centred Gram matrix of the flags plus the ridge on its diagonal, the weights for target j are the column
    j of G's inverse over the negative of its diagonal entry. The columns are solved for by conjugate gradients, each
    code scaled by its own variance: neither G nor its inverse is formed.
    """
    rows, codes = flags.shape
    mean = _prevalences(flags)
    scale = rows * mean * (1 - mean) + RIDGE
    transposed = flags.T.tocsr()

    def gram(vectors: np.ndarray) -> np.ndarray:
        products = transposed @ (flags @ vectors)
        products -= np.outer(rows * mean, mean @ vectors)
        products += RIDGE * vectors
        return products

    columns = np.arange(len(targets))
    solution = np.zeros((codes, len(targets)))
    residual = np.zeros_like(solution)
    residual[targets, columns] = 1.0
    scaled = residual / scale[:, None]
    direction, product = scaled.copy(), (residual * scaled).sum(axis=0)
    for _ in range(_MOST_STEPS):
        image = gram(direction)
        step = _ratio(product, (direction * image).sum(axis=0))
        solution += step * direction
        residual -= step * image
        if (np.linalg.norm(residual, axis=0) < _CLOSE).all():
            break
        scaled = residual / scale[:, None]
        last, product = product, (residual * scaled).sum(axis=0)
        direction *= _ratio(product, last)
        direction += scaled
    weights = -solution / solution[targets, columns]
    weights[targets, columns] = 0.0
    return weights


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """0 where the denominator is 0: a target that is solved for exactly stands still while others go on."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def rare_recall(flags: Flags, real_flags: Flags) -> float | None:
    """Share of the rare codes whose prevalence is right within a factor of 3, in [0, 1].

    Rare is a code that .02 % to .5 % of the real rows have, and at least 5 of them.
    """
    shares, real_shares = _prevalences(flags), _prevalences(real_flags)
    counted = np.bincount(real_flags.indices, minlength=len(real_shares)) >= MIN_RARE_ROWS
    rare = counted & (real_shares >= RARE[0]) & (real_shares < RARE[1])
    near = (shares <= RARE_FACTOR * real_shares) & (shares >= real_shares / RARE_FACTOR)
    return float(near[rare].mean()) if rare.any() else None


def broken_implications(flags: Flags, real_flags: Flags) -> float | None:
    """Share of the cases in which a code lacks another that it implies in real rows, in [0, 1].

    A code implies another if at least 20 real rows have it, 99 % of these have the other one, and at most half of all
    rows do; among the 1,000 most frequent codes. A case is a row and an implication whose first code the row has.
    """
    codes = by_frequency(real_flags)[:IMPLICATION_CODES]
    real_both = _both(real_flags[:, codes])
    real_counts = np.diagonal(real_both)
    implied = (real_counts >= IMPLICATION_ROWS)[:, None] & (real_both >= IMPLICATION_SHARE * real_counts[:, None])
    implied &= (real_counts <= IMPLICATION_COMMON * real_flags.shape[0])[None, :]
    np.fill_diagonal(implied, False)
    both = _both(flags[:, codes])
    cases = np.broadcast_to(np.diagonal(both)[:, None], both.shape)[implied].sum()
    return float(1 - both[implied].sum() / cases) if cases else None


def sizes_ks(sizes: np.ndarray, real_sizes: np.ndarray) -> float:
    """Statistic of Kolmogorov and Smirnov of two samples of whole numbers, in [0, 1]. Both have at least one."""
    width = int(max(sizes.max(), real_sizes.max())) + 1
    below = [np.cumsum(np.bincount(part, minlength=width)) / len(part) for part in (sizes, real_sizes)]
    return float(np.abs(below[0] - below[1]).max())


def pearson(x: np.ndarray, y: np.ndarray) -> float | None:
    """Pearson correlation of two float64 arrays of shares or correlations, in [-1, 1].

    x, y: (values,); None if one of them is constant, but for what rounding leaves
    """
    if len(x) == 0 or min(np.ptp(x), np.ptp(y)) < _CONSTANT:
        return None
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip((x @ y) / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def by_frequency(flags: Flags) -> np.ndarray:
    """Places of all codes by falling frequency, as frequent ones in the order of the vocabulary."""
    return np.argsort(-np.bincount(flags.indices, minlength=flags.shape[1]), kind="stable")


def _prevalences(flags: Flags) -> np.ndarray:
    """Share of the rows that have each code: (vocabulary,)."""
    return np.bincount(flags.indices, minlength=flags.shape[1]) / flags.shape[0]


def _both(flags: Flags) -> np.ndarray:
    """Number of rows that have both of two codes: (codes, codes) float64."""
    return np.asarray((flags.T @ flags).toarray())


def _covariance(flags: Flags) -> np.ndarray:
    """Covariances of the flags: (codes, codes) float64."""
    mean = _prevalences(flags)
    return _both(flags) / flags.shape[0] - np.outer(mean, mean)
