"""Bad input and bad luck: the right exit code, one line that says what to do, nothing half-written."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv
import pytest

from dpcgan_fast.cli import run
from tests.tables import make_table, schema_values

SENTINEL = "S3NTINEL_VALUE"


@pytest.fixture
def workplace(tmp_path):
    pyarrow.csv.write_csv(make_table(), tmp_path / "train.csv")
    (tmp_path / "schema.json").write_text(json.dumps(schema_values()))
    return tmp_path


def train_arguments(workplace, **changes):
    options = {
        "schema": workplace / "schema.json", "epsilon": 3, "delta": 1e-4, "out": workplace / "run", "steps": 4,
        "autoencoder-steps": 4, "batch-size": 32, **changes,
    }  # fmt: skip
    data = options.pop("data", workplace / "train.csv")
    return ["train", str(data), *(part for name, value in options.items() for part in (f"--{name}", str(value)))]


def check_failure(arguments, code, what, capsys):
    """One line on stderr, in the contract's form, with the right code, and nothing on stdout."""
    assert run([str(a) for a in arguments]) == code
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert err.rstrip().splitlines()[-1] == errors[0], "the error is the last thing that is said"
    assert what in errors[0]
    assert "(" in errors[0]
    assert ")." in errors[0]
    assert SENTINEL not in out + err
    assert "Traceback" not in err
    assert out == ""


def write_schema(workplace, **changes):
    (workplace / "schema.json").write_text(json.dumps(schema_values(**changes)))


@pytest.mark.parametrize("variable", ["DPCGAN_BACKEND", "DPCGAN_NORM_TIMING", "DPCGAN_SIMD"])
def test_an_environment_variable_that_is_wrong_is_bad_usage(monkeypatch, capsys, variable):
    monkeypatch.setenv(variable, "yes")
    check_failure(["doctor"], 2, f"got 'yes' ({variable}). Set it", capsys)


