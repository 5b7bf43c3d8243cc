"""MST as a yardstick of equal epsilon, beside the statistics from which preset auto draws rows.

    python -m venv mbi && mbi/bin/pip install -r bench/requirements-mbi.txt
    python bench/mst.py --mbi mbi/bin/python [--data cardio support2] [--epsilon 1 10] [--splits 3]

MST (arXiv 2108.04978) is fitted by the package mbi, which has an environment of its own and no part in this package:
`bench/mst_mechanism.py` runs there. Both see the cells of our baselines, 20 public bins of equal width a number and one
for missing. Tables, splits and scores are those of `dpcgan bench --suite paper`, and each split has noise of its own.
Runs are kept and not repeated: bench/results/mst.json grows, mst.md is made from it. Noise is seeded: the tables are
public.
"""

import argparse
import itertools
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pyarrow as pa
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

from dpcgan_fast.baselines import statistics_for
from dpcgan_fast.baselines.parts import values_of
from dpcgan_fast.bench.machine import describe
from dpcgan_fast.bench.paper.protocol import BOOSTING, Judges
from dpcgan_fast.bench.paper.systems import DELTA
from dpcgan_fast.bench.paper.tables import paper_table
from dpcgan_fast.bench.table import machine_text, table
from dpcgan_fast.data.public_cells import cell_count, cells, modelled_columns, typed_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.spread import spread
from dpcgan_fast.evaluate.two_sample import c2st
from dpcgan_fast.privacy import Mechanism, account, noise_key
from dpcgan_fast.synthesis.fitting import pick_device

RESULTS = Path(__file__).resolve().parent / "results"
MST, OURS, REAL = "MST, by mbi", "statistics of auto", "real training rows"
_FIGURES = {
    "AUROC": "auroc", "average precision": "ap", "correlation error": "correlation_mae", "pairs": "pairs_tv_mean",
    "told apart, quantile bins": "c2st_quantiles", "told apart, public bins": "c2st_binned",
}  # fmt: skip


def zcdp_of(epsilon: float) -> float:
    """The largest rho of zCDP whose epsilon at `DELTA`, by dp-accounting's RDP accountant, is not above epsilon."""

    def excess(rho: float) -> float:
        return epsilon_of(dp_accounting.ZCDpEvent(rho)) - epsilon

    return float(brentq(excess, 1e-6, 10 * epsilon, rtol=1e-10)) * (1 - 1e-9)


def epsilon_of(*events: dp_accounting.DpEvent) -> float:
    """Of a composition, by RDP."""
    accountant = RdpAccountant()
    for event in events:
        accountant.compose(event)
    return accountant.get_epsilon(DELTA)


def recomposed(mechanisms: Sequence[tuple[str, float, int]]) -> float:
    """Epsilon of what MST took: Gaussian releases, and exponential mechanisms by zCDP (arXiv 2004.07223)."""
    events = {
        "gaussian": lambda std: dp_accounting.GaussianDpEvent(std),
        "exponential": lambda parameter: dp_accounting.ZCDpEvent(parameter**2 / 8),
    }
    single = [dp_accounting.SelfComposedDpEvent(events[kind](value), times) for kind, value, times in mechanisms]
    return epsilon_of(*single)


def by_mst(python: Path, train: pa.Table, schema: Schema, epsilon: float, seed: int) -> tuple[pa.Table, float]:
    """Synthetic rows, as many as there are training rows, and epsilon as dp-accounting composes it."""
    columns = modelled_columns(schema)
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder) / "table.npz", Path(folder) / "drawn.npz"
        found = np.stack([cells(train, column) for column in columns], axis=1)
        np.savez(place, cells=found, sizes=np.array([cell_count(column) for column in columns]))
        script = Path(__file__).with_name("mst_mechanism.py")
        options = {"--rho": zcdp_of(epsilon), "--rows": train.num_rows, "--seed": seed}
        given = [str(part) for option in options.items() for part in option]
        subprocess.run([str(python), str(script), str(place), str(out), *given], check=True)
        with np.load(out) as drawn:
            sampled = drawn["cells"]
        spent = recomposed(json.loads(out.with_suffix(".json").read_text()))
    if spent > epsilon * (1 + 1e-6):
        raise AssertionError(f"MST took epsilon {spent}, more than {epsilon}")
    rng = np.random.default_rng(seed)
    return pa.table({c.name: values_of(c, sampled[:, i], rng) for i, c in enumerate(columns)}), spent


def by_statistics(train: pa.Table, schema: Schema, epsilon: float, seed: int) -> tuple[pa.Table, float]:
    """The same by the statistics of preset auto, with the whole epsilon."""
    fitted = statistics_for(schema).fit(train, epsilon, DELTA, noise_key(seed))
    made: list[Mechanism] = fitted.mechanisms
    return fitted.sample(train.num_rows, np.random.default_rng(seed)), account(made, DELTA).epsilon


