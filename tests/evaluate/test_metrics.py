"""`metrics.json`: its keys, its words, and what is null and why."""

import json
import math
import stat
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import baselines_for
from dpcgan_fast.baselines.choice import TREE
from dpcgan_fast.data.datasets import load_support2, support2_schema, train_test_split
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import Metrics, evaluate
from tests.evaluate.tables import patients, schema_of, shuffled_label, with_column

PRIVACY: dict[str, Any] = {"epsilon": 3.0, "delta": 1e-5}
TRAIN, TEST, SYNTHETIC = patients(600, 1), patients(400, 2), patients(500, 3)


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return evaluate(SYNTHETIC, TEST, schema_of(), train=TRAIN, privacy=PRIVACY)


def test_the_file_has_the_keys_of_the_contract(metrics, tmp_path):
    metrics.write(tmp_path / "metrics.json")
    values = json.loads((tmp_path / "metrics.json").read_text())
    assert values["private"] is False
    for key in ("tstr", "trtr", "baseline"):
        for learner in ("gb", "rf", "lr"):
            assert set(values[key][learner]) == {"auroc", "ap"}
            assert all(0 <= score <= 1 for score in values[key][learner].values())
    assert set(values["tstr"]) == set(values["trtr"]) == {"gb", "rf", "lr"}
    assert isinstance(values["baseline"]["name"], str)
    assert 0 <= values["marginal_tv_mean"] <= 1
    assert 0 <= values["correlation_mae"] <= 2


