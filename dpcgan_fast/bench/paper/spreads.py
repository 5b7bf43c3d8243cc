"""Figures of runs put together: means, with intervals where there are several runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpcgan_fast.evaluate.spread import Spread, spread

Known = tuple[int | None, float]  # seed of a run, None for the real rows, and its figure


def figure_of(cell: dict[str, Any], path: Sequence[str]) -> float | None:
    """A figure of a cell by its path; None where there is none."""
    value = cell["figures"]
    for key in path:
        value = None if value is None else value.get(key)
    return value


def runs_of(cells: Sequence[dict[str, Any]], data: str, system: str, epsilon: Any) -> list[dict[str, Any]]:
    """All runs of a system. epsilon: as in a file, "inf" for infinity, None for the real rows"""
    return [c for c in cells if (c["data"], c["system"], c["epsilon"]) == (data, system, epsilon)]


def known(runs: Sequence[dict[str, Any]], path: Sequence[str]) -> list[Known]:
    """A figure of every run that has it, with the run's seed."""
    return [(run["seed"], value) for run in runs if (value := figure_of(run, path)) is not None]


def spread_over(values: Sequence[Known]) -> Spread | None:
    """The mean over runs, with the interval over runs or that over the means of seeds, whichever is wider.

    Runs of one seed have the same noise on all splits: where noise decides, they are one draw of it. Source: standard
    errors of clusters, Cameron and Miller, Journal of Human Resources 50 (2015), section II.
    """
    of_runs = spread([value for _, value in values])
    seeds = dict.fromkeys(seed for seed, _ in values)
    means = [float(np.mean([value for own, value in values if own == seed])) for seed in seeds]
    if of_runs is None or of_runs.half is None or len(means) < 2:
        return of_runs
    of_seeds = spread(means)
    assert of_seeds is not None
    assert of_seeds.half is not None
    return Spread(of_runs.mean, max(of_runs.half, of_seeds.half))


def spread_of(runs: Sequence[dict[str, Any]], path: Sequence[str]) -> Spread | None:
    """The spread of a figure over runs."""
    return spread_over(known(runs, path))


def order_of(epsilon: Any) -> float:
    """Rising epsilons, the real rows last."""
    return math.inf if epsilon is None else float(epsilon)
