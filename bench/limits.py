"""What keeps statistics from being worth as much as real rows: their noise, how few rows are drawn, or what they omit.

    python bench/limits.py [--data epileptic support2] [--splits 3]

Preset auto draws rows from statistics. Here they are released without noise, and as many rows are drawn as there are
training rows, or `TIMES` as many. `auto` and `auto-5n` of `dpcgan bench --suite paper` are the same with noise: what
differs from these is its cost, and what remains with many rows is what the statistics do not tell. Scores, tables and
splits are those of the suite. Runs are kept and not repeated: bench/results/limits.json grows, limits.md is made from
it.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines import statistics_for
from dpcgan_fast.bench.machine import describe
from dpcgan_fast.bench.paper.protocol import BOOSTING, Judges
from dpcgan_fast.bench.paper.systems import AUTO, AUTO_MORE, DELTA, TIMES
from dpcgan_fast.bench.paper.tables import FIVE_CLASSES, TABLES, paper_table
from dpcgan_fast.bench.table import machine_text, table
from dpcgan_fast.evaluate.spread import spread
from dpcgan_fast.privacy import noise_key
from dpcgan_fast.synthesis.fitting import pick_device

RESULTS = Path(__file__).resolve().parent / "results"
Keep = Callable[[dict[str, Any], dict[str, float]], None]
REAL = 0  # in the place of times as many rows, for the training rows themselves
_SCORES = {"auroc": "AUROC", "ap": "average precision", "accuracy": "accuracy", "outcome_auroc": "AUROC of the outcome"}


def judged(judges: Judges, drawn: pa.Table) -> dict[str, float]:
    """Scores of gradient boosting that learned from the rows; of codes, of logistic regression from all codes too."""
    judge = judges.of(judges.table.schema)
    boosting = judge.boosting(drawn)
    assert boosting is not None
    outcome = judge.outcome(drawn)
    return {**boosting[BOOSTING], **({} if outcome is None else {"outcome_auroc": outcome})}


def main() -> None:
    """Runs what is not there yet, and writes after each run."""
    parser = argparse.ArgumentParser(description="What keeps statistics from being worth as much as real rows.")
    parser.add_argument("--data", nargs="+", default=["epileptic", FIVE_CLASSES, "support2"], choices=TABLES)
    parser.add_argument("--splits", type=int, default=3)
    given = parser.parse_args()
    path = RESULTS / "limits.json"
    runs: list[dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else []

    def keep(key: dict[str, Any], figures: dict[str, float]) -> None:
        runs.append({**key, "figures": figures})
        print(f"{key}: {figures}", flush=True)
        results = {"machine": describe(pick_device("cpu")), "times": TIMES, "runs": runs}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(markdown(results))

    for data in given.data:
        for split in range(given.splits):
            keys = [{"data": data, "split": split, "times": times} for times in (REAL, 1, TIMES)]
            left = [key for key in keys if not any(key.items() <= one.items() for one in runs)]
            if left:
                _of_split(data, split, left, keep)


def _of_split(data: str, split: int, keys: Sequence[dict[str, Any]], keep: Keep) -> None:
    chosen = paper_table(data, split)
    judges, statistics = Judges(chosen), statistics_for(chosen.schema)
    fitted = statistics.fit(chosen.train, math.inf, DELTA, noise_key(split))
    for key in keys:
        if key["times"] == REAL:
            keep(key, judged(judges, chosen.train))
            continue
        # As many at a time as there are training rows, as a table of that size is drawn.
        rng, rows = np.random.default_rng(split), chosen.train.num_rows
        keep(key, judged(judges, pa.concat_tables(fitted.sample(rows, rng) for _ in range(key["times"]))))


def markdown(results: dict[str, Any]) -> str:
    """Tables of means over splits, with half 95 % intervals."""
    runs, times = results["runs"], results["times"]
    parts = [
        "# What limits statistics\n",
        f"Made by `python bench/limits.py`. {machine_text(results['machine'])}.\n",
        "Scores on real test rows of what learned from rows that were drawn from statistics without any noise, as many "
        f"as there are training rows (n) or {times} n, and from real rows. Means over splits, each with draws of its "
        "own, and half a 95 % interval. With noise they are "
        f"`{AUTO}` and `{AUTO_MORE}` in [paper.md](paper.md).\n",
    ]
    for data in dict.fromkeys(run["data"] for run in runs):
        of_data = [run for run in runs if run["data"] == data]
        scores = [score for score in _SCORES if score in of_data[0]["figures"]]
        rows = []
        for count in dict.fromkeys(run["times"] for run in of_data):
            own = [run["figures"] for run in of_data if run["times"] == count]
            found = [spread([figures[score] for figures in own]) for score in scores]
            drawn = "real" if count == REAL else "n" if count == 1 else f"{count} n"
            rows.append([drawn, *(one.text(4) for one in found if one), str(len(own))])
        parts += [f"## {data}\n", table(["rows", *(_SCORES[score] for score in scores), "splits"], rows)]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
