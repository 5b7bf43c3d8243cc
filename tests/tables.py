"""A small made-up patient table and its schema, for tests that need a whole run."""

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.schema import Schema

ROWS = 400


def schema_values(**changes):
    values = {
        "version": 1,
        "unit": None,
        "n_units": ROWS,
        "label": "died",
        "columns": [
            {"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True},
            {"name": "sodium", "type": "numeric", "bounds": [110, 170], "missing": True},
            {"name": "sex", "type": "categorical", "categories": ["F", "M"], "unknown": "first"},
            {"name": "smoker", "type": "binary", "missing": True},
            {"name": "died", "type": "binary"},
        ],
    }
    return {**values, **changes}


def make_schema(**changes) -> Schema:
    return Schema.from_dict(schema_values(**changes))


def make_table(rows=ROWS, seed=0, patients=None) -> pa.Table:
    """Deaths depend on age; with `patients`, a column `patient` says whose row it is."""
    rng = np.random.default_rng(seed)
    age = rng.integers(20, 95, rows)
    died = (rng.random(rows) < 0.1 + 0.5 * (age > 60)).astype(int)
    sodium = rng.normal(140, 5, rows) + 2 * died
    columns = {
        "age": pa.array(age),
        "sodium": pa.array(sodium, mask=rng.random(rows) < 0.2),
        "sex": pa.array(rng.choice(["F", "M"], rows)),
        "smoker": pa.array(rng.integers(0, 2, rows), mask=rng.random(rows) < 0.1),
        "died": pa.array(died),
    }
    if patients is not None:
        columns = {"patient": pa.array([f"p{i}" for i in rng.integers(0, patients, rows)]), **columns}
    return pa.table(columns)


def signal_schema(samples=40, **changes) -> Schema:
    """A schema of one signal and its label."""
    signals = [{"name": "eeg", "columns": ["X1", "...", f"X{samples}"], "bounds": [-1000, 1000]}]
    return make_schema(label="y", columns=[{"name": "y", "type": "binary"}], signals=signals, **changes)


def make_signals(rows=ROWS, seed=0, samples=40) -> pa.Table:
    """White noise, four times as strong where the label is 1."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, rows)
    values = rng.normal(0, 50, (rows, samples)) * np.where(y == 1, 4, 1)[:, None]
    return pa.table({"y": pa.array(y)} | {f"X{i + 1}": pa.array(values[:, i]) for i in range(samples)})


def visits_values(**changes):
    """A schema of people with up to four visits."""
    values = schema_values(unit="patient", n_units=100)
    age, sodium, sex, smoker, died = values["columns"]
    year = {"name": "year", "type": "numeric", "bounds": [0, 10]}
    values["columns"] = [age, sex, died, year, sodium, {**smoker, "missing": False}]
    values["visits"] = {"time": "year", "max_visits": 4, "max_gap": 3, "columns": ["sodium", "smoker"]}
    return {**values, **changes}


def make_visits(people=100, seed=0) -> pa.Table:
    """One to six visits of each of the people, in any order of rows; of a person only sodium and smoking change."""
    rng = np.random.default_rng(seed)
    whose = rng.permutation(np.repeat(np.arange(people), rng.integers(1, 7, people)))
    static = make_table(people, seed).select(["age", "sex", "died"]).take(whose)
    own = make_table(len(whose), seed + 1).select(["sodium", "smoker"])
    columns = {"patient": pa.array([f"{seed}-{i}" for i in whose]), "year": pa.array(rng.uniform(0, 10, len(whose)))}
    for table in (static, own):
        columns |= {name: table[name] for name in table.column_names}
    return pa.table(columns)


# Few steps: what is tested is that everything happens, not how good the model is.
FEW_STEPS = {"steps": 6, "autoencoder_steps": 6, "autoencoder_batch": 32, "critic_batch": 32, "checkpoint_interval": 4}
