"""Codes from noisy counts: as frequent as these say, on their own, or as many as a record has."""

import math

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import baselines_for, choice
from dpcgan_fast.baselines.codes import CodeCounts, capped_codes, number_histogram, weighted_counts
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate import CodeView, code_distances, code_view
from dpcgan_fast.privacy.releases import FULL_WEIGHT_CODES, number_edges
from tests.baselines.tables import VOCABULARY, codes_schema, codes_table

BOTH = [choice.INDEPENDENT, choice.SIZED]
ALL = [*BOTH, choice.MIXED]


def drawn_at(epsilon: float, train: pa.Table, schema: Schema, name: str, rows: int = 4000) -> pa.Table:
    baseline = next(one for one in baselines_for(schema) if one.name == name)
    return baseline.fit(train, epsilon, 1e-5).sample(rows, np.random.default_rng(0))


def error_of(table: pa.Table, real: pa.Table, view: CodeView) -> float:
    error = code_distances(table, real, view)["dx"]["mae"]
    assert error is not None
    return error


def view_of(schema: Schema, real: pa.Table, most: int = 200) -> CodeView:
    view = code_view(schema, real, most)
    assert view is not None
    return view


def test_the_bound_of_a_unit_is_reached_so_that_no_noise_is_wasted():
    table = pa.table({"age": [50], "dx": [list(VOCABULARY[:FULL_WEIGHT_CODES])], "died": [0]})
    rows, (column,) = Rows.of(table, codes_schema()), codes_schema().codes_columns()
    sets = capped_codes(rows, column)
    assert np.linalg.norm(weighted_counts(rows, sets, column)) == pytest.approx(math.sqrt(FULL_WEIGHT_CODES))
    assert np.linalg.norm(number_histogram(rows, sets, column)) == 1


def test_drawn_on_their_own_counts_and_numbers_have_noise_alike():
    """And as much of it as one release of both and of the columns would have."""
    (baseline, *_), table = baselines_for(codes_schema()), codes_table(50, 0)
    found = {one.mechanism: one for one in baseline.fit(table, 1.0, 1e-5).mechanisms}
    stds = {name: one.noise_multiplier * one.max_grad_norm for name, one in found.items()}
    assert set(stds) == {"numbers of codes: dx", "code counts: dx", "histograms"}
    assert max(stds.values()) == pytest.approx(min(stds.values()))


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("most", [0.3, 0.9])
def test_without_noise_codes_are_as_frequent_in_each_class_as_in_the_training_table(most, name):
    """Records with more codes than weigh in full are among them."""
    train, schema = codes_table(4000, 0, most), codes_schema(most=40)
    drawn = drawn_at(math.inf, train, schema, name)
    for died in (0, 1):
        own, real = (t.filter(np.array(t["died"]) == died) for t in (drawn, train))
        assert error_of(own, real, view_of(schema, real)) < 0.02


def sizes(table: pa.Table, died: int) -> np.ndarray:
    return np.array([len(cell) for cell in table.filter(np.array(table["died"]) == died)["dx"].to_pylist()])


def test_records_have_as_many_codes_as_real_ones_if_that_is_drawn_first():
    train, schema = codes_table(4000, 0), codes_schema(most=40)
    drawn, edges = drawn_at(math.inf, train, schema, choice.SIZED), number_edges(40)
    for died in (0, 1):
        shares = [
            np.bincount(np.searchsorted(edges, sizes(table, died), "right") - 1, minlength=len(edges))
            for table in (train, drawn)
        ]
        real, own = (one / one.sum() for one in shares)
        assert np.abs(own - real).sum() / 2 < 0.06


def test_a_wide_spread_of_sizes_is_kept_and_codes_stay_as_frequent():
    """Half of the people have two codes, the others thirty: on their own, codes would give all about sixteen."""
    rng = np.random.default_rng(0)
    counts = np.where(rng.random(3000) < 0.5, 2, 30)
    lists = [[VOCABULARY[i] for i in rng.choice(40, count, replace=False)] for count in counts]
    train = pa.table({"dx": lists})
    schema = codes_schema((), None, most=40)
    sized, independent = (
        np.array([len(c) for c in drawn_at(math.inf, train, schema, name)["dx"].to_pylist()]) for name in reversed(BOTH)
    )
    assert np.mean(sized <= 5) == pytest.approx(0.5, abs=0.05)
    assert np.mean(independent <= 5) < 0.01
    drawn = drawn_at(math.inf, train, schema, choice.SIZED)
    assert error_of(drawn, train, view_of(schema, train)) < 0.05  # numbers are even within their bins


def test_codes_that_are_rarer_than_the_records_tried_stay_as_rare():
    """Most codes of wide tables are: none of the records by which chances are settled may have them."""
    rng = np.random.default_rng(0)
    rare = [f"R{i:03}" for i in range(300)]
    lists = [[*rng.choice(VOCABULARY[:5], rng.integers(1, 4), replace=False)] for _ in range(6000)]
    for i, code in enumerate(rare):
        lists[i].append(code)  # one record in 6,000 has each
    train = pa.table({"dx": lists})
    columns = [{"name": "dx", "type": "codes", "vocabulary": [*VOCABULARY[:5], *rare], "max_codes": 20}]
    schema = Schema.from_dict({"unit": None, "columns": columns})
    drawn = drawn_at(math.inf, train, schema, choice.SIZED)["dx"].to_pylist()
    share = sum(code.startswith("R") for own in drawn for code in own) / sum(map(len, drawn))
    assert share == pytest.approx(300 / sum(map(len, lists)), abs=0.01)


def test_codes_are_drawn_on_their_own():
    train, schema = codes_table(4000, 0), codes_schema(label=None)
    view = view_of(schema, train, 2)
    found = view.wide(drawn_at(math.inf, train, schema, choice.INDEPENDENT)).to_pandas()
    real = view.wide(train).to_pandas()
    assert real[["dx: C00", "dx: C01"]].corr().iloc[0, 1] == 1
    assert abs(found[["dx: C00", "dx: C01"]].corr().iloc[0, 1]) < 0.08


@pytest.mark.parametrize("name", ALL)
def test_an_empty_vocabulary_gives_empty_records(name):
    schema = codes_schema()
    columns = [c.model_copy(update={"vocabulary": ()}) if c.type == "codes" else c for c in schema.columns]
    schema = schema.model_copy(update={"columns": tuple(columns)})
    drawn = drawn_at(1.0, codes_table(100, 0), schema, name, rows=50)
    assert drawn["dx"].to_pylist() == [[]] * 50


@pytest.mark.parametrize("name", BOTH)
def test_more_noise_is_farther_from_the_real_prevalences(name):
    train, schema = codes_table(2000, 0), codes_schema()
    view = view_of(schema, train)
    errors = [error_of(drawn_at(e, train, schema, name), train, view) for e in (0.03, 0.3, math.inf)]
    assert errors == sorted(errors, reverse=True)


def test_prevalences_stay_between_none_and_all():
    (column,) = codes_schema().codes_columns()
    numbers = np.zeros((2, len(number_edges(column.max_codes))))
    counts = CodeCounts(column, numbers, 5.0, np.array([[-50.0, 90.0], [1.0, 2.0]]), 5.0)
    for shares in (counts.prevalences(np.array([40.0, -3.0])), counts.weighted_shares(np.array([40.0, -3.0]))):
        assert shares.min() >= 0
        assert shares.max() <= 1
