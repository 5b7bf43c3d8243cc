"""What the step benchmark is held to, as data: a private step's time and memory against plain ones.

Times are ratios to PyTorch's plain eager step on the same device; `must` has to hold in every run, `ambitious` is the
hope.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Standing = Literal["ambitious", "must", "missed"]

_LONG_STEP = 5.0  # ms of a plain step from which on the stricter limit against our own plain step holds
_OWN_LONG, _OWN_SHORT = 1.10, 1.20
_MEMORY_FUSED, _MEMORY_ELSE = 1.15, 1.5


@dataclass(frozen=True)
class StepTarget:
    """Limits of one net.

    must, ambitious: highest ratio to the plain step
    over_opacus:     least ratio of Opacus's hooks to us; None where there is no such target
    """

    must: float
    ambitious: float
    over_opacus: float | None = None


_CPU: Mapping[str, StepTarget] = {
    "seed critic, F=178, B=128": StepTarget(0.60, 0.25, over_opacus=5.0),
    "seed critic, F=178, B=1024": StepTarget(0.80, 0.45, over_opacus=10.0),
    "seed critic, F=1071, B=256": StepTarget(1.05, 0.80),
    "seed critic, F=10000, B=64": StepTarget(1.15, 1.03),
    "64-128-256-256 critic, F=178, B=128": StepTarget(1.15, 1.05),
    "64-128-256-256 critic, F=1071, B=128": StepTarget(1.15, 1.05),
    "autoencoder rdpcgan-uci, B=128": StepTarget(0.70, 0.35),
    "autoencoder rdpcgan-mimic, B=128": StepTarget(1.00, 0.70),
}
_GPU: Mapping[str, StepTarget] = {
    "seed critic, F=178, B=128": StepTarget(0.35, 0.10),
    "seed critic, F=178, B=1024": StepTarget(0.35, 0.10),
    "seed critic, F=178, B=16384": StepTarget(0.60, 0.20),
    "seed critic, F=10000, B=1024": StepTarget(1.10, 1.03),
    "64-128-256-256 critic, F=178, B=1024": StepTarget(1.15, 1.05),
    "64-128-256-256 critic, F=1071, B=1024": StepTarget(1.15, 1.05),
    "autoencoder rdpcgan-uci, B=1024": StepTarget(0.40, 0.15),
    "autoencoder rdpcgan-mimic, B=1024": StepTarget(0.40, 0.15),
}
TARGETS: Mapping[str, Mapping[str, StepTarget]] = {"cpu": _CPU, "cuda": _GPU}


@dataclass(frozen=True)
class Verdict:
    """One figure beside its target; the figure is the worst of all runs.

    least: whether the target is the least that is allowed, and not the most
    """

    value: float
    must: float
    standing: Standing
    ambitious: float | None = None
    least: bool = False


def judge(value: float, must: float, ambitious: float | None = None, least: bool = False) -> Verdict:
    """Compares a figure with its target."""

    def meets(limit: float) -> bool:
        return value >= limit if least else value <= limit

    standing: Standing = "missed"
    if meets(must):
        standing = "ambitious" if ambitious is not None and meets(ambitious) else "must"
    return Verdict(value, must, standing, ambitious, least)


def judge_step(
    target: StepTarget, plain_milliseconds: float, path: str, to_plain: float, to_own: float, over_opacus: float | None,
    memory: float | None,
) -> dict[str, Verdict]:  # fmt: skip
    """Every target of a net beside its figure.

    path:        "fused", "mixed" or "layerwise", as `step.last` says
    to_plain:    highest ratio to the plain step; to_own: to our own non-private step
    over_opacus: least ratio of Opacus's hooks to us; None if it was not timed
    memory:      peak tensor memory over the plain step's; None if it was not taken
    """
    verdicts = {
        "plain": judge(to_plain, target.must, target.ambitious),
        "own": judge(to_own, _OWN_LONG if plain_milliseconds > _LONG_STEP else _OWN_SHORT),
    }
    if target.over_opacus is not None and over_opacus is not None:
        verdicts["opacus"] = judge(over_opacus, target.over_opacus, least=True)
    if memory is not None:
        verdicts["memory"] = judge(memory, _MEMORY_FUSED if path == "fused" else _MEMORY_ELSE)
    return verdicts


def all_met(rows: list[dict[str, Any]]) -> tuple[int, int]:
    """Number of targets met, and of all, over the rows of the step benchmark."""
    standings = [verdict["standing"] for row in rows for verdict in row["verdicts"].values()]
    return sum(standing != "missed" for standing in standings), len(standings)
