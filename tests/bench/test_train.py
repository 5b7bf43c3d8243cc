"""Whole trainings: every second is booked on one phase, and two results can be compared."""

import contextlib
import json
import threading
from pathlib import Path

import pytest

from dpcgan_fast.bench import compare_markdown
from dpcgan_fast.bench.train import (
    AFTER,
    BEFORE,
    DATA,
    EPILEPTIC_SCHEMA,
    GENERATOR,
    PhaseClock,
    bench_train,
    timed_phases,
)
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy import Ledger
from dpcgan_fast.train import gan
from dpcgan_fast.train.prefetch import Ahead
from dpcgan_fast.train.session import Session
from tests.bench.results import step_results, train_results


def test_a_phase_inside_another_stops_the_outer_ones_clock():
    now = 100.0
    clock = PhaseClock(lambda: now)
    with clock.phase("outer"):
        now += 2
        with clock.phase("inner"):
            now += 5
        now += 3
        clock.change("next")
        now += 1
        with clock.phase("inner"):
            now += 4
    now += 50
    assert clock.seconds == {"outer": 5, "inner": 9, "next": 1}


def test_other_threads_do_not_move_the_clock():
    clock = PhaseClock()

    def elsewhere() -> None:
        with clock.phase("background"):
            pass

    with clock.phase("main"):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert list(clock.seconds) == ["main"]


def test_what_is_timed_is_put_back_even_after_an_error():
    timed = [(Session, "save"), (Session, "turns"), (Ledger, "reserve"), (gan, "_generator_step")]
    timed.append((Ahead, "__next__"))
    before = [getattr(owner, name) for owner, name in timed]
    with contextlib.suppress(RuntimeError), timed_phases(PhaseClock()):
        during = [getattr(owner, name) for owner, name in timed]
        raise RuntimeError
    assert not set(during) & set(before)
    assert [getattr(owner, name) for owner, name in timed] == before


@pytest.mark.slow
def test_every_second_of_a_training_is_booked(monkeypatch, tmp_path):
    monkeypatch.setenv("DPCGAN_DATA_DIR", str(tmp_path))
    said: list[str] = []
    private, plain = bench_train("cpu", runs=2, steps=3, say=said.append)
    assert (private["data"], private["epsilon"], plain["epsilon"]) == ("support2", 3.0, "inf")
    assert "epileptic_seizure" in said[0], "what is left out is said"
    for row in (private, plain):
        assert row["steps"] == 6
        assert len(row["runs"]) == 2
        for run in row["runs"]:
            assert sum(run["phases"].values()) == pytest.approx(run["seconds"], rel=0.02)
            loop = run["seconds"] - run["phases"][BEFORE] - run["phases"][AFTER]
            assert run["steps_per_second"] == pytest.approx(6 / loop)
            expected = {BEFORE, AFTER, DATA, GENERATOR, "autoencoder", "critic", "ledger", "checkpoints"}
            assert expected <= set(run["phases"])
    assert "running epsilon" in private["phases"]


def test_the_schema_of_the_epileptic_table_is_that_of_the_example():
    example = Path(__file__).parents[2] / "examples" / "epileptic_seizure.json"
    assert json.loads(example.read_text()) == EPILEPTIC_SCHEMA


def test_two_results_side_by_side():
    text = compare_markdown(train_results(20.0), train_results(8.0))
    assert "| support2 | 3.0 | 20.0 (20.0 to 21.0) | 8.0 (8.0 to 9.0) | **2.50** | 50.0 | 125.0 | **2.50** |" in text
    assert "| support2 | 3.0 | autoencoder | 10.00 | 4.00 |" in text


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (train_results(8.0, steps=10), "steps differ"),
        (train_results(8.0, data="other"), "no training in common"),
        (step_results(1.0), "not results of the train benchmark"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(after, what):
    with pytest.raises(InputError, match=what):
        compare_markdown(train_results(20.0), after)
