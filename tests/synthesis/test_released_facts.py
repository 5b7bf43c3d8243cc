"""Facts that are released before training: of the crowd, not of one person, who weighs one whatever their rows."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.synthesis import DPCGAN
from tests.tables import FEW_STEPS, make_schema, make_table, schema_values

MAX_ROWS = 3


def released(run):
    return json.loads((run / "config.json").read_text())["released"]


def test_one_persons_extreme_value_does_not_show_in_the_bounds(tmp_path):
    columns = schema_values()["columns"]
    columns[0]["bounds"] = "private"
    table = make_table()
    extreme = table.slice(0, 1).set_column(0, "age", pa.array([10**6]))
    model = DPCGAN(make_schema(columns=columns), 3.0, 1e-4, device="cpu", seed=1, **FEW_STEPS)
    model.fit(pa.concat_tables([table, extreme]), tmp_path / "run")
    _, high = released(tmp_path / "run")["bounds"]["age"]
    assert high <= 256


def test_class_rates_are_means_over_people_of_their_first_rows(tmp_path):
    """Without noise the released rates are exact, so they show how the rows were weighed."""
    few = make_table(100, patients=60)
    busy = few.slice(0, 1).set_column(few.column_names.index("died"), "died", pa.array([1]))
    busy = pa.concat_tables([busy.set_column(0, "patient", pa.array(["busy"]))] * 500)
    table = pa.concat_tables([few, busy])
    schema = make_schema(unit="patient", n_units=61, max_rows_per_unit=MAX_ROWS)
    batches = {"autoencoder_batch": 10, "critic_batch": 10}
    DPCGAN(schema, math.inf, 1e-4, device="cpu", **{**FEW_STEPS, **batches}).fit(table, tmp_path / "run")
    deaths: dict[str, list[int]] = {}
    for patient, died in zip(table["patient"].to_pylist(), table["died"].to_pylist(), strict=True):
        deaths.setdefault(patient, []).append(died)
    exact = np.mean([np.mean(rows[:MAX_ROWS]) for rows in deaths.values()])
    assert released(tmp_path / "run")["rates"][1] == pytest.approx(exact)