def test_the_file_says_that_it_is_not_private_and_only_its_owner_can_read_it(metrics, tmp_path):
    path = tmp_path / "metrics.json"
    metrics.write(path)
    assert "not differentially private" in json.loads(path.read_text())["notice"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_distances_of_real_rows_and_of_the_baseline_stand_beside_the_models(metrics):
    values = metrics.to_dict()
    for source in (values, values["floor"], values["baseline"]):
        for key in (
            "marginal_tv_mean", "correlation_mae", "pairs_tv_mean", "triples_tv_mean", "c2st", "c2st_binned",
        ):  # fmt: skip
            assert isinstance(source[key], float)
        assert set(source["marginal_tv"]) == {"age", "bmi", "sex", "smoker", "died"}
    assert values["copies"]["synthetic"] < 0.1
    assert values["rows"] == {"synthetic": 500, "test": 400, "train": 600}


def test_the_baseline_is_the_best_of_those_that_fit_the_schema(metrics):
    values = metrics.to_dict()
    assert values["baseline"] == values["baselines"][0]
    assert {one["name"] for one in values["baselines"]} == {one.name for one in baselines_for(schema_of())}
    scores = [one["gb"]["auroc"] for one in values["baselines"]]
    assert scores == sorted(scores, reverse=True)
    unlabelled = evaluate(SYNTHETIC, TEST, schema_of(label=None), train=TRAIN, privacy=PRIVACY).to_dict()
    errors = [one["correlation_mae"] for one in unlabelled["baselines"]]
    assert errors == sorted(errors)
    assert len(errors) == 2


def test_rows_that_keep_a_relation_which_no_two_columns_show_beat_the_baselines():
    def entangled(seed: int) -> pa.Table:
        table = patients(1500, seed)
        old, male = table["age"].to_numpy() > 57, np.array(table["sex"].to_pylist()) == "M"
        return with_column(table, "died", old ^ male ^ table["smoker"].to_numpy())

    synthetic, test, train = map(entangled, range(3))
    metrics = evaluate(synthetic, test, schema_of(), train=train, privacy=PRIVACY)
    assert metrics.verdict["standing"] == "wins"


def test_a_relation_of_two_columns_in_each_class_is_one_that_a_tree_keeps():
    def entangled(table: pa.Table) -> pa.Table:
        return with_column(table, "died", (table["age"].to_numpy() > 57) ^ table["smoker"].to_numpy())

    tables = [entangled(table) for table in (SYNTHETIC, TEST, TRAIN)]
    metrics = evaluate(*tables[:2], schema_of(), train=tables[2], privacy=PRIVACY)
    assert metrics.baselines is not None
    tree, independent = metrics.baselines
    assert tree["name"] == TREE
    assert tree["gb"]["auroc"] > independent["gb"]["auroc"] + 0.1


def test_rows_with_torn_labels_lose_to_the_baseline():
    metrics = evaluate(shuffled_label(SYNTHETIC), TEST, schema_of(), train=TRAIN, privacy=PRIVACY)
    assert metrics.verdict["standing"] == "loses"
    assert "loses to the baseline" in metrics.to_dict()["verdict"]["headline"]


def test_the_notes_state_that_train_and_test_must_share_no_unit(metrics):
    assert any("must share no unit" in note for note in metrics.notes)
    assert not any(note.startswith("WARNING") for note in metrics.notes)


def test_without_a_training_table_what_needs_one_is_null_and_a_note_says_why():
    values = evaluate(SYNTHETIC, TEST, schema_of(), privacy=PRIVACY).to_dict()
    assert values["trtr"] is values["baseline"] is values["floor"] is values["copies"] is None
    assert values["baselines"] is None
    assert values["tstr"]["gb"]["auroc"] > 0.7
    assert any("no real training table was given" in note for note in values["notes"])


def test_without_a_label_scores_are_null_and_a_note_says_why():
    values = evaluate(SYNTHETIC, TEST, schema_of(label=None), train=TRAIN, privacy=PRIVACY).to_dict()
    assert values["tstr"] is values["trtr"] is None
    assert values["baseline"]["gb"] is None
    assert isinstance(values["baseline"]["correlation_mae"], float)
    assert any("no label" in note for note in values["notes"])


def test_infinity_is_the_string_inf():
    privacy = {"epsilon": "inf", "delta": None}
    metrics = evaluate(SYNTHETIC, TEST, schema_of(), train=TRAIN, privacy=privacy)
    values = json.loads(metrics.to_json())
    assert values["epsilon"] == "inf"
    assert values["baseline"]["noise_multiplier"] == 0


def test_a_test_table_with_one_class_is_bad_input():
    with pytest.raises(InputError, match="one class of the label only") as caught:
        evaluate(SYNTHETIC, with_column(TEST, "died", np.zeros(400, int)), schema_of(), privacy=PRIVACY)
    assert caught.value.exit_code == 2


def test_figures_of_a_test_table_of_a_few_rows_are_called_uncertain():
    died = TEST["died"].to_numpy()
    rows = np.concatenate([np.flatnonzero(died == 1)[:2], np.flatnonzero(died == 0)[:3]])
    metrics = evaluate(SYNTHETIC, TEST.take(pa.array(rows)), schema_of(), privacy=PRIVACY)
    assert metrics.uncertainty is not None
    assert metrics.uncertainty > 0.3
    assert any(note.startswith("WARNING: a class of the label has only 2 of") for note in metrics.notes)


def test_a_synthetic_table_with_one_class_is_judged_and_a_note_says_so():
    one_class = with_column(SYNTHETIC, "died", np.zeros(500, int))
    metrics = evaluate(one_class, TEST, schema_of(), privacy=PRIVACY)
    assert metrics.tstr is not None
    assert metrics.tstr["gb"]["auroc"] == 0.5
    assert any("constant guess" in note for note in metrics.notes)


def test_an_empty_synthetic_table_is_judged_and_a_note_says_so():
    metrics = evaluate(SYNTHETIC.slice(0, 0), TEST, schema_of(), train=TRAIN, privacy=PRIVACY)
    assert metrics.marginal_tv_mean == 1
    assert any("has no rows" in note for note in metrics.notes)


def test_cells_of_text_are_read_as_numbers_are():
    def as_text(table: pa.Table) -> pa.Table:
        return pa.table({name: table[name].cast(pa.string()) for name in table.column_names})

    schema = schema_of()
    plain, text = (
        evaluate(change(SYNTHETIC), change(TEST), schema, privacy=PRIVACY).to_dict()
        for change in (lambda table: table, as_text)
    )
    assert plain == text


@pytest.mark.filterwarnings("error")
def test_the_widest_bounds_and_values_overflow_nowhere():
    wide = {"name": "age", "type": "numeric", "bounds": [-1.7e308, 1.7e308], "missing": True}
    cells = [1.7e308, -1.7e308, math.inf, -math.inf, 0.0, 1e-300, None, math.nan]
    synthetic, test, train = (
        with_column(table, "age", (cells * 100)[: table.num_rows]) for table in (SYNTHETIC, TEST, TRAIN)
    )
    metrics = evaluate(synthetic, test, schema_of(columns=[wide]), train=train, privacy=PRIVACY)
    assert metrics.marginal_tv_mean < 0.2


def test_units_in_both_tables_are_warned_of():
    schema = schema_of(unit="person", max_rows_per_unit=3)
    train, test = (
        table.append_column("person", pa.array(np.arange(table.num_rows) % 300 + first))
        for table, first in ((TRAIN, 0), (TEST, 200))
    )
    metrics = evaluate(SYNTHETIC, test, schema, train=train, privacy=PRIVACY)
    assert any(note.startswith("WARNING") and "units in common" in note for note in metrics.notes)


def test_a_test_table_that_is_the_training_table_is_warned_of():
    metrics = evaluate(SYNTHETIC, TRAIN, schema_of(), train=TRAIN, privacy=PRIVACY)
    assert any(note.startswith("WARNING: 100% of the test rows") for note in metrics.notes)


def test_synthetic_rows_that_copy_training_rows_are_warned_of():
    metrics = evaluate(TRAIN.slice(0, 300), TEST, schema_of(), train=TRAIN, privacy=PRIVACY)
    assert metrics.copies is not None
    assert metrics.copies["synthetic"] == 1
    assert any(note.startswith("WARNING: 100.0% of the synthetic rows are copies") for note in metrics.notes)


@pytest.mark.parametrize(("copied", "warned"), [(255, False), (350, True)])
def test_copies_are_warned_of_where_they_are_more_than_chance_makes_of_those_of_real_rows(copied, warned):
    """Of 100 test rows half equal a training row; so may 255 of 500 synthetic rows without harm, and 350 may not."""
    schema = schema_of(columns=[{"name": "age", "type": "numeric", "bounds": [0, 110]}])

    def table(rows: int, copies: int) -> pa.Table:
        return pa.table(
            {"age": [10 if row < copies else 90 for row in range(rows)], "died": [r % 2 for r in range(rows)]}
        )

    metrics = evaluate(table(500, copied), table(100, 50), schema, train=table(200, 200), privacy=PRIVACY)
    assert metrics.copies == {"synthetic": copied / 500, "test": 0.5}
    assert any("of the synthetic rows are copies" in note for note in metrics.notes) is warned


def test_support2_baseline_keeps_most_of_what_real_rows_teach():
    schema = support2_schema()
    train, test = train_test_split(load_support2())
    for baseline in baselines_for(schema):
        drawn = baseline.fit(train, 3.0, 1e-5).sample(train.num_rows, np.random.default_rng(0))
        values = evaluate(drawn, test, schema, privacy=PRIVACY).to_dict()
        assert values["tstr"]["gb"]["auroc"] > 0.82  # real rows give 0.90
        assert values["marginal_tv_mean"] < 0.05
