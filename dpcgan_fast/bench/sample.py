"""Speed of sampling to a file."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dpcgan_fast.bench.train import DELTA, EPILEPTIC, EPSILON, SUPPORT2, benchmark_table
from dpcgan_fast.data.writing import TableWriter
from dpcgan_fast.errors import InputError
from dpcgan_fast.synthesis import DPCGAN

_ROWS = 500_000  # so many that threads that start, and those that end, take little of it
_STEPS = 100  # of training: what a file's columns take to encode depends on what the networks say


def bench_sample(device: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Rows a second from a trained model to a Parquet and to a CSV file.

    Of SUPPORT2, and of the epileptic seizure table where its file is here.
    """
    rows: list[dict[str, Any]] = []
    for data in (SUPPORT2, EPILEPTIC):
        try:
            table, schema = benchmark_table(data)
        except InputError as error:
            say(f"left out: {error}")
            continue
        model = DPCGAN(schema, EPSILON, DELTA, device=device, steps=_STEPS, autoencoder_steps=_STEPS).fit(table)
        rows += [_timed(model, data, ending, say) for ending in (".parquet", ".csv")]
    return rows


def _timed(model: DPCGAN, data: str, ending: str, say: Callable[[str], None]) -> dict[str, Any]:
    columns = len(model.arrow_schema)
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with TableWriter(Path(folder) / f"rows{ending}", model.arrow_schema) as writer:
            for batch in model.sample_batches(_ROWS):
                writer.write(batch)
        speed = _ROWS / (time.perf_counter() - begin)
    say(f"{data}, {ending}: {speed:,.0f} rows a second, {columns} columns")
    return {"data": data, "format": ending, "columns": columns, "rows_per_second": speed}