class TestTrain:
    @pytest.mark.parametrize(
        ("name", "content", "what"),
        [
            ("missing.csv", None, "does not exist"),
            ("empty.csv", "", "empty"),
            ("header.csv", "age,sodium,sex,smoker,died\n", "no rows"),
            ("ragged.csv", f"age,sodium,sex,smoker,died\n1,2,F,0,1\n1,{SENTINEL}\n", "row 2"),
            ("column.csv", f"age,sex,smoker,died\n1,F,0,{SENTINEL}\n", "sodium"),
            ("text.csv", f"age,sodium,sex,smoker,died\n{SENTINEL},2,F,0,1\n", "row 1"),
            ("twice.csv", "age,age,sodium,sex,smoker,died\n1,1,2,F,0,1\n", "same name"),
        ],
    )
    def test_a_table_that_cannot_be_read(self, workplace, capsys, name, content, what):
        if content is not None:
            (workplace / name).write_text(content)
        check_failure(train_arguments(workplace, data=workplace / name), 2, what, capsys)
        assert not (workplace / "run").exists()

    def test_a_folder_in_place_of_a_table(self, workplace, capsys):
        check_failure(train_arguments(workplace, data=workplace), 2, "", capsys)

    def test_a_missing_schema(self, workplace, capsys):
        arguments = train_arguments(workplace, schema=workplace / "none.json")
        check_failure(arguments, 2, "The schema file does not exist", capsys)

    def test_a_label_with_one_category(self, workplace, capsys):
        columns = schema_values()["columns"]
        columns[4] = {"name": "died", "type": "categorical", "categories": ["1"]}
        write_schema(workplace, columns=columns)
        check_failure(train_arguments(workplace), 2, "has one category", capsys)

    @pytest.mark.parametrize(
        ("column", "fact"), [({"bounds": None}, "The bounds are still to be filled in"), ({"bounds": [5, 1]}, "bounds")]
    )
    def test_bounds_that_are_missing_or_wrong_name_the_column_and_both_remedies(self, workplace, capsys, column, fact):
        columns = schema_values()["columns"]
        columns[0] = {"name": "age", "type": "numeric", **column}
        write_schema(workplace, columns=columns)
        check_failure(train_arguments(workplace), 2, fact, capsys)

    def test_an_undecided_unit(self, workplace, capsys):
        write_schema(workplace, unit="?")
        check_failure(train_arguments(workplace), 2, "The unit of privacy is undecided", capsys)

    @pytest.mark.parametrize(
        ("option", "value", "code", "what"),
        [
            ("epsilon", 0, 2, "epsilon must be greater than 0 (epsilon 0)."),
            ("epsilon", -1, 2, "epsilon must be greater than 0"),
            ("epsilon", "abc", 2, "--epsilon"),
            ("delta", 1, 2, "delta must lie between 0 and 1 (delta 1)."),
            ("delta", 2, 2, "delta must lie between 0 and 1"),
            ("delta", 0, 2, "delta must lie between 0 and 1"),
            ("delta", 0.01, 3, "delta is greater than 1 / n_units"),
            ("preset", "huge", 2, "There is no such preset (preset huge)."),
            ("steps", 0, 2, "critic_steps must be at least 1 (steps 0)."),
            ("batch-size", 0, 2, "autoencoder_batch must be at least 1 (batch size 0)."),
            ("device", "tpu", 2, "There is no such device (device tpu)."),
        ],
    )
    def test_options_out_of_range(self, workplace, capsys, option, value, code, what):
        check_failure(train_arguments(workplace, **{option: value}), code, what, capsys)
        assert not (workplace / "run").exists()

    def test_a_missing_option_and_an_unknown_command(self, workplace, capsys):
        check_failure(["train", workplace / "train.csv"], 2, "Missing option", capsys)
        check_failure(["fly"], 2, "No such command", capsys)

    def test_values_out_of_bounds_are_clipped_and_nothing_counts_them(self, workplace, capsys):
        text = "age,sodium,sex,smoker,died\n" + "999999,-5,F,0,1\n-3,1e30,Q,7,0\n" * 30
        (workplace / "wild.csv").write_text(text)
        assert run(train_arguments(workplace, data=workplace / "wild.csv")) == 0
        out, err = capsys.readouterr()
        assert "clip" not in out + err

    def test_columns_that_the_schema_does_not_name_are_dropped_and_listed_once(self, workplace, capsys):
        lines = (workplace / "train.csv").read_text().splitlines()
        wide = [f"{lines[0]},ward,note", *(f"{line},3,{SENTINEL}" for line in lines[1:])]
        (workplace / "wide.csv").write_text("\n".join(wide))
        assert run(train_arguments(workplace, data=workplace / "wide.csv")) == 0
        err = capsys.readouterr().err
        assert err.count("ward, note") == 1
        assert SENTINEL not in err

    def test_a_spent_budget(self, workplace, capsys):
        assert run(train_arguments(workplace)) == 0
        capsys.readouterr()
        check_failure([*train_arguments(workplace), "--resume"], 3, "its budget is spent", capsys)
        check_failure(train_arguments(workplace), 2, "There is something at the output path already", capsys)

    def test_a_broken_ledger(self, workplace, capsys):
        assert run(train_arguments(workplace)) == 0
        ledger = workplace / "run" / "ledger.jsonl"
        ledger.write_text(ledger.read_text().replace('"steps":4', '"steps":1', 1))
        capsys.readouterr()
        check_failure(["account", workplace / "run"], 3, "The ledger is broken", capsys)


