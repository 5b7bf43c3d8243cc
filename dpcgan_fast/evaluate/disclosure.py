"""Whether synthetic rows lie nearer to training rows than to others: tests of disclosure, not guarantees.

A table that passes may still disclose; one that fails does. What is promised is the privacy statement alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy import sparse
from sklearn.metrics import roc_auc_score

from dpcgan_fast.data.public_cells import coded_names, codes, modelled_columns, sample_of, scaled_numbers, without_codes
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.code_structure import Flags, code_flags
from dpcgan_fast.evaluate.utility import auroc_uncertainty

REAL_ROWS = 2_000  # of training and of held-out rows each
SYNTHETIC_ROWS = 10_000
MIN_ROWS = 50  # of each table
ALARM = 3.3  # standard errors above chance: by each test, about one honest table in 2,000 is that far
_BLOCK_ROWS = 1_000
_95 = 1.96

TOO_FEW = f"one of the tables has fewer than {MIN_ROWS} rows"


@dataclass(frozen=True)
class Disclosure:
    """Distances are of `distances`; both shares are chance, 0.5, for rows that owe nothing to a single person.

    rows:                number of training rows, and of held-out rows, that were compared
    synthetic_rows:      number of synthetic rows
    distance_to_train:   median distance of a synthetic row from the nearest of the training rows
    distance_to_test:    the same from as many held-out rows
    nearer_to_train:     share of the synthetic rows that are nearer to one of the training rows than to any of as many
                         held-out rows, ties being halves
    nearer_interval:     its 95 % interval
    membership_auroc:    AUROC of telling training from held-out rows by how near the closest synthetic row is
    membership_interval: its 95 % interval
    alarm:               whether one of the two is above chance by more than 3.3 standard errors
    """

    rows: int
    synthetic_rows: int
    distance_to_train: float
    distance_to_test: float
    nearer_to_train: float
    nearer_interval: tuple[float, float]
    membership_auroc: float
    membership_interval: tuple[float, float]
    alarm: bool


def disclosure(synthetic: pa.Table, train: pa.Table, test: pa.Table, schema: Schema) -> Disclosure | None:
    """Both tests; None if one of the tables has fewer than 50 rows.

    synthetic, train, test: with the schema's columns, codes as lists. Of training and test rows equally many are taken,
                            at most 2,000; of synthetic ones at most 10,000

    Synthetic rows share their neighbours, so that they count for less than their number: the interval of
    `nearer_to_train` is that of a binomial with as many trials as give the variance of a fair coin for each real row
    that decides which side it is on. That of the AUROC is Hanley's and McNeil's (see `utility.auroc_uncertainty`).
    Source of the attack: Chen et al., arXiv 1909.03935, by synthetic rows alone (full black box).
    """
    rows = min(train.num_rows, test.num_rows, REAL_ROWS)
    if min(rows, synthetic.num_rows) < MIN_ROWS:
        return None
    sides = [_Points.of(sample_of(table, rows), schema) for table in (train, test)]
    drawn = _Points.of(sample_of(synthetic, SYNTHETIC_ROWS), schema)
    nearest = [_Nearest.of(drawn, side) for side in sides]
    to_train, to_test = (one.distance for one in nearest)
    share, trials = nearer_share(*nearest)
    closest = np.concatenate([one.back for one in nearest])
    auroc = float(roc_auc_score(np.repeat([1, 0], rows), -closest))
    spread = auroc_uncertainty(auroc, rows, rows)
    errors = np.sqrt(0.25 / trials), auroc_uncertainty(0.5, rows, rows) / _95  # standard ones, of chance
    return Disclosure(
        rows=rows,
        synthetic_rows=len(drawn),
        distance_to_train=float(np.median(to_train)),
        distance_to_test=float(np.median(to_test)),
        nearer_to_train=share,
        nearer_interval=wilson_interval(share, trials),
        membership_auroc=auroc,
        membership_interval=(max(0.0, auroc - spread), min(1.0, auroc + spread)),
        alarm=bool(share - 0.5 > ALARM * errors[0] or auroc - 0.5 > ALARM * errors[1]),
    )


def disclosure_notes(tested: Disclosure | None) -> list[str]:
    """Sentences on the outcome that a reader must know; a warning if training rows show through."""
    if tested is None:
        return [f"disclosure is null: {TOO_FEW}."]
    if not tested.alarm:
        return []
    return [
        f"WARNING: the synthetic rows lie nearer to the training rows than to as many held-out rows: "
        f"{tested.nearer_to_train:.1%} of them do (50% is chance), and their distance tells training from held-out "
        f"rows with an AUROC of {tested.membership_auroc:.3f} (0.5 is chance). If both tables are random parts of one, "
        "the synthetic rows disclose who was in the training table."
    ]


@dataclass(frozen=True)
class _Points:
    """Rows as points. dense: (rows, features) float64; codes: sparse, (rows, all codes of all columns)"""

    dense: np.ndarray
    codes: Flags

    def __len__(self) -> int:
        return len(self.dense)

    @classmethod
    def of(cls, table: pa.Table, schema: Schema) -> "_Points":
        flags = [_directions(code_flags(table, column)) for column in schema.codes_columns()]
        empty = sparse.csr_array((table.num_rows, 0))
        return cls(_features(table, schema), sparse.csr_array(sparse.hstack([empty, *flags])))

    def blocks(self) -> Iterator["_Points"]:
        for first in range(0, len(self), _BLOCK_ROWS):
            part = slice(first, first + _BLOCK_ROWS)
            yield _Points(self.dense[part], self.codes[part])

    def squares(self) -> np.ndarray:
        return (self.dense**2).sum(axis=1) + np.asarray((self.codes**2).sum(axis=1)).ravel()


def distances(rows: pa.Table, others: pa.Table, schema: Schema) -> np.ndarray:
    """Distance of every row from every other one: (rows, others) float64.

    The square is the sum over columns of the squared difference of numbers scaled by their bounds, of 1 where
    categories differ, of 1 where one number is missing, whose value counts as the middle of the bounds, and of 1 less
    the cosine of sets of codes: the number of common codes over the root of the product of both numbers. Were each code
    a column, records of few codes would be near to all others.
    """
    return np.sqrt(_squared(_Points.of(rows, schema), _Points.of(others, schema)))


def _features(table: pa.Table, schema: Schema) -> np.ndarray:
    """Numbers, marks of missing ones, and categories: (rows, features) float64."""
    features: list[np.ndarray] = [np.zeros((table.num_rows, 0))]
    for column in modelled_columns(without_codes(schema)):
        if column.type == "numeric":
            values = scaled_numbers(table, column)
            features.append(np.where(np.isnan(values), 0.5, values)[:, None])
            if column.missing:
                features.append(np.isnan(values)[:, None].astype(np.float64))
        else:
            width = len(coded_names(column)) + 1  # a missing cell is a category of its own
            features.append(np.sqrt(0.5) * np.eye(width)[codes(table, column)])  # two that differ are 1 apart
    return np.concatenate(features, axis=1)


def _directions(flags: Flags) -> Flags:
    """Sets of codes as vectors of the length root of 1/2: (rows, vocabulary + 1); the last one is for the empty set."""
    counts = np.diff(flags.indptr)
    empty = sparse.csr_array((counts == 0).astype(np.float64)[:, None])
    scale = np.sqrt(0.5 / np.maximum(counts, 1))
    return sparse.hstack([sparse.diags_array(scale) @ flags, np.sqrt(0.5) * empty])


def _squared(points: _Points, others: _Points) -> np.ndarray:
    products = points.dense @ others.dense.T + (points.codes @ others.codes.T).toarray()
    squared = points.squares()[:, None] + others.squares()[None, :] - 2 * products
    return np.maximum(squared, 0.0)


@dataclass(frozen=True)
class _Nearest:
    """Nearest neighbours between synthetic rows and one side's real rows.

    distance: of each synthetic row from the nearest real row: (synthetic,) float64, rounded so that ties are ties
    row:      which real row that is: (synthetic,) int64
    back:     of each real row from the nearest synthetic row: (real,) float64, rounded
    """

    distance: np.ndarray
    row: np.ndarray
    back: np.ndarray

    @classmethod
    def of(cls, drawn: _Points, real: _Points) -> "_Nearest":
        found, rows, back = [], [], np.full(len(real), np.inf)
        for block in drawn.blocks():
            squared = _squared(block, real)
            rows.append(squared.argmin(axis=1))
            found.append(squared.min(axis=1))
            back = np.minimum(back, squared.min(axis=0))
        return cls(_rounded(np.concatenate(found)), np.concatenate(rows), _rounded(back))


def _rounded(squared: np.ndarray) -> np.ndarray:
    """Distances without what rounding adds to their squares, so that equal ones are equal."""
    return np.sqrt(np.round(squared, 9))


def nearer_share(to_train: _Nearest, to_test: _Nearest) -> tuple[float, float]:
    """Share of the synthetic rows that are nearer to a training row, and how many trials it is worth; ties are halves.

    Had a fair coin decided for each real row on which side it stands, the share would have the variance 1 / (4 trials):
    that of a sum in which each real row counts as often as it is the nearest.
    """
    nearer = np.where(to_train.distance == to_test.distance, 0.5, to_train.distance < to_test.distance)
    counts = np.concatenate([
        np.bincount(to_train.row, nearer, len(to_train.back)), np.bincount(to_test.row, 1 - nearer, len(to_test.back))
    ])  # fmt: skip
    return float(nearer.mean()), float(len(nearer) ** 2 / (counts**2).sum())


def wilson_interval(share: float, trials: float) -> tuple[float, float]:
    """95 % interval of a share. Source: Wilson, Journal of the American Statistical Association 22 (1927)."""
    squeeze = 1 + _95**2 / trials
    centre = (share + _95**2 / (2 * trials)) / squeeze
    width = _95 / squeeze * float(np.sqrt(share * (1 - share) / trials + (_95 / (2 * trials)) ** 2))
    return max(0.0, centre - width), min(1.0, centre + width)
