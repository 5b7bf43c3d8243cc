"""What takes the place of the baselines' own rules, which ask for thousands of rows, and of long work."""

from typing import Any

import numpy as np
import pytest

from dpcgan_fast.baselines import code_races, mixed_codes, tree
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.code_mixture import MixturePlan
from dpcgan_fast.baselines.mixed_codes import CodesPlan


def plan_always(monkeypatch: pytest.MonkeyPatch, clusters: int = 3, rounds: int = 3) -> None:
    """Clusters and pairs of codes also of tables that are too small for them."""
    plan = CodesPlan(0.3, 0.4, MixturePlan(clusters, rounds, 5), 20)
    monkeypatch.setattr(CodesPlan, "of", classmethod(lambda *_: plan))


def short_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the codes that are drawn before rows are, fewer records."""
    monkeypatch.setattr(mixed_codes, "_SIMULATED", 500)
    monkeypatch.setattr(code_races, "_RACED", 500)


def no_races(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chances of codes that fit nothing: what is drawn from the releases touches no data, and takes time."""
    monkeypatch.setattr(mixed_codes, "_SIMULATED", 50)
    monkeypatch.setattr(mixed_codes, "settled_chances", lambda _, wanted, __: np.zeros(wanted.shares.shape))


def every_pair_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of columns stands clear of the noise, so that there is a tree and something beyond it."""
    monkeypatch.setattr(tree, "_LEAST_STRENGTH", 0.0)
    monkeypatch.setattr(tree.Shown, "by_chance", lambda *_: -1e6)
    monkeypatch.setattr(tree, "_worth_their_noise", lambda edges, *_: edges)


def asked_of_budget(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Gets the name of each release that is made from now on, and its L2 norm before the noise over its sensitivity."""
    real: Any = Budget.release
    asked: list[tuple[str, float]] = []

    def release(budget: Budget, name: str, values: np.ndarray, sensitivity: float, share: float) -> Any:
        asked.append((name, float(np.linalg.norm(values)) / sensitivity))
        return real(budget, name, values, sensitivity, share)

    monkeypatch.setattr(Budget, "release", release)
    return asked