class TestOtherCommands:
    @pytest.fixture
    def trained(self, workplace, capsys):
        assert run(train_arguments(workplace)) == 0
        capsys.readouterr()
        return workplace

    def test_sample(self, trained, capsys):
        sample = ["sample", trained / "run", "-n", "5", "--out"]
        check_failure([*sample, trained / "x.xlsx"], 2, ".csv", capsys)
        check_failure([*sample, trained / "x.csv", "--where", "nosuch=1"], 2, "There is no such column", capsys)
        check_failure([*sample, trained / "x.csv", "--where", "died"], 2, "column=value", capsys)
        check_failure(["sample", trained / "run", "-n", "0", "--out", trained / "x.csv"], 2, "at least 1", capsys)
        check_failure(["sample", trained, "-n", "5", "--out", trained / "x.csv"], 2, "This is no run folder", capsys)
        check_failure([*sample, trained / "no" / "x.csv"], 2, "folder", capsys)
        assert not list(trained.glob("*x.csv*"))

    def test_evaluate_with_a_test_file_of_one_class(self, trained, capsys):
        lines = (trained / "train.csv").read_text().splitlines()
        one = [lines[0], *(line for line in lines[1:] if line.endswith("1"))]
        (trained / "one.csv").write_text("\n".join(one))
        arguments = ["evaluate", trained / "run", "--real", trained / "one.csv", "--out", trained / "e"]
        check_failure(arguments, 2, "one class", capsys)
        assert not (trained / "e").exists()

    def test_evaluate_with_a_file_that_lacks_a_column_does_not_ask_for_another_schema(self, trained, capsys):
        (trained / "other.csv").write_text((trained / "train.csv").read_text().replace("sodium", "Sodium", 1))
        arguments = ["evaluate", trained / "run", "--real", trained / "other.csv", "--out", trained / "e"]
        asked = "Did you mean Sodium? Add the column to the file, under the name that the run's schema has."
        check_failure(arguments, 2, asked, capsys)

    def test_evaluate_into_a_file_is_told_of_before_anything_is_computed(self, trained, monkeypatch, capsys):
        monkeypatch.setattr("dpcgan_fast.cli.using.evaluate_tables", lambda *_, **__: pytest.fail("evaluated first"))
        (trained / "e").write_text("kept")
        for out in (trained / "e", trained / "e" / "below"):
            arguments = ["evaluate", trained / "run", "--real", trained / "train.csv", "--out", out]
            check_failure(arguments, 2, "The output is no folder", capsys)
        assert (trained / "e").read_text() == "kept"

    def test_an_error_of_input_is_all_that_training_says(self, trained, capsys):
        assert run(train_arguments(trained, out=trained / "run")) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1

    @pytest.mark.parametrize("missing", [["--sample-rate", "0.1"], [], ["--steps", "5", "--delta", "1e-5"]])
    def test_account_without_its_numbers(self, capsys, missing):
        check_failure(["account", *missing], 2, "", capsys)

    def test_account_with_numbers_out_of_range(self, capsys):
        numbers = ["account", "--steps", "10", "--noise-multiplier", "1"]
        check_failure([*numbers, "--sample-rate", "2", "--delta", "1e-5"], 2, "sample_rate", capsys)
        check_failure([*numbers, "--sample-rate", "0.1", "--delta", "1"], 2, "delta", capsys)

    def test_account_of_a_folder_that_is_no_run(self, tmp_path, capsys):
        check_failure(["account", tmp_path], 2, "This is no run folder", capsys)


def test_a_bug_of_ours_is_exit_1_and_shows_no_value(workplace, capsys, monkeypatch):
    from dpcgan_fast.cli import training

    def explode(*_args, **_kwargs):
        raise RuntimeError(f"unexpected cell {SENTINEL}")

    monkeypatch.setattr(training.Schema, "from_json", explode)
    check_failure(train_arguments(workplace), 1, "This is a bug of ours: RuntimeError", capsys)


def start_training(workplace, **changes):
    """A real process, with enough steps to be interrupted in."""
    arguments = train_arguments(workplace, **{"steps": 5000, "autoencoder-steps": 5000, **changes})
    return start(arguments)


