"""The draft names columns and types, and copies nothing."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpcgan_fast.data.datasets import DATA_SETS, data_folder, dataset_path
from dpcgan_fast.data.draft import draft_schema
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError

SENTINEL = "Zq8sentinel"


def drafted(cells):
    return draft_schema(pa.table({"x": cells}))["columns"][0]


def test_a_draft_of_a_file(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"id;age;bmi;sex;died\n1;50;22.5;F;0\n2;;NaN;{SENTINEL};1\n")
    draft = draft_schema(path)
    assert draft == {
        "version": 1,
        "unit": "?",
        "n_units": None,
        "max_rows_per_unit": 1,
        "label": None,
        "columns": [
            {"name": "id", "type": "numeric", "bounds": None, "integer": True},
            {"name": "age", "type": "numeric", "bounds": None, "integer": True, "missing": True},
            {"name": "bmi", "type": "numeric", "bounds": None, "missing": True},
            {"name": "sex", "type": "categorical", "categories": None},
            {"name": "died", "type": "binary"},
        ],
        "signals": [],
    }
    assert list(draft) == ["version", "unit", "n_units", "max_rows_per_unit", "label", "columns", "signals"]
    assert SENTINEL not in json.dumps(draft)


@pytest.mark.parametrize(
    ("cells", "kind"),
    [
        (["0", "1", "1.0", "0.0"], {"type": "binary"}),
        (["0", "", "NA"], {"type": "binary", "missing": True}),
        ([True, False, None], {"type": "binary", "missing": True}),
        ([0, 1], {"type": "binary"}),
        ([1.0, 0.0, float("nan")], {"type": "binary", "missing": True}),
        (["0", "1", "2"], {"type": "numeric", "bounds": None, "integer": True}),
        (["4.0", "3.0"], {"type": "numeric", "bounds": None, "integer": True}),
        (["4.5", "3", "n/a"], {"type": "numeric", "bounds": None, "missing": True}),
        (["1e400", "3"], {"type": "numeric", "bounds": None}),
        (["1", "x", ""], {"type": "categorical", "categories": None, "missing": True}),
        (["1", "0", "?"], {"type": "categorical", "categories": None}),
        (["True", "False"], {"type": "categorical", "categories": None}),
        (["2020-01-01"], {"type": "categorical", "categories": None}),
        (pa.array([0], pa.timestamp("s")), {"type": "categorical", "categories": None}),
        (pa.array(["1", None]).dictionary_encode(), {"type": "binary", "missing": True}),
    ],
)
def test_drafted_types(cells, kind):
    assert drafted(cells) == {"name": "x", **kind}


def test_text_and_typed_columns_give_the_same_draft(tmp_path):
    frame = pd.DataFrame({"a": [1, 0, 1], "b": [1.5, None, 2.0], "c": ["x", None, "y"], "d": [3, 4, 5]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    assert draft_schema(tmp_path / "t.csv") == draft_schema(tmp_path / "t.parquet") == draft_schema(frame)


def test_a_draft_is_a_schema_that_training_refuses():
    schema = Schema.from_dict(draft_schema(pa.table({"x": [1.5], "y": ["a"]})))
    with pytest.raises(InputError, match="unit"):
        schema.require_complete()


@pytest.mark.skipif(data_folder() is None, reason="no folder with the public data sets")
@pytest.mark.parametrize("name", sorted(DATA_SETS))
def test_drafts_of_public_data(name):
    draft = draft_schema(dataset_path(name))
    Schema.from_dict(draft)
    kinds = {column["name"]: column for column in draft["columns"]}
    expected = {
        "epileptic_seizure": ("X1", {"type": "numeric", "bounds": None, "integer": True}),
        "cardio": ("smoke", {"type": "binary"}),
        "cervical_cancer": ("IUD_years", {"type": "numeric", "bounds": None, "missing": True}),
        "support2": ("income", {"type": "categorical", "categories": None, "missing": True}),
        "pbc2": ("platelets", {"type": "numeric", "bounds": None, "integer": True, "missing": True}),
        "mimic_iv_demo_diagnoses": ("code", {"type": "categorical", "categories": None}),
    }
    column, kind = expected[name]
    assert kinds[column] == {"name": column, **kind}


@pytest.mark.parametrize("name", ["codes.npz", "meds"])
def test_codes_alone_are_looked_at_before_they_are_drafted(tmp_path, name):
    """Neither a file that is no matrix, nor a folder without the standard's columns, gets a schema."""
    if name == "meds":
        for part in ("data", "metadata"):
            (tmp_path / name / part).mkdir(parents=True)
        pq.write_table(pa.table({"subject_id": [1], "event": ["a"]}), tmp_path / name / "data" / "0.parquet")
    with pytest.raises(InputError, match=r"does not exist|lack a column of the schema .*column code"):
        draft_schema(tmp_path / name)
