"""Figures of runs put together: means, with intervals where there are several runs."""

import math
from collections.abc import Sequence
from typing import Any

from dpcgan_fast.evaluate.spread import Spread, spread


def figure_of(cell: dict[str, Any], path: Sequence[str]) -> float | None:
    """A figure of a cell by its path; None where there is none."""
    value = cell["figures"]
    for key in path:
        value = None if value is None else value.get(key)
    return value


def runs_of(cells: Sequence[dict[str, Any]], data: str, system: str, epsilon: Any) -> list[dict[str, Any]]:
    """All runs of a system. epsilon: as in a file, "inf" for infinity, None for the real rows"""
    return [c for c in cells if (c["data"], c["system"], c["epsilon"]) == (data, system, epsilon)]


def spread_of(runs: Sequence[dict[str, Any]], path: Sequence[str]) -> Spread | None:
    """The spread of a figure over runs."""
    values = [figure_of(run, path) for run in runs]
    return spread([value for value in values if value is not None])


def order_of(epsilon: Any) -> float:
    """Rising epsilons, the real rows last."""
    return math.inf if epsilon is None else float(epsilon)
