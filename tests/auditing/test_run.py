"""The audit of runs: it comes near to what the ledger charges, refutes no run as it is, and each planted bug."""

import json
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from dpcgan_fast.auditing import audit_run
from dpcgan_fast.auditing import run as module
from dpcgan_fast.auditing.run import RELEASES
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.cli import run
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy import account, releases
from dpcgan_fast.privacy.ledger import charged, read_ledger
from dpcgan_fast.privacy.mechanism import Mechanism
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.synthesis.statistics import STATISTICS
from tests.baselines.stand_ins import plan_always, short_races
from tests.synthesis.code_runs import FEW, PATIENTS, VOCABULARY, quick_runs
from tests.synthesis.test_neighbours import (
    HEADER,
    VISITS_HEADER,
    events,
    rows_of,
    schema_values,
    visits_of,
    visits_values,
    write_events,
)
from tests.tables import FEW_STEPS, make_schema, make_signals, make_table, signal_schema
from tests.tuning.searches import search

EPSILON, DELTA = 8.0, 1e-4
CANARIES, FEW_CANARIES = 300, 200


def of_events(folder, values, rows, header, **changes):
    source = write_events(folder / "events.csv", rows, header)
    model = DPCGAN(Schema.from_dict(values), EPSILON, DELTA, device="cpu", **{**FEW, **changes})
    model.fit(str(source), folder / "run")


def codes_alone():
    columns = [{"name": "died", "type": "binary"}, {"name": "dx", "type": "codes", "vocabulary": VOCABULARY}]
    return {"unit": "patient", "n_units": PATIENTS, "label": "died", "columns": columns}


def rows(folder):
    DPCGAN(make_schema(), EPSILON, DELTA, device="cpu", **FEW_STEPS).fit(make_table(), folder / "run")


def rows_of_people(folder):
    schema = make_schema(unit="patient", n_units=60, max_rows_per_unit=5)
    DPCGAN(schema, EPSILON, DELTA, device="cpu", **FEW_STEPS).fit(make_table(patients=60), folder / "run")


def signals(folder):
    DPCGAN(signal_schema(), EPSILON, DELTA, device="cpu", **FEW_STEPS).fit(make_signals(), folder / "run")


def private_lists(folder):
    of_events(folder, schema_values(codes=False, private=True), rows_of(events()), HEADER)


def private_vocabulary(folder):
    of_events(folder, schema_values(codes=True, private=True), rows_of(events()), HEADER)


def codes(folder):
    of_events(folder, codes_alone(), rows_of(events()), HEADER)


def visits(folder):
    values = visits_values({"max_visits": 3, "max_gap": 10, "key": None})
    of_events(folder, values, visits_of(events()), VISITS_HEADER)


def published(folder):
    columns = [{"name": f"x{i}", "type": "numeric", "bounds": "private"} for i in range(178)]
    schema = make_schema(label="died", columns=[*columns, {"name": "died", "type": "binary"}])
    rng = np.random.default_rng(0)
    table = {f"x{i}": rng.normal(size=400) for i in range(178)} | {"died": rng.integers(0, 2, 400)}
    model = DPCGAN(schema, EPSILON, DELTA, preset="rdpcgan-uci", device="cpu", **FEW_STEPS)
    model.fit(pa.table(table), folder / "run")


