"""Transcripts of releases: what was about to be released, and what was; and how likely another table would give it.

A neighbouring table is released anew with the answers of the first one in place of its own noise, so that all that
follows from an answer is the same, and what it was about to release can be held against them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass

import numpy as np
import torch
from torch import Tensor

from dpcgan_fast.ops import NoiseKey

_ROUNDING = 1e-9  # relative


@dataclass(frozen=True)
class Answer:
    """One call for noise: exact and noisy values, (n,) float64, and the standard deviation of the noise."""

    exact: np.ndarray
    noisy: np.ndarray
    std: float


def _values(tensors: Sequence[Tensor]) -> np.ndarray:
    return torch.cat([tensor.flatten().double() for tensor in tensors]).numpy().copy()


class Transcript(NoiseKey):
    """A secret key that keeps the answers it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[Answer] = []

    def add_to(self, tensors: Sequence[Tensor], std: float) -> None:
        """Adds noise, and keeps values with and without it."""
        exact = _values(tensors)
        super().add_to(tensors, std)
        self.answers.append(Answer(exact, _values(tensors), std))


class OtherwiseReleasedError(Exception):
    """A neighbouring table asks for other noise than the first one did: it can be told by that."""


class Replay(NoiseKey):
    """Gives the answers of a transcript, whatever a table was about to release, and keeps what that was."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        super().__init__()
        self._answers, self.exact = answers, list[np.ndarray]()

    def add_to(self, tensors: Sequence[Tensor], std: float) -> None:
        """Writes the next answer over the values. Raises OtherwiseReleasedError if it does not fit them."""
        exact, place = _values(tensors), len(self.exact)
        if place == len(self._answers) or len(self._answers[place].noisy) != len(exact):
            raise OtherwiseReleasedError
        answer = self._answers[place]
        if answer.std != std:
            raise OtherwiseReleasedError
        self.exact.append(exact)
        noisy = torch.from_numpy(answer.noisy).split([tensor.numel() for tensor in tensors])
        for tensor, own in zip(tensors, noisy, strict=True):
            tensor.copy_(own.view_as(tensor))


def release_score(release: Callable[[bool, NoiseKey], object], included: bool) -> float:
    """Log likelihood ratio of a canary by everything that was released, above 0 where it looks to be in the data.

    release:  releases, with this key, what a table has: with the canary, or without it; gives what it makes of that
    included: which of the two is released; the other one is only compared
    It is infinite, and right, if the other table would have asked for other noise, or if it makes something else of the
    same answers: then something leaves the data without the key's noise. So does what has noise of another source.
    """
    made = Transcript()
    given = release(included, made)
    other = Replay(made.answers)
    try:
        alike = same(given, release(not included, other)) and len(other.exact) == len(made.answers)
    except OtherwiseReleasedError:
        alike = False
    if not alike:
        return np.inf if included else -np.inf
    ratio = 0.0
    for answer, exact in zip(made.answers, other.exact, strict=True):
        nearer = (answer.noisy - exact) ** 2 - (answer.noisy - answer.exact) ** 2
        ratio += float(nearer.sum()) / (2 * answer.std**2)
    return ratio if included else -ratio


def same(one: object, other: object) -> bool:
    """Whether two results hold the same numbers, but for the rounding of what is made of answers, and names."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | float):
        first, second = np.asarray(one), np.asarray(other)
        if first.dtype.kind != "f":
            return np.array_equal(first, second)
        return first.shape == second.shape and np.allclose(first, second, _ROUNDING, 0.0, equal_nan=True)
    if is_dataclass(one):
        return all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))  # type: ignore[attr-defined]
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))  # type: ignore[arg-type]
    return bool(one == other)
