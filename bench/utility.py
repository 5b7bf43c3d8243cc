"""The utility table: what `train`, `sample` and `evaluate` give on public tables, with the defaults.

    python bench/utility.py [--epsilon 1 3 10 inf] [--data cardio support2 epileptic_seizure cervical_cancer]

Each table is split once, 80/20, by its unit; the schemas are those of examples/ and of the package. For every run the
ledger is composed again by dp-accounting alone, without a line of this package, and must give the epsilon printed.
Runs are kept and not repeated: bench/results/utility.json grows, utility.md is made from it.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import dp_accounting
import pyarrow as pa
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

import dpcgan_fast as dpf
from dpcgan_fast.bench.machine import describe
from dpcgan_fast.data.datasets import dataset_path, load_support2, support2_schema, train_test_split
from dpcgan_fast.data.encoding import table_columns
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.evaluate import evaluate
from dpcgan_fast.synthesis.fitting import pick_device

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DELTA = 1e-5
DATA = ("cardio", "support2", "epileptic_seizure", "cervical_cancer")


def load(name: str) -> tuple[pa.Table, pa.Table, dpf.Schema]:
    """Training rows, test rows, and the schema of a public data set."""
    if name == "support2":
        return *train_test_split(load_support2()), support2_schema()
    schema = dpf.Schema.from_json(ROOT / "examples" / f"{name}.json")
    table = read_table(dataset_path(name), table_columns(schema))[0]
    return *train_test_split(table, unit=schema.unit), schema


def recomputed(ledger: Path, delta: float) -> tuple[float, float]:
    """Epsilon of a ledger by RDP and by PLD, as a reviewer with dp-accounting alone would compute it."""
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    done = {line["closes"]: line["steps"] for line in lines if line["event"] == "close"}
    rdp, pld = RdpAccountant(), PLDAccountant(value_discretization_interval=1e-4)
    steps: dict[tuple[float, float], int] = {}
    added = 0.0
    for line in lines:
        if line["event"] == "close":
            continue
        key = line["sample_rate"], line["noise_multiplier"]
        steps[key] = steps.get(key, 0) + done.get(line["seq"], line["steps"])
        delta -= line["delta"]
        added -= math.log1p(-line["delta"])
    for (rate, noise), count in steps.items():
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(noise)
        if rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(rate, event)
        for accountant in (rdp, pld):
            accountant.compose(event, count)
    return rdp.get_epsilon(delta) + added, pld.get_epsilon(delta) + added


def run_one(name: str, epsilon: float) -> dict[str, Any]:
    """Trains, samples, evaluates and recomputes; all of it timed."""
    train, test, schema = load(name)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        model = dpf.DPCGAN(schema, epsilon, DELTA).fit(train, Path(folder) / "run")
        trained = time.perf_counter()
        synthetic = model.sample(train.num_rows)
        sampled = time.perf_counter()
        privacy = model.privacy()
        if math.isfinite(epsilon):
            rdp, pld = recomputed(model.folder / "ledger.jsonl", DELTA)
            if not math.isclose(min(rdp, pld), privacy["epsilon_spent"], rel_tol=1e-9):
                raise AssertionError(f"{name}: the ledger gives {min(rdp, pld)}, the run {privacy['epsilon_spent']}")
        complete = dpf.Schema.from_json(model.folder / "schema.json")
        metrics = evaluate(synthetic, test, complete, train=train, privacy=privacy).to_dict()
    distances = ("marginal_tv_mean", "pairs_tv_mean", "triples_tv_mean", "correlation_mae", "c2st", "c2st_binned")
    kept = ("tstr", "trtr", *distances, "floor", "rows")
    return {
        "data": name,
        "epsilon": "inf" if math.isinf(epsilon) else epsilon,
        "epsilon_spent": privacy["epsilon_spent"],
        **{key: metrics[key] for key in kept},
        "baselines": [
            {key: base[key] for key in ("name", "gb", "rf", "lr", *distances)} for base in metrics["baselines"]
        ],
        "standing": metrics["verdict"]["standing"],
        "seconds": {"train": trained - begin, "sample": sampled - trained, "evaluate": time.perf_counter() - sampled},
    }


def _score(scores: dict[str, Any] | None, learner: str) -> str:
    return "-" if not scores else f"{scores[learner]['auroc']:.3f} / {scores[learner]['ap']:.3f}"


def as_markdown(results: dict[str, Any]) -> str:
    """The table of all runs."""
    machine = results["machine"]
    lines = [
        "# Utility of the defaults on public tables",
        "",
        f"Made by `bench/utility.py`: one split (80/20), one run each, delta {DELTA:g}. AUROC / average precision",
        "on real held-out rows, by what the classifiers learned from: gradient boosting, random forest, logistic",
        "regression. Baselines have the same epsilon, the best one first; real rows are those of training. One run and",
        "one split cannot tell apart AUROCs within 0.01. These figures are not differentially private; the data are",
        "public. Preset auto draws the rows of all these tables from statistics.",
        f"Machine: {machine['processor']}, {machine['threads']} threads.",
        "",
        "| data | epsilon | rows of | gradient boosting | random forest | logistic regression | columns | pairs "
        "| triples | correlation error | told apart | binned | seconds to train |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(results["runs"], key=lambda r: (DATA.index(r["data"]), float(r["epsilon"]))):
        seconds = f"{row['seconds']['train']:.0f}"
        lines.append(_line([row["data"], str(row["epsilon"]), "**the run**"], {**row, **row["tstr"]}, seconds))
        lines += [_line(["", "", base["name"]], base, "") for base in row["baselines"]]
        lines.append(_line(["", "", "real"], {**row["floor"], **row["trtr"]}, ""))
    return "\n".join(lines) + "\n"


def _line(first: list[str], figures: dict[str, Any], seconds: str) -> str:
    scores = [_score(figures, learner) for learner in ("gb", "rf", "lr")]
    shares = [f"{figures[key]:.1%}" for key in ("marginal_tv_mean", "pairs_tv_mean", "triples_tv_mean")]
    rest = [f"{figures[key]:.3f}" for key in ("correlation_mae", "c2st", "c2st_binned")]
    return "| " + " | ".join([*first, *scores, *shares, *rest, seconds]) + " |"


def main() -> None:
    """Runs what is missing and writes both files after each run."""
    parser = argparse.ArgumentParser(description="Utility of the defaults on public tables.")
    parser.add_argument("--epsilon", nargs="+", type=float, default=[1.0, 3.0, 10.0, math.inf])
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    arguments = parser.parse_args()
    path = RESULTS / "utility.json"
    results = json.loads(path.read_text()) if path.exists() else {"runs": []}
    results["machine"] = describe(pick_device("cpu"))
    for name in arguments.data:
        for epsilon in arguments.epsilon:
            if any(run["data"] == name and float(run["epsilon"]) == epsilon for run in results["runs"]):
                continue
            row = run_one(name, epsilon)
            results["runs"].append(row)
            print(
                f"{name} epsilon {epsilon:g}: {row['standing']}, trained in {row['seconds']['train']:.0f} s", flush=True
            )
            path.write_text(json.dumps(results, indent=1) + "\n")
            (RESULTS / "utility.md").write_text(as_markdown(results))


if __name__ == "__main__":
    main()