RUNS = {
    "rows": (rows, {RELEASES, STATISTICS}),
    "rows of people": (rows_of_people, {RELEASES, STATISTICS}),
    "a signal": (signals, {RELEASES, STATISTICS}),
    "private lists": (private_lists, {RELEASES}),
    "a private vocabulary": (private_vocabulary, {RELEASES}),
    "codes": (codes, {RELEASES, STATISTICS}),
    "visits": (visits, {RELEASES}),
    "a published preset": (published, {RELEASES}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run folders, made when they are first asked for."""
    folders = {}

    def of(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name.replace(" ", "_"))
            with quick_runs():
                RUNS[name][0](folders[name])
        return folders[name] / "run"

    return of


@pytest.mark.parametrize("name", list(RUNS))
def test_a_run_is_not_refuted_and_its_bound_comes_near(made, name):
    done = []
    found = audit_run(made(name), CANARIES, lambda *turn: done.append(turn))
    lines, _ = read_ledger(made(name) / "ledger.jsonl")
    assert set(found.parts) == RUNS[name][1] | {"autoencoder", "critic"}
    assert found.whole.epsilon == EPSILON
    assert not found.whole.refuted
    assert not any(part.refuted for part in found.parts.values())
    assert not found.seeded
    assert not found.selected
    charges = charged(lines)
    of_releases = [m for m in charges if m.sample_rate == 1 and m.mechanism != STATISTICS]
    assert found.parts[RELEASES].epsilon == pytest.approx(account(of_releases, DELTA).epsilon)
    if STATISTICS in found.parts:  # else training has most of the budget, which short runs leave alone
        assert found.whole.lower_gaussian > 0.1 * EPSILON
    total = len(RUNS[name][1]) * CANARIES + 2 * FEW_STEPS["steps"]
    assert done == [(turn, total) for turn in range(1, total + 1)]


@pytest.mark.parametrize("name", ["rows", "a signal", "codes"])
def test_statistics_with_a_quarter_of_their_noise_are_refuted(made, monkeypatch, name):
    whole = Budget.std
    monkeypatch.setattr(Budget, "std", lambda budget, sensitivity, share: whole(budget, sensitivity, share) / 4)
    found = audit_run(made(name), FEW_CANARIES)
    assert found.parts[STATISTICS].refuted
    assert found.whole.refuted


def test_clusters_and_pairs_of_codes_are_not_refuted_and_less_noise_is(tmp_path, monkeypatch):
    """They need thousands of people, so that the audit of a run has them by a plan of ours alone."""
    plan_always(monkeypatch, rounds=2)
    short_races(monkeypatch)
    with quick_runs():
        codes(tmp_path)
    found = audit_run(tmp_path / "run", CANARIES)
    assert not found.parts[STATISTICS].refuted
    assert found.whole.lower_gaussian > 0.1 * EPSILON
    whole = Budget.std
    monkeypatch.setattr(Budget, "std", lambda budget, sensitivity, share: whole(budget, sensitivity, share) / 4)
    assert audit_run(tmp_path / "run", FEW_CANARIES).parts[STATISTICS].refuted


def test_releases_to_which_every_row_of_a_person_adds_as_much_as_a_person_may_are_refuted(made, monkeypatch):
    monkeypatch.setattr(releases, "unit_weights", lambda units: np.ones(len(units)))
    found = audit_run(made("rows of people"), 800)
    assert found.parts[RELEASES].refuted
    assert not found.parts["critic"].refuted


def test_a_release_whose_length_tells_of_a_person_is_refuted(made, monkeypatch):
    noisy = releases.noisy_release

    def of_values(name, values, *rest):
        more = np.append(values, np.zeros(round(values.sum()) % 2))
        made_of = noisy(name, more, *rest)
        return type(made_of)(made_of.values[: len(values)], made_of.std, made_of.mechanism)

    monkeypatch.setattr(releases, "noisy_release", of_values)
    assert audit_run(made("rows"), FEW_CANARIES).whole.refuted


def test_private_steps_with_less_noise_than_the_ledger_states_are_refuted(made, monkeypatch):
    whole = module.step_scores

    def bare(mechanism, form, included, turn):
        del form
        less = Mechanism(**{**mechanism.to_dict(), "noise_multiplier": mechanism.noise_multiplier / 100})
        return whole(less, module.Fused(less, len(included), torch.device("cpu")), included, turn)

    monkeypatch.setattr(module, "step_scores", bare)
    monkeypatch.setattr(module, "_release_scores", lambda *arguments: np.zeros(len(arguments[2])))
    found = audit_run(made("rows"), 2000).parts
    assert found["critic"].refuted
    assert not found[STATISTICS].refuted


def test_a_run_that_a_private_search_chose_is_audited_by_what_it_took_itself(tmp_path):
    search(tmp_path / "run")
    found = audit_run(tmp_path / "run", 200)
    assert found.selected
    assert not found.whole.refuted
    assert {"autoencoder", "critic"} < set(found.parts)
    assert found.whole.epsilon == 3.0


def test_a_seeded_run_is_marked(tmp_path, capsys):
    with quick_runs():
        DPCGAN(make_schema(), EPSILON, DELTA, device="cpu", seed=1, **FEW_STEPS).fit(make_table(), tmp_path / "run")
    assert run(["audit", str(tmp_path / "run"), "--canaries", "100"]) == 0
    assert "NOT private: the noise of this run came from a seed" in capsys.readouterr().out


def test_what_cannot_be_audited_is_refused(tmp_path, made):
    DPCGAN(make_schema(), math.inf, DELTA, device="cpu", **FEW_STEPS).fit(make_table(), tmp_path / "inf")
    with pytest.raises(InputError, match="claims no epsilon"):
        audit_run(tmp_path / "inf", 100)
    with pytest.raises(InputError, match="no run folder"):
        audit_run(tmp_path, 100)
    ledger = made("rows") / "ledger.jsonl"
    text = ledger.read_text()
    try:
        ledger.write_text(text.replace("critic", "cratic", 1))
        with pytest.raises(PrivacyError, match="ledger is broken"):
            audit_run(made("rows"), 100)
        ledger.write_text("")
        with pytest.raises(PrivacyError, match="charges nothing"):
            audit_run(made("rows"), 100)
    finally:
        ledger.write_text(text)


def test_the_command_prints_every_part_and_json_alone(made, capsys):
    assert run(["audit", str(made("rows")), "--canaries", "150"]) == 0
    said = capsys.readouterr().out
    for part in ("everything together", RELEASES, STATISTICS, "autoencoder", "critic"):
        assert part in said
    assert run(["audit", str(made("rows")), "--canaries", "150", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["canaries"] == 150
    assert values["claimed_epsilon"] == EPSILON
    assert values["epsilon_lower_bound"] >= 0
    assert values["epsilon_lower_bound_gaussian"] > 0
    assert values["refuted"] is False
    assert set(values["parts"]) == {RELEASES, STATISTICS, "autoencoder", "critic"}


def test_the_command_ends_with_code_3_where_a_claim_is_refuted(made, monkeypatch, capsys):
    whole = Budget.std
    monkeypatch.setattr(Budget, "std", lambda budget, sensitivity, share: whole(budget, sensitivity, share) / 10)
    assert run(["audit", str(made("rows")), "--canaries", "150", "--json"]) == 3
    said = capsys.readouterr()
    assert json.loads(said.out)["refuted"] is True
    assert "error: The claim is refuted" in said.err


def test_the_command_audits_the_engine(capsys):
    assert run(["audit", "--engine", "--canaries", "500", "--epsilon", "2", "--device", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["device"] == "cpu"
    assert values["parts"]["fused"]["path"] == "fused"
    assert values["parts"]["fused"]["claimed_epsilon"] == pytest.approx(2.0, rel=2e-3)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ([], "Give a run folder or --engine"),
        (["there", "--engine"], "Give a run folder or --engine"),
        (["nowhere"], "no run folder"),
        (["--engine", "--canaries", "99"], "no number of canaries"),
        (["--engine", "--canaries", "16385"], "no number of canaries"),
        (["--engine", "--epsilon", "inf"], "finite epsilon"),
        (["--engine", "--delta", "0"], "delta"),
        (["--engine", "--device", "tpu"], "no such device"),
        (["nowhere", "--epsilon", "1", "--device", "cpu"], "its own numbers (--epsilon, --device)"),
        (["nowhere", "--rows", "15"], "no number of rows"),
        (["--engine", "--rows", "100"], "canaries alone"),
    ],
)
def test_bad_usage_is_one_line_and_code_2(arguments, what, capsys):
    assert run(["audit", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert what in said.err
    assert said.err.count("\n") == 1
