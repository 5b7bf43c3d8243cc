"""What occurs together is compared by figures that independent codes do not pass, each against a plain reference."""

from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from scipy.stats import ks_2samp
from sklearn.linear_model import Ridge
from sklearn.metrics import average_precision_score

from dpcgan_fast.data.public_cells import sample_of
from dpcgan_fast.data.schema import Column
from dpcgan_fast.evaluate import code_structure as subject
from dpcgan_fast.evaluate.code_structure import REASONS, RIDGE, code_flags, code_structure

CODES = 80
COLUMN = Column(name="dx", type="codes", vocabulary=tuple(f"C{i}" for i in range(CODES)), max_codes=40)


def records(rows: int, seed: int, dependent: bool = True) -> np.ndarray:
    """Flags (rows, CODES) int64: codes of falling frequency; a record with a condition has more of its codes."""
    rng = np.random.default_rng(seed)
    chances = np.tile(0.4 / (1 + np.arange(CODES) / 4), (rows, 1))
    if dependent:
        condition = rng.integers(0, 8, rows)
        chances += 0.3 * (np.arange(CODES) % 8 == condition[:, None])
    return (rng.random((rows, CODES)) < chances).astype(np.int64)


def table_of(flags: np.ndarray) -> pa.Table:
    return pa.table({"dx": pa.array([[f"C{i}" for i in np.flatnonzero(row)] for row in flags], pa.list_(pa.string()))})


def as_sparse(flags: np.ndarray) -> Any:
    return sparse.csr_array(flags.astype(np.float64))


REAL, OTHER, INDEPENDENT = records(400, 0), records(300, 1), records(500, 2, dependent=False)


def test_flags_are_those_of_the_records():
    assert np.array_equal(code_flags(table_of(OTHER), COLUMN).toarray(), OTHER)


# ---- pairs


def test_the_cooccurrence_error_is_the_relative_frobenius_norm_of_numpys_covariances(monkeypatch):
    monkeypatch.setattr(subject, "FREQUENT_CODES", 30)
    top = sorted(range(CODES), key=lambda code: (-REAL[:, code].sum(), code))[:30]
    real, own = (np.cov(part[:, top], rowvar=False, bias=True) for part in (REAL, OTHER))
    pairs = list(permutations(range(30), 2))
    error = sum((own[pair] - real[pair]) ** 2 for pair in pairs) ** 0.5 / sum(real[pair] ** 2 for pair in pairs) ** 0.5
    matrices = [np.corrcoef(part[:, top], rowvar=False) for part in (OTHER, REAL)]
    r = np.corrcoef([[matrix[pair] for pair in pairs] for matrix in matrices])[0, 1]
    assert subject.cooccurrence(as_sparse(OTHER), as_sparse(REAL)) == pytest.approx((error, r), rel=1e-10)


def test_exactly_independent_codes_have_an_error_of_1():
    real = np.array([[1, 1], [0, 0]] * 8)
    independent = np.array([[1, 1], [1, 0], [0, 1], [0, 0]] * 4)
    error, r = subject.cooccurrence(as_sparse(independent), as_sparse(real))
    assert error == pytest.approx(1.0, abs=1e-15)
    assert r is None  # one pair has nothing to vary with


def test_codes_that_are_constant_have_no_pairs():
    constant = as_sparse(np.array([[1, 0, 1]] * 5))
    assert subject.cooccurrence(constant, constant) == (None, None)


# ---- prediction


def test_weights_are_those_of_one_ridge_regression_for_each_code():
    targets = np.array([3, 11, 40])
    weights = subject.leave_one_out_weights(as_sparse(OTHER), targets)
    for place, target in enumerate(targets):
        others = np.delete(np.arange(CODES), target)
        fitted = Ridge(alpha=RIDGE).fit(OTHER[:, others], OTHER[:, target])
        assert weights[target, place] == 0
        assert weights[others, place] == pytest.approx(fitted.coef_, abs=1e-6)


