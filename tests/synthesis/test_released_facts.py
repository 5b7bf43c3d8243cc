"""Facts that are released before training: of the crowd, not of one person, who weighs one whatever their rows."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.cells import compute
from dpcgan_fast.synthesis import DPCGAN
from tests.synthesis.code_runs import quick_runs
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


def skewed(**changes):
    column = {"name": "cost", "type": "numeric", "bounds": [0, 10_000], "scale": "rank", "quantiles": "private"}
    return {**column, "integer": True, "missing": True, **changes}


def costs(rows):
    rng = np.random.default_rng(3)
    return pa.array(rng.lognormal(4, 1, rows).astype(int), mask=rng.random(rows) < 0.1)


@pytest.mark.parametrize("bounds", [[0, 10_000], "private"])
def test_paid_quantiles_stand_in_ledger_card_and_schema_and_the_run_can_be_loaded(tmp_path, bounds):
    columns = [*schema_values()["columns"], skewed(bounds=bounds)]
    model = DPCGAN(make_schema(columns=columns), 3.0, 1e-4, device="cpu", **FEW_STEPS)
    with quick_runs():
        model.fit(make_table().append_column("cost", costs(400)), tmp_path / "run")
    quantiles = released(tmp_path / "run")["quantiles"]["cost"]
    assert len(quantiles) == 95
    mechanism = next(m for m in model.privacy()["mechanisms"] if m["mechanism"] == "quantiles")
    assert (mechanism["event"], mechanism["max_grad_norm"], mechanism["steps"]) == ("gaussian", 1.0, 1)
    assert "95 quantiles of cost" in (tmp_path / "run" / "privacy_card.md").read_text()
    column = json.loads((tmp_path / "run" / "schema.json").read_text())["columns"][-1]
    assert column["quantiles"] == quantiles
    low, high = column["bounds"]
    drawn = DPCGAN.load(tmp_path / "run", device="cpu").sample(200)["cost"]
    assert all(cell is None or low - 0.5 <= cell <= high + 0.5 for cell in drawn.to_pylist())
    assert model.privacy()["epsilon_spent"] <= 3.0


def test_paid_quantiles_are_those_of_people_of_their_first_rows(tmp_path):
    """Without noise: one person with very many rows of a high cost is one among sixty."""
    few = make_table(100, patients=60).append_column("cost", pa.array(np.full(100, 10)))
    busy = few.slice(0, 1).set_column(few.column_names.index("cost"), "cost", pa.array([9000]))
    table = pa.concat_tables([few, *[busy.set_column(0, "patient", pa.array(["busy"]))] * 500])
    columns = [*schema_values()["columns"], skewed()]
    schema = make_schema(unit="patient", n_units=61, max_rows_per_unit=MAX_ROWS, columns=columns)
    batches = {"autoencoder_batch": 10, "critic_batch": 10}
    DPCGAN(schema, math.inf, 1e-4, device="cpu", **{**FEW_STEPS, **batches}).fit(table, tmp_path / "run")
    quantiles = released(tmp_path / "run")["quantiles"]["cost"]
    assert np.median(quantiles) < 20
    assert sum(value > 5000 for value in quantiles) <= 2


@pytest.mark.parametrize("epsilon", [3.0, math.inf])
def test_many_categories_are_released_by_class_and_kept_to(tmp_path, epsilon):
    rng, names = np.random.default_rng(4), [f"W{i}" for i in range(80)]
    table = make_table(1000)
    died = table["died"].to_numpy()
    wards = pa.array([names[rng.integers(0, 5) + 40 * row] for row in died])
    columns = [*schema_values()["columns"], {"name": "ward", "type": "categorical", "categories": names}]
    model = DPCGAN(make_schema(columns=columns, n_units=1000), epsilon, 1e-4, device="cpu", **FEW_STEPS)
    with quick_runs():
        model.fit(table.append_column("ward", wards), tmp_path / "run")
    rates = np.array(released(tmp_path / "run")["category_rates"]["ward"])
    assert rates.shape == (2, 81)
    np.testing.assert_allclose(rates.sum(1), 1)
    counts = next(m for m in model.privacy()["mechanisms"] if m["mechanism"] == "counts of many categories")
    assert counts["max_grad_norm"] == 1.0
    drawn = model.sample(1000)
    survived = drawn["ward"].filter(compute.equal(drawn["died"], 0)).to_pylist()
    assert np.isin(survived, names[:5]).mean() > (0.97 if math.isinf(epsilon) else 0.85)


def test_private_lists_have_no_counts_by_class(tmp_path):
    """How many they name is not known before they are paid for, and a plan is a function of the schema."""
    names = [f"W{i}" for i in range(70) for _ in range(20)]
    columns = [*schema_values()["columns"], {"name": "ward", "type": "categorical", "categories": "private"}]
    table = make_table(1400).append_column("ward", pa.array(names))
    model = DPCGAN(make_schema(columns=columns, n_units=1400), math.inf, 1e-4, device="cpu", **FEW_STEPS)
    model.fit(table, tmp_path / "run")
    assert released(tmp_path / "run")["category_rates"] == {}
    assert "counts of many categories" not in {m["mechanism"] for m in model.privacy()["mechanisms"]}
    assert len(set(model.sample(500)["ward"].to_pylist())) > 20
