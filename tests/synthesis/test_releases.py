"""Category lists that are released: one name a category whatever the column's type, and a schema that can be read."""

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.schema import OTHER, Schema
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.synthesis.releases import make_releases, planned_releases
from dpcgan_fast.train.plan import make_plan
from dpcgan_fast.train.settings import default_settings
from tests.tables import FEW_STEPS, ROWS, make_table, schema_values

SCHEMA = Schema.from_dict(
    {"unit": None, "n_units": 10, "columns": [{"name": "x", "type": "categorical", "categories": "private"}]}
)


def released(source, folder):
    """The list without noise: what more than one row holds, most frequent first."""
    settings = default_settings("auto", math.inf, 1e-2, SCHEMA.n_units, autoencoder_batch=2, critic_batch=2)
    plan = make_plan(settings, planned_releases(SCHEMA, settings), "row")
    table, _ = read_table(source, ["x"])
    with Ledger(folder / "ledger.jsonl", create=True) as ledger:
        facts = make_releases(table, None, SCHEMA, plan, ledger, NoiseKey(), "data")
    return facts.categories["x"]


@pytest.mark.parametrize(
    "source",
    [
        pa.table({"x": pa.array([1, 2, 1, 2, 1])}),
        pa.table({"x": pa.array([1.0, 2.0, 1.0, 2.0, 1.0, None])}),
        pa.table({"x": ["1", "2.0", "1.0", " 2", "1"]}),
        pd.DataFrame({"x": [1, 2, 1, 2, 1]}),
        pd.DataFrame({"x": [1, 2, 1, 2, 1, np.nan]}),
        pd.DataFrame({"x": [1, 2, 1, 2, 1, "x"]}),
        pd.DataFrame({"x": [1, 2.0, "1.0", 2, "1", None]}, dtype=object),
    ],
    ids=["int", "float", "text", "frame int", "frame float", "frame odd cell", "frame object"],
)
def test_names_do_not_depend_on_the_type_that_other_cells_give_the_column(source, tmp_path):
    assert released(source, tmp_path) == ("1", "2")


def test_missing_cells_and_the_name_of_all_other_categories_are_no_categories(tmp_path):
    cells = [name for name in ("a", OTHER, "NA", " nan ", "", "null") for _ in range(3)]
    assert released(pa.table({"x": cells}), tmp_path) == ("a",)


@pytest.mark.parametrize("unknown", [OTHER, "missing"])
def test_a_list_may_turn_out_empty_and_then_every_cell_is_unknown(unknown, tmp_path):
    """The budget is spent by then, so that the run must end in a model that can be loaded."""
    columns = schema_values()["columns"]
    columns[2] = {"name": "sex", "type": "categorical", "categories": "private", "unknown": unknown, "missing": True}
    table = make_table().set_column(2, "sex", pa.array([f"one of {i}" for i in range(ROWS)]))
    schema = Schema.from_dict(schema_values(columns=columns))
    DPCGAN(schema, 3.0, 1e-4, device="cpu", **FEW_STEPS).fit(table, tmp_path / "run")
    drawn = DPCGAN.load(tmp_path / "run", device="cpu").sample(40)
    assert set(drawn["sex"].to_pylist()) <= ({OTHER, None} if unknown == OTHER else {None})
