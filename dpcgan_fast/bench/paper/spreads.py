"""Figures of runs put together: means, with intervals where there are several runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t


@dataclass(frozen=True)
class Spread:
    """A mean over runs, and half the width of its 95 % interval by Student's t; None for a single run."""

    mean: float
    half: float | None

    def text(self, digits: int) -> str:
        """As it stands in a table."""
        half = "" if self.half is None else f" ± {self.half:.{digits}f}"
        return f"{self.mean:.{digits}f}{half}"


def spread(values: Sequence[float]) -> Spread | None:
    """Of the runs of one cell of the table; None without any."""
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Spread(mean, None)
    return Spread(mean, float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)))


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
