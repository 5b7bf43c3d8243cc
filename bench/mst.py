"""MST as a yardstick of equal epsilon, beside the statistics from which preset auto draws rows.

    python -m venv mbi && mbi/bin/pip install -r bench/requirements-mbi.txt
    python bench/mst.py --mbi mbi/bin/python [--data cardio support2] [--epsilon 1 10] [--seeds 3]

MST (arXiv 2108.04978) is fitted by the package mbi, which has an environment of its own and no part in this package:
`bench/mst_mechanism.py` runs there. Both see the cells of our baselines, 20 public bins of equal width a number and one
for missing, and are scored by one judge on the same test rows. Runs are kept and not repeated: bench/results/mst.json
grows, mst.md is made from it. Noise is seeded: the tables are public.
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
from utility import load

from dpcgan_fast.baselines import statistics_for
from dpcgan_fast.baselines.parts import values_of
from dpcgan_fast.bench.machine import describe
from dpcgan_fast.bench.table import machine_text, table
from dpcgan_fast.data.public_cells import cell_count, cells, modelled_columns, numbers, typed_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.fidelity import correlation_mae, correlations
from dpcgan_fast.evaluate.joint_cells import joint_tv_mean
from dpcgan_fast.evaluate.spread import spread
from dpcgan_fast.evaluate.two_sample import c2st
from dpcgan_fast.evaluate.utility import predictions
from dpcgan_fast.privacy import Mechanism, account, noise_key
from dpcgan_fast.synthesis.fitting import pick_device

RESULTS = Path(__file__).resolve().parent / "results"
DELTA = 1e-5
MST, OURS, REAL = "MST, by mbi", "statistics of auto", "real training rows"
QUANTILE_BINS = 20
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


def judged(drawn: pa.Table, test: pa.Table, schema: Schema) -> dict[str, float | None]:
    """Scores of gradient boosting on the test rows, and distances from them."""
    predicted = predictions(drawn, test, schema, ("gb",))
    assert predicted is not None
    binned = [in_quantiles(one, test, schema) for one in (drawn, test)]
    return {
        **predicted.scores()["gb"],
        "correlation_mae": correlation_mae(correlations(drawn, schema)[0], correlations(test, schema)[0]),
        "pairs_tv_mean": joint_tv_mean(drawn, test, schema, 2),
        "c2st_quantiles": c2st(*binned, quantile_schema(schema)),
        "c2st_binned": c2st(drawn, test, schema, binned=True),
    }


def in_quantiles(rows: pa.Table, test: pa.Table, schema: Schema) -> pa.Table:
    """Numbers as places among 20 bins between quantiles of the test rows, at most; missing stays missing."""
    for column in modelled_columns(schema):
        if column.type == "numeric":
            edges = np.unique(np.nanquantile(numbers(test, column), np.linspace(0, 1, QUANTILE_BINS + 1)))[1:-1]
            values = numbers(rows, column)
            places = np.searchsorted(edges, values, side="right").astype(float)
            filled = pa.array(places, mask=np.isnan(values))
            rows = rows.set_column(rows.column_names.index(column.name), column.name, filled)
    return rows


def quantile_schema(schema: Schema) -> Schema:
    """That of `in_quantiles`."""
    changes = {"bounds": (0.0, float(QUANTILE_BINS)), "integer": False}
    columns = tuple(c.model_copy(update=changes) if c.type == "numeric" else c for c in schema.columns)
    return schema.model_copy(update={"columns": columns})


def gaussian_penalty(epsilon: float) -> float:
    """By how much MST's noise would be smaller if all it takes were Gaussian and composed exactly, as ours is."""
    return 1 - float(dp_accounting.get_sigma_gaussian(epsilon, DELTA)) * math.sqrt(2 * zcdp_of(epsilon))


def markdown(results: dict[str, Any]) -> str:
    """Tables of means with half 95 % intervals over seeds."""
    runs = results["runs"]
    parts = [
        "# MST beside the statistics of preset auto\n",
        f"Made by `python bench/mst.py`, at delta {DELTA:g}. {machine_text(results['machine'])}; mbi "
        f"{results['mbi']}.\n",
        "Rows as many as training rows; one split, scores of gradient boosting on the test rows and distances from "
        "them. ± is half a 95 % interval over noise seeds. Told apart: 0.5 is not at all. Quantile bins are 20 of the "
        "test rows' own, public bins those that both see. Epsilon is what dp-accounting composes of what was taken; "
        "MST's selection is composed by zCDP, without which its noise could be "
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
        parts += [f"## {data}\n", table(["epsilon", "composed", "rows of", *_FIGURES, "seconds", "seeds"], rows)]
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
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if not given.mbi.is_file():
        parser.error(f"--mbi {given.mbi}: no such interpreter; make mbi's environment first, see bench/README.md")
    version = "import importlib.metadata as m; print(m.version('mbi'))"
    asked = subprocess.run([str(given.mbi), "-c", version], check=True, capture_output=True, text=True)
    path = RESULTS / "mst.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def run(data: str, system: str, epsilon: float | None, seed: int | None) -> None:
        key = {"data": data, "system": system, "epsilon": epsilon, "seed": seed}
        if any(all(one[name] == value for name, value in key.items()) for one in runs):
            return
        train, test, schema = load(data)
        cells_read, tested = (typed_table(one, schema, data) for one in (train, test))
        begin, spent = time.perf_counter(), None
        if epsilon is None or seed is None:
            drawn = cells_read
        elif system == MST:
            drawn, spent = by_mst(given.mbi, cells_read, schema, epsilon, seed)
        else:
            drawn, spent = by_statistics(train, schema, epsilon, seed)
        seconds = time.perf_counter() - begin
        runs.append({**key, "epsilon_spent": spent, "seconds": seconds, "figures": judged(drawn, tested, schema)})
        print(f"{key}: {seconds:.0f} s, {runs[-1]['figures']}", flush=True)
        machine = describe(pick_device("cpu"))
        results = {"machine": machine, "mbi": asked.stdout.strip(), "delta": DELTA, "runs": runs}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(results))

    for data in given.data:
        run(data, REAL, None, None)
    for seed, data, epsilon in itertools.product(range(given.seeds), given.data, given.epsilon):
        run(data, OURS, epsilon, seed)
        run(data, MST, epsilon, seed)


if __name__ == "__main__":
    main()
