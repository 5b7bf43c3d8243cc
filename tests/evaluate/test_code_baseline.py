"""The yardstick draws codes on their own, from a release with the bound and at the epsilon that the model's has."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate import CodeView, baseline, code_distances, code_view
from dpcgan_fast.evaluate.code_baseline import prevalences
from dpcgan_fast.privacy.releases import FULL_WEIGHT_CODES, number_edges
from tests.evaluate.tables import COLUMNS, LABEL

VOCABULARY = tuple(f"C{code:02}" for code in range(40))


def schema_of(columns: Any = (COLUMNS[0],), label: Any = LABEL, most: int = 30, **more: Any) -> Schema:
    dx = {"name": "dx", "type": "codes", "vocabulary": VOCABULARY, "max_codes": most}
    listed = [*columns, dx, *([label] if label else [])]
    return Schema.from_dict({"unit": None, "columns": listed, "label": label and label["name"], **more})


def table_of(rows: int, seed: int, most: float = 0.9) -> pa.Table:
    """Those who died have the first codes more often, all others the last; the first two come together."""
    rng = np.random.default_rng(seed)
    died = rng.random(rows) < 0.3
    rates = np.where(died[:, None], 1, 0.3) * most * np.linspace(1, 0.02, len(VOCABULARY))
    held = rng.random((rows, len(VOCABULARY))) < rates
    held[:, 1] = held[:, 0]
    lists = [[code for code, has in zip(VOCABULARY, row, strict=True) if has] for row in held]
    return pa.table({"age": rng.integers(20, 95, rows), "dx": lists, "died": died.astype(int)})


def joint(table: pa.Table, schema: Schema) -> np.ndarray:
    parts = [*baseline.joint_histograms(table, schema), *baseline.joint_code_counts(table, schema)]
    return np.concatenate([part.ravel() for part in parts])


def bound(table: pa.Table, schema: Schema) -> float:
    return baseline.sensitivity(baseline.joint_histograms(table, schema), baseline.joint_code_counts(table, schema))


# ---- sensitivity


@pytest.mark.parametrize("label", [LABEL, None])
@pytest.mark.parametrize("columns", [(), (COLUMNS[0],)])
@pytest.mark.parametrize("most", [1, 5, 30])
def test_removing_a_row_moves_all_that_is_released_by_at_most_the_sensitivity(label, columns, most):
    """Also a row with all codes there are."""
    schema, table = schema_of(columns, label, most), table_of(25, 3)
    table = pa.concat_tables([table, pa.table({"age": [50], "dx": [list(VOCABULARY)], "died": [1]})])
    whole, most_moved = joint(table, schema), bound(table, schema)
    assert most_moved == math.sqrt(len(columns) + 1 + FULL_WEIGHT_CODES)
    for row in range(table.num_rows):
        rest = pa.concat_tables([table.slice(0, row), table.slice(row + 1)])
        assert np.linalg.norm(whole - joint(rest, schema)) <= most_moved * (1 + 1e-12)


def test_the_bound_is_reached_so_that_no_noise_is_wasted():
    schema = schema_of()
    table = pa.table({"age": [50], "dx": [list(VOCABULARY[:FULL_WEIGHT_CODES])], "died": [0]})
    assert np.linalg.norm(joint(table, schema)) == pytest.approx(bound(table, schema))


def test_the_noise_is_that_of_the_sensitivity(monkeypatch):
    seen = []
    noisy = baseline.noisy_parts
    monkeypatch.setattr(baseline, "noisy_parts", lambda parts, std, key: seen.append(std) or noisy(parts, std, key))
    baseline.independent_marginals(table_of(50, 0), schema_of(), 1.0, 1e-5, 10, np.random.default_rng(0))
    assert seen == [baseline.noise_multiplier(1.0, 1e-5) * math.sqrt(1 + 1 + FULL_WEIGHT_CODES)]


# ---- what is drawn


def error_of(table: pa.Table, real: pa.Table, view: CodeView) -> float:
    error = code_distances(table, real, view)["dx"]["mae"]
    assert error is not None
    return error


def drawn_at(epsilon: float, train: pa.Table, schema: Schema, rows: int = 4000) -> pa.Table:
    return baseline.independent_marginals(train, schema, epsilon, 1e-5, rows, np.random.default_rng(0))


@pytest.mark.parametrize("most", [0.3, 0.9])
def test_without_noise_codes_are_as_frequent_in_each_class_as_in_the_training_table(most):
    """Records with more codes than weigh in full are among them."""
    train, schema = table_of(4000, 0, most), schema_of(most=40)
    drawn = drawn_at(math.inf, train, schema)
    for died in (0, 1):
        own, real = (t.filter(np.array(t["died"]) == died) for t in (drawn, train))
        view = code_view(schema, real)
        assert view is not None
        assert error_of(own, real, view) < 0.02


def test_codes_are_drawn_on_their_own():
    train, schema = table_of(4000, 0), schema_of(label=None)
    view = code_view(schema, train, 2)
    assert view is not None
    found = view.wide(drawn_at(math.inf, train, schema)).to_pandas()
    real = view.wide(train).to_pandas()
    assert real[["dx: C00", "dx: C01"]].corr().iloc[0, 1] == 1
    assert abs(found[["dx: C00", "dx: C01"]].corr().iloc[0, 1]) < 0.08


@pytest.mark.parametrize("epsilon", [0.05, 1.0, math.inf])
@pytest.mark.parametrize("vocabulary", [VOCABULARY, ()])
def test_any_noise_gives_rows_of_the_schema(epsilon, vocabulary):
    schema = schema_of()
    columns = [c.model_copy(update={"vocabulary": vocabulary}) if c.type == "codes" else c for c in schema.columns]
    schema = schema.model_copy(update={"columns": tuple(columns)})
    drawn = drawn_at(epsilon, table_of(100, 0), schema, rows=200)
    assert drawn.column_names == ["age", "dx", "died"]
    assert drawn.num_rows == 200
    assert {code for cell in drawn["dx"].to_pylist() for code in cell} <= set(vocabulary)


def test_more_noise_is_farther_from_the_real_prevalences():
    train, schema = table_of(2000, 0), schema_of()
    view = code_view(schema, train)
    assert view is not None
    errors = [error_of(drawn_at(e, train, schema), train, view) for e in (0.03, 0.3, math.inf)]
    assert errors == sorted(errors, reverse=True)


def test_prevalences_stay_between_none_and_all():
    column = schema_of().codes_columns()[0]
    numbers = np.zeros((2, len(number_edges(column.max_codes))))
    shares = prevalences(np.array([[-50.0, 90.0], [1.0, 2.0]]), numbers, np.array([40.0, -3.0]), 5.0, column)
    assert shares.min() >= 0
    assert shares.max() <= 1
