"""Tables with codes, from events to synthetic records and their evaluation."""

import json
import math

import numpy as np
import pytest
import scipy.sparse

from dpcgan_fast.data.preparing import prepare
from dpcgan_fast.data.records import read_records
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import evaluate
from dpcgan_fast.synthesis import DPCGAN, FitHooks
from tests.data.preparations import Quiet, never
from tests.synthesis.code_runs import (
    FEW,
    OTHER_CODE,
    VOCABULARY,
    code_schema,
    codes_of,
    events,
    quick_runs,
    write_events,
)
from tests.synthesis.runs import CrashAfter, CrashError, model_bytes


def model_of(schema=None, epsilon=3.0, **changes):
    return DPCGAN(schema or code_schema(), epsilon, 1e-4, device="cpu", **{**FEW, **changes})


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_runs():
        yield


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return write_events(tmp_path_factory.mktemp("events") / "events.csv", events())


@pytest.fixture(scope="module")
def fitted(table, tmp_path_factory):
    return model_of().fit(table, tmp_path_factory.mktemp("run") / "run")


def test_synthetic_codes_are_of_the_vocabulary(fitted):
    drawn = fitted.sample(300, seed=1)
    assert drawn.column_names == ["age", "died", "dx"]
    assert codes_of(drawn) <= set(VOCABULARY)
    assert max(map(len, drawn["dx"].to_pylist())) > 0
    assert all(len(set(cell)) == len(cell) for cell in drawn["dx"].to_pylist())


def test_what_was_spent_names_the_releases_of_codes(fitted):
    privacy = fitted.privacy()
    names = [mechanism["mechanism"] for mechanism in privacy["mechanisms"]]
    assert {"code counts: dx", "codes of a record: dx", "label histogram"} <= set(names)
    assert privacy["private"]
    assert privacy["epsilon_spent"] <= 3.0
    assert "how many records have each code of dx" in fitted.privacy_card()


def test_a_saved_model_draws_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "copy")
    loaded = DPCGAN.load(tmp_path / "copy", device="cpu")
    assert loaded.sample(50, seed=3).equals(fitted.sample(50, seed=3))
    assert loaded.released_schema.columns[2].vocabulary == tuple(VOCABULARY)


@pytest.mark.parametrize("died", [0, 1])
def test_records_may_be_asked_to_have_a_code(fitted, died):
    drawn = fitted.sample(40, where={"dx": "D00", "died": died}, seed=2)
    assert all("D00" in cell for cell in drawn["dx"].to_pylist())
    assert set(drawn["died"].to_pylist()) == {died}
    with pytest.raises(InputError, match="The column has no such code"):
        fitted.sample(1, where={"dx": OTHER_CODE})


def test_evaluation_takes_what_was_sampled(fitted, tmp_path):
    schema = fitted.released_schema
    real, _ = read_records(write_events(tmp_path / "test.csv", events(80, seed=5)), schema, "data")
    metrics = evaluate(fitted.sample(200, seed=1), real, schema, privacy=fitted.privacy()).to_dict()
    assert metrics["private"] is False
    assert 0 <= metrics["tstr"]["gb"]["auroc"] <= 1


def test_a_code_of_one_patient_alone_is_never_released(tmp_path):
    """With so many patients and so large an epsilon, what many have is found."""
    rows = [*events(), ["p000", "50", "0", "only one has it"], ["p001", "50", "0", OTHER_CODE]]
    schema = code_schema(vocabulary="private")
    model = model_of(schema, epsilon=20.0).fit(write_events(tmp_path / "events.csv", rows), tmp_path / "run")
    found = model.released_schema.columns[2].vocabulary
    assert {"D00", "D01", "D02"} <= set(found) <= {*VOCABULARY, OTHER_CODE}
    assert codes_of(model.sample(300)) <= set(found)
    assert b"only one" not in b"".join(path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file())


def test_a_vocabulary_may_turn_out_empty(tmp_path):
    """The budget is spent by then, so that the run must end in a model that can be loaded."""
    rows = [[f"p{i}", "50", str(i % 2), f"code {i}"] for i in range(200)]
    path = write_events(tmp_path / "events.csv", rows)
    model_of(code_schema(vocabulary="private"), epsilon=20.0).fit(path, tmp_path / "run")
    loaded = DPCGAN.load(tmp_path / "run", device="cpu")
    assert loaded.released_schema.columns[2].vocabulary == ()
    assert loaded.sample(30)["dx"].to_pylist() == [[]] * 30


