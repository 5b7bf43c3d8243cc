"""Private selection: many runs, of which the best one is released and all others are destroyed.

How many runs there are is drawn from a public distribution, and stays secret. In each, one of several candidates is
drawn uniformly; the run trains and scores itself, both under differential privacy. Source of the mechanism and of its
bound: Papernot and Steinke, "Hyperparameter Tuning with Renyi Differential Privacy", arXiv 2110.03620.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from scipy.optimize import brentq

from dpcgan_fast.privacy.mechanism import Mechanism

Distribution = Literal["logarithmic", "geometric", "poisson"]
DISTRIBUTIONS: tuple[Distribution, ...] = get_args(Distribution)
SELECTION, SELECTION_EVENT = "private selection", "repeat_and_select"
LARGEST_MEAN = 500.0
_SHAPES: dict[Distribution, float] = {"logarithmic": 0.0, "geometric": 1.0, "poisson": math.inf}
_SMALLEST_SHARE = 2.0**-60  # of the probability, beyond which a uniform number of 53 bits finds no further run


@dataclass(frozen=True)
class RunCount:
    """Distribution of the number of runs K.

    distribution: "logarithmic" or "geometric" (a truncated negative binomial of shape 0 or 1), which give at least one
                  run; or "poisson", which gives none with probability exp(-mean)
    mean:         E[K], from 1 to `LARGEST_MEAN`
    """

    distribution: Distribution
    mean: float

    def __post_init__(self) -> None:
        if self.distribution not in DISTRIBUTIONS:
            raise ValueError(f"Expected a distribution of {', '.join(DISTRIBUTIONS)}, got {self.distribution!r}.")
        if not 1 <= self.mean <= LARGEST_MEAN:
            raise ValueError(f"Expected mean={self.mean} from 1 to {LARGEST_MEAN:g}.")

    @property
    def shape(self) -> float:
        """eta of the paper, as dp-accounting names the distributions: 0, 1, or inf for Poisson."""
        return _SHAPES[self.distribution]

    @property
    def none(self) -> float:
        """Probability that there is no run."""
        return math.exp(-self.mean) if self.distribution == "poisson" else 0.0

    def draw(self, uniform: float) -> int:
        """K from a uniform number in [0, 1), which must be as secret as noise: K itself is not accounted for.

        By inversion: P(K = k) is proportional to (1 - gamma)^k / k (logarithmic), (1 - gamma)^k (geometric) or
        mean^k / k! (Poisson).
        """
        if self.distribution == "poisson":
            runs, share, more = 0, self.none, lambda k: self.mean / (k + 1)
        elif self.mean == 1:
            return 1
        elif self.distribution == "geometric":
            gamma = 1 / self.mean
            runs, share, more = 1, gamma, lambda _: 1 - gamma
        else:
            gamma = _logarithmic_gamma(self.mean)
            runs, share, more = 1, -(1 - gamma) / math.log(gamma), lambda k: (1 - gamma) * k / (k + 1)
        below = share
        while below <= uniform and (share > _SMALLEST_SHARE or runs < self.mean):
            share *= more(runs)
            runs += 1
            below += share
        return runs


def _logarithmic_gamma(mean: float) -> float:
    """gamma for which (1 / gamma - 1) / log(1 / gamma) is `mean` > 1, or by rounding a little less."""

    def excess(log_odds: float) -> float:
        return math.expm1(log_odds) / log_odds - mean

    log_odds = float(brentq(excess, 1e-12, 60.0, xtol=1e-14))  # type: ignore[arg-type]  no full_output
    while excess(log_odds) > 0:
        log_odds *= 1 - 1e-12
    return math.exp(-log_odds)


@dataclass(frozen=True)
class Selection:
    """A private selection as a whole. What it costs does not depend on which candidates its runs draw.

    count:        distribution of the number of runs
    runs:         the different compositions of mechanisms inside a run, of which each candidate's is one; all that a
                  run takes from the data is in it, its score included
    n_candidates: number of candidates
    unit:         what one unit is

    Its other attributes are those of a mechanism without noise: whoever takes it for one finds an infinite epsilon.
    Raises ValueError for a mechanism with a threshold, which has no Renyi divergence, or one that is not marked as
    being inside a selection.
    """

    count: RunCount
    runs: tuple[tuple[Mechanism, ...], ...]
    n_candidates: int
    unit: str = "row"

    mechanism: ClassVar[str] = SELECTION
    event: ClassVar[str] = SELECTION_EVENT
    sample_rate: ClassVar[float] = 1.0
    noise_multiplier: ClassVar[float] = 0.0
    steps: ClassVar[int] = 1
    max_grad_norm: ClassVar[float] = math.inf
    delta: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not 1 <= len(self.runs) <= self.n_candidates or not all(self.runs):
            raise ValueError(f"Expected from 1 to {self.n_candidates} runs with mechanisms, got {len(self.runs)}.")
        for mechanism in (mechanism for run in self.runs for mechanism in run):
            if mechanism.delta != 0:
                raise ValueError(f"Expected no threshold inside a selection, got {mechanism.mechanism}.")
            if not mechanism.selected:
                raise ValueError(f"Expected a mechanism inside a selection, got event {mechanism.event}.")

    def holds(self, taken: Sequence[Mechanism]) -> bool:
        """Whether one of the runs covers what was taken from the data."""
        return any(_covers(run, taken) for run in self.runs)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with those of a mechanism among them."""
        return {
            "mechanism": self.mechanism,
            "event": self.event,
            "sample_rate": self.sample_rate,
            "noise_multiplier": self.noise_multiplier,
            "steps": self.steps,
            "max_grad_norm": "inf",
            "delta": self.delta,
            "unit": self.unit,
            "runs_distribution": self.count.distribution,
            "runs_mean": self.count.mean,
            "candidates": self.n_candidates,
            "runs": [[mechanism.to_dict() for mechanism in run] for run in self.runs],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Selection":
        """The selection that `to_dict` wrote. Raises KeyError, TypeError or ValueError if it is none."""
        runs = tuple(tuple(Mechanism.from_dict(mechanism) for mechanism in run) for run in values["runs"])
        count = RunCount(values["runs_distribution"], values["runs_mean"])
        selection = cls(count, runs, values["candidates"], values["unit"])
        own = selection.to_dict()
        if any(values[name] != own[name] for name in own):
            raise ValueError("Expected the values of a selection.")
        return selection


def _covers(run: Sequence[Mechanism], taken: Sequence[Mechanism]) -> bool:
    left = {mechanism.mechanism: mechanism for mechanism in run}
    for mechanism in taken:
        planned = left.get(mechanism.mechanism)
        if planned is None or mechanism.steps > planned.steps or mechanism != planned.with_steps(mechanism.steps):
            return False
        left[mechanism.mechanism] = planned.with_steps(planned.steps - mechanism.steps)
    return True
