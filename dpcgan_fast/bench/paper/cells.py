"""The cells of the paper's comparison: each is one run, kept in the results and not repeated."""

import contextlib
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from dpcgan_fast.bench.paper import pate
from dpcgan_fast.bench.paper.protocol import (
    LEARNED_ROWS,
    MEASURED_ROWS,
    SEEN_CODES,
    TOLD_AT_ONCE,
    Judges,
    judged,
    judged_real,
)
from dpcgan_fast.bench.paper.systems import DELTA, STEPS, SYSTEMS, Task
from dpcgan_fast.bench.paper.tables import TABLES, PaperTable, paper_table
from dpcgan_fast.errors import InputError, MachineError

EPSILONS = (1.0, 10.0, 100.0, math.inf)
REAL = "real"  # the training rows themselves


@dataclass(frozen=True)
class Cell:
    """One run. epsilon and seed are None for the real rows."""

    data: str
    system: str
    epsilon: float | None
    seed: int | None
    split: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values; infinity is the string "inf"."""
        return {**asdict(self), "epsilon": "inf" if self.epsilon == math.inf else self.epsilon}

    @property
    def name(self) -> str:
        """For a person to read."""
        if self.epsilon is None:
            return f"{self.data}, {self.system}, split {self.split}"
        return f"{self.data}, {self.system}, epsilon {self.epsilon:g}, seed {self.seed}, split {self.split}"


@dataclass(frozen=True)
class Grid:
    """What is asked for. Raises InputError for a table or a system that there is not.

    steps: of the critic, for published and fully connected networks
    """

    data: Sequence[str] = TABLES
    systems: Sequence[str] = tuple(SYSTEMS)
    epsilons: Sequence[float] = EPSILONS
    seeds: int = 1
    splits: int = 1
    steps: int = STEPS

    def __post_init__(self) -> None:
        for option, asked, known in (("--data", self.data, TABLES), ("--systems", self.systems, tuple(SYSTEMS))):
            for name in asked:
                if name not in known:
                    raise InputError("There is no such name", f"{option} {name}", f"Choose from {', '.join(known)}.")

    def settings(self) -> dict[str, Any]:
        """What every cell of a file has in common; a file of others is refused."""
        return {
            "delta": DELTA,
            "steps": self.steps,
            "pate_gan_rounds": pate.ROUNDS,
            "learned_rows": LEARNED_ROWS,
            "measured_rows": MEASURED_ROWS,
            "seen_codes": SEEN_CODES,
            "told_at_once": TOLD_AT_ONCE,
        }

    def cells(self, table: PaperTable, split: int) -> Iterator[Cell]:
        """Of a table: first its real rows, then each system that can take it, seed by seed."""
        yield Cell(table.name, REAL, None, None, split)
        for seed in range(self.seeds):
            for epsilon in self.epsilons:
                for system in self.systems:
                    if SYSTEMS[system].fits(table):
                        yield Cell(table.name, system, epsilon, seed, split)


@lru_cache(maxsize=1)  # cells of a table follow each other, and its judges know what follows from the real rows
def _judges(data: str, split: int) -> Judges:
    return Judges(paper_table(data, split))


def run_cell(cell: Cell, steps: int, work: Path) -> dict[str, Any]:
    """The figures of a cell, and the seconds that it took, on the clock and of processors. work: for its model"""
    judges = _judges(cell.data, cell.split)
    begin, processor = time.perf_counter(), time.process_time()
    if cell.epsilon is None or cell.seed is None:
        found, fitted = judged_real(judges), begin
    else:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            synthetic = SYSTEMS[cell.system].fit(Task(judges.table, cell.epsilon, cell.seed, Path(folder), steps))
        fitted = time.perf_counter()
        found = judged(judges, synthetic, cell.epsilon)
    end = time.perf_counter()
    seconds = {"fit": fitted - begin, "judge": end - fitted, "processor": time.process_time() - processor}
    return {**cell.to_dict(), "figures": found, "seconds": seconds}


def bench_paper(
    grid: Grid, before: dict[str, Any] | None, keep: Callable[[dict[str, Any]], None], say: Callable[[str], None],
    jobs: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Runs the cells of a grid that are not there yet.

    before: results of an earlier run, which are added to; those of an earlier version have mechanisms in every cell
    keep:   called with all results after each cell
    say:    told of each cell, and of what is left out
    jobs:   processes that cells are spread over, each with one thread; with 1 they run in this one

    Returns {"settings": ..., "cells": [...], "left_out": {data: why}, "mechanisms": {data, system and epsilon: [...]}};
    with several jobs, cells in the order in which they were done. A cell whose figures have no mechanisms took those of
    its data, system and epsilon.
    Raises InputError if `before` was made with other settings, or if none of the tables is here.
    """
    results = {"settings": grid.settings(), "cells": [], "left_out": {}, "mechanisms": {}}
    if before is not None:
        _refuse_other_settings(before, grid.settings())
        results |= {"left_out": dict(before["left_out"]), "mechanisms": dict(before.get("mechanisms", {}))}
        results["cells"] = [_with_shared_mechanisms(cell, results["mechanisms"]) for cell in before["cells"]]
    with (
        tempfile.TemporaryDirectory(prefix="dpcgan-") as work,
        contextlib.closing(_finished(_missing(grid, results, say), grid.steps, Path(work), jobs)) as finished,
    ):
        for cell, found in finished:
            results["cells"].append(_with_shared_mechanisms(found, results["mechanisms"]))
            seconds = found["seconds"]
            say(f"{cell.name}: {seconds['fit']:.0f} s to fit, {seconds['judge']:.0f} s to judge")
            keep(results)
    return results


