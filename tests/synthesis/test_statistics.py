"""Preset auto draws rows from statistics where the schema has any: paid for in one line, kept, and drawn again."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast import ops
from dpcgan_fast.baselines import arrays_of, has_statistics, restored, statistics_for
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy import Ledger, Mechanism, account, noise_key
from dpcgan_fast.privacy.ledger import charged, read_ledger
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.train.checkpoint import digest, pack, unpack
from tests.synthesis.runs import model_of, stopping_hooks
from tests.tables import FEW_STEPS, make_schema, make_table, schema_values

TREE = "a tree of columns"
WARDS = [f"ward {i}" for i in range(70)]
SIGNAL = {"name": "ecg", "columns": ["X1", "...", "X9"], "bounds": [-1, 1]}


def numeric(count):
    return [{"name": f"n{i}", "type": "numeric", "bounds": [0, 1]} for i in range(count)]


def schema_of(columns, **more) -> Schema:
    return Schema.from_dict({"version": 1, "unit": None, "n_units": 400, "columns": columns, **more})


@pytest.mark.parametrize(
    ("schema", "name"),
    [
        (make_schema(), "a tree of columns"),
        (schema_of(numeric(64)), "a tree of columns"),
        (schema_of(numeric(65)), None),
        (schema_of(numeric(1)), "a histogram of the column"),
        (schema_of([], signals=[SIGNAL]), "strengths and waves of the signal"),
        (schema_of(numeric(3), signals=[SIGNAL]), "a tree of columns and strengths and waves of the signal"),
        (schema_of([{"name": "dx", "type": "codes", "vocabulary": ["A", "B"], "max_codes": 2}]), None),
        (schema_of([{"name": "died", "type": "binary"}], label="died"), None),
        (schema_of([*numeric(2), {"name": "ward", "type": "categorical", "categories": WARDS}]), None),
        (
            schema_of([*numeric(2), {"name": "ward", "type": "categorical", "categories": WARDS[:9]}]),
            "a tree of columns",
        ),
    ],
    ids=[
        "mixed",
        "64 columns",
        "65 columns",
        "one column",
        "signal",
        "columns and signal",
        "codes",
        "label alone",
        "70 categories",
        "9 categories",
    ],
)
def test_which_statistics_there_are_follows_from_the_schema(schema, name):
    assert has_statistics(schema) == (name is not None)
    if name is not None:
        assert statistics_for(schema).name == name


def test_all_releases_together_cost_what_the_line_of_the_ledger_says(tmp_path):
    """Gaussian releases compose by the sum of their squared ratios, also if each follows from those before it."""
    model = model_of().fit(make_table(), tmp_path / "run")
    (line,) = [m for m in charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0]) if m.mechanism == "statistics"]
    made = statistics_for(make_schema()).release(make_table(), line.noise_multiplier, noise_key()).mechanisms
    assert len(made) > 2
    whole = 1 / line.noise_multiplier**2
    assert (1 - 1e-5) * whole < sum(1 / m.noise_multiplier**2 for m in made) < whole
    single = Mechanism("one", "gaussian", 1.0, line.noise_multiplier, 1, 1.0)
    assert account(made, 1e-4).epsilon_pld == pytest.approx(account([single], 1e-4).epsilon_pld, rel=1e-3)
    assert model.privacy()["epsilon_spent"] <= 3.0
    assert model.privacy()["drawn_from"] == "statistics: a tree of columns"
    assert "a tree of columns" in model.privacy_card()


def test_they_are_drawn_after_their_reservation_is_on_disk(tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []
    real = ops.NoiseKey.take

    def spy(key, blocks):
        seen.append({m.mechanism for m in charged(read_ledger(run / "ledger.jsonl")[0])})
        return real(key, blocks)

    monkeypatch.setattr(ops.NoiseKey, "take", spy)
    model_of().fit(make_table(), run)
    (later,) = [i for i, before in enumerate(seen) if "autoencoder" in before][:1]
    assert later > 3, "the label's histogram, and several releases of the tree"
    assert all("statistics" in before for before in seen[1:])


def test_rows_have_the_types_of_rows_from_networks_and_follow_the_statistics(tmp_path):
    table = make_table()
    rows = model_of(epsilon=math.inf).fit(table, tmp_path / "run").sample(20_000, seed=1)
    own = model_of(epsilon=math.inf, statistics=False).fit(table, tmp_path / "networks")
    assert own.privacy()["drawn_from"] == "networks"
    assert rows.schema == own.sample(10).schema
    died, age = (np.asarray(rows[name]) for name in ("died", "age"))
    real_died, real_age = (np.asarray(table[name]) for name in ("died", "age"))
    for value in (0, 1):
        assert abs(age[died == value].mean() - real_age[real_died == value].mean()) < 2
    assert abs(died.mean() - real_died.mean()) < 0.02
    assert abs(rows["sodium"].null_count / len(rows) - table["sodium"].null_count / len(table)) < 0.02


def test_a_label_that_is_asked_for_is_met_and_other_values_are_found(tmp_path):
    model = model_of().fit(make_table(), tmp_path / "run")
    assert set(model.sample(50, where={"died": 1})["died"].to_pylist()) == {1}
    assert set(model.sample(50, where={"sex": "F"})["sex"].to_pylist()) == {"F"}


def test_dates_and_signals_are_drawn_as_such(tmp_path):
    columns = [{"name": "day", "type": "date", "bounds": ["2020-01-01", "2021-01-01"]}, *numeric(1)]
    schema = schema_of(columns, signals=[SIGNAL])
    rng = np.random.default_rng(0)
    table = pa.table(
        {
            "day": pa.array((18300 + rng.integers(0, 300, 400)).astype("int32")).cast(pa.date32()),
            "n0": rng.random(400),
            **{f"X{i}": rng.normal(0, 0.2, 400) for i in range(1, 10)},
        }
    )
    drawn = model_of(schema).fit(table, tmp_path / "run").sample(200)
    assert drawn.schema.field("day").type == pa.date32()
    assert 18262 <= min(drawn["day"].cast(pa.int32()).to_pylist()) <= max(drawn["day"].cast(pa.int32()).to_pylist())
    assert all(abs(value) <= 1 for name in schema.signals[0].columns for value in drawn[name].to_pylist())


@pytest.mark.parametrize("scale", [{"scale": "log"}, {"scale": "rank", "quantiles": "private"}], ids=["log", "rank"])
def test_numbers_have_their_bins_on_their_own_scale(tmp_path, scale):
    rng = np.random.default_rng(0)
    values = np.minimum(np.exp(rng.normal(0, 1, 4000)), 1000.0)  # a linear bin of 50 would hold nearly all
    absent = rng.random(4000) < 0.3
    columns = [{"name": "x", "type": "numeric", "bounds": [0, 1000], "missing": True, **scale}, *numeric(1)]
    table = pa.table({"x": pa.array(values, mask=absent), "n0": rng.random(4000)})
    model = DPCGAN(schema_of(columns, n_units=4000), 20.0, 1e-4, device="cpu", **FEW_STEPS).fit(table, tmp_path / "run")
    drawn = model.sample(8000, seed=1)["x"]
    assert abs(drawn.null_count / 8000 - 0.3) < 0.03
    found = np.quantile(drawn.drop_null().to_numpy(), [0.25, 0.5, 0.75])
    assert np.abs(np.log(found / np.quantile(values, [0.25, 0.5, 0.75]))).max() < 0.35


def test_a_stopped_run_goes_on_with_the_statistics_that_it_paid_for(tmp_path):
    from dpcgan_fast.errors import StoppedError

    whole = model_of(seed=5).fit(make_table(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        model_of(seed=5).fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 3))
    resumed = model_of(seed=5).fit(make_table(), tmp_path / "run", resume=True)
    names = [m.mechanism for m in charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])]
    assert names.count("statistics") == 1
    assert resumed.sample(40, seed=2).equals(whole.sample(40, seed=2))
    assert DPCGAN.load(tmp_path / "run").sample(40, seed=2).equals(whole.sample(40, seed=2))


def test_statistics_that_do_not_fit_the_schema_are_refused(tmp_path):
    run = tmp_path / "run"
    model_of().fit(make_table(), run)
    kept = unpack((run / "model.safetensors").read_bytes(), "model")
    del kept.tensors["released.0.shares.1"]
    content = pack(kept.tensors, kept.values)
    (run / "model.safetensors").write_bytes(content)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "model_sha256": digest(content)}))
    with pytest.raises(InputError, match="The statistics do not fit the schema"):
        DPCGAN.load(run)


def test_what_is_kept_is_all_that_is_drawn_from():
    columns = [*schema_values()["columns"], *numeric(2)]
    schema = make_schema(columns=columns, signals=[SIGNAL])
    rng = np.random.default_rng(0)
    table = make_table()
    for name in ("n0", "n1", *(f"X{i}" for i in range(1, 10))):
        table = table.append_column(name, pa.array(rng.random(len(table))))
    fitted = statistics_for(schema).fit(table, 2.0, 1e-4)
    again = restored(statistics_for(schema), arrays_of(fitted), fitted.seeded)
    for only in (None, 1):
        first, second = (one.sample(300, np.random.default_rng(3), only) for one in (fitted, again))
        assert first.equals(second)


def test_a_list_of_categories_that_turned_out_empty_leaves_a_column_of_missing_cells():
    columns = schema_values()["columns"]
    columns[2] = {"name": "sex", "type": "categorical", "categories": [], "unknown": "missing", "missing": True}
    fitted = statistics_for(make_schema(columns=columns)).fit(make_table(), 1.0, 1e-4)
    assert fitted.sample(20, np.random.default_rng(0))["sex"].null_count == 20


def test_without_privacy_there_is_no_noise(tmp_path):
    model = model_of(epsilon=math.inf).fit(make_table(), tmp_path / "run")
    (line,) = [m for m in charged(read_ledger(model.folder / "ledger.jsonl")[0]) if m.mechanism == "statistics"]
    assert line.noise_multiplier == 0.0
    with Ledger(model.folder / "ledger.jsonl") as ledger:
        assert len(ledger.lines) > 2
