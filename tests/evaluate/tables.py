"""Small tables of made-up patients whose label follows from age, weight and sex."""

from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.schema import Schema

COLUMNS: list[dict[str, Any]] = [
    {"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True},
    {"name": "bmi", "type": "numeric", "bounds": [10, 60], "missing": True},
    {"name": "sex", "type": "categorical", "categories": ["F", "M"], "missing": True},
    {"name": "smoker", "type": "binary"},
]
LABEL: dict[str, Any] = {"name": "died", "type": "binary"}


def schema_of(label: dict[str, Any] | None = LABEL, columns: list[dict[str, Any]] = COLUMNS, **more: Any) -> Schema:
    """The patients' schema; label: its column, or None for a schema without one."""
    named = {} if label is None else {"label": label["name"]}
    listed = columns + ([] if label is None else [label])
    return Schema.from_dict({"unit": None, "columns": listed, **named, **more})


def patients(rows: int, seed: int) -> pa.Table:
    """Rows with the columns age, bmi, sex, smoker, died, and stage: a label of three classes."""
    rng = np.random.default_rng(seed)
    age = rng.integers(20, 95, rows)
    bmi = np.clip(rng.normal(27, 5, rows) + 0.05 * age, 10, 60)
    sex = rng.integers(0, 2, rows)
    risk = 0.08 * (age - 60) + 0.15 * (bmi - 29) + 0.8 * sex + rng.logistic(0, 0.7, rows)
    return pa.table(
        {
            "age": age,
            "bmi": pa.array(bmi, mask=rng.random(rows) < 0.1),
            "sex": pa.array(np.array(["F", "M"])[sex], mask=rng.random(rows) < 0.05),
            "smoker": rng.integers(0, 2, rows),
            "died": (risk > 1).astype(np.int64),
            "stage": np.array(["low", "middle", "high"])[np.digitize(risk, (-1, 1))],
        }
    )


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with one column replaced."""
    return table.set_column(table.column_names.index(name), name, pa.array(values))


def shuffled_label(table: pa.Table, seed: int = 0) -> pa.Table:
    """The table with its label torn from its rows: nothing can be learned from it."""
    labels = table.column("died").to_numpy()
    return with_column(table, "died", np.random.default_rng(seed).permutation(labels))
