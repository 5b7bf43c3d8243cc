"""Numbers that look drawn at random and follow from other numbers alone."""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = ((np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB)))


def mixed(values: np.ndarray) -> np.ndarray:
    """The mixing step of splitmix64, (N,) uint64 -> (N,) uint64, one to one.

    Source: Steele, Lea and Flood, OOPSLA 2014.
    """
    values = values + _STEP
    for shift, factor in _ROUNDS:
        values = (values ^ (values >> shift)) * factor
    return values ^ (values >> np.uint64(31))