def judged(judges: Judges, drawn: pa.Table) -> dict[str, float | None]:
    """Scores of gradient boosting on the test rows, and distances from them."""
    test, schema = judges.table.test, judges.table.schema
    judge = judges.of(schema)
    boosting = judge.boosting(drawn)
    assert boosting is not None
    found = {**boosting[BOOSTING], **judge.likeness(drawn), "c2st_binned": c2st(drawn, test, schema, binned=True)}
    return {name: found[name] for name in _FIGURES.values()}


def gaussian_penalty(epsilon: float) -> float:
    """By how much MST's noise would be smaller if all it takes were Gaussian and composed exactly, as ours is."""
    return 1 - float(dp_accounting.get_sigma_gaussian(epsilon, DELTA)) * math.sqrt(2 * zcdp_of(epsilon))


def markdown(results: dict[str, Any]) -> str:
    """Tables of means with half 95 % intervals over splits."""
    runs = results["runs"]
    parts = [
        "# MST beside the statistics of preset auto\n",
        f"Made by `python bench/mst.py`, at delta {DELTA:g}. {machine_text(results['machine'])}; mbi "
        f"{results['mbi']}.\n",
        "Rows as many as training rows; scores of gradient boosting on the test rows and distances from them. ± is "
        "half a 95 % interval over splits, each with noise of its own. Told apart: 0.5 is not at all. Quantile bins "
        "are 20 of the test rows' own, public bins those that both see. Epsilon is what dp-accounting composes of what "
        "was taken; MST's selection is composed by zCDP, without which its noise could be "
        + " and ".join(f"{gaussian_penalty(e):.0%} smaller at epsilon {e:g}" for e in epsilons_of(runs))
        + ". Seconds are of fitting and drawing, those of MST with its process and JAX's compilation, beside "
        "other work on the machine.\n",
    ]
    for data in dict.fromkeys(run["data"] for run in runs):
        rows = []
        for epsilon in [*epsilons_of(runs), None]:
            for system in (OURS, MST, REAL):
                own = [r for r in runs if (r["data"], r["epsilon"], r["system"]) == (data, epsilon, system)]
                if own:
                    rows.append(_row(epsilon, system, own))
        parts += [f"## {data}\n", table(["epsilon", "composed", "rows of", *_FIGURES, "seconds", "splits"], rows)]
    return "\n".join(parts)


def epsilons_of(runs: Sequence[dict[str, Any]]) -> list[float]:
    """Rising."""
    return sorted({run["epsilon"] for run in runs if run["epsilon"] is not None})


def _row(epsilon: float | None, system: str, runs: Sequence[dict[str, Any]]) -> list[str]:
    texts = []
    for key in _FIGURES.values():
        found = spread([run["figures"][key] for run in runs])
        texts.append("-" if found is None else found.text(3))
    spent = "-" if epsilon is None else f"{max(run['epsilon_spent'] for run in runs):.4g}"
    seconds = np.median([run["seconds"] for run in runs])
    return ["-" if epsilon is None else f"{epsilon:g}", spent, system, *texts, f"{seconds:.1f}", str(len(runs))]


def main() -> None:
    """Runs what is not there yet, and writes after each run."""
    parser = argparse.ArgumentParser(description="MST beside the statistics of preset auto.")
    parser.add_argument("--mbi", type=Path, required=True, help="interpreter of mbi's environment")
    parser.add_argument("--data", nargs="+", default=["cardio", "support2"], choices=["cardio", "support2"])
    parser.add_argument("--epsilon", nargs="+", type=float, default=[1.0, 10.0])
    parser.add_argument("--splits", type=int, default=3)
    given = parser.parse_args()
    if not given.mbi.is_file():
        parser.error(f"--mbi {given.mbi}: no such interpreter; make mbi's environment first, see bench/README.md")
    version = "import importlib.metadata as m; print(m.version('mbi'))"
    asked = subprocess.run([str(given.mbi), "-c", version], check=True, capture_output=True, text=True)
    path = RESULTS / "mst.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def run(judges: Judges, split: int, system: str, epsilon: float | None) -> None:
        chosen = judges.table
        key = {"data": chosen.name, "split": split, "system": system, "epsilon": epsilon}
        if any(key.items() <= one.items() for one in runs):
            return
        train = typed_table(chosen.train, chosen.schema, chosen.name)
        begin, spent = time.perf_counter(), None
        if epsilon is None:
            drawn = train
        elif system == MST:
            drawn, spent = by_mst(given.mbi, train, chosen.schema, epsilon, split)
        else:
            drawn, spent = by_statistics(train, chosen.schema, epsilon, split)
        seconds = time.perf_counter() - begin
        runs.append({**key, "epsilon_spent": spent, "seconds": seconds, "figures": judged(judges, drawn)})
        print(f"{key}: {seconds:.0f} s, {runs[-1]['figures']}", flush=True)
        machine = describe(pick_device("cpu"))
        results = {"machine": machine, "mbi": asked.stdout.strip(), "delta": DELTA, "runs": runs}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(results))

    for split, data in itertools.product(range(given.splits), given.data):
        judges = Judges(paper_table(data, split))
        run(judges, split, REAL, None)
        for epsilon, system in itertools.product(given.epsilon, (OURS, MST)):
            run(judges, split, system, epsilon)


if __name__ == "__main__":
    main()
