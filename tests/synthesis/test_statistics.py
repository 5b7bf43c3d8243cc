"""Preset auto draws rows from statistics where the schema has any: paid for in one line, kept, and drawn again."""

import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from dpcgan_fast import ops
from dpcgan_fast.baselines import arrays_of, has_statistics, restored, statistics_for
from dpcgan_fast.data.preparing import prepare
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy import Ledger, Mechanism, account, noise_key, releases
from dpcgan_fast.privacy.ledger import charged, read_ledger
from dpcgan_fast.synthesis import DPCGAN, sampling
from dpcgan_fast.synthesis.releases import least_release_share
from dpcgan_fast.synthesis.statistics import paid_statistics, unaccounted_statistics
from dpcgan_fast.train.checkpoint import digest, pack, unpack
from tests.data.preparations import Quiet, never
from tests.synthesis.code_runs import VOCABULARY, code_schema
from tests.synthesis.runs import model_of, stopping_hooks
from tests.tables import FEW_STEPS, make_schema, make_table, schema_values

TREE = "a tree of columns"
WARDS = [f"ward {i}" for i in range(70)]
DX = {"name": "dx", "type": "codes", "vocabulary": ["A", "B"], "max_codes": 2}
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
        (schema_of([DX]), "numbers, clusters and pairs of codes"),
        (schema_of([DX, *numeric(1)]), None),
        (schema_of([DX, {"name": "died", "type": "binary"}], label="died"), "numbers, clusters and pairs of codes"),
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
        "codes and a column",
        "codes and a label",
        "label alone",
        "70 categories",
        "9 categories",
    ],
)
def test_which_statistics_there_are_follows_from_the_schema(schema, name):
    assert has_statistics(schema) == (name is not None)
    if name is not None:
        assert statistics_for(schema).name == name


def test_a_label_alone_is_refused_before_anything_is_read(tmp_path):
    schema = schema_of([{"name": "died", "type": "binary"}], label="died")
    with pytest.raises(InputError, match="nothing beside the label"):
        model_of(schema).fit(tmp_path / "nothing.csv")


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


def test_card_and_run_list_every_release_that_the_line_of_the_ledger_stands_for(tmp_path, monkeypatch):
    real, made = releases.noisy_release, []

    def spy(name, values, sensitivity, noise_multiplier, *rest):
        made.append((name, sensitivity, noise_multiplier))
        return real(name, values, sensitivity, noise_multiplier, *rest)

    model = model_of()
    monkeypatch.setattr(releases, "noisy_release", spy)
    model.fit(make_table(), tmp_path / "run")
    line = next(m for m in model.privacy()["mechanisms"] if m["mechanism"] == "statistics")
    listed = [(m["mechanism"], m["max_grad_norm"], m["noise_multiplier"]) for m in model.privacy()["statistics"]]
    assert len(listed) > 2
    assert listed == made[-len(listed) :], "the dry run's, without noise, come before"
    card = model.privacy_card()
    assert "What the line `statistics` stands for" in card
    for name, sensitivity, noise in listed:
        share = (line["noise_multiplier"] / noise) ** 2
        assert f"| {name} | {sensitivity:.6g} | {noise:.6g} | {share:.4%} |" in card


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


def code_records(rows=3000, seed=0) -> pa.Table:
    """Whoever has D01 has D00; those who died have more codes."""
    rng = np.random.default_rng(seed)
    died = rng.random(rows) < 0.3
    held = rng.random((rows, len(VOCABULARY))) < np.where(died, 0.3, 0.1)[:, None]
    held[:, 0] |= held[:, 1]
    lists = [[code for code, has in zip(VOCABULARY, row, strict=True) if has] for row in held]
    return pa.table({"patient": [f"p{i}" for i in range(rows)], "died": died.astype(int), "dx": lists})


@pytest.mark.parametrize("vocabulary", [VOCABULARY, "private"], ids=["public", "private"])
def test_codes_and_a_label_are_drawn_from_numbers_clusters_and_pairs(tmp_path, vocabulary):
    schema = code_schema(vocabulary, ("died", "dx"), n_units=3000)
    epsilon = 30.0 if vocabulary == "private" else math.inf
    model = DPCGAN(schema, epsilon, 1e-5, device="cpu", **FEW_STEPS).fit(code_records(), tmp_path / "run")
    assert model.privacy()["drawn_from"] == "statistics: numbers, clusters and pairs of codes"
    assert float(model.privacy()["epsilon_spent"]) <= epsilon
    networks = DPCGAN(schema, math.inf, 1e-5, device="cpu", statistics=False, **FEW_STEPS)
    drawn = model.sample(4000, seed=1)
    assert drawn.schema == networks.fit(code_records(), tmp_path / "networks").sample(10).schema
    with_second = [cell for cell in drawn["dx"].to_pylist() if "D01" in cell]
    assert np.mean(["D00" in cell for cell in with_second]) > 0.9
    died = np.asarray(drawn["died"])
    lengths = np.asarray(pc.list_value_length(drawn["dx"]))
    assert lengths[died == 1].mean() > 1.8 * lengths[died == 0].mean()
    assert set(model.sample(30, where={"died": 1})["died"].to_pylist()) == {1}
    assert DPCGAN.load(tmp_path / "run").sample(40, seed=2).equals(model.sample(40, seed=2))


