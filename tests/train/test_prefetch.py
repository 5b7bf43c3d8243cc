"""Prefetching: the same steps as without it, one item ahead and no more, and no exception or thread left behind."""

import threading

import numpy as np
import pytest

from dpcgan_fast.errors import StoppedError
from dpcgan_fast.privacy import PoissonSampler
from dpcgan_fast.synthesis import FitHooks, fitting
from dpcgan_fast.train import data as train_data
from dpcgan_fast.train import session as session_module
from dpcgan_fast.train.prefetch import THREAD_NAME, Ahead, drawn_chunks, one_draw
from tests.synthesis.runs import CrashAfter, CrashError, Then, model_bytes, model_of, stopping_hooks
from tests.tables import FEW_STEPS, make_schema, make_table
from tests.train.test_data import training_data

BLOCKS = FEW_STEPS["checkpoint_interval"]


def prefetch_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


class NotAhead:
    """`Ahead` without a thread: each item is made when it is taken."""

    def __init__(self, items):
        self.items = items

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.items)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


def clustered(**changes):
    """A model of patients with several rows each, in chunks of a few rows."""
    schema = make_schema(unit="patient", n_units=60, max_rows_per_unit=5)
    return model_of(schema, autoencoder_batch=20, critic_batch=20, seed=11, **changes)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("limit", [7, 1024])
def test_a_run_with_prefetch_is_bit_by_bit_one_without(tmp_path, monkeypatch, limit, paired):
    monkeypatch.setattr(train_data, "MAX_CHUNK_ROWS", limit)
    table = make_table(patients=60)
    ahead = clustered(paired_fakes=paired).fit(table, tmp_path / "ahead")
    monkeypatch.setattr(session_module, "Ahead", NotAhead)
    inline = clustered(paired_fakes=paired).fit(table, tmp_path / "inline")
    assert model_bytes(ahead) == model_bytes(inline)
    ledgers = [(tmp_path / name / "ledger.jsonl").read_bytes() for name in ("ahead", "inline")]
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize(("phase", "steps"), [("autoencoder", BLOCKS - 1), ("critic", BLOCKS), ("critic", 5)])
def test_a_stop_drops_what_was_prefetched_and_the_resumed_run_draws_it_again(tmp_path, monkeypatch, phase, steps):
    monkeypatch.setattr(train_data, "MAX_CHUNK_ROWS", 7)
    table = make_table(patients=60)
    whole = clustered().fit(table, tmp_path / "whole")
    with pytest.raises(StoppedError):
        clustered().fit(table, tmp_path / "run", hooks=stopping_hooks(phase, steps))
    assert prefetch_threads() == []
    resumed = clustered().fit(table, tmp_path / "run", resume=True)
    assert model_bytes(resumed) == model_bytes(whole)


@pytest.mark.parametrize("error", [CrashError, KeyboardInterrupt])
def test_the_thread_ends_with_the_run_however_that_ends(tmp_path, error):
    def fail():
        raise error

    running = []
    model_of().fit(
        make_table(), tmp_path / "whole", hooks=FitHooks(progress=Then(2, lambda: running.extend(prefetch_threads())))
    )
    assert len(running) == 1, "there is a thread while a block is at work"
    assert prefetch_threads() == []
    with pytest.raises(error):
        model_of().fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=Then(3, fail)))
    assert prefetch_threads() == []


def test_a_draw_is_made_of_no_step_that_the_ledger_does_not_charge(tmp_path, monkeypatch):
    drawn = []
    real_draw = PoissonSampler.draw
    monkeypatch.setattr(PoissonSampler, "draw", lambda self, step: (drawn.append(step), real_draw(self, step))[1])
    with pytest.raises(CrashError):
        model_of().fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=CrashAfter(BLOCKS - 1)))
    assert drawn == list(range(BLOCKS))


def test_an_exception_of_a_draw_is_raised_where_its_step_would_be(tmp_path, monkeypatch):
    class DrawError(Exception):
        pass

    real_draw = PoissonSampler.draw

    def draw(self, step):
        if step == 2:
            raise DrawError
        return real_draw(self, step)

    monkeypatch.setattr(PoissonSampler, "draw", draw)
    done = []
    with pytest.raises(DrawError):
        model_of().fit(make_table(), tmp_path / "run", hooks=FitHooks(progress=Then(2, lambda: done.append(2))))
    assert done == [2], "the steps before are whole"
    assert prefetch_threads() == []


def test_an_exception_of_an_item_that_is_never_taken_is_raised_all_the_same():
    begun = threading.Event()

    def items():
        yield 1
        begun.set()
        raise CrashError

    def take_one(then=None):
        with Ahead(items()) as ahead:
            next(ahead)
            begun.wait()
            if then is not None:
                raise then

    with pytest.raises(CrashError):
        take_one()
    with pytest.raises(ValueError, match="of the taker"):
        take_one(ValueError("of the taker"))


def test_one_item_is_made_ahead_and_no_more():
    made, taken = [], []
    everything_made = threading.Semaphore(0)

    def items():
        for item in range(4):
            made.append(item)
            everything_made.release()
            yield item

    with Ahead(items()) as ahead:
        everything_made.acquire()
        for item in ahead:
            taken.append(item)
            if item < 3:
                everything_made.acquire()
            assert made == list(range(min(item + 2, 4)))
    assert taken == [0, 1, 2, 3]


def test_a_chunk_lasts_until_the_second_next_one_is_made(monkeypatch):
    monkeypatch.setattr(train_data, "MAX_CHUNK_ROWS", 2)
    data = training_data(np.arange(5), rows_are_units=True)
    sampler = PoissonSampler(5, 1.0, bytes(32))
    chunks = drawn_chunks(data, sampler, range(1))
    records = [next(chunks)[0].records for _ in range(2)]  # type: ignore[union-attr]
    assert [part.flatten().tolist() for part in records] == [[0, 1], [2, 3]]
    third, last = next(chunks)
    assert last
    assert third.records.data_ptr() == records[0].data_ptr()  # type: ignore[union-attr]
    assert records[1].flatten().tolist() == [2, 3]


def test_each_draw_is_whole_and_an_empty_one_is_there_too():
    data = training_data(np.arange(3), rows_are_units=True)

    class Sampler:
        def draw(self, step):
            return np.arange(step, dtype=np.int64)

    chunks = drawn_chunks(data, Sampler(), range(3))  # type: ignore[arg-type]
    rows = [[chunk.records.flatten().tolist() for chunk in one_draw(chunks)] for _ in range(3)]
    assert rows == [[], [[0.0]], [[0.0, 1.0]]]


def test_a_step_that_leaves_out_rows_of_its_draw_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "train_autoencoder", lambda session: [*session.turns("autoencoder")])
    with pytest.raises(RuntimeError, match="left out rows"):
        model_of().fit(make_table(), tmp_path / "run")
    assert prefetch_threads() == []