def start(arguments):
    # A shell has what it runs in the background ignore SIGINT, and so would its children, these tests among them.
    return subprocess.Popen(
        [sys.executable, "-m", "dpcgan_fast", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def log_lines(workplace):
    log = workplace / "run" / "train_log.jsonl"
    return len(log.read_text().splitlines()) if log.exists() else 0


def wait_for_training(process, workplace, lines=1):
    for _ in range(600):
        if log_lines(workplace) > lines:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    raise AssertionError("training did not get under way")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_at_a_step_with_a_checkpoint_and_exit_4_and_resume_goes_on(workplace, number):
    process = start_training(workplace)
    wait_for_training(process, workplace)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert out == ""
    assert err.splitlines()[-1].startswith(f"error: Stopped by {number.name}")
    assert "--resume" in err.splitlines()[-1]
    assert not list((workplace / "run").rglob("*.partial"))
    lines = log_lines(workplace)
    resumed = start([*train_arguments(workplace, **{"steps": 5000, "autoencoder-steps": 5000}), "--resume"])
    wait_for_training(resumed, workplace, lines)
    resumed.send_signal(number)
    _, err = resumed.communicate(timeout=60)
    assert resumed.returncode == 4, err
    assert "done before" in err


def test_ctrl_c_outside_of_training_is_exit_4_with_one_line(workplace, capsys):
    assert run(train_arguments(workplace)) == 0
    capsys.readouterr()
    process = start(["sample", str(workplace / "run"), "-n", "90000000", "--out", str(workplace / "rows.csv")])
    for _ in range(600):
        if list(workplace.glob(".rows.csv.*.partial")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 4, err
    assert out == ""
    assert err.startswith("error: Stopped by SIGINT")
    assert not list(workplace.glob("*rows.csv*"))


def test_resuming_with_another_table_is_refused(workplace, capsys):
    process = start_training(workplace)
    wait_for_training(process, workplace)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    arguments = train_arguments(workplace, **{"steps": 5000, "autoencoder-steps": 5000})
    other = workplace / "other.csv"
    other.write_bytes(Path(arguments[1]).read_bytes())
    assert run([arguments[0], str(other), *arguments[2:], "--resume"]) == 2
    assert "was started on another table" in capsys.readouterr().err


def test_kill_leaves_a_run_that_resumes_within_the_budget(workplace, capsys):
    process = start_training(workplace, **{"autoencoder-steps": 250, "steps": 250})
    wait_for_training(process, workplace)
    process.kill()
    process.wait()
    assert run([*train_arguments(workplace, **{"autoencoder-steps": 250, "steps": 250}), "--resume"]) == 0
    capsys.readouterr()
    assert run(["account", str(workplace / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["epsilon"] <= 3.0


def test_a_full_disk_is_exit_5_and_leaves_nothing_half_written(workplace):
    """A limit on the size of files stands for a full disk: the checkpoint is larger, the ledger is not."""
    arguments = [sys.executable, "-m", "dpcgan_fast", *train_arguments(workplace)]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=limit, timeout=120)
    assert done.returncode == 5, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: The disk is full")
    assert not list((workplace / "run" / "checkpoints").iterdir())
    assert not list((workplace / "run").rglob("*.partial"))


def test_a_full_disk_while_sampling_leaves_no_file(workplace, capsys):
    assert run(train_arguments(workplace)) == 0
    capsys.readouterr()
    arguments = ["sample", str(workplace / "run"), "-n", "50000", "--out", str(workplace / "rows.csv")]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    done = subprocess.run(
        [sys.executable, "-m", "dpcgan_fast", *arguments], capture_output=True, text=True, preexec_fn=limit, timeout=120
    )
    assert done.returncode == 5, done.stderr
    assert "The disk is full" in done.stderr
    assert not list(workplace.glob("*rows.csv*"))


def test_the_command_runs_as_a_program():
    environment = {**os.environ, "COLUMNS": "100"}
    command = Path(sys.executable).with_name("dpcgan")
    program = [str(command)] if command.exists() else [sys.executable, "-m", "dpcgan_fast"]
    done = subprocess.run([*program, "--version"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0
    assert done.stdout.strip()


def test_ctrl_c_while_the_program_is_still_loading_ends_in_one_line(tmp_path):
    """What it imports takes seconds; here a module of the same name as one of those stops the program."""
    (tmp_path / "typer.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"}
    command = [sys.executable, "-m", "dpcgan_fast", "doctor"]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert found.returncode == 4
    assert found.stderr.count("\n") == 1
    assert found.stderr.startswith("error: Stopped by SIGINT")