def test_codes_that_no_record_has_are_no_obstacle_and_have_no_weight():
    lacking = OTHER.copy()
    lacking[:, [0, 7]] = 0
    weights = subject.leave_one_out_weights(as_sparse(lacking), np.array([0, 5]))
    assert np.all(weights[[0, 7]] == 0)
    assert np.all(weights[:, 0] == 0)
    assert np.isfinite(weights).all()


def test_the_figure_is_the_mean_average_precision_of_these_regressions(monkeypatch):
    monkeypatch.setattr(subject, "_AT_ONCE", 3)
    targets = np.array([2, 5, 9, 20])
    found = []
    for target in targets:
        others = np.delete(np.arange(CODES), target)
        fitted = Ridge(alpha=RIDGE).fit(OTHER[:, others], OTHER[:, target])
        found.append(average_precision_score(REAL[:, target], fitted.predict(REAL[:, others])))
    own = subject.prediction_ap(as_sparse(OTHER), as_sparse(REAL), targets)
    assert own == pytest.approx(np.mean(found), abs=1e-9)


def test_dependent_records_teach_what_independent_ones_do_not():
    found = [code_structure(table_of(part), table_of(REAL), COLUMN) for part in (OTHER, INDEPENDENT)]
    aps, chance = [one["prediction_ap"] for one in found], found[0]["prediction_chance"]
    assert None not in (*aps, chance)
    assert aps[0] > 2 * aps[1]
    assert aps[1] < 1.5 * chance


def test_predicted_codes_have_middle_ranks_and_are_the_same_each_time():
    rows = 400
    flags = as_sparse((np.arange(rows)[:, None] >= np.arange(rows)[None, :]).astype(float))  # code k: rows - k records
    chosen = subject.predicted_codes(flags)
    ranks = chosen - subject.MIN_POSITIVES  # more frequent ones have too few records that lack them
    assert len(set(chosen)) == subject.PREDICTED_CODES
    assert ranks.min() >= subject.MID_RANKS[0]
    assert ranks.max() < subject.MID_RANKS[1]
    assert np.array_equal(chosen, subject.predicted_codes(flags))


def test_of_few_codes_all_that_can_be_scored_are_predicted():
    counts = REAL[:, :30].sum(axis=0)
    usable = np.flatnonzero((counts >= subject.MIN_POSITIVES) & (counts <= len(REAL) - subject.MIN_POSITIVES))
    assert np.array_equal(subject.predicted_codes(as_sparse(REAL[:, :30])), usable)


# ---- rare codes, implications, and numbers


def test_rare_codes_are_kept_within_a_factor_of_3():
    rows = 10_000
    real_counts = [5, 10, 20, 49, 50, 4, 1000]  # the last three are common, too few to tell, and common
    counts = [15, 31, 7, 16, 0, 0, 0]
    real, own = (np.arange(rows)[:, None] < np.array(part)[None, :] for part in (real_counts, counts))
    assert subject.rare_recall(as_sparse(own), as_sparse(real)) == pytest.approx(2 / 4)
    assert subject.rare_recall(as_sparse(real), as_sparse(real)) == 1
    assert subject.rare_recall(as_sparse(own[:, 4:]), as_sparse(real[:, 4:])) is None


def test_implications_of_real_records_are_found_and_their_breaches_counted():
    real = np.zeros((200, 4), int)
    real[:40, [0, 1]] = 1  # code 0 implies 1, which is more common and implies nothing
    real[40:80, 1] = 1
    real[80:99, [2, 3]] = 1  # too few to tell
    own = np.zeros((50, 4), int)
    own[:10, 0] = 1
    own[:7, 1] = 1
    own[20:30, 2] = 1
    assert subject.broken_implications(as_sparse(own), as_sparse(real)) == pytest.approx(3 / 10)
    assert subject.broken_implications(as_sparse(real), as_sparse(real)) == 0
    assert subject.broken_implications(as_sparse(own[20:]), as_sparse(real)) is None
    assert subject.broken_implications(as_sparse(own), as_sparse(real[80:])) is None


