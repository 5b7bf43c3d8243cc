"""The score of a run: what one person changes of it, and what it measures."""

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import releases
from dpcgan_fast.synthesis.fitting import FitHooks, read_raw
from dpcgan_fast.tuning import scoring
from dpcgan_fast.tuning.scoring import (
    BINS,
    WORST,
    auroc,
    check_label,
    exact_counts,
    judge_of,
    noisy_score,
    score_mechanism,
)
from tests.synthesis.code_runs import HEADER, code_schema, events
from tests.synthesis.runs import model_of
from tests.tables import make_schema, make_table, make_visits, schema_values, visits_values


def three_classes():
    columns = schema_values()["columns"]
    columns[4] = {"name": "died", "type": "categorical", "categories": ["0", "1", "2"]}
    return columns


def classes_table(rows=400, seed=0):
    table = make_table(rows, seed, patients=150)
    died = np.random.default_rng(seed).integers(0, 4, rows)  # 3 is no class: such rows count nowhere
    return table.set_column(table.column_names.index("died"), "died", pa.array([str(value) for value in died]))


CASES = {
    "rows": (make_schema(), make_table()),
    "people with rows": (make_schema(unit="patient", n_units=150, max_rows_per_unit=3), make_table(patients=150)),
    "three classes": (
        make_schema(unit="patient", n_units=150, max_rows_per_unit=2, columns=three_classes()), classes_table(),
    ),
    "visits": (Schema.from_dict(visits_values()), make_visits()),
    "codes": (code_schema(), pa.table(list(map(pa.array, zip(*events(), strict=True))), HEADER)),
}  # fmt: skip


def fitted(schema, table):
    """A model whose noise hardly matters."""
    everyone = {"autoencoder_batch": schema.n_units, "critic_batch": schema.n_units}  # whose accounting is quick
    return model_of(schema, epsilon=50.0, **everyone).fit(table)


def without_unit(table, schema, unit):
    column = np.arange(table.num_rows) if schema.unit is None else np.array(table[schema.unit].to_pylist())
    return table.filter(pa.array(column != unit))


def counts_of(judge, table, schema):
    return exact_counts(judge, read_raw(table, schema, FitHooks()), schema)


@pytest.mark.parametrize("case", list(CASES))
def test_removing_one_unit_moves_the_vector_by_at_most_the_sensitivity_that_is_stated(case):
    schema, table = CASES[case]
    judge = judge_of(fitted(schema, table), 0)
    whole = counts_of(judge, table, schema)
    sensitivity = score_mechanism(schema, 1.0).max_grad_norm
    assert sensitivity == pytest.approx(3**0.5 if case == "three classes" else 1.0)
    units = range(12) if schema.unit is None else sorted(set(table[schema.unit].to_pylist()))[:12]
    moved = [np.linalg.norm(whole - counts_of(judge, without_unit(table, schema, unit), schema)) for unit in units]
    assert max(moved) <= sensitivity * (1 + 1e-9)
    assert max(moved) > 0.5 * sensitivity, "the bound is nearly met, so that the test can fail"


def test_a_unit_with_many_rows_weighs_no_more_than_another():
    schema, table = CASES["people with rows"]
    judge = judge_of(fitted(schema, table), 0)
    one = table.slice(0, 1).set_column(0, "patient", pa.array(["new"]))
    many = pa.concat_tables([table, *([one] * 100)])
    moved = counts_of(judge, many, schema) - counts_of(judge, table, schema)
    assert np.abs(moved).sum() == pytest.approx(1.0)


def test_the_cell_of_a_row_depends_on_that_row_alone():
    schema, table = CASES["rows"]
    judge = judge_of(fitted(schema, table), 0)
    whole = counts_of(judge, table, schema)
    apart = sum(counts_of(judge, table.slice(first, 100), schema) for first in range(0, table.num_rows, 100))
    assert np.array_equal(whole, apart)
    assert whole.sum() == table.num_rows


def test_the_noise_is_that_of_the_mechanism_and_nothing_else_of_the_data_is_read(monkeypatch):
    schema, table = CASES["three classes"]
    judge = judge_of(fitted(schema, table), 0)
    raw = read_raw(table, schema, FitHooks())
    seen = []
    real = releases.noisy_release

    def spy(name, values, sensitivity, noise_multiplier, key, unit):
        seen.append((name, values, sensitivity, noise_multiplier, unit))
        return real(name, values, sensitivity, noise_multiplier, key, unit)

    monkeypatch.setattr(scoring, "noisy_release", spy)
    score = noisy_score(judge, raw, schema, score_mechanism(schema, 7.0), NoiseKey(3))
    ((name, values, *rest),) = seen
    assert name == "score"
    assert rest == [3**0.5, 7.0, "patient"]
    released = real(name, values, *rest[:2], NoiseKey(3), "patient")
    assert score == auroc(released.values)


@pytest.mark.parametrize("classes", [2, 3])
def test_is_the_area_under_the_roc_curve_of_binned_probabilities(classes):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, classes, 900), rng.random((classes, 900))
    kinds = (1,) if classes == 2 else range(classes)
    binned = {kind: np.floor((scores[kind] + 0.5 * (labels == kind)) / 1.5 * BINS).astype(int) for kind in kinds}
    counts = [np.bincount((labels == kind) * BINS + binned[kind], minlength=2 * BINS) for kind in kinds]
    expected = np.mean([roc_auc_score(labels == kind, binned[kind]) for kind in kinds])
    assert auroc(np.concatenate(counts).astype(float)) == pytest.approx(expected, rel=1e-12)
    assert expected > 0.6


def test_is_a_number_whatever_the_noise_made_of_the_counts():
    rng = np.random.default_rng(0)
    for scale in (0.0, 1.0, 1e6):
        for _ in range(50):
            assert 0 <= auroc(rng.normal(0, scale, 3 * 2 * BINS)) <= 1
    assert auroc(np.zeros(2 * BINS)) == 0.5


def test_tells_a_model_that_learned_the_label_from_one_of_noise():
    schema, table = CASES["rows"]
    raw = read_raw(make_table(seed=1), schema, FitHooks())
    learned, noise = (
        noisy_score(judge_of(model, 0), raw, schema, score_mechanism(schema, 0.0), NoiseKey(0))
        for model in (fitted(schema, table), model_of(schema, seed=0, statistics=False).fit(table))
    )
    assert learned > noise + 0.1


def test_synthetic_rows_of_one_class_score_like_a_guess(monkeypatch):
    schema, table = CASES["rows"]
    model = fitted(schema, table)
    died = model.sample(3000, where={"died": 1}, seed=0)
    monkeypatch.setattr(type(model), "sample", lambda *_, **__: died)
    raw = read_raw(table, schema, FitHooks())
    assert noisy_score(judge_of(model, 0), raw, schema, score_mechanism(schema, 0.0), NoiseKey(0)) == 0.5


def test_a_run_from_which_no_rows_can_be_drawn_is_the_worst_and_no_error(monkeypatch):
    schema, table = CASES["rows"]
    model = fitted(schema, table)

    def too_rare(*_, **__):
        raise InputError("Too rare", "constraints of the schema", "")

    monkeypatch.setattr(type(model), "sample", too_rare)
    judge = judge_of(model, 0)
    assert judge is None
    raw = read_raw(table, schema, FitHooks())
    assert noisy_score(judge, raw, schema, score_mechanism(schema, 1.0), NoiseKey(0)) == WORST < 0


def test_without_a_label_there_is_none():
    with pytest.raises(InputError, match="A search needs a label"):
        check_label(make_schema(label=None))