def _with_shared_mechanisms(cell: dict[str, Any], shared: dict[str, Any]) -> dict[str, Any]:
    """The cell without its mechanisms where they are those of its data, system and epsilon, as in most cells.

    shared: gets those of the first cell. Where the noise says what else is released, cells have others, and keep them
    """
    figures = dict(cell["figures"])
    if (own := figures.pop("mechanisms", None)) is None:
        return cell
    name = f"{cell['data']}, {cell['system']}, epsilon {float(cell['epsilon']):g}"
    return {**cell, "figures": figures} if shared.setdefault(name, own) == own else cell


def _missing(grid: Grid, results: dict[str, Any], say: Callable[[str], None]) -> Iterator[Cell]:
    """The cells that are not in the results, table by table; notes there which tables are not here.

    Raises InputError if none of them is.
    """
    done = {tuple(cell[key] for key in _KEYS) for cell in results["cells"]}
    for split in range(grid.splits):
        absent: dict[str, InputError] = {}
        for name in grid.data:
            try:
                table = _judges(name, split).table
            except InputError as error:
                absent[name] = error
                results["left_out"][name] = f"{error.what} ({error.where})"
                say(f"left out: {name}. {error}")
                continue
            results["left_out"].pop(name, None)
            for cell in grid.cells(table, split):
                values = cell.to_dict()
                if tuple(values[key] for key in _KEYS) not in done:
                    yield cell
        if len(absent) == len(grid.data):
            how = " ".join(dict.fromkeys(error.how for error in absent.values()))
            raise InputError("None of the tables that were asked for is here", f"--data {','.join(absent)}", how)


def _finished(
    cells: Iterator[Cell], steps: int, work: Path, jobs: int
) -> Generator[tuple[Cell, dict[str, Any]], None, None]:
    """Each cell with what came of it, as soon as it is done."""
    if jobs == 1:
        for cell in cells:
            yield cell, run_cell(cell, steps, work)
        return
    workers = _workers(jobs)
    try:
        futures = {workers.submit(run_cell, cell, steps, work): cell for cell in cells}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()
    except BrokenExecutor:
        how = "Run it again, with fewer of them if memory is short: it goes on where it stopped."
        raise MachineError("A process at work ended on its own", "--jobs", how) from None
    finally:
        workers.shutdown(cancel_futures=True)


def _workers(jobs: int) -> Executor:
    """Processes that begin anew: one that was forked could wait for threads that it does not have."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin_work)


def _begin_work() -> None:
    """A worker has one thread, and ends at once on Ctrl-C, and with the process that it works for."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


_KEYS = ("data", "system", "epsilon", "seed", "split")


def _refuse_other_settings(before: dict[str, Any], settings: dict[str, Any]) -> None:
    changed = sorted(name for name, value in settings.items() if before.get("settings", {}).get(name) != value)
    if changed or before.get("suite") != "paper":
        what = f"The file is of another run: {', '.join(changed) or 'suite'}"
        raise InputError(what, "--out", "Give another name, or remove the file.")
