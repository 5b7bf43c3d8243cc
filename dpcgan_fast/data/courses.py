"""How the cells of a column at one visit after another are written, so that each can be drawn by itself and yet fits.

A decoder draws the cells of a record independently, given its latent code, and learns under noise how they go together
only in part. So what depends on the visits before is written as what does not: a number as the share of the way that it
went from where it was expected towards a bound, a category as "as before", or what it has become. Both are functions of
one record and of public facts, and whatever is drawn can be read.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dpcgan_fast.data.blocks import Block

_FOLLOWS = 0.5  # of the way to its last value is where a number is expected next
_RANGE = 30.0  # of the log scale of changes: those below 1/30 of the way are about linear


class Course(Protocol):
    """What a column's positions at the visits hold. Both methods rewrite the positions of records (N, F) in place.

    known: bool (N, n_slots), visits at which there is a cell
    """

    def encode(self, records: np.ndarray, known: np.ndarray) -> None:
        """From values at each visit to what there is at the first one, and then changes."""

    def decode(self, records: np.ndarray, known: np.ndarray) -> None:
        """Back to values."""


@dataclass(frozen=True)
class NumberCourse:
    """A number on the scale of its column: the first known one, and then shares of the way from where it is expected.

    It is expected half-way between where it was expected before and what it was: people differ more in their level
    than visits of a person do. A share is of the way to the upper or the lower bound, so that whatever is drawn
    is inside them, and a number near a bound tends back; 0.5 is no change, and small ones have the most room.

    positions: of the value at each visit
    """

    positions: tuple[int, ...]

    def encode(self, records: np.ndarray, known: np.ndarray) -> None:
        """See `Course`."""
        values = records[:, self.positions].astype(np.float64)
        expected = np.where(known.any(1), values[np.arange(len(values)), known.argmax(1)], 0.5)
        records[:, self.positions[0]] = expected
        for slot, position in enumerate(self.positions[1:], start=1):
            here, value = known[:, slot], values[:, slot]
            records[:, position] = np.where(here, _share(value, expected), 0.5)
            expected = np.where(here, expected + _FOLLOWS * (value - expected), expected)

    def decode(self, records: np.ndarray, known: np.ndarray) -> None:
        """See `Course`."""
        expected = records[:, self.positions[0]].astype(np.float64)
        for slot, position in enumerate(self.positions[1:], start=1):
            here, value = known[:, slot], _value(records[:, position].astype(np.float64), expected)
            records[:, position] = np.where(here, value, expected)
            expected = np.where(here, expected + _FOLLOWS * (value - expected), expected)


def _share(value: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """0.5 where the value is as expected, 0 at the lower bound and 1 at the upper one."""
    change = value - expected
    room = np.where(change > 0, 1.0 - expected, expected)
    part = np.abs(change) / np.where(room > 0, room, 1.0)
    return 0.5 + 0.5 * np.sign(change) * np.log1p(_RANGE * part) / math.log1p(_RANGE)


def _value(share: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """The value that `_share` was made of."""
    way = 2.0 * share - 1.0
    part = np.expm1(np.abs(way) * math.log1p(_RANGE)) / _RANGE
    return np.clip(expected + np.sign(way) * part * np.where(way > 0, 1.0 - expected, expected), 0.0, 1.0)


@dataclass(frozen=True)
class StateCourse:
    """One of several states: at the first visit the state, and then the first state for "as before".

    The last known state and the first one change places, so that all others keep theirs and no place is added.

    blocks:  at each visit
    missing: the place that stands for a missing cell, which is no state; None if there is none
    """

    blocks: tuple[Block, ...]
    missing: int | None

    def encode(self, records: np.ndarray, known: np.ndarray) -> None:
        """See `Course`."""
        self._swap(records, known, encoding=True)

    def decode(self, records: np.ndarray, known: np.ndarray) -> None:
        """See `Course`."""
        self._swap(records, known, encoding=False)

    def _swap(self, records: np.ndarray, known: np.ndarray, *, encoding: bool) -> None:
        before = np.zeros(len(records), np.int64)
        for slot, block in enumerate(self.blocks):
            given = _place(records, block)
            swapped = np.where(given == 0, before, np.where(given == before, 0, given))
            _put(records, block, np.where(known[:, slot], swapped, 0))
            state = given if encoding else swapped
            before = np.where(known[:, slot] & (state != self.missing), state, before)


def _place(records: np.ndarray, block: Block) -> np.ndarray:
    """Which of a block's states a record has, int64 (N,)."""
    if block.kind == "categorical":
        return records[:, block.start : block.stop].argmax(1)
    states = 2 if block.kind == "binary" else block.cells
    assert states is not None
    return np.minimum((records[:, block.start] * states).astype(np.int64), states - 1)


def _put(records: np.ndarray, block: Block, places: np.ndarray) -> None:
    if block.kind == "categorical":
        records[:, block.start : block.stop] = places[:, None] == np.arange(block.width)
    elif block.kind == "binary":
        records[:, block.start] = places
    else:
        assert block.cells is not None
        records[:, block.start] = (places + 0.5) / block.cells
