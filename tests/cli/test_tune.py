"""`dpcgan tune` as a command: what it prints and leaves, its errors, and signals to a real process."""

import json
import signal
import time

import pyarrow.csv
import pytest

from dpcgan_fast.cli import run
from dpcgan_fast.privacy.selection import RunCount
from tests.cli.test_errors import check_failure, start
from tests.tables import ROWS, make_table, schema_values
from tests.tuning.searches import FILES, QUICK


@pytest.fixture
def workplace(tmp_path):
    pyarrow.csv.write_csv(make_table(), tmp_path / "train.csv")
    pyarrow.csv.write_csv(make_table(500, seed=3), tmp_path / "public.csv")
    (tmp_path / "schema.json").write_text(json.dumps(schema_values()))
    (tmp_path / "candidates.json").write_text(json.dumps([QUICK, {**QUICK, "critic_lr": 0.01}]))
    (tmp_path / "out").mkdir()
    return tmp_path


def arguments_of(workplace, *flags, **changes):
    options = {
        "schema": workplace / "schema.json", "epsilon": 3, "delta": 1e-4, "candidates": workplace / "candidates.json",
        "out": workplace / "out" / "run", "device": "cpu", **changes,
    }  # fmt: skip
    options = {name.replace("_", "-"): value for name, value in options.items()}
    given = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    return ["tune", str(workplace / "train.csv"), *given, *flags]


def left_in(workplace):
    return [path.name for path in (workplace / "out").iterdir()]


