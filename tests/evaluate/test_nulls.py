"""A figure that cannot be computed is null, and a note says why."""

from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate import evaluate
from dpcgan_fast.evaluate.code_structure import REASONS
from tests.evaluate.tables import patients, schema_of

PRIVACY: dict[str, Any] = {"epsilon": 3.0, "delta": 1e-5}
DX: dict[str, Any] = {"name": "dx", "type": "codes", "vocabulary": ["A", "B", "C"], "max_codes": 3}
SIGNAL: dict[str, Any] = {"name": "eeg", "columns": ["X1", "...", "X4"], "bounds": [0, 1]}
SCHEMA = Schema.from_dict({"unit": None, "columns": [DX], "signals": [SIGNAL]})


def table(rows: int) -> pa.Table:
    rng = np.random.default_rng(rows)
    lists = pa.array([[code for code in "ABC" if rng.random() < 0.3] for _ in range(rows)], pa.list_(pa.string()))
    return pa.table({"dx": lists, **{f"X{i + 1}": rng.random(rows) for i in range(4)}})


def values_of(synthetic: pa.Table, test: pa.Table, schema: Schema, **more: Any) -> tuple[dict[str, Any], list[str]]:
    values = evaluate(synthetic, test, schema, privacy=PRIVACY, **more).to_dict()
    return values, list(values["notes"])


def test_figures_that_need_more_rows_are_null_and_notes_say_so():
    values, notes = values_of(table(15), table(16), SCHEMA, train=table(30))
    assert values["c2st"] is values["c2st_by"] is values["disclosure"] is None
    assert values["spectra"]["eeg"]["spectrum_db"] is values["codes"]["dx"]["prediction_ap"] is None
    for said in ("c2st, c2st_binned and c2st_by are null", "disclosure is null", "spectrum_db and autocorrelation_mae",
                 "prediction_ap of the codes of dx is null"):  # fmt: skip
        assert len([note for note in notes if said in note]) == 1


def test_every_null_figure_of_codes_has_its_reason():
    values, notes = values_of(table(15), table(16), SCHEMA)
    missing = [key for key in REASONS if values["codes"]["dx"][key] is None]
    assert {"prediction_ap", "rare_recall", "implications_broken"} <= set(missing)
    assert [note for note in notes if "of the codes of dx is null" in note] == [
        f"{key} of the codes of dx is null: {REASONS[key]}." for key in missing
    ]


def test_without_rows_one_note_stands_for_all_figures_of_codes():
    _, notes = values_of(table(0), table(30), SCHEMA)
    assert len([note for note in notes if "of the codes of dx is null" in note]) == 1
    assert any("one of the tables has no rows" in note for note in notes)


def test_without_a_training_table_the_disclosure_tests_are_null_and_the_note_says_so():
    values, notes = values_of(patients(100, 1), patients(100, 2), schema_of())
    assert values["disclosure"] is None
    assert any("disclosure are null: no real training table was given" in note for note in notes)


def test_without_groups_there_is_an_empty_list_and_a_note_and_without_a_label_null():
    numbers = schema_of(columns=[{"name": "age", "type": "numeric", "bounds": [0, 110]}])
    values, notes = values_of(patients(100, 1), patients(100, 2), numbers)
    assert values["subgroups"] == []
    assert any(note.startswith("There are no subgroups") for note in notes)
    unlabelled, notes = values_of(patients(100, 1), patients(100, 2), schema_of(label=None))
    assert unlabelled["subgroups"] is None
    assert not any("subgroups" in note for note in notes)


def test_figures_that_are_there_need_no_note():
    _, notes = values_of(patients(300, 1), patients(300, 2), schema_of(), train=patients(300, 3))
    assert not [note for note in notes if "null" in note]
