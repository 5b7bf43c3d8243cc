"""Bounds and lists that take real values away are told of, since no other figure shows it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.dates import with_days
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.visits import widened
from dpcgan_fast.evaluate import evaluate
from dpcgan_fast.evaluate.schema_fit import outside_schema
from tests.evaluate.tables import COLUMNS, patients, schema_of, with_column
from tests.report.pages import page
from tests.tables import make_signals, make_visits, signal_schema, visits_values

TEST = patients(400, 2)


def columns_with(name: str, **changes: Any) -> list[dict[str, Any]]:
    return [{**column, **changes} if column["name"] == name else column for column in COLUMNS]


def outside(
    schema: Schema, table: pa.Table = TEST, known: Mapping[str, float | None] | None = None
) -> tuple[dict[str, float | None], list[str]]:
    return outside_schema(table, schema, known or {})


def test_a_list_in_the_wrong_case_is_warned_of_in_the_figures_and_high_on_the_page():
    schema = schema_of(columns=columns_with("sex", categories=["f", "m"]))
    found = page(train=None, schema=schema)
    assert found.text.index("Column sex: 100% of the cells") < found.text.index("At a glance")
    metrics = evaluate(TEST, TEST, schema, privacy={"epsilon": 3.0, "delta": 1e-5})
    assert metrics.to_dict()["outside_schema"] == {"age": 0, "bmi": 0, "sex": 1, "smoker": 0, "died": 0}
    assert [note for note in metrics.notes if note.startswith("WARNING: column sex: 100% of the cells")]
    assert metrics.marginal_tv["sex"] == 0  # which is why it must be said


def test_bounds_that_cut_half_of_the_values_are_warned_of():
    shares, warnings = outside(schema_of(columns=columns_with("age", bounds=[18, 57])))
    assert shares["age"] == np.mean(TEST["age"].to_numpy() > 57)
    assert len(warnings) == 1
    assert "column age: " in warnings[0]
    assert "outside the schema's bounds" in warnings[0]
    assert "train anew" in warnings[0]


def test_a_sound_schema_is_not_warned_of():
    ages = np.arange(100)
    trimmed = schema_of(columns=columns_with("age", bounds=[1, 98]))  # one percent at each end
    for schema in (schema_of(), trimmed):
        shares, warnings = outside(schema, with_column(TEST, "age", np.resize(ages, 400)))
        assert warnings == []
        assert shares["age"] == (0.02 if schema is trimmed else 0)


def test_missing_cells_do_not_count_and_flags_are_0_or_1():
    table = with_column(with_column(TEST, "sex", ["X", None, "NA", ""] * 100), "smoker", [1, 2] * 200)
    shares, warnings = outside(schema_of(), table)
    assert shares["sex"] == 1
    assert shares["smoker"] == 0.5
    assert any("column smoker: 50% of the cells of the real test rows are neither 0 nor 1" in text for text in warnings)
    empty = with_column(TEST, "sex", pa.nulls(400, pa.string()))
    assert outside(schema_of(), empty)[0]["sex"] is None


def test_cells_in_single_precision_at_a_bound_are_inside():
    table = with_column(TEST, "bmi", np.full(400, 10.1, np.float32))
    assert outside(schema_of(columns=columns_with("bmi", bounds=[5, 10.1])), table)[0]["bmi"] == 0


def test_many_columns_are_not_a_page_of_warnings():
    columns = [{"name": f"n{i}", "type": "numeric", "bounds": [0, 1]} for i in range(9)]
    table = pa.table({column["name"]: [2.0] * 10 for column in columns})
    _, warnings = outside(schema_of(label=None, columns=columns), table)
    assert len(warnings) == 6
    assert "in 4 more columns" in warnings[-1]


def test_codes_have_their_share_and_no_second_warning():
    shares, warnings = outside(schema_of(), known={"dx": 0.25, "rx": None})
    assert shares["dx"] == 0.75
    assert shares["rx"] is None
    assert warnings == []


def test_the_samples_of_a_signal_count_together():
    signals = [{"name": "eeg", "columns": ["X1", "...", "X40"], "bounds": [-1, 1]}]
    schema = signal_schema().model_dump(mode="json") | {"signals": signals}
    shares, warnings = outside(Schema.from_dict(schema), make_signals())
    assert set(shares) == {"y", "eeg"}
    assert len(warnings) == 1


def test_the_cells_of_all_visits_count_together_and_dates_are_seen():
    values = visits_values()
    values["columns"].append({"name": "seen", "type": "date", "bounds": ["2001-01-01", "2002-01-01"]})
    values["columns"] = [
        {**column, "bounds": [0, 1]} if column["name"] == "sodium" else column for column in values["columns"]
    ]
    schema = Schema.from_dict(values)
    table = make_visits()
    table = table.append_column("seen", pa.array(["2020-01-01"] * table.num_rows))
    records = with_days(widened(table, schema, "--real"), schema.as_records(), "--real")
    shares, warnings = outside(schema.as_records(), records)
    assert shares["sodium"] == shares["seen"] == 1
    assert not {"year", "number of visits"} & set(shares)
    assert len(warnings) == 2


@pytest.mark.parametrize("name", ["low", "Low"])
def test_a_label_is_looked_at_too(name):
    label = {"name": "stage", "type": "categorical", "categories": [name, "middle", "high"]}
    shares, warnings = outside(schema_of(label=label))
    assert bool(warnings) is (name == "Low")
    assert (shares["stage"] == 0) is (name == "low")
