"""A scale by pieces: numbers to [0, 1] and back, by straight lines between knots that stand evenly spaced in [0, 1].

Two knots alone are a linear scale. Knots that are quantiles of a column give each part of its numbers as much room as
it has of the rows. Where several knots are equal, their number is one that many rows have: it has all the room between
them, is placed in its middle, and any place there is read as that very number.
"""

import math

import numpy as np


def places_of(numbers: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Places in [0, 1], float64 (N,), of numbers between the first and the last knot; NaN stays NaN.

    knots: (K + 1,) float64, K at least 1, none below the one before
    """
    last = len(knots) - 1
    at_knot = (np.searchsorted(knots, knots, "left") + np.searchsorted(knots, knots, "right") - 1) / 2
    below = np.clip(np.searchsorted(knots, numbers, "right") - 1, 0, last)  # the last knot that is not above
    scale = 1.0 if math.isfinite(float(knots[-1]) - float(knots[0])) else 0.5  # keeps differences from overflowing
    start, stop = (knots * scale)[below], (knots * scale)[np.minimum(below + 1, last)]
    with np.errstate(invalid="ignore"):  # 0 / 0 at the last knot
        between = below + (numbers * scale - start) / (stop - start)
    return np.where(numbers == knots[below], at_knot[below], between) / last


def numbers_at(places: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Numbers at places in [0, 1], float64 (N,), the inverse of `places_of`.

    With two knots, rounding may lead beyond them.
    """
    pieces = len(knots) - 1
    if pieces == 1:  # most columns, of which there may be many: nothing to look up
        with np.errstate(over="ignore"):
            width = knots[1] - knots[0]
        if np.isfinite(width):
            numbers = places * width
            numbers += knots[0]
            return numbers
        return knots[1] * places + knots[0] * (1.0 - places)
    piece = np.clip((places * pieces).astype(np.int64), 0, pieces - 1)
    start, stop, share = knots[piece], knots[piece + 1], places * pieces - piece
    return np.clip(start * (1.0 - share) + stop * share, start, stop)
