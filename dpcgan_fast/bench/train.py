"""Speed of whole trainings: seconds, steps a second, and where the time goes, private and not, by turns."""

import contextlib
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any

import pyarrow as pa

from dpcgan_fast.bench.timing import spread
from dpcgan_fast.data.datasets import dataset_path, load_support2, support2_schema
from dpcgan_fast.data.encoding import table_columns
from dpcgan_fast.data.reading import read_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy import Ledger
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.train import gan
from dpcgan_fast.train.prefetch import Ahead
from dpcgan_fast.train.session import Session

SUPPORT2, EPILEPTIC = "support2", "epileptic_seizure"
EPSILON, DELTA = 3.0, 1e-5
BEFORE, AFTER = "reading, releases, set-up", "model, card, account"
DATA, GENERATOR = "data loading", "generator"
EPILEPTIC_SCHEMA: dict[str, Any] = {
    "version": 1, "unit": None, "n_units": 9200, "max_rows_per_unit": 1, "label": "y",
    "columns": [{"name": "y", "type": "categorical", "categories": ["1", "2", "3", "4", "5"], "unknown": "first",
                 "positive": ["1"]}],
    "signals": [{"name": "eeg", "columns": ["X1", "...", "X178"], "bounds": [-1000, 1000], "integer": True}],
}  # fmt: skip
# What is timed apart, wherever in a training it is called: owner, name, phase.
_TIMED: tuple[tuple[Any, str, str], ...] = (
    (Ahead, "__next__", DATA),
    (Session, "save", "checkpoints"),
    (Session, "running_epsilon", "running epsilon"),
    (Ledger, "reserve", "ledger"),
    (Ledger, "close", "ledger"),
    (gan, "_generator_step", GENERATOR),
)


@dataclass
class PhaseClock:
    """Seconds of each phase of the thread that made it; a phase inside another one stops the outer one's clock."""

    now: Callable[[], float] = time.perf_counter
    seconds: dict[str, float] = field(default_factory=dict)
    _stack: list[str] = field(default_factory=list)
    _since: float = 0.0
    _thread: int = field(default_factory=threading.get_ident)

    def _book(self) -> None:
        now = self.now()
        if self._stack:
            phase = self._stack[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._since
        self._since = now

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the time of the block for a phase."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._book()
        self._stack.append(name)
        try:
            yield
        finally:
            self._book()
            self._stack.pop()

    def change(self, name: str) -> None:
        """Ends the phase at work and begins another one in its place."""
        self._book()
        self._stack[-1] = name


@contextlib.contextmanager
def timed_phases(clock: PhaseClock) -> Iterator[None]:
    """Has a clock told of what a training does inside the block. Names that are gone are an AttributeError."""
    turns_of = Session.turns

    def steps(session: Session, name: str) -> Iterator[Any]:
        turns = turns_of(session, name)
        while True:
            with clock.phase(DATA):
                turn = next(turns, None)
            if turn is None:
                clock.change(AFTER)
                return
            clock.change(name)
            yield turn

    def within(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with clock.phase(phase):
                return function(*args, **kwargs)

        return run

    timed = {(owner, name): within(phase, getattr(owner, name)) for owner, name, phase in _TIMED}
    timed[Session, "turns"] = steps
    originals = {(owner, name): getattr(owner, name) for owner, name in timed}
    try:
        for (owner, name), function in timed.items():
            setattr(owner, name, function)
        yield
    finally:
        for (owner, name), function in originals.items():
            setattr(owner, name, function)


def benchmark_table(name: str) -> tuple[pa.Table, Schema]:
    """A table and its public schema. Raises InputError if the file is not here."""
    if name == SUPPORT2:
        return load_support2(), support2_schema()
    schema = Schema.from_dict(EPILEPTIC_SCHEMA, EPILEPTIC)
    return read_table(dataset_path(name), table_columns(schema))[0], schema


def _train(table: pa.Table, schema: Schema, epsilon: float, device: str, changes: dict[str, Any]) -> dict[str, Any]:
    """One training from a table in memory to a finished run folder."""
    model = DPCGAN(schema, epsilon, DELTA, device=device, **changes)
    clock = PhaseClock()
    begin = time.perf_counter()
    with timed_phases(clock), clock.phase(BEFORE):
        model.fit(table)
    seconds = time.perf_counter() - begin
    steps = model.settings.autoencoder_steps + model.settings.critic_steps
    loop = seconds - clock.seconds[BEFORE] - clock.seconds[AFTER]
    return {"seconds": seconds, "steps": steps, "steps_per_second": steps / loop, "phases": clock.seconds}


def _row(data: str, table: pa.Table, epsilon: float, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    phases = dict.fromkeys(phase for run in runs for phase in run["phases"])
    return {
        "data": data,
        "epsilon": "inf" if math.isinf(epsilon) else epsilon,
        "rows": table.num_rows,
        "columns": table.num_columns,
        "steps": runs[0]["steps"],
        "seconds": asdict(spread([run["seconds"] for run in runs])),
        "steps_per_second": asdict(spread([run["steps_per_second"] for run in runs])),
        "phases": {phase: statistics.median(run["phases"].get(phase, 0.0) for run in runs) for phase in phases},
        "runs": list(runs),
    }


def bench_train(device: str, runs: int, steps: int | None, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Trains on SUPPORT2, and on the epileptic seizure table where its file is here, with the default settings.

    runs:  of each training, at epsilon 3 and without privacy by turns
    steps: of autoencoder and critic each; None for the defaults

    steps_per_second counts private steps, those of autoencoder and critic, over the time of the training loops with
    all that belongs to them: data, generator, ledger, checkpoints. `seconds` is the whole fit.
    """
    changes = {} if steps is None else {"steps": steps, "autoencoder_steps": steps}
    tables = {SUPPORT2: benchmark_table(SUPPORT2)}
    try:
        tables[EPILEPTIC] = benchmark_table(EPILEPTIC)
    except InputError as error:
        say(f"left out: {error}")
    done: dict[tuple[str, float], list[dict[str, Any]]] = {(d, e): [] for d in tables for e in (EPSILON, math.inf)}
    for _ in range(runs):
        for (data, epsilon), results in done.items():
            results.append(_train(*tables[data], epsilon, device, changes))
            took = results[-1]
            say(f"{data}, epsilon {epsilon:g}: {took['seconds']:.1f} s, {took['steps_per_second']:.0f} steps a second")
    return [_row(data, tables[data][0], epsilon, results) for (data, epsilon), results in done.items()]
