"""Synthetic people with several visits: order, gaps, conditions, and everything that a run does with them."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.datasets import data_folder, dataset_path, train_test_split
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.visits import widened
from dpcgan_fast.errors import InputError, StoppedError
from dpcgan_fast.evaluate import evaluate
from dpcgan_fast.report import write_report
from dpcgan_fast.synthesis import DPCGAN
from tests.data.test_examples import FOLDER
from tests.synthesis.code_runs import quick_runs
from tests.synthesis.runs import model_bytes, model_of, stopping_hooks
from tests.tables import FEW_STEPS, make_visits, visits_values

PEOPLE = 60


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("visits") / "run"
    return model_of(Schema.from_dict(visits_values())).fit(make_visits(), folder)


def by_person(table):
    people = {}
    for row in table.to_pylist():
        people.setdefault(row["patient"], []).append(row)
    return people


def test_a_sample_has_so_many_people_whose_visits_are_in_order(fitted):
    table = fitted.sample(PEOPLE, seed=1)
    assert table.schema.equals(fitted.arrow_schema)
    assert table.column_names == ["patient", "age", "sex", "died", "year", "sodium", "smoker"]
    people = by_person(table)
    assert list(people) == list(range(1, PEOPLE + 1))
    for rows in people.values():
        assert 1 <= len(rows) <= 4
        times = [row["year"] for row in rows]
        assert times == sorted(times)
        assert all(0 <= time <= 10 for time in times)
        assert all(gap <= 3 + 1e-9 for gap in np.diff(times))
        assert all(row["smoker"] in (0, 1) for row in rows)
        assert len({(row["age"], row["sex"], row["died"]) for row in rows}) == 1


def test_numbers_of_people_go_on_from_batch_to_batch(fitted, monkeypatch):
    from dpcgan_fast.synthesis import sampling

    monkeypatch.setattr(sampling, "BATCH_ROWS", 7)
    tables = list(fitted.sample_batches(20, seed=2))
    assert len(tables) == 3
    assert sorted(set(pa.concat_tables(tables)["patient"].to_pylist())) == list(range(1, 21))


def test_conditions_are_on_people(fitted):
    table = fitted.sample(PEOPLE, where={"died": 1, "sex": "F"}, seed=3)
    assert set(table["died"].to_pylist()) == {1}
    assert set(table["sex"].to_pylist()) == {"F"}
    assert len(by_person(table)) == PEOPLE
    for name in ("sodium", "year"):
        with pytest.raises(InputError, match=rf"differs between visits, .* on people \(where {name}\)"):
            fitted.sample(3, where={name: 1})
    for name in ("sodium[1]", "number of visits"):
        with pytest.raises(InputError, match="There is no such column"):
            fitted.sample(3, where={name: 1})


def test_save_load_and_the_same_sample(fitted, tmp_path):
    fitted.save(tmp_path / "copy")
    opened = DPCGAN.load(tmp_path / "copy", "cpu")
    assert opened.schema == fitted.schema
    assert opened.released_schema.visits == fitted.schema.visits
    assert opened.sample(5, seed=4).equals(fitted.sample(5, seed=4))


def test_the_card_says_what_a_person_is(fitted):
    assert fitted.privacy()["unit"] == (
        "one person: all rows with one value of `patient` are one record of at most 4 visits"
    )
    assert "at most 4 visits a person" in fitted.privacy_card()


def test_evaluation_and_report_compare_records(fitted, tmp_path):
    train, test = train_test_split(make_visits(seed=1), unit="patient")
    synthetic = fitted.sample(100, seed=5)
    schema = fitted.released_schema
    metrics = evaluate(synthetic, test, schema, train=train, privacy=fitted.privacy())
    of_records = evaluate(
        *(widened(table, schema, "data") for table in (synthetic, test)), schema,
        train=widened(train, schema, "data"), privacy=fitted.privacy(),
    )  # fmt: skip
    assert metrics.rows["synthetic"] == of_records.rows["synthetic"] == 100
    assert {"number of visits", "year[2]", "sodium[4]"} <= set(metrics.marginal_tv)
    assert metrics.marginal_tv == of_records.marginal_tv
    warned = [note for note in metrics.notes if note.startswith("WARNING")]
    assert all("a class of the label has only" in note for note in warned), "the test table is small, and all else well"
    page = write_report(tmp_path, metrics, synthetic, test, schema, fitted.privacy(), fitted.privacy_card())
    assert "100 synthetic people with up to 4 visits of 6 columns" in page.read_text()
    with pytest.raises(InputError, match=r"lacks a column \(the synthetic table, column patient\)"):
        evaluate(synthetic.drop_columns("patient"), test, schema, privacy=fitted.privacy())


def test_private_facts_of_static_columns_are_released(tmp_path):
    values = visits_values(n_units=None)
    values["columns"][0] |= {"bounds": "private"}
    values["columns"][1] = {"name": "sex", "type": "categorical", "categories": "private"}
    model = model_of(Schema.from_dict(values), epsilon=8.0).fit(make_visits(), tmp_path / "run")
    released = model.released_schema
    assert isinstance(released.columns[0].bounds, tuple)
    assert isinstance(released.columns[1].categories, tuple)
    assert len(by_person(model.sample(10, seed=1))) == 10


def test_orders_between_columns_hold_in_every_visit(tmp_path):
    rules = [{"kind": "less", "columns": ["year", "age"]}, {"kind": "at_most", "columns": ["year", "sodium"]}]
    values = visits_values(constraints=rules)
    values["columns"][4] |= {"bounds": [0, 30], "missing": False}
    model = model_of(Schema.from_dict(values)).fit(make_visits(), tmp_path / "run")
    table = model.sample(30, seed=1)
    assert len(by_person(table)) == 30
    assert all(row["year"] < row["age"] and row["year"] <= row["sodium"] for row in table.to_pylist())


@pytest.mark.parametrize("from_first", [False, True])
def test_visits_in_bins_lie_one_in_each_and_orders_hold(tmp_path, from_first):
    values = visits_values(constraints=[{"kind": "at_most", "columns": ["year", "sodium"]}])
    values["columns"][4] |= {"bounds": [0, 30], "missing": False}
    bins = {"width": 2.5, "count": 3}
    values["visits"] = {"time": "year", "bins": bins, "from_first": from_first, "columns": ["sodium", "smoker"]}
    model = model_of(Schema.from_dict(values)).fit(make_visits(), tmp_path / "run")
    assert "of at most 3 visits" in model.privacy()["unit"]
    assert "bins are 2.5 wide" in model.privacy_card()
    people = by_person(model.sample(30, seed=1))
    assert list(people) == list(range(1, 31))
    for rows in people.values():
        numbers = [int(row["year"] // 2.5) for row in rows]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] < 3
        assert rows[0]["year"] == 0 or not from_first
        assert all(row["year"] <= row["sodium"] for row in rows)
    metrics = evaluate(model.sample(30, seed=2), make_visits(seed=1), model.released_schema, privacy=model.privacy())
    assert "last bin" in metrics.marginal_tv


@pytest.mark.parametrize("bins", [False, True])
def test_many_categories_and_numbers_by_rank_of_people_and_of_visits(tmp_path, bins):
    names = [f"W{i}" for i in range(70)]
    values = visits_values(label=None)
    more = [
        {"name": "ward", "type": "categorical", "categories": names},
        {"name": "home", "type": "categorical", "categories": names, "unknown": "first"},
        {"name": "cost", "type": "numeric", "bounds": [0, 5000], "scale": "rank", "quantiles": "private"},
        {"name": "urea", "type": "numeric", "bounds": [0, 50], "scale": "rank", "quantiles": [3, 5, 9]},
        {"name": "dx", "type": "codes", "vocabulary": ["a", "b"]},
    ]
    number = {"bins": {"width": 2.5, "count": 3}} if bins else {"max_visits": 3, "key": None}
    values["columns"] += more
    values["visits"] = {"time": "year", "columns": ["sodium", "ward", "urea", "dx"], **number}
    table, rng = make_visits(), np.random.default_rng(0)
    rows = table.num_rows
    for name, cells in {
        "ward": rng.choice(names[:3], rows), "home": ["W5"] * rows, "cost": rng.lognormal(4, 1, rows),
        "urea": rng.uniform(3, 9, rows), "dx": rng.choice(["a", "b"], rows),
    }.items():  # fmt: skip
        table = table.append_column(name, pa.array(cells))
    model = model_of(Schema.from_dict(values), epsilon=math.inf, steps=2, autoencoder_steps=2)
    assert model.settings.release_share == 0.4
    model.fit(table, tmp_path / "run")
    released = json.loads((tmp_path / "run" / "config.json").read_text())["released"]
    assert (list(released["quantiles"]), list(released["category_rates"])) == (["cost"], ["home"])
    assert np.argmax(released["category_rates"]["home"][0]) == 5
    drawn = DPCGAN.load(tmp_path / "run", device="cpu").sample(40, seed=1)
    people = by_person(drawn)
    assert len(people) == 40
    assert {row["home"] for rows in people.values() for row in rows} == {"W5"}
    assert all(len({row["cost"] for row in rows}) == 1 for rows in people.values())
    assert {row["ward"] for row in drawn.to_pylist()} <= {*names, "__other__"}
    assert max(map(len, people.values())) > 1
    assert all(0 <= row["urea"] <= 50 for row in drawn.to_pylist())


def test_a_stopped_run_of_visits_goes_on(tmp_path):
    schema, table = Schema.from_dict(visits_values()), make_visits()
    whole = model_of(schema, seed=3).fit(table, tmp_path / "whole")
    with pytest.raises(StoppedError):
        model_of(schema, seed=3).fit(table, tmp_path / "run", hooks=stopping_hooks("critic", 3))
    again = model_of(schema, seed=3).fit(table, tmp_path / "run", resume=True)
    assert model_bytes(again) == model_bytes(whole)


def test_a_person_is_one_unit_however_many_rows(tmp_path):
    schema = Schema.from_dict(visits_values(n_units=None))
    folder = model_of(schema, epsilon=math.inf).fit(make_visits(), tmp_path / "run").folder
    assert json.loads((folder / "config.json").read_text())["released"]["n_units"] == 100


def test_codes_of_every_visit(tmp_path):
    values = visits_values()
    values["columns"].append({"name": "dx", "type": "codes", "vocabulary": ["a", "b", "c"], "max_codes": 2})
    values["visits"] |= {"columns": ["sodium", "smoker", "dx"], "key": "stay"}
    values["constraints"] = [{"kind": "implies", "columns": ["dx"], "code": "a", "implied": "b"}]
    table = make_visits()
    stays = pa.array([f"s{i}" for i in range(table.num_rows)])
    codes = pa.array(np.random.default_rng(0).choice(["a", "a|b", "c"], table.num_rows))
    table = table.append_column("stay", stays).append_column("dx", codes)
    model = model_of(Schema.from_dict(values)).fit(table, tmp_path / "run")
    rows = model.sample(30, seed=1)
    assert all("b" in codes or "a" not in codes for codes in rows["dx"].to_pylist())
    assert "of at most 4 visits, with at most 2 codes of dx a visit" in model.privacy()["unit"]
    metrics = evaluate(rows, table, model.released_schema, privacy=model.privacy())
    assert set(metrics.codes) == {f"dx[{slot}]" for slot in (1, 2, 3, 4)}
    with pytest.raises(InputError, match=r"lacks a column \(the real test table, column stay\)"):
        evaluate(rows, table.drop_columns("stay"), model.released_schema, privacy=model.privacy())


@pytest.mark.skipif(data_folder() is None, reason="no folder with the public data sets")
def test_pbc2(tmp_path):
    schema = Schema.from_json(FOLDER / "pbc2_visits.json")
    model = DPCGAN(schema, 3.0, 1e-3, device="cpu", **FEW_STEPS).fit(dataset_path("pbc2"), tmp_path / "run")
    table = model.sample(50, where={"status": "dead"}, seed=1)
    assert sorted(set(table["id"].to_pylist())) == list(range(1, 51))
    assert set(table["status"].to_pylist()) == {"dead"}
    real = read_table(dataset_path("pbc2"), ("id", *schema.column_names()))[0]
    metrics = evaluate(model.sample(50, seed=2), real, schema, privacy=model.privacy())
    assert metrics.rows["test"] == read_records(dataset_path("pbc2"), schema, "data")[0].num_rows == 312
