"""The unsupervised measures of the paper's comparison, against what they are by definition."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse
from scipy.stats import ks_2samp
from sklearn.linear_model import Ridge

from dpcgan_fast.bench.paper import dimensions
from dpcgan_fast.bench.paper.code_world import code_schema, code_table, code_world
from dpcgan_fast.bench.paper.dimensions import (
    Matrix,
    dimension_prediction,
    dimension_probability,
    ks,
    matrix_of,
    mmd,
    violated,
)
from dpcgan_fast.bench.paper.protocol import Judge
from dpcgan_fast.bench.paper.tables import PaperTable
from dpcgan_fast.data.schema import Schema


def matrix(values: np.ndarray) -> Matrix:
    return Matrix(np.asarray(values, dtype=float))


@pytest.fixture
def related() -> np.ndarray:
    """Three numbers, the third of which follows from the others, and a flag."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 400))
    flag = (first + 0.2 * rng.normal(size=400) > 0.5).astype(float)
    return np.stack([first, second, (first + second) / 2, flag], axis=1)


def shuffled(values: np.ndarray) -> np.ndarray:
    """The same columns, independent of each other."""
    rng = np.random.default_rng(1)
    return np.stack([rng.permutation(column) for column in values.T], axis=1)


def test_a_matrix_has_all_codes_and_the_other_columns_with_missing_cells_in_the_middle():
    table, schema = code_table(50), code_schema(50)
    has, outcome = code_world().patients(50, 0)
    found = matrix_of(table, schema)
    assert np.array_equal(found.values, np.column_stack([has, outcome]))
    alone = matrix_of(table, code_schema(50, outcome=False))
    assert np.array_equal(alone.values, has)
    columns = [{"name": "age", "type": "numeric", "bounds": [0, 100], "missing": True}]
    plain = Schema.from_dict({"unit": None, "n_units": 2, "label": None, "columns": columns})
    assert matrix_of(pa.table({"age": [25.0, None]}), plain).values.tolist() == [[0.25, 0.0], [0.5, 1.0]]


def test_dimension_probability_compares_means():
    found = dimension_probability(matrix([[0, 1, 1], [0, 0, 1]]), matrix([[0, 1, 1], [1, 0, 1]]))
    assert found["mae"] == pytest.approx(0.5 / 3)
    assert found["r"] == pytest.approx(np.corrcoef([0, 0.5, 1], [0.5, 0.5, 1])[0, 1])
    assert dimension_probability(matrix(np.zeros((3, 4))), matrix(np.eye(4)))["r"] is None


def test_a_prediction_from_one_inverse_is_that_of_a_ridge_regression(related):
    guesses = dimensions._ridge_guesses(related, related[:50], np.array([2]))
    standard = (related - related.mean(axis=0)) / related.std(axis=0)
    others = standard[:, [0, 1, 3]]
    ridge = Ridge(alpha=dimensions._RIDGE * len(related), fit_intercept=False).fit(others, standard[:, 2])
    assert guesses[:, 0] == pytest.approx(ridge.predict(others[:50]), abs=1e-9)


def test_dimension_prediction_is_one_for_real_rows_and_less_without_dependence(related):
    real = matrix(related)
    assert dimension_prediction(real, real, real)["ratio"] == 1
    apart = dimension_prediction(matrix(shuffled(related)), real, real)
    assert apart["ratio"] < 0.9
    assert apart["real_ap"] == dimension_prediction(real, real, real)["ap"]


def test_dimension_prediction_is_unknown_where_nothing_can_be_judged():
    zeros = matrix(np.zeros((20, 3)))
    assert dimension_prediction(zeros, zeros, zeros) == {"ap": None, "real_ap": None, "ratio": None}


def test_mmd_is_about_zero_for_the_same_distribution_and_large_for_another(related):
    halves = matrix(related[:200]), matrix(related[200:])
    assert abs(mmd(*halves)) < 0.02
    assert mmd(halves[0], matrix(1 - related[200:] ** 4)) > 0.1


def test_mmd_is_unbiased_by_definition():
    own, real = np.array([[0.0], [1.0], [3.0]]), np.array([[0.5], [2.0], [2.5]])
    width = np.median([1.5**2, 2.0**2, 0.5**2])

    def kernel(x, y):
        return np.exp(-((x - y) ** 2) / width)

    pairs = [(0, 1), (0, 2), (1, 2)]
    inside = sum(np.mean([kernel(s[i, 0], s[j, 0]) for i, j in pairs]) for s in (own, real))
    across = np.mean([kernel(x, y) for x in own[:, 0] for y in real[:, 0]])
    assert mmd(matrix(own), matrix(real)) == pytest.approx(inside - 2 * across)


def test_ks_is_the_mean_of_the_columns_statistics(related):
    own, real = related[:150] ** 2, related[150:]
    expected = np.mean([ks_2samp(a, b).statistic for a, b in zip(own.T, real.T, strict=True)])
    assert ks(matrix(own), matrix(real)) == pytest.approx(expected)


def test_violated_implications_are_counted_by_their_cases():
    has = sparse.csr_array(np.array([[1.0, 1, 0], [1, 0, 0], [0, 0, 1]]))
    assert violated(has, ((0, 1),)) == 0.5
    assert violated(has, ((0, 1), (2, 1))) == pytest.approx(2 / 3)
    assert violated(has, ()) is None


def test_synthetic_rows_of_one_class_have_the_score_of_a_guess_and_none_within_themselves():
    rng = np.random.default_rng(0)
    values = {"x": rng.random(200), "y": rng.integers(0, 2, 200)}
    columns = [{"name": "x", "type": "numeric", "bounds": [0, 1]}, {"name": "y", "type": "binary"}]
    schema = Schema.from_dict({"unit": None, "n_units": 200, "label": "y", "columns": columns})
    real = pa.table(values)
    one_class = pa.table({**values, "y": np.zeros(200, np.int64)})
    judge = Judge(PaperTable("small", real, real, schema), schema)
    scores = judge.boosting(one_class)
    assert scores is not None
    assert scores["gb"]["auroc"] == 0.5
    assert judge.within(one_class) is None
