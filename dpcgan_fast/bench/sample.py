"""Speed of sampling to a file."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpcgan_fast.data.datasets import load_support2, support2_schema
from dpcgan_fast.data.writing import TableWriter
from dpcgan_fast.synthesis import DPCGAN


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
