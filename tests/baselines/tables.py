"""Tables for baselines: a signal of two classes, and records of codes."""

from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.schema import Schema
from tests.evaluate.tables import COLUMNS, LABEL

LENGTH = 32
VOCABULARY = tuple(f"C{code:02}" for code in range(40))


def signal_schema(columns: Any = (), bounds: Any = (-100, 100)) -> Schema:
    signal = {"name": "eeg", "columns": [f"X{i}" for i in range(LENGTH)], "bounds": list(bounds)}
    return Schema.from_dict({"unit": None, "columns": [*columns, LABEL], "label": "died", "signals": [signal]})


def signals(rows: int, seed: int, mean: float = 0.0) -> pa.Table:
    """Slow waves; of those who died, eight times as strong, and quicker. mean: a bump that all have."""
    rng = np.random.default_rng(seed)
    died = rng.random(rows) < 0.3
    time = np.arange(LENGTH)
    cycles = np.where(died, 5, 2)[:, None] + rng.normal(0, 0.2, (rows, 1))
    waves = np.sin(2 * np.pi * (cycles * time / LENGTH + rng.random((rows, 1))))
    strength = np.where(died, 40, 5)[:, None] * np.exp(rng.normal(0, 0.1, (rows, 1)))
    values = waves * strength + mean * np.exp(-0.5 * ((time - 10) / 3) ** 2)
    columns = {f"X{i}": values[:, i] for i in range(LENGTH)}
    return pa.table({**columns, "age": rng.integers(20, 95, rows), "died": died.astype(int)})


def codes_schema(columns: Any = (COLUMNS[0],), label: Any = LABEL, most: int = 30) -> Schema:
    dx = {"name": "dx", "type": "codes", "vocabulary": VOCABULARY, "max_codes": most}
    listed = [*columns, dx, *([label] if label else [])]
    return Schema.from_dict({"unit": None, "columns": listed, "label": label and label["name"]})


def codes_table(rows: int, seed: int, most: float = 0.9) -> pa.Table:
    """Those who died have the first codes more often, all others the last; the first two come together."""
    rng = np.random.default_rng(seed)
    died = rng.random(rows) < 0.3
    rates = np.where(died[:, None], 1, 0.3) * most * np.linspace(1, 0.02, len(VOCABULARY))
    held = rng.random((rows, len(VOCABULARY))) < rates
    held[:, 1] = held[:, 0]
    lists = [[code for code, has in zip(VOCABULARY, row, strict=True) if has] for row in held]
    return pa.table({"age": rng.integers(20, 95, rows), "dx": lists, "died": died.astype(int)})
