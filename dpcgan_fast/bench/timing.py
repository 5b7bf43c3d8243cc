"""Interleaved timing in one process: contenders take turns, so that a machine's mood meets all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

WARM_UPS = 3
_T = TypeVar("_T")


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, quartiles, minimum, and the number of calls."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    calls: int


@dataclass(frozen=True)
class Spread:
    """One figure of several runs."""

    median: float
    lowest: float
    highest: float


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def interleaved(contenders: Mapping[str, Callable[[], object]], calls: int) -> dict[str, Timing]:
    """Times each contender `calls` times, one call of each in turn, after a few calls that do not count.

    Every other turn goes backwards, so that none always runs in the wake of another: with the caches full of a rival's
    data, or of its own.
    """
    for run in contenders.values():
        for _ in range(WARM_UPS):
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.disable()
    try:
        for turn in range(calls):
            order = list(contenders.items())
            for name, run in order if turn % 2 == 0 else reversed(order):
                times[name].append(milliseconds(run)[0])
    finally:
        gc.enable()
    return {name: timing(values) for name, values in times.items()}


def milliseconds(run: Callable[[], _T]) -> tuple[float, _T]:
    """Time of one call, to its end on a GPU too, and what it gave."""
    _wait()
    begin = time.perf_counter()
    result = run()
    _wait()
    return 1e3 * (time.perf_counter() - begin), result


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timing(values: Sequence[float]) -> Timing:
    """Summary of the times of at least one call."""
    lower, median, upper = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Timing(median, lower, upper, min(values), len(values))
