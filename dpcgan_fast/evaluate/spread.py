"""Means over runs, with intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    """Of the runs of one cell of a table; None without any."""
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if count == 1:
        return Spread(mean, None)
    return Spread(mean, float(t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count)))


def first_fall(means: Sequence[Spread]) -> tuple[int, int] | None:
    """Places of the first mean that lies above a later one by more than both half-widths together; None if there is
    none: the means rise, within their intervals.
    """
    halves = [mean.half or 0.0 for mean in means]
    return next(
        (
            (i, j)
            for i in range(len(means))
            for j in range(i + 1, len(means))
            if means[i].mean - means[j].mean > halves[i] + halves[j]
        ),
        None,
    )
