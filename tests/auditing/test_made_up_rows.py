"""Audits of runs: what leaves without noise or charge is seen, and names that few have refute nothing."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.auditing import audit_run, made_up
from dpcgan_fast.auditing import run as module
from dpcgan_fast.auditing.run import RELEASES
from dpcgan_fast.errors import PrivacyError
from dpcgan_fast.privacy import releases
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.synthesis.statistics import STATISTICS
from tests.synthesis.code_runs import FEW, HEADER, code_schema, quick_runs, write_events
from tests.tables import FEW_STEPS, make_schema, make_table, schema_values

ROWS, NAMES = 20_000, 40
CANARIES = 200


@pytest.fixture(scope="module")
def categories(tmp_path_factory):
    """A run that found categories of which most are rarer than one in 64 rows, and a private number of units."""
    folder = tmp_path_factory.mktemp("categories") / "run"
    values = schema_values(n_units=None)
    values["columns"].append({"name": "drg", "type": "categorical", "categories": "private"})
    drg = np.minimum(np.random.default_rng(0).zipf(1.2, ROWS), NAMES).astype(str)
    table = make_table(ROWS).append_column("drg", pa.array(drg))
    with quick_runs():
        DPCGAN(make_schema(**values), 8.0, 1e-4, device="cpu", **FEW_STEPS).fit(table, folder)
    return folder


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """A run that found codes of which most are rarer than one in 64 records."""
    folder = tmp_path_factory.mktemp("vocabulary")
    rng = np.random.default_rng(0)
    chances = [1.0, *(0.5 / (1 + place) for place in range(1, NAMES))]
    rows = []
    for person in range(ROWS // 2):
        about = [f"p{person}", str(rng.integers(20, 95)), str(rng.integers(2))]
        rows += [[*about, f"D{place}"] for place, chance in enumerate(chances) if rng.random() < chance]
    with quick_runs():
        schema = code_schema("private", n_units=ROWS // 2)
        model = DPCGAN(schema, 8.0, 1e-4, device="cpu", **FEW)
        model.fit(str(write_events(folder / "events.csv", rows, HEADER)), folder / "run")
    return folder / "run"


@pytest.mark.parametrize("name", ["categories", "vocabulary"])
def test_names_that_a_canary_has_and_the_table_beside_it_had_not_refute_nothing(request, monkeypatch, name):
    """The table beside canaries has a row with each: what one person alone has is hidden by the threshold."""
    scores = []
    bounds = module.audit_scores
    monkeypatch.setattr(module, "audit_scores", lambda own, *rest: scores.append(own) or bounds(own, *rest))
    folder = request.getfixturevalue(name)
    found = audit_run(folder, CANARIES)
    assert not found.whole.refuted
    assert not any(part.refuted for part in found.parts.values())
    assert all(np.isfinite(own).all() for own in scores)
    monkeypatch.setattr(made_up, "with_every_name", lambda table, *_: table)
    scores.clear()
    audit_run(folder, 100)
    assert not all(np.isfinite(own).all() for own in scores), "the run has no rare names, and shows nothing"


@pytest.mark.parametrize(
    ("release", "part"), [("label histogram", RELEASES), ("unit count", RELEASES), ("histograms", STATISTICS)]
)
def test_a_release_without_noise_is_refuted(categories, monkeypatch, release, part):
    noisy = releases.noisy_release

    def bare(name, values, sensitivity, noise, key, unit):
        return noisy(name, values, sensitivity, 0.0 if name == release else noise, key, unit)

    monkeypatch.setattr(releases, "noisy_release", bare)
    found = audit_run(categories, CANARIES)
    assert found.parts[part].refuted
    assert found.whole.refuted


def test_a_number_that_leaves_beside_its_release_is_refuted(categories, monkeypatch):
    make = module.make_releases

    def telling(table, *rest):
        return replace(make(table, *rest), n_units=float(table.num_rows))

    monkeypatch.setattr(module, "make_releases", telling)
    assert audit_run(categories, CANARIES).parts[RELEASES].refuted


@pytest.mark.parametrize("left_out", [STATISTICS, "unit count"])
def test_a_planned_release_that_the_ledger_does_not_charge_is_refused(categories, monkeypatch, left_out):
    read = module.read_ledger

    def without(path):
        lines, torn = read(path)
        return [line for line in lines if line.mechanism.mechanism != left_out], torn

    monkeypatch.setattr(module, "read_ledger", without)
    with pytest.raises(PrivacyError, match=f"does not charge .*{left_out}"):
        audit_run(categories, CANARIES)


def test_tables_are_as_large_as_asked_and_larger_ones_have_all_statistics(categories, monkeypatch):
    named, sizes = set(), set()
    noisy, paid = releases.noisy_release, module.paid_statistics
    monkeypatch.setattr(releases, "noisy_release", lambda name, *rest: named.add(name) or noisy(name, *rest))
    monkeypatch.setattr(
        module, "paid_statistics", lambda table, *rest: sizes.add(table.num_rows // 1000) or paid(table, *rest)
    )
    audit_run(categories, 10, rows=16)
    assert "scores of pairs" not in named
    audit_run(categories, 10, rows=ROWS)
    assert sizes == {0, ROWS // 1000}
    assert "scores of pairs" in named
