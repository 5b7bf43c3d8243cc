"""Every command on good input: what it prints, and what it writes."""

import json
import math
import shutil

import pyarrow.csv
import pyarrow.parquet
import pytest

from dpcgan_fast.cli import run
from dpcgan_fast.data.datasets import load_support2
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, Mechanism, account
from tests.tables import make_table, make_visits, schema_values, visits_values

TRAIN_OPTIONS = ["--epsilon", "3", "--delta", "1e-4", "--steps", "4", "--autoencoder-steps", "4", "--batch-size", "32"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a table as CSV, a schema, and a trained run."""
    folder = tmp_path_factory.mktemp("cli")
    pyarrow.csv.write_csv(make_table(), folder / "train.csv")
    pyarrow.csv.write_csv(make_table(200, seed=1), folder / "test.csv")
    (folder / "schema.json").write_text(json.dumps(schema_values()))
    arguments = [
        "train",
        folder / "train.csv",
        "--schema",
        folder / "schema.json",
        "--out",
        folder / "run",
        *TRAIN_OPTIONS,
    ]
    assert run([str(a) for a in arguments]) == 0
    return folder


def json_of(capsys) -> dict:
    """The one JSON object that stdout holds, and nothing else."""
    return json.loads(capsys.readouterr().out)


def independent_epsilon(ledger_text: str, delta: float) -> tuple[float, float]:
    """Epsilon of a ledger by dp-accounting alone, as a reviewer would compute it."""
    import dp_accounting
    from dp_accounting.pld import PLDAccountant
    from dp_accounting.rdp import RdpAccountant

    lines = [json.loads(line) for line in ledger_text.splitlines()]
    done = {line["closes"]: line["steps"] for line in lines if line["event"] == "close"}
    rdp, pld = RdpAccountant(), PLDAccountant(value_discretization_interval=1e-4)
    steps: dict[tuple, int] = {}
    added = 0.0
    for line in lines:
        if line["event"] in ("gaussian", "poisson_gaussian"):
            key = (line["event"], line["sample_rate"], line["noise_multiplier"])
            steps[key] = steps.get(key, 0) + done.get(line["seq"], line["steps"])
            delta -= line["delta"]
            added -= math.log1p(-line["delta"])
    for (event, rate, noise), count in steps.items():
        gaussian = dp_accounting.GaussianDpEvent(noise)
        dp_event = gaussian if event == "gaussian" else dp_accounting.PoissonSampledDpEvent(rate, gaussian)
        for accountant in (rdp, pld):
            accountant.compose(dp_event, count)
    return rdp.get_epsilon(delta) + added, pld.get_epsilon(delta) + added


def test_the_ledger_recomputes_by_dp_accounting_alone(workplace, capsys):
    assert run(["account", str(workplace / "run"), "--json"]) == 0
    stated = json_of(capsys)
    rdp, pld = independent_epsilon((workplace / "run" / "ledger.jsonl").read_text(), 1e-4)
    assert stated["epsilon_rdp"] == pytest.approx(rdp, rel=1e-9)
    assert stated["epsilon_pld"] == pytest.approx(pld, rel=1e-9)
    assert stated["epsilon"] == min(stated["epsilon_rdp"], stated["epsilon_pld"]) <= 3.0
    assert stated["delta"] == 1e-4
    assert {m["mechanism"] for m in stated["mechanisms"]} == {
        "label histogram", "statistics", "autoencoder", "critic",
    }  # fmt: skip


def test_account_of_numbers(capsys):
    numbers = ["account", "--sample-rate", "0.01", "--steps", "1000", "--delta", "1e-5", "--json"]
    assert run([*numbers, "--noise-multiplier", "1.1"]) == 0
    values = json_of(capsys)
    assert {
        "epsilon_rdp", "epsilon_pld", "epsilon", "delta", "noise_multiplier", "sample_rate", "steps"
    } <= set(values)  # fmt: skip
    assert values["epsilon_rdp"] == pytest.approx(1.711770, rel=1e-5)
    assert values["epsilon_pld"] == pytest.approx(1.515370, rel=1e-5)
    assert run([*numbers, "--epsilon", "1.5"]) == 0
    solved = json_of(capsys)
    mechanism = Mechanism("m", "poisson_gaussian", 0.01, solved["noise_multiplier"], 1000, 1.0)
    assert account([mechanism], 1e-5).epsilon <= 1.5
    assert solved["noise_multiplier"] == pytest.approx(1.1, rel=0.02)


def test_account_without_json_is_for_people(workplace, capsys):
    assert run(["account", str(workplace / "run")]) == 0
    printed = capsys.readouterr().out
    assert "by Renyi DP" in printed
    assert "label histogram: 1 x Gaussian" in printed
    assert "These do not add up" in printed
    alone = {line.split(":")[0].strip(): float(line.split()[-1]) for line in printed.splitlines() if "; alone" in line}
    assert run(["account", str(workplace / "run"), "--json"]) == 0
    stated = json_of(capsys)
    assert alone == pytest.approx({part["mechanism"]: part["epsilon"] for part in stated["alone"]}, rel=1e-5)
    assert set(alone) == {"label histogram", "statistics", "autoencoder", "critic"}
    assert stated["epsilon"] > max(alone.values()) > 0.9 * stated["epsilon"]
    card = (workplace / "run" / "privacy_card.md").read_text()
    assert all(f"| {name} | " in card and f" | {epsilon:g} |" in card for name, epsilon in alone.items())
    assert "Epsilon alone is what a line would cost if it were all, at delta 0.0001. These do not add up" in card


def test_account_adds_up_the_releases_that_the_statistics_stand_for(workplace, capsys, tmp_path):
    assert run(["account", str(workplace / "run"), "--json"]) == 0
    parts = json_of(capsys)["statistics"]
    assert len(parts) > 2
    assert 0.9999 < sum(part["share"] for part in parts) < 1
    assert run(["account", str(workplace / "run")]) == 0
    assert f"{len(parts)} Gaussian releases, listed in the privacy card, take 99.99" in capsys.readouterr().out
    shutil.copytree(workplace / "run", tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["released"]["parts"][0]["noise_multiplier"] *= 0.99
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert run(["account", str(tmp_path / "run")]) == 3
    assert "cost more than it says" in capsys.readouterr().err
    config["released"]["parts"][0] = {"mechanism": "histograms"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert run(["account", str(tmp_path / "run")]) == 2
    assert "list of releases is damaged" in capsys.readouterr().err
    del config["released"]["parts"]  # as in a run of a version that kept none
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert run(["account", str(tmp_path / "run"), "--json"]) == 0
    assert json_of(capsys)["statistics"] == []


def test_account_notices_a_rolled_back_ledger(workplace, capsys):
    assert run(["account", str(workplace / "run"), "--json"]) == 0
    head = json_of(capsys)["ledger_head"]
    assert run(["account", str(workplace / "run"), "--expect-head", head]) == 0
    assert run(["account", str(workplace / "run"), "--expect-head", "f" * 64]) == 3


def test_account_sees_seeded_noise_in_the_ledger_whatever_the_settings_say(workplace, capsys, tmp_path):
    shutil.copytree(workplace / "run", tmp_path / "run")
    assert run(["account", str(tmp_path / "run"), "--json"]) == 0
    assert json_of(capsys)["seeded"] is False
    with Ledger(tmp_path / "run" / "ledger.jsonl") as ledger:
        ledger.reserve(Mechanism("critic", "poisson_gaussian", 0.1, 5.0, 1, 1.0), NoiseKey(1).key_id)
    assert run(["account", str(tmp_path / "run"), "--json"]) == 0
    assert json_of(capsys)["seeded"] is True


def test_the_demo_says_beside_its_headline_that_it_is_not_private(tmp_path, capsys, monkeypatch):
    from dpcgan_fast.cli import using

    rows = load_support2().slice(0, 500)
    monkeypatch.setattr(using, "load_support2", lambda: rows)
    monkeypatch.setattr(using, "_QUICK", {"steps": 2, "autoencoder_steps": 2})
    assert run(["demo", "--quick", "--out", str(tmp_path / "demo")]) == 0
    assert "not differentially private" in capsys.readouterr().out
    assert (tmp_path / "demo").stat().st_mode & 0o777 == 0o700


def test_train_with_json_prints_one_object(workplace, capsys, tmp_path):
    arguments = ["train", workplace / "train.csv", "--schema", workplace / "schema.json", "--out", tmp_path / "r"]
    assert run([str(a) for a in [*arguments, *TRAIN_OPTIONS, "--json"]]) == 0
    values = json_of(capsys)
    assert values["private"] is True
    assert values["epsilon_spent"] <= 3.0


@pytest.mark.parametrize("ending", [".csv", ".csv.gz", ".parquet"])
def test_sample_writes_the_format_of_the_ending(workplace, tmp_path, ending):
    out = tmp_path / f"rows{ending}"
    arguments = ["sample", workplace / "run", "-n", "60", "--out", out, "--where", "died=1", "--seed", "1"]
    assert run([str(a) for a in arguments]) == 0
    table = pyarrow.parquet.read_table(out) if ending == ".parquet" else pyarrow.csv.read_csv(out)
    assert table.num_rows == 60
    assert set(table["died"].to_pylist()) == {1}
    assert table.column_names == ["age", "sodium", "sex", "smoker", "died"]


def test_evaluate_writes_metrics_and_a_report(workplace, tmp_path, capsys):
    arguments = ["evaluate", workplace / "run", "--real", workplace / "test.csv", "--out", tmp_path / "e"]
    assert run([str(a) for a in [*arguments, "--train", workplace / "train.csv"]]) == 0
    assert "not differentially private" in capsys.readouterr().out, "beside the figures, wherever they are kept"
    assert (tmp_path / "e").stat().st_mode & 0o777 == 0o700
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert metrics["private"] is False
    for key in ("tstr", "trtr", "baseline"):
        assert {"gb", "rf", "lr"} <= set(metrics[key])
        assert set(metrics[key]["gb"]) >= {"auroc", "ap"}
    assert metrics["baseline"]["name"]
    assert 0 <= metrics["marginal_tv_mean"] <= 1
    assert metrics["correlation_mae"] >= 0
    page = (tmp_path / "e" / "report.html").read_text()
    assert "not differentially private" in page
    assert run([str(a) for a in [*arguments[:-1], tmp_path / "f"]]) == 0
    metrics = json.loads((tmp_path / "f" / "metrics.json").read_text())
    assert metrics["trtr"] is None
    assert metrics["baseline"] is None


def test_evaluate_takes_a_synthetic_file(workplace, tmp_path, capsys):
    assert run(["sample", str(workplace / "run"), "-n", "80", "--out", str(tmp_path / "s.csv")]) == 0
    capsys.readouterr()
    arguments = ["evaluate", workplace / "run", "--real", workplace / "test.csv", "--synthetic", tmp_path / "s.csv"]
    assert run([str(a) for a in [*arguments, "--out", tmp_path / "e", "--json"]]) == 0
    assert json_of(capsys)["rows"]["synthetic"] == 80


@pytest.mark.parametrize("name", ["test", "train"])
def test_evaluate_warns_of_a_real_file_as_the_synthetic_one(name, workplace, tmp_path, capsys):
    given = workplace / f"{name}.csv"
    arguments = ["evaluate", workplace / "run", "--real", workplace / "test.csv", "--train", workplace / "train.csv"]
    assert run([str(a) for a in [*arguments, "--synthetic", given, "--out", tmp_path / "e"]]) == 0
    called = {"test": "the real test table", "train": "the real training table"}[name]
    assert f"the synthetic table is {called}, row for row" in capsys.readouterr().err
    notes = json.loads((tmp_path / "e" / "metrics.json").read_text())["notes"]
    assert sum("row for row" in note for note in notes) == 1
    page = (tmp_path / "e" / "report.html").read_text()
    assert page.index(f"The synthetic table is {called}, row for row") < page.index("At a glance")


def test_schema_drafts_what_training_refuses_until_it_is_filled_in(workplace, tmp_path, capsys):
    out = tmp_path / "schema.json"
    assert run(["schema", str(workplace / "train.csv"), "--out", str(out)]) == 0
    assert "outside the privacy claim" in capsys.readouterr().err
    draft = json.loads(out.read_text())
    assert draft["unit"] == "?"
    types = {column["name"]: column["type"] for column in draft["columns"]}
    assert types == {"age": "numeric", "sodium": "numeric", "sex": "categorical", "smoker": "binary", "died": "binary"}
    arguments = ["train", workplace / "train.csv", "--schema", out, "--out", tmp_path / "run", *TRAIN_OPTIONS]
    assert run([str(a) for a in arguments]) == 2
    assert run(["schema", str(workplace / "train.csv"), "--out", str(out)]) == 2, "nothing is overwritten"


def test_doctor_says_what_is_in_the_build_and_why(capsys):
    assert run(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "CUDA kernels" in printed
    assert "vector width" in printed
    assert "conv1d: " in printed
    assert run(["doctor", "--json"]) == 0
    found = json_of(capsys)
    assert {"versions", "build", "machine", "kernels"} == set(found)
    kernels = found["kernels"]
    assert kernels["path of a step"].startswith("fused: every layer has a fused form")
    assert kernels["update of a step"].startswith("one pass")
    assert kernels["norm modes"].startswith("timed at the first step of a shape")
    graphs = found["machine"]["device auto"] == "cuda"
    assert kernels["captured steps"].startswith("CUDA graphs" if graphs else "none: they need a GPU")


def test_bench_checks_before_it_times_and_describes_the_machine(tmp_path, capsys):
    assert run(["bench", "--out", str(tmp_path / "b.json"), "--calls", "2", "--nets", "0"]) == 0
    values = json.loads((tmp_path / "b.json").read_text())
    (row,) = values["results"]
    assert row["agreement_with_torch_func"] < 1e-4
    assert row["ratio_to_plain"]["plain step (eager)"] == {"median": 1.0, "lowest": 1.0, "highest": 1.0}
    ours = row["ratio_to_plain"]["dpcgan_fast"]["median"]
    assert ours > 0
    assert row["runs"][0]["milliseconds"]["dpcgan_fast"]["calls"] == 2
    assert {"fused_forward", "noisy_update_", "whole step"} <= {line["op"] for line in row["roofline"]}
    assert values["peaks"]["gflop_per_s"] > 0
    assert values["machine"]["processor"]
    assert row["peak_tensor_bytes"]["plain step (eager)"] > 128 * 178 * 4
    table = (tmp_path / "b.md").read_text()
    assert f"| {row['net']} |" in table
    assert f"**{ours:.2f}** | 0.60 | 0.25 |" in table
    for name in ("b.svg", "b_roofline.svg"):
        assert (tmp_path / name).read_text().lstrip().startswith("<?xml")
    capsys.readouterr()


@pytest.mark.slow
def test_bench_repeats_runs_in_processes_of_their_own(tmp_path, capsys):
    out = tmp_path / "b.json"
    assert run(["bench", "--out", str(out), "--calls", "2", "--nets", "0", "--repeat", "2"]) == 0
    (row,) = json.loads(out.read_text())["results"]
    ratios = [one["ratio_to_plain"]["dpcgan_fast"] for one in row["runs"]]
    assert len(ratios) == 2
    spread = row["ratio_to_plain"]["dpcgan_fast"]
    assert (spread["lowest"], spread["highest"]) == (min(ratios), max(ratios))
    assert row["verdicts"]["plain"]["value"] == max(ratios)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("suite", "option"),
    [
        ("train", ["--nets", "1"]),
        ("sample", ["--repeat", "2"]),
        ("step", ["--steps", "3"]),
        ("train", ["--systems", "auto"]),
        ("scale", ["--epsilons", "1"]),
    ],
)
def test_bench_refuses_options_of_another_suite(tmp_path, capsys, suite, option):
    assert run(["bench", "--out", str(tmp_path / "b.json"), "--suite", suite, *option]) == 2
    assert option[0] in capsys.readouterr().err


def test_bench_refuses_nets_that_are_not_there(tmp_path, capsys):
    assert run(["bench", "--out", str(tmp_path / "b.json"), "--nets", "nothing"]) == 2
    assert "There is no such net" in capsys.readouterr().err


def test_version_and_help(capsys):
    import dpcgan_fast

    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == dpcgan_fast.__version__
    assert run(["--help"]) == 0
    helped = capsys.readouterr().out
    for command in ("demo", "schema", "train", "sample", "evaluate", "account", "audit", "bench", "doctor"):
        assert command in helped
        assert run([command, "--help"]) == 0


@pytest.mark.parametrize("flag", ["--resume", "--json", "--paired-fakes"])
def test_flags_take_no_value(workplace, tmp_path, flag, capsys):
    """`--flag False` must not turn the flag on."""
    arguments = ["train", workplace / "train.csv", "--schema", workplace / "schema.json", "--out", tmp_path / "r"]
    assert run([str(a) for a in [*arguments, *TRAIN_OPTIONS, flag, "False"]]) == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_visits_from_training_to_evaluation(tmp_path, capsys, ending):
    pyarrow.csv.write_csv(make_visits(), tmp_path / "train.csv")
    pyarrow.csv.write_csv(make_visits(50, seed=1), tmp_path / "test.csv")
    (tmp_path / "schema.json").write_text(json.dumps(visits_values()))
    out, drawn = tmp_path / "run", tmp_path / f"synthetic{ending}"
    arguments = ["train", tmp_path / "train.csv", "--schema", tmp_path / "schema.json", "--out", out, *TRAIN_OPTIONS]
    assert run([str(a) for a in arguments]) == 0
    assert run(["sample", str(out), "-n", "40", "--out", str(drawn), "--where", "died=1"]) == 0
    table = pyarrow.csv.read_csv(drawn) if ending == ".csv" else pyarrow.parquet.read_table(drawn)
    assert table.column_names[0] == "patient"
    assert set(table["patient"].to_pylist()) == set(range(1, 41))
    capsys.readouterr()
    evaluated = ["evaluate", out, "--real", tmp_path / "test.csv", "--train", tmp_path / "train.csv", "--json"]
    for synthetic, rows in ([], 100), (["--synthetic", drawn], 40):
        assert run([str(a) for a in [*evaluated, *synthetic, "--out", tmp_path / "evaluation"]]) == 0
        assert json_of(capsys)["rows"] == {"synthetic": rows, "test": 50, "train": 100}
    assert run(["sample", str(out), "-n", "4", "--out", str(drawn), "--where", "sodium=140"]) == 2
    assert run(["sample", str(out), "-n", "4", "--out", str(drawn), "--layout", "events"]) == 2
