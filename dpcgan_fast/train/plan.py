"""The budget plan: every mechanism of a run with its noise, fixed from public values before the first one runs."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import dp_accounting

from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy import Mechanism, account, calibrate_noise_multiplier
from dpcgan_fast.privacy.calibration import rounded_up
from dpcgan_fast.train.settings import TrainSettings

AUTOENCODER, CRITIC = "autoencoder", "critic"
TRAINED_RELEASE_SHARE = 0.1  # of a release that is trained, as `TrainSettings.training_share`
_LEAST_MAIN_SHARE = 0.04  # likewise: statistics of less would be little but noise
_UNSPENT_SHARE = 0.005  # likewise, where no private steps follow: what the grid of a privacy loss distribution may take


@dataclass(frozen=True)
class PlannedRelease:
    """A one-shot release before training.

    sensitivity: L2, of the released vector to one unit
    delta:       spent by a threshold
    main:        takes what training and the other releases leave, and not a part of their share
    steps:       private steps if it is trained, each on units that are drawn at `sample_rate`; 0 if it is one Gaussian
                 release. Then the sensitivity is the clipping norm, and it takes `TRAINED_RELEASE_SHARE`
    """

    name: str
    sensitivity: float
    delta: float = 0.0
    main: bool = False
    steps: int = 0
    sample_rate: float = 1.0

    def mechanism(self, noise_multiplier: float, unit: str) -> Mechanism:
        """With this noise."""
        if not self.steps:
            return Mechanism(self.name, "gaussian", 1.0, noise_multiplier, 1, self.sensitivity, self.delta, unit)
        clip = self.sensitivity if noise_multiplier > 0 else math.inf
        rate, steps = self.sample_rate, self.steps
        return Mechanism(self.name, "poisson_gaussian", rate, noise_multiplier, steps, clip, self.delta, unit)


@dataclass(frozen=True)
class BudgetPlan:
    """Noise multipliers and mechanisms of a run.

    release_noise_multiplier: of every release but the main and trained ones; 0 if there is none or epsilon is inf
    noise_multiplier:         of autoencoder and critic alike
    """

    release_noise_multiplier: float
    noise_multiplier: float
    releases: tuple[Mechanism, ...]
    autoencoder: Mechanism
    critic: Mechanism

    @property
    def mechanisms(self) -> list[Mechanism]:
        """Everything that will touch the data, in order."""
        return [*self.releases, self.autoencoder, self.critic]

    def mechanism(self, name: str) -> Mechanism:
        """The planned mechanism of this name."""
        return next(m for m in self.mechanisms if m.mechanism == name)

    def release(self, name: str) -> Mechanism | None:
        """The planned release of this name, None if there is none."""
        return next((m for m in self.releases if m.mechanism == name), None)

    def inside_selection(self, factor: float) -> "BudgetPlan":
        """The plan of one run of a private selection: the same, with `factor` times the noise, rounded up."""

        def noisier(mechanism: Mechanism) -> Mechanism:
            return replace(mechanism, noise_multiplier=more(mechanism.noise_multiplier))

        def more(noise: float) -> float:
            return rounded_up(factor * noise) if noise > 0 else 0.0

        releases = tuple(noisier(release).inside_selection() for release in self.releases)
        trained = (noisier(mechanism).inside_selection() for mechanism in (self.autoencoder, self.critic))
        return BudgetPlan(more(self.release_noise_multiplier), more(self.noise_multiplier), releases, *trained)

    def refuse_other(self, reserved: list[Mechanism], where: str) -> None:
        """Raises PrivacyError if something was reserved that the plan does not hold, or more of it.

        reserved: from the ledger at `where`, each with the steps that are charged
        """
        left = {m.mechanism: m for m in self.mechanisms}
        for mechanism in reserved:
            name = mechanism.mechanism
            planned = left.get(name)
            if planned is None or mechanism != planned.with_steps(mechanism.steps) or mechanism.steps > planned.steps:
                raise PrivacyError(
                    f"The ledger does not fit the plan of the run: {name}",
                    where,
                    "Restore config.json and the ledger; what was spent cannot be told otherwise.",
                )
            left[name] = planned.with_steps(planned.steps - mechanism.steps)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "release_noise_multiplier": self.release_noise_multiplier,
            "noise_multiplier": self.noise_multiplier,
            "mechanisms": [m.to_dict() for m in self.mechanisms],
        }

    @classmethod
    def from_dict(cls, values: Any, where: str) -> "BudgetPlan":
        """The plan that `to_dict` wrote. Raises PrivacyError if it is none; `where` is the file."""
        try:
            *releases, autoencoder, critic = (Mechanism.from_dict(m) for m in values["mechanisms"])
            noise = float(values["release_noise_multiplier"]), float(values["noise_multiplier"])
            if (autoencoder.mechanism, critic.mechanism) != (AUTOENCODER, CRITIC):
                raise ValueError("the last two mechanisms are others")
        except (KeyError, TypeError, ValueError) as error:
            raise PrivacyError(
                "The plan of the run cannot be read",
                f"{where}: {type(error).__name__}",
                "Restore config.json, or start a new run; without its plan a run cannot go on.",
            ) from None
        return cls(*noise, tuple(releases), autoencoder, critic)


@lru_cache(maxsize=64)
def make_plan(settings: TrainSettings, releases: tuple[PlannedRelease, ...], unit: str) -> BudgetPlan:
    """Finds the noise: releases get their share of epsilon, autoencoder and critic what the composition leaves.

    A main release gets nearly all but `training_share`, and `TRAINED_RELEASE_SHARE` where there is a trained one.

    Raises ValueError if the thresholds' deltas leave nothing of delta, InputError if the other releases leave the main
    one less than `_LEAST_MAIN_SHARE`.
    """
    clip = settings.max_grad_norm if settings.private else float("inf")

    release_noise = _release_noise(settings, releases)
    main_noise = _main_noise(settings, releases, release_noise)
    trained_noise = _trained_noise(settings, releases, unit)
    released = [
        r.mechanism(main_noise if r.main else trained_noise if r.steps else release_noise, unit) for r in releases
    ]

    def trained(noise: float) -> list[Mechanism]:
        return [
            Mechanism(name, "poisson_gaussian", settings.sample_rate(batch), noise, steps, clip, 0.0, unit)
            for name, batch, steps in (
                (AUTOENCODER, settings.autoencoder_batch, settings.autoencoder_steps),
                (CRITIC, settings.critic_batch, settings.critic_steps),
            )
        ]

    noise = main_noise  # of no step
    if settings.autoencoder_steps + settings.critic_steps:
        noise = calibrate_noise_multiplier(lambda sigma: released + trained(sigma), settings.epsilon, settings.delta)
    plan = BudgetPlan(release_noise, noise, tuple(released), *trained(noise))
    spent = account(plan.mechanisms, settings.delta).epsilon
    if settings.private and spent > settings.epsilon:
        raise AssertionError(f"the plan spends epsilon {spent}, more than {settings.epsilon}")
    return plan


def _release_noise(settings: TrainSettings, releases: tuple[PlannedRelease, ...]) -> float:
    """Noise multiplier of each release but main and trained ones, so that they together take their share of epsilon.

    R Gaussians of one noise multiplier compose to one of a multiplier smaller by sqrt(R), which has a closed form
    (arXiv 1805.06530). The share is a target; the whole composition is accounted in any case.
    """
    others = sum(not release.main and not release.steps for release in releases)
    if others == 0 or not settings.private:
        return 0.0
    single = dp_accounting.get_sigma_gaussian(settings.release_share * settings.epsilon, _rest(settings, releases))
    return math.sqrt(others) * float(f"{single:.5g}")


def _rest(settings: TrainSettings, releases: tuple[PlannedRelease, ...]) -> float:
    """What thresholds leave of delta."""
    return settings.delta - sum(release.delta for release in releases)


def kept_for_steps(settings: TrainSettings) -> float:
    """What is kept for private steps of autoencoder and critic beside a main release; next to nothing without any."""
    return settings.training_share if settings.autoencoder_steps + settings.critic_steps else _UNSPENT_SHARE


def _main_noise(settings: TrainSettings, releases: tuple[PlannedRelease, ...], release_noise: float) -> float:
    """Noise multiplier of the main release. Gaussian mechanisms compose by their squares (arXiv 1905.02383).

    Raises InputError if other releases and training leave it less than `_LEAST_MAIN_SHARE`.
    """
    if not any(release.main for release in releases) or not settings.private:
        return 0.0
    whole = 1 / float(dp_accounting.get_sigma_gaussian(settings.epsilon, _rest(settings, releases))) ** 2
    others = sum(1 / release_noise**2 for release in releases if not release.main and not release.steps)
    others += TRAINED_RELEASE_SHARE * whole * sum(release.steps > 0 for release in releases)
    kept = kept_for_steps(settings)
    left = (1 - kept) * whole - others
    if left < _LEAST_MAIN_SHARE * whole:
        raise InputError(
            "Other releases and private steps leave the statistics too little of epsilon",
            f"release_share {settings.release_share:g}, training_share {settings.training_share:g}",
            "Give smaller shares.",
        )
    return float(f"{1 / math.sqrt(left):.6g}")


def _trained_noise(settings: TrainSettings, releases: tuple[PlannedRelease, ...], unit: str) -> float:
    """Noise multiplier of the release that is trained, which with one Gaussian release of all but its share spends
    epsilon; 0 if there is none.
    """
    trained = [release for release in releases if release.steps]
    if not trained or not settings.private:
        return 0.0
    (release,) = trained
    whole = 1 / float(dp_accounting.get_sigma_gaussian(settings.epsilon, _rest(settings, releases))) ** 2
    beside = Mechanism("the rest", "gaussian", 1.0, 1 / math.sqrt((1 - TRAINED_RELEASE_SHARE) * whole), 1, 1.0)
    return calibrate_noise_multiplier(
        lambda noise: [beside, release.mechanism(noise, unit)], settings.epsilon, _rest(settings, releases)
    )
