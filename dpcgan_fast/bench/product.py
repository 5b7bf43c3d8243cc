"""Speed of the product: training on the embedded data, and sampling to a file."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpcgan_fast.data.datasets import load_support2, support2_schema
from dpcgan_fast.data.writing import TableWriter
from dpcgan_fast.synthesis import DPCGAN, FitHooks

_STEPS: dict[str, Any] = {"steps": 200, "autoencoder_steps": 200}


@dataclass
class _PhaseClock:
    """Seconds of each training phase, from the progress that a fit reports."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    _phase: str = ""
    _begin: float = 0.0

    def start(self, phase: str, total: int, done: int) -> None:  # noqa: ARG002
        self._phase, self._begin = phase, time.perf_counter()

    def advance(self, done: int, epsilon: float | None) -> None:  # noqa: ARG002
        self.seconds[self._phase] = time.perf_counter() - self._begin
        self.steps[self._phase] = done


def bench_train(device: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Milliseconds of a private step of each phase on SUPPORT2, at epsilon 3 and without privacy, by turns."""
    table, rows = load_support2(), []
    for repeat in range(3):
        for epsilon in (3.0, math.inf):
            clock = _PhaseClock()
            begin = time.perf_counter()
            DPCGAN(support2_schema(), epsilon, 1e-5, device=device, **_STEPS).fit(table, hooks=FitHooks(clock))
            row = {
                "epsilon": "inf" if math.isinf(epsilon) else epsilon,
                "repeat": repeat,
                "seconds": time.perf_counter() - begin,
                "milliseconds_per_step": {p: 1e3 * s / clock.steps[p] for p, s in clock.seconds.items()},
            }
            rows.append(row)
            steps = ", ".join(f"{p} {ms:.2f} ms" for p, ms in row["milliseconds_per_step"].items())
            say(f"SUPPORT2, epsilon {row['epsilon']}: {steps} a step")
    return rows


def bench_sample(device: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows a second from a trained model to a Parquet and to a CSV file."""
    model = DPCGAN(support2_schema(), 3.0, 1e-5, device=device, steps=1, autoencoder_steps=1).fit(load_support2())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ending in (".parquet", ".csv"):
            count = 50_000
            begin = time.perf_counter()
            with TableWriter(Path(folder) / f"rows{ending}", model.arrow_schema) as writer:
                for batch in model.sample_batches(count):
                    writer.write(batch)
            speed = count / (time.perf_counter() - begin)
            rows.append({"format": ending, "columns": len(model.arrow_schema), "rows_per_second": speed})
            say(f"{ending}: {speed:,.0f} rows a second, {len(model.arrow_schema)} columns")
    return rows