def test_a_paid_search_ends_with_a_run_whose_account_is_that_of_the_selection(workplace, capsys):
    assert run(arguments_of(workplace, runs="geometric", mean_runs=1.5)) == 0
    said = capsys.readouterr()
    assert said.out.startswith("private: epsilon 3 at delta 0.0001, the search for settings included; the ledger adds")
    assert "a secret number of trainings, 1.5 on average" in said.err
    assert {path.name for path in (workplace / "out" / "run").iterdir()} == FILES
    assert left_in(workplace) == ["run"]
    assert run(["account", str(workplace / "out" / "run"), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert 2.9 < values["epsilon"] == values["epsilon_rdp"] <= 3.0
    assert values["epsilon_pld"] == "inf"
    assert [m["event"] for m in values["mechanisms"]] == ["repeat_and_select"]
    assert run(["account", str(workplace / "out" / "run")]) == 0
    printed = capsys.readouterr().out
    assert f"epsilon {values['epsilon']} at delta 0.0001" in printed
    assert "private selection among 2 candidates" in printed
    sampled = ["sample", str(workplace / "out" / "run"), "-n", "20", "--out", str(workplace / "rows.csv")]
    assert run(sampled) == 0
    report = ["evaluate", str(workplace / "out" / "run"), "--real", str(workplace / "public.csv")]
    assert run([*report, "--out", str(workplace / "evaluation")]) == 0
    page = (workplace / "evaluation" / "report.html").read_text()
    assert "repeat and select" in page
    assert "How the settings were chosen" in page


def test_a_search_on_public_data_says_so_and_prints_one_json_object(workplace, capsys):
    assert run(arguments_of(workplace, "--json", public_data=workplace / "public.csv")) == 0
    said = capsys.readouterr()
    values = json.loads(said.out)
    assert values["tuning"]["search"] == "public data"
    assert values["tuning"]["table"] == "public.csv"
    assert values["epsilon_spent"] <= 3.0
    assert "candidate 2 of 2: AUROC" in said.err
    assert left_in(workplace) == ["run"]


@pytest.mark.parametrize(("mean", "warned"), [(4, True), (10, False)])
def test_searches_that_may_draw_no_run_are_warned_of(workplace, capsys, monkeypatch, mean, warned):
    monkeypatch.setattr(RunCount, "draw", lambda *_: 0)
    assert run(arguments_of(workplace, mean_runs=mean)) == 3
    assert ("WARNING: one search in 54.6 draws no run at all" in capsys.readouterr().err) is warned


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("table", [None, "age,sex,died\n1,F,0\n"], ids=["missing", "without a column"])
def test_nothing_is_said_of_the_search_before_its_input_was_accepted(workplace, capsys, public, table):
    path = workplace / ("public.csv" if public else "train.csv")
    path.unlink()
    if table is not None:
        path.write_text(table)
    check_failure(arguments_of(workplace, **({"public_data": path} if public else {"mean_runs": 4})), 2, "", capsys)


def test_a_cell_that_cannot_be_read_is_found_before_a_search_that_may_draw_no_run(workplace, capsys, monkeypatch):
    monkeypatch.setattr(RunCount, "draw", lambda *_: 0)
    table = make_table()
    table = table.set_column(table.column_names.index("age"), "age", [["old"] * table.num_rows])
    pyarrow.csv.write_csv(table, workplace / "train.csv")
    check_failure(arguments_of(workplace), 2, "age", capsys)


def test_a_seed_is_loud(workplace, capsys):
    assert run(arguments_of(workplace, runs="geometric", mean_runs=1, seed=4)) == 0
    said = capsys.readouterr()
    assert "NOT private" in said.err
    assert said.out.startswith("NOT private: its noise came from a seed")


@pytest.mark.parametrize(
    ("changes", "code", "what"),
    [
        ({"candidates": "none.json"}, 2, "The candidates file does not exist"),
        ({"epsilon": "inf"}, 2, "nothing to pay for"),
        ({"delta": 0.01}, 3, "delta is greater than 1 / n_units"),
        ({"runs": "binomial"}, 2, "no such distribution"),
        ({"mean_runs": 0.5}, 2, "out of range"),
        ({"mean_runs": "nan"}, 2, "out of range"),
        ({"public_data": "none.csv"}, 2, "does not exist"),
        ({"public_data": "none.csv", "mean_runs": 3}, 2, "trains each candidate once"),
        ({"epsilon": 0.001}, 2, "No run is private enough"),
        ({"device": "tpu"}, 2, "no such device"),
    ],
)
def test_bad_usage_is_one_line_and_leaves_nothing(workplace, capsys, changes, code, what):
    check_failure(arguments_of(workplace, **changes), code, what, capsys)
    assert not left_in(workplace)


def test_an_output_folder_that_is_not_empty_is_refused(workplace, capsys):
    check_failure(arguments_of(workplace, out=workplace), 2, "something at the output path already", capsys)


def wait_for(process, found):
    for _ in range(1200):
        if found():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    raise AssertionError("the search did not get under way")


def steps_taken(workplace):
    """Lines of the log of a run that is at work."""
    return sum(len(log.read_text().splitlines()) for log in (workplace / "out").glob(".run.*.search/*/train_log.jsonl"))


def long_candidates(workplace):
    slow = {"steps": 100_000, "autoencoder_steps": 100_000, "batch_size": ROWS, "networks_only": True}
    (workplace / "candidates.json").write_text(json.dumps([slow]))


@pytest.mark.parametrize(
    ("public", "number"),
    [(False, signal.SIGINT), (False, signal.SIGTERM), (False, signal.SIGHUP), (True, signal.SIGINT)],
)
def test_a_signal_gives_the_search_up_with_exit_4_and_leaves_nothing(workplace, number, public):
    long_candidates(workplace)
    process = start(arguments_of(workplace, **({"public_data": workplace / "public.csv"} if public else {})))
    wait_for(process, lambda: steps_taken(workplace) > 1)
    (work,) = (workplace / "out").iterdir()
    assert work.stat().st_mode & 0o777 == 0o700
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert out == ""
    assert err.splitlines()[-1].startswith(f"error: Stopped by {number.name}; the search is given up")
    assert "nothing was released, and nothing is spent" in err.splitlines()[-1]
    assert not left_in(workplace)


def test_a_second_signal_ends_it_at_once_and_leaves_nothing_either(workplace):
    long_candidates(workplace)
    process = start(arguments_of(workplace))
    wait_for(process, lambda: steps_taken(workplace) > 1)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert out == ""
    assert err.splitlines()[-1].startswith("error: Stopped by SIGTERM; the search is given up")
    assert not left_in(workplace)
