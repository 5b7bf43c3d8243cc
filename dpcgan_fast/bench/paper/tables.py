"""The tables of the paper's comparison: public files where they are here, and made-up tables from seeded generators."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from dpcgan_fast.bench.paper.code_world import code_schema, code_table, code_world
from dpcgan_fast.bench.paper.heartbeats import BEATS, heartbeat_schema, heartbeat_table
from dpcgan_fast.bench.train import EPILEPTIC, benchmark_table
from dpcgan_fast.data.datasets import dataset_path, load_support2, support2_schema, train_test_split
from dpcgan_fast.data.encoding import table_columns
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError

CODES, HEARTBEATS, FIVE_CLASSES = "codes", "heartbeats", "epileptic-5"
TEST_SHARE = 0.2
# Scores of how ill patients are, one of which looks beyond the day of the prediction, and that day: targets were set
# without them. What states the outcome (survival, charges, length of stay) the embedded table lacks from the start.
SUPPORT2_LEFT_OUT = ("hday", "aps", "sps", "avtisst")
_FRESH_SEED = 9  # of patients of codes who are in no split of the table
_EXAMPLES = Path(__file__).resolve().parents[3] / "examples"


@dataclass(frozen=True)
class PaperTable:
    """A table cut into training and test rows, and its public schema.

    implications: pairs of places in the vocabulary of codes, of which the first implies the second
    """

    name: str
    train: pa.Table
    test: pa.Table
    schema: Schema
    implications: tuple[tuple[int, int], ...] = ()


def _epileptic() -> tuple[pa.Table, Schema]:
    """Seizures against the other four classes, as in the paper: the label is one position of a record."""
    table, schema = benchmark_table(EPILEPTIC)
    seizure = pa.array(np.equal(np.asarray(table["y"].cast(pa.string())), "1").astype(np.int64))
    values = {**schema.model_dump(mode="json"), "columns": [{"name": "y", "type": "binary"}]}
    return table.set_column(table.column_names.index("y"), "y", seizure), Schema.from_dict(values)


def _epileptic_five() -> tuple[pa.Table, Schema]:
    """The five classes of the same rows, each told apart from the rest: which of them is a seizure does not count."""
    table, schema = benchmark_table(EPILEPTIC)
    (label,) = schema.columns
    return table, schema.model_copy(update={"columns": (label.model_copy(update={"positive": None}),)})


def _support2() -> tuple[pa.Table, Schema]:
    schema = support2_schema()
    kept = tuple(column for column in schema.columns if column.name not in SUPPORT2_LEFT_OUT)
    schema = schema.model_copy(update={"columns": kept})
    return load_support2().select(list(schema.column_names())), schema


def _example(name: str) -> tuple[pa.Table, Schema]:
    path = _EXAMPLES / f"{name}.json"
    if not path.is_file():
        raise InputError("Its schema is not here", f"examples/{name}.json", "Run it from a checkout of the project.")
    schema = Schema.from_json(path)
    return read_table(dataset_path(name), table_columns(schema))[0], schema


def _heartbeats() -> tuple[pa.Table, Schema]:
    return heartbeat_table(), heartbeat_schema(BEATS - round(TEST_SHARE * BEATS))


def _codes() -> tuple[pa.Table, Schema]:
    table = code_table()
    return table, code_schema(table.num_rows - round(TEST_SHARE * table.num_rows))


def fresh_patients(count: int) -> pa.Table:
    """Patients of the made-up codes who are in neither part of any split."""
    return code_table(count, _FRESH_SEED)


_SOURCES: dict[str, Callable[[], tuple[pa.Table, Schema]]] = {
    "epileptic": _epileptic,
    FIVE_CLASSES: _epileptic_five,
    "cardio": lambda: _example("cardio"),
    "support2": _support2,
    "cervical": lambda: _example("cervical_cancer"),
    HEARTBEATS: _heartbeats,
    CODES: _codes,
}
TABLES = tuple(_SOURCES)


def paper_table(name: str, split: int) -> PaperTable:
    """A table of `TABLES`, split 80/20 by its units. Raises InputError if the name is none or its file is not here."""
    if name not in _SOURCES:
        raise InputError("There is no such table", f"--data {name}", f"Choose from {', '.join(TABLES)}.")
    table, schema = _SOURCES[name]()
    train, test = train_test_split(table, split, TEST_SHARE, schema.unit)
    implications = code_world().public_implications() if name == CODES else []
    return PaperTable(name, train, test, schema, tuple(implications))
