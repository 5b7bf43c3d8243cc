"""Interleaved timing in one process: contenders take turns, so that a machine's mood meets all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

WARM_UPS = 3


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, quartiles, minimum, and the number of calls."""

    median: float
    lower_quartile: float
    upper_quartile: float
    minimum: float
    calls: int


def interleaved(contenders: Mapping[str, Callable[[], object]], calls: int) -> dict[str, Timing]:
    """Times each contender `calls` times, one call of each in turn, after a few calls that do not count."""
    for run in contenders.values():
        for _ in range(WARM_UPS):
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    gc.disable()
    try:
        for _ in range(calls):
            for name, run in contenders.items():
                times[name].append(_milliseconds(run))
    finally:
        gc.enable()
    return {name: _timing(values) for name, values in times.items()}


def _milliseconds(run: Callable[[], object]) -> float:
    _wait()
    begin = time.perf_counter()
    run()
    _wait()
    return 1e3 * (time.perf_counter() - begin)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _timing(values: list[float]) -> Timing:
    lower, median, upper = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Timing(median, lower, upper, min(values), len(values))
