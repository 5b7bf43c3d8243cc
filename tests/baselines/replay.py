"""Releases of neighbouring tables: what moves when a unit goes, with what was released before held fixed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import Baseline
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.privacy.releases import Release
from tests.evaluate.tables import with_column

RELEASE = Budget.release


def cauchy(values: np.ndarray) -> np.ndarray:
    """Values as very large noise of heavy tails would leave them."""
    return values + 100 * np.random.default_rng(0).standard_cauchy(values.shape)


class Replay:
    """Takes the place of `Budget.release`: gives every table the answers that the first one had, so that what follows
    from them is the same, and keeps what each table was about to release.

    spoil: what becomes of an answer, as very large noise might have it
    """

    def __init__(self, spoil: Callable[[np.ndarray], np.ndarray] = lambda values: values) -> None:
        self.answers: list[Release] = []
        self.asked: list[np.ndarray] = []
        self.sensitivities: list[float] = []
        self.shares: list[float] = []
        self._spoil = spoil

    def first(self, budget: Budget, name: str, values: np.ndarray, sensitivity: float, share: float) -> Release:
        answer = RELEASE(budget, name, values, sensitivity, share)
        self.answers.append(replace(answer, values=self._spoil(answer.values)))
        self.asked.append(values)
        self.sensitivities.append(sensitivity)
        self.shares.append(share)
        return self.answers[-1]

    def again(self, moved: list[float]) -> Any:
        """Answers alone, whatever a table would release; it asserts that as much is asked for, at the same share.

        moved: gets how far each release is from that of the first table, over its sensitivity
        """
        given = iter(zip(self.answers, self.asked, self.sensitivities, self.shares, strict=True))

        def release(_: Budget, name: str, values: np.ndarray, sensitivity: float, share: float) -> Release:
            answer, first, *before = next(given)
            assert (name, values.shape, sensitivity, share) == (answer.mechanism.mechanism, first.shape, *before)
            moved.append(float(np.linalg.norm(values - first)) / sensitivity)
            return answer

        return release


def refuse_moves(
    monkeypatch: pytest.MonkeyPatch,
    table: pa.Table,
    epsilon: float,
    baseline_of: Callable[..., Baseline],
    spoil: Callable[[np.ndarray], np.ndarray] = lambda values: values,
) -> list[str]:
    """Asserts that no unit moves a release by more than its sensitivity, nor all together by more than the budget
    allows; that some unit moves one; and that which releases there are, and their shares, are the same without it.

    table:       60 rows
    baseline_of: a baseline of a schema with these fields changed
    Units of one row and of several, some of which count. Returns the names of the releases.
    """
    rng = np.random.default_rng(0)
    table = table.append_column("person", pa.array(rng.choice(12, 60, p=[0.5, *[0.5 / 11] * 11])))
    alike = table.column_names[0]  # rows of a unit alike, which moves a cell the most
    table = with_column(table, alike, [table[alike][0].as_py()] * 60)
    names: list[str] = []
    for unit, cap in ((None, 1), ("person", 1), ("person", 4)):
        baseline = baseline_of(unit=unit, max_rows_per_unit=cap)
        replay, largest = Replay(spoil), 0.0
        monkeypatch.setattr(Budget, "release", lambda *arguments: replay.first(*arguments))  # noqa: B023
        baseline.fit(table, epsilon, 1e-5)
        persons = np.array(table["person"].to_pylist())
        for left in range(12):
            rest = table.filter(persons != left) if unit else pa.concat_tables([table[:left], table[left + 1 :]])
            moved: list[float] = []
            monkeypatch.setattr(Budget, "release", replay.again(moved))
            baseline.fit(rest, epsilon, 1e-5)
            assert len(moved) == len(replay.answers)
            assert np.isfinite(moved).all()
            assert max(moved) <= 1 + 1e-9
            # Squared ratios of signal to noise add up, those of a Gaussian release of the whole budget being 1.
            assert np.dot(np.square(moved), replay.shares) <= 1 + 1e-9
            largest = max(largest, *moved)
        names = [answer.mechanism.mechanism for answer in replay.answers]
        assert largest > 0
    return names