def test_a_code_that_most_records_have_is_not_implied():
    real = np.ones((100, 2), int)
    real[30:, 0] = 0
    assert subject.broken_implications(as_sparse(real), as_sparse(real)) is None


def test_the_distance_of_numbers_of_codes_is_that_of_kolmogorov_and_smirnov():
    sizes = [part.sum(axis=1) for part in (OTHER, INDEPENDENT)]
    assert subject.sizes_ks(*sizes) == pytest.approx(ks_2samp(*sizes).statistic, abs=1e-12)
    assert subject.sizes_ks(sizes[0], sizes[0]) == 0
    assert subject.sizes_ks(np.zeros(3, int), np.ones(5, int)) == 1


# ---- all of them


def test_a_table_has_no_distance_from_itself():
    found = code_structure(table_of(REAL), table_of(REAL), COLUMN)
    assert found["cooccurrence_error"] == 0
    assert found["cooccurrence_r"] == pytest.approx(1.0)
    assert found["sizes_ks"] == 0


def test_figures_do_not_depend_on_the_order_of_rows():
    order = np.random.default_rng(0).permutation(len(OTHER))
    plain, shuffled = (code_structure(table_of(part), table_of(REAL), COLUMN) for part in (OTHER, OTHER[order]))
    assert shuffled == pytest.approx(plain, abs=1e-9)


def test_figures_lie_within_their_ranges():
    for part in (OTHER, INDEPENDENT):
        found = {key: value for key, value in code_structure(table_of(part), table_of(REAL), COLUMN).items() if value}
        assert found.pop("cooccurrence_error") > 0
        assert -1 <= found.pop("cooccurrence_r") <= 1
        assert all(0 <= value <= 1 for value in found.values())
        assert {"prediction_ap", "prediction_chance", "sizes_ks"} <= set(found)


def test_what_differs_by_rounding_alone_is_constant_and_has_no_correlation():
    same, other = np.array([0.3, 0.1 + 0.2, 0.3]), np.array([0.1, 0.2, 0.4])
    assert np.ptp(same) > 0
    assert subject.pearson(same, other) is None
    assert subject.pearson(other, same) is None
    assert subject.pearson(other, other**2) == pytest.approx(np.corrcoef(other, other**2)[0, 1])


def test_right_prevalences_alone_do_not_pass():
    rng = np.random.default_rng(0)
    real, other = (records(4000, seed)[:, :40] for seed in (0, 1))
    torn = np.stack([rng.permutation(column) for column in real.T], axis=1)  # each code as frequent as it is
    (torn_error, torn_r), (error, r) = (subject.cooccurrence(*map(as_sparse, (part, real))) for part in (torn, other))
    assert None not in (torn_error, torn_r, error, r)
    assert torn_error == pytest.approx(1.0, abs=0.15)
    assert abs(torn_r) < 0.2
    assert error < 0.7
    assert r > 0.8


@pytest.mark.parametrize(("own", "real"), [(0, 5), (5, 0)])
def test_without_rows_there_are_no_figures(own, real):
    assert code_structure(table_of(OTHER[:own]), table_of(REAL[:real]), COLUMN) == dict.fromkeys(REASONS)


def test_of_many_rows_a_fixed_sample_is_looked_at(monkeypatch):
    table, real = table_of(OTHER), table_of(REAL)
    whole = code_structure(table, real, COLUMN)
    monkeypatch.setattr(subject, "STRUCTURE_ROWS", 200)
    found, seen = code_structure(table, real, COLUMN), sample_of(real, 200)
    assert found == code_structure(sample_of(table, 200), seen, COLUMN)
    assert found["sizes_ks"] != whole["sizes_ks"]
    monkeypatch.setattr(subject, "LEARNED_ROWS", 100)
    learned, flags = (code_flags(part, COLUMN) for part in (sample_of(table, 100), seen))
    ap = code_structure(table, real, COLUMN)["prediction_ap"]
    assert ap == subject.prediction_ap(learned, flags, subject.predicted_codes(flags))
    assert ap != found["prediction_ap"]
