"""Tables of events with which whole runs are made."""

import csv
import math
from contextlib import contextmanager

import numpy as np
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.models import auto
from dpcgan_fast.privacy import accountant
from dpcgan_fast.train import plan
from tests.tables import FEW_STEPS

PATIENTS = 200
VOCABULARY = [f"D{i:02}" for i in range(12)]
OTHER_CODE = "X99"
HEADER = ["patient", "age", "died", "dx"]
FEW = {**FEW_STEPS, "autoencoder_batch": 20, "critic_batch": 20}


def code_schema(vocabulary=VOCABULARY, columns=("age", "died", "dx"), **changes) -> Schema:
    kinds = {
        "age": {"name": "age", "type": "numeric", "bounds": [0, 110], "integer": True},
        "died": {"name": "died", "type": "binary"},
        "dx": {"name": "dx", "type": "codes", "vocabulary": vocabulary},
    }
    values = {
        "unit": "patient", "n_units": PATIENTS, "label": "died" if "died" in columns else None,
        "columns": [kinds[name] for name in columns], **changes,
    }  # fmt: skip
    return Schema.from_dict(values)


def events(patients=PATIENTS, seed=0):
    """Rows of events: each patient has the first codes more often than the last ones, some have none that counts."""
    rng = np.random.default_rng(seed)
    rows = []
    for patient in range(patients):
        age, died = str(rng.integers(20, 95)), str(int(rng.random() < 0.3))
        own = [code for i, code in enumerate(VOCABULARY) if rng.random() < 0.9 - 0.07 * i]
        rows += [[f"p{patient:03}", age, died, code] for code in own or [OTHER_CODE]]
    return [rows[i] for i in rng.permutation(len(rows))]


def write_events(path, rows, header=HEADER):
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def codes_of(table, column="dx"):
    """The different codes in a synthetic table."""
    return {code for cell in table[column].to_pylist() for code in cell}


@contextmanager
def quick_runs():
    """Spares what most of a short run goes to: the search for the least noise, in whose place there is plenty; a fine
    grid of privacy loss, without which the bound is only looser; and the fine calibration of codes.
    """
    fine = accountant._pld_epsilon

    def plenty(_composition, epsilon, _delta):
        return 0.0 if math.isinf(epsilon) else 20.0

    plan.make_plan.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accountant, "_pld_epsilon", lambda events, delta, interval: fine(events, delta, 30 * interval))
        patch.setattr(plan, "calibrate_noise_multiplier", plenty)
        patch.setattr(auto, "_CALIBRATION_ROWS", 64)
        patch.setattr(auto, "_CALIBRATION_ROUNDS", 2)
        try:
            yield
        finally:
            plan.make_plan.cache_clear()  # plans are kept: none with plenty of noise may reach another test
