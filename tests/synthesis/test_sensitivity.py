"""What is released before training: no unit moves a release by more than the sensitivity that its noise is made for.

Whatever its rows hold: more of them than count, numbers beyond all bounds, missing cells, labels of no class, a list of
names that nobody else has.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.units import unit_ids
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, releases
from dpcgan_fast.synthesis.releases import make_releases, planned_releases
from dpcgan_fast.train.plan import make_plan
from tests.synthesis.code_runs import quick_runs
from tests.synthesis.runs import model_of

NOISY, THRESHOLDED = releases.noisy_release, releases.thresholded_names
ROWS, PEOPLE = 60, 15
WARDS = [f"W{i:02}" for i in range(70)]
CODES = [f"C{i:02}" for i in range(50)]
ODD = [0.0, -0.0, 7.0, 1e308, -1e308, np.inf, -np.inf, np.nan, 5e-324, 2.0**41]
NUMBERS = [
    {"name": "any", "type": "numeric", "bounds": "private", "missing": True},
    {"name": "ranked", "type": "numeric", "bounds": "private", "scale": "rank", "quantiles": "private"},
    {"name": "whole", "type": "numeric", "bounds": [0, 50], "integer": True, "scale": "rank", "quantiles": "private"},
]
LISTS = [
    {"name": "found", "type": "categorical", "categories": "private"},
    {"name": "ward", "type": "categorical", "categories": WARDS},
    {"name": "wing", "type": "categorical", "categories": WARDS, "missing": True},
    {"name": "died", "type": "binary"},
]
OF_CODES = [
    {"name": "dx", "type": "codes", "vocabulary": "private", "max_codes": 16},
    {"name": "drugs", "type": "codes", "vocabulary": CODES, "max_codes": 30},
]
SIGNAL = {"name": "eeg", "columns": ["s0", "s1", "s2"], "bounds": "private"}
COMMON = {"bounds, coarse", "bounds, fine", "quantiles", "categories: found", "counts of many categories",
          "label histogram", "unit count"}  # fmt: skip
COUNTED = {"code counts: dx", "codes of a record: dx", "code counts: drugs", "codes of a record: drugs"}


def people() -> pa.Table:
    rng = np.random.default_rng(0)

    def numbers() -> np.ndarray:
        return np.where(rng.random(ROWS) < 0.6, rng.choice(ODD, ROWS), rng.normal(0, 100, ROWS))

    def lists() -> pa.Array:
        own = [rng.choice([*CODES, f"only {row}"], rng.choice([0, 1, 5, 40])).tolist() for row in range(ROWS)]
        return pa.array(own, pa.list_(pa.string()))

    return pa.table({
        "person": rng.choice(PEOPLE, ROWS), "dx": lists(), "drugs": lists(),
        **{name: numbers() for name in ("any", "ranked", "whole", *SIGNAL["columns"])},
        "found": rng.choice([" x", "x", "1", "1.0", "NA", *(f"only {row}" for row in range(20))], ROWS),
        "ward": rng.choice([*WARDS, "none of them"], ROWS), "wing": rng.choice([*WARDS[:3], ""], ROWS),
        "died": rng.choice([0.0, 1.0, np.nan], ROWS),
    })  # fmt: skip


class Asked:
    """Takes the place of what draws noise: gives every table the answers that the first one had, and keeps what each
    was about to release, by name, and its sensitivity.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: dict[str, Any] = {}
        self.values: dict[str, tuple[dict[Any, float], float]] = {}
        monkeypatch.setattr(releases, "noisy_release", self.noisy)
        monkeypatch.setattr(releases, "thresholded_names", self.thresholded)

    def noisy(self, name: str, values: np.ndarray, sensitivity: float, *rest: Any) -> Any:
        if name not in self.values:  # else it is the noise of a list of names
            self.values[name] = dict(enumerate(values)), sensitivity
        if name not in self.answers:
            self.answers[name] = NOISY(name, values, sensitivity, *rest)
        return self.answers[name]

    def thresholded(self, names: list[str], counts: np.ndarray, mechanism: Any, *rest: Any) -> Any:
        name = mechanism.mechanism
        self.values[name] = dict(zip(names, counts, strict=True)), mechanism.max_grad_norm
        key = f"names of {name}"
        if key not in self.answers:
            self.answers[key] = THRESHOLDED(names, counts, mechanism, *rest)
        return self.answers[key]

    def of(self, table: pa.Table, schema: Schema, path: Path) -> dict[str, tuple[dict[Any, float], float]]:
        settings = model_of(schema).settings
        plan = make_plan(settings, planned_releases(schema, settings), "person")
        self.values = {}
        path.unlink(missing_ok=True)
        with Ledger(path, create=True) as ledger:
            make_releases(table, unit_ids(table, schema), schema, plan, ledger, NoiseKey(seed=0), "a table")
        return self.values


def moved(first: dict[Any, float], second: dict[Any, float]) -> float:
    """L2 distance of what two tables would release; a name that a table lacks counts as 0."""
    return float(np.linalg.norm([first.get(name, 0.0) - second.get(name, 0.0) for name in {*first, *second}]))


@pytest.mark.parametrize(
    ("codes", "cap", "wanted"),
    [(False, 1, COMMON), (False, 3, COMMON), (True, 1, COMMON | COUNTED)],
    ids=["a row a person", "rows of a person", "codes"],
)
def test_a_unit_moves_no_release_by_more_than_its_sensitivity(monkeypatch, tmp_path, codes, cap, wanted):
    columns = [*NUMBERS, *LISTS, *(OF_CODES if codes else [])]
    more = {} if codes else {"signals": [SIGNAL], "max_rows_per_unit": cap}
    unit = None if codes else "person"  # records of codes are one a person already
    schema = Schema.from_dict({"unit": unit, "n_units": None, "label": "died", "columns": columns, **more})
    largest = dict.fromkeys(wanted, 0.0)
    table, asked, ledger = people(), Asked(monkeypatch), tmp_path / "ledger.jsonl"
    persons = np.asarray(table["person"]) if unit else np.arange(ROWS)
    with quick_runs():
        first = asked.of(table, schema, ledger)
        assert set(first) == wanted
        for left in range(PEOPLE):
            without = asked.of(table.filter(pa.array(persons != left)), schema, ledger)
            assert set(without) == wanted
            for name, (values, sensitivity) in without.items():
                assert sensitivity == first[name][1]
                largest[name] = max(largest[name], moved(first[name][0], values) / sensitivity)
    assert max(largest.values()) <= 1 + 1e-9
    assert min(largest.values()) > 0.5, "what was tried comes near to each"