def test_codes_of_a_store_have_statistics_too(tmp_path):
    """It has a record a person, and no column that names them."""
    schema = code_schema(VOCABULARY, ("died", "dx"), n_units=3000)
    pq.write_table(code_records(), tmp_path / "records.parquet")
    prepare(tmp_path / "records.parquet", schema, tmp_path / "store", Quiet(), never)
    model = DPCGAN(schema, math.inf, 1e-5, device="cpu", **FEW_STEPS).fit(tmp_path / "store", tmp_path / "run")
    assert model.privacy()["drawn_from"] == "statistics: numbers, clusters and pairs of codes"
    drawn = model.sample(4000, seed=1)
    assert np.mean(["D00" in cell for cell in drawn["dx"].to_pylist() if "D01" in cell]) > 0.9


def test_few_rows_have_pairs_as_often_as_many(tmp_path):
    """Pairs are mended in a block of records, and ten alone would be too few for a rare one."""
    schema = code_schema(VOCABULARY, ("died", "dx"), n_units=3000)
    model = DPCGAN(schema, math.inf, 1e-5, device="cpu", **FEW_STEPS).fit(code_records(), tmp_path / "run")
    few = [cell for seed in range(40) for cell in model.sample(10, seed=seed)["dx"].to_pylist()]
    share = np.mean(["D00" in cell and "D01" in cell for cell in few])
    assert share == pytest.approx(0.16, abs=0.06)


def test_codes_come_in_larger_blocks_than_other_rows_unless_records_may_have_many(tmp_path, monkeypatch):
    """Numbers of codes are even, and pairs mended, within a block."""
    schema = code_schema(VOCABULARY, ("died", "dx"), n_units=3000)
    model = DPCGAN(schema, math.inf, 1e-5, device="cpu", **FEW_STEPS).fit(code_records(300), tmp_path / "run")
    monkeypatch.setattr(sampling, "BATCH_ROWS", 40)
    monkeypatch.setattr(sampling, "_CODE_ROWS", 100)
    (column,) = schema.codes_columns()
    sizes = []
    for rows in (10_000, 70, 1):
        monkeypatch.setattr(sampling, "_BLOCK_CODES", rows * column.max_codes)
        sizes.append([block.num_rows for block in model.sample_batches(150)])
    assert sizes == [[100, 50], [70, 70, 10], [40, 40, 40, 30]]


def test_counts_of_codes_take_little_where_statistics_tell_them():
    schema = code_schema(VOCABULARY, ("died", "dx"))
    assert least_release_share(schema, "auto") == 0
    assert least_release_share(schema, "auto", statistics=False) == 0.4
    assert least_release_share(code_schema("private", ("died", "dx")), "auto") == 0.4  # they name the codes
    assert least_release_share(code_schema(), "auto") == 0.4  # a column beside them: networks


def test_a_stopped_run_goes_on_with_the_statistics_that_it_paid_for(tmp_path):
    from dpcgan_fast.errors import StoppedError

    whole = model_of(seed=5).fit(make_table(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        model_of(seed=5).fit(make_table(), tmp_path / "run", hooks=stopping_hooks("critic", 3))
    resumed = model_of(seed=5).fit(make_table(), tmp_path / "run", resume=True)
    names = [m.mechanism for m in charged(read_ledger(tmp_path / "run" / "ledger.jsonl")[0])]
    assert names.count("statistics") == 1
    assert resumed.privacy()["statistics"] == whole.privacy()["statistics"] != []
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


@pytest.mark.parametrize("take", [unaccounted_statistics, paid_statistics])
def test_an_error_names_the_table_that_was_given(take):
    table = make_table(3).append_column("patient", pa.array(["a", None, "b"]))
    with pytest.raises(InputError, match=r"\(people\.csv, column patient, row 2\)"):
        take(table, make_schema(unit="patient"), 1.0, noise_key(1), "people.csv")
