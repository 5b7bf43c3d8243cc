"""The mechanisms that touch the data, as values: what the ledger writes and the accountant composes."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

EventKind = Literal["gaussian", "poisson_gaussian", "selected_gaussian", "selected_poisson_gaussian"]
SELECTED = "selected_"  # how the event of a mechanism begins that runs inside a private selection


@dataclass(frozen=True)
class Mechanism:
    """A Gaussian mechanism, taken `steps` times, each time on a Poisson sample where the event says so.

    mechanism:        name, such as "critic"
    event:            begins with "selected_" inside a private selection, which is accounted as a whole: such a
                      mechanism has no epsilon of its own
    sample_rate:      q in (0, 1]; 1 for event "gaussian"
    noise_multiplier: noise standard deviation over the L2 sensitivity; 0 means no noise
    steps:            number of times
    max_grad_norm:    L2 sensitivity to one unit, in the mechanism's own units, > 0; inf if nothing is clipped, and then
                      there is no noise, since none covers what is unbounded
    delta:            spent by a threshold on top of the Gaussian's own delta, else 0
    unit:             what one unit is
    """

    mechanism: str
    event: EventKind
    sample_rate: float
    noise_multiplier: float
    steps: int
    max_grad_norm: float
    delta: float = 0.0
    unit: str = "row"

    def __post_init__(self) -> None:
        if self.event.removeprefix(SELECTED) not in ("gaussian", "poisson_gaussian"):
            raise ValueError(f"Expected event gaussian or poisson_gaussian, got {self.event!r}.")
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"Expected sample_rate={self.sample_rate} in (0, 1].")
        if self.event.removeprefix(SELECTED) == "gaussian" and self.sample_rate != 1:
            raise ValueError(f"Expected sample_rate=1 for event {self.event}, got {self.sample_rate}.")
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(f"Expected a finite noise_multiplier={self.noise_multiplier} >= 0.")
        if not self.max_grad_norm > 0:
            raise ValueError(f"Expected max_grad_norm={self.max_grad_norm} > 0.")
        if math.isinf(self.max_grad_norm) and self.noise_multiplier > 0:
            raise ValueError(f"Expected noise_multiplier=0 with max_grad_norm=inf, got {self.noise_multiplier}.")
        if self.steps < 0:
            raise ValueError(f"Expected steps={self.steps} >= 0.")
        if not 0 <= self.delta < 1:
            raise ValueError(f"Expected delta={self.delta} in [0, 1).")

    def with_steps(self, steps: int) -> "Mechanism":
        """The same mechanism, taken another number of times."""
        return replace(self, steps=steps)

    @property
    def selected(self) -> bool:
        """Whether it runs inside a private selection."""
        return self.event.startswith(SELECTED)

    def inside_selection(self) -> "Mechanism":
        """The same mechanism as part of a run that a private selection may choose."""
        events: dict[EventKind, EventKind] = {
            "gaussian": "selected_gaussian", "poisson_gaussian": "selected_poisson_gaussian"
        }  # fmt: skip
        return replace(self, event=events[self.event])

    def to_dict(self) -> dict[str, Any]:
        """JSON values; infinity is the string "inf"."""
        return {k: "inf" if isinstance(v, float) and math.isinf(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Mechanism":
        """The mechanism that `to_dict` wrote. Raises KeyError, TypeError or ValueError if it is none."""
        read = {field.name: values[field.name] for field in fields(cls)}
        return cls(**{**read, "max_grad_norm": math.inf if read["max_grad_norm"] == "inf" else read["max_grad_norm"]})


def release_shares(releases: Sequence[Mechanism], line: Mechanism) -> list[float]:
    """What each of several Gaussian releases takes of the Gaussian mechanism that a ledger's line names: they cost no
    more than the line does if the shares can add up to no more than 1, whatever any of them gives.

    Each share is the ratio of squared noise multipliers, which adds up for Gaussian mechanisms, also if one is chosen
    by what those before it gave; it is infinite for a release without noise. Raises ValueError for a release that is
    no Gaussian one of all rows, or has a threshold, and for a line without noise: there are no shares then.
    Source: Dong, Roth and Su, arXiv 1905.02383, corollary 3.3; Smith and Thakurta, arXiv 2210.17520.
    """
    for one in (*releases, line):
        if one.event.removeprefix(SELECTED) != "gaussian" or one.delta > 0:
            raise ValueError(f"Expected a Gaussian release, got {one.mechanism} ({one.event}).")
    if line.noise_multiplier == 0:
        raise ValueError(f"Expected noise in the line {line.mechanism}.")
    return [
        one.steps * (line.noise_multiplier / one.noise_multiplier) ** 2 if one.noise_multiplier > 0 else math.inf
        for one in releases
    ]