def test_codes_alone_may_turn_out_to_be_none(tmp_path):
    path = write_events(tmp_path / "events.csv", [[f"p{i}", "", "", f"code {i}"] for i in range(200)])
    model_of(code_schema(vocabulary="private", columns=["dx"])).fit(path, tmp_path / "run")
    assert DPCGAN.load(tmp_path / "run", device="cpu").sample(5)["dx"].to_pylist() == [[]] * 5


def test_a_table_where_nobody_has_a_code_trains(tmp_path):
    path = write_events(tmp_path / "events.csv", [[f"p{i}", "50", str(i % 2), ""] for i in range(200)])
    model_of().fit(path, tmp_path / "run")
    assert codes_of(DPCGAN.load(tmp_path / "run", device="cpu").sample(20)) <= set(VOCABULARY)


def test_without_a_budget_counts_are_exact(table, tmp_path):
    model = model_of(epsilon=math.inf).fit(table, tmp_path / "run")
    assert not model.privacy()["private"]
    assert codes_of(model.sample(100)) <= set(VOCABULARY)
    counts = json.loads((tmp_path / "run" / "config.json").read_text())["released"]["code_counts"]["dx"]
    having = [len({row[0] for row in events() if row[3] == code}) for code in VOCABULARY]
    assert counts == pytest.approx(having)


@pytest.mark.parametrize("source", ["file", "matrix"])
def test_the_published_preset_takes_codes_alone(tmp_path, source):
    """1,071 codes of each admission in a sparse matrix; there is no label."""
    width = 1071
    schema = code_schema([f"{i}" for i in range(width)], ["dx"], unit=None)
    matrix = scipy.sparse.random_array((200, width), density=0.01, format="csr", rng=np.random.default_rng(0))
    if source == "file":
        scipy.sparse.save_npz(tmp_path / "codes.npz", matrix)
    model = model_of(schema, preset="rdpcgan-mimic", steps=2, autoencoder_steps=2)
    model.fit(tmp_path / "codes.npz" if source == "file" else matrix, tmp_path / "run")
    drawn = DPCGAN.load(tmp_path / "run", device="cpu").sample(20, seed=0)
    assert drawn.column_names == ["dx"]
    assert codes_of(drawn) <= {f"{i}" for i in range(width)}
    assert model.privacy()["epsilon_spent"] <= 3.0


def test_the_published_preset_refuses_other_lengths(tmp_path):
    matrix = scipy.sparse.random_array((200, 12), density=0.3, format="csr")
    model = model_of(code_schema(VOCABULARY, ["dx"], unit=None), preset="rdpcgan-mimic")
    with pytest.raises(InputError, match="1071"):
        model.fit(matrix, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_store_gives_the_model_that_the_table_in_its_order_gives(table, tmp_path):
    """Records of a store stand in another order, which the draw of a batch goes by; without a seed it is random."""
    schema = code_schema()
    prepare(table, schema, tmp_path / "store", Quiet(), never)
    model = model_of(schema).fit(tmp_path / "store", tmp_path / "run")
    assert codes_of(model.sample(100)) <= set(VOCABULARY)
    dense = model_of(schema, epsilon=math.inf).fit(tmp_path / "store", tmp_path / "exact")
    other = model_of(schema, epsilon=math.inf).fit(table, tmp_path / "table")
    released = [json.loads((m.folder / "config.json").read_text())["released"] for m in (dense, other)]
    assert released[0]["code_counts"]["dx"] == pytest.approx(released[1]["code_counts"]["dx"])
    assert released[0]["rates"] == pytest.approx(released[1]["rates"])


@pytest.mark.parametrize(
    ("vocabulary", "form", "epsilon", "steps"),
    [(VOCABULARY, "table", 3.0, 9), (VOCABULARY, "store", 3.0, 3), ("private", "store", 20.0, 9)],
)
def test_a_run_that_crashed_and_went_on_gives_the_same_model(table, tmp_path, vocabulary, form, epsilon, steps):
    schema = code_schema(vocabulary)
    source = table if form == "table" else tmp_path / "store"
    if form == "store":
        prepare(table, schema, source, Quiet(), never)
    whole = model_of(schema, epsilon, seed=4).fit(source, tmp_path / "whole")
    crashed = model_of(schema, epsilon, seed=4)
    with pytest.raises(CrashError):
        crashed.fit(source, tmp_path / "run", hooks=FitHooks(CrashAfter(steps)))
    resumed = model_of(schema, epsilon, seed=4).fit(source, tmp_path / "run", resume=True)
    assert model_bytes(resumed) == model_bytes(whole)
    assert resumed.released_schema == whole.released_schema
