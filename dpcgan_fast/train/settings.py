"""Everything that is chosen before the first mechanism: all of it from public facts, none of it from the data."""

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from dpcgan_fast.errors import InputError, PrivacyError

Preset = Literal["auto", "rdpcgan-uci", "rdpcgan-mimic"]
PRESETS: tuple[Preset, ...] = ("auto", "rdpcgan-uci", "rdpcgan-mimic")
CriticLoss = Literal["hinge", "wasserstein"]
Clusters = Literal["mixture", "autoencoder"]
CLUSTERS: tuple[Clusters, ...] = ("mixture", "autoencoder")

DEFAULT_SAMPLE_RATE = 0.02  # where the number of units is not public
LARGEST_DELTA = 1e-3  # likewise; tables of fewer than a thousand units can state their number


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one run; see `default_settings` for how they follow from the preset and the public facts.

    n_units:             public number of units, or None: then sample rates are public constants
    *_batch:             expected batch sizes, in units; with n_units None they are None and follow a paid noisy count
    *_steps:             numbers of private steps; critic_steps is what `steps` sets
    critic_per_generator: critic steps for one generator step
    generator_ema:       decay of the running average of the weights of generator and decoder, which rows are drawn with
                         in the end; 0 draws them with the last ones
    paired_fakes:        the paper's joint form: a fake for every real row, inside the unit's loss before clipping
    release_share:       share of epsilon for releases before training, other than the statistics
    statistics:          whether most of the budget buys statistics that rows are drawn from, where the schema has any
    clusters:            how clusters of codes are found, where there are statistics of codes
    fit_steps:           of the critic on rows drawn from the statistics, and twice as many of the autoencoder, before
                         any private step: networks are fitted to what was paid for, and rows are drawn from
                         them; 0 draws rows from the statistics
    training_share:      what autoencoder and critic have beside statistics, as a share of 1 / noise_multiplier^2 of one
                         Gaussian release at epsilon and delta (mu^2 of Gaussian DP); at 0.04 the noise of the
                         statistics is 2 % greater for it
    checkpoint_interval: private steps between two checkpoints, and at most as many are reserved in the ledger at once
    """

    preset: Preset
    epsilon: float
    delta: float
    n_units: int | None
    autoencoder_batch: int | None
    autoencoder_steps: int
    autoencoder_lr: float
    critic_batch: int | None
    critic_steps: int
    critic_per_generator: int
    critic_lr: float
    generator_lr: float
    decoder_lr: float
    beta1: float
    beta2: float
    critic_loss: CriticLoss
    paired_fakes: bool = False
    generator_ema: float = 0.0
    max_grad_norm: float = 1.0
    release_share: float = 0.1
    statistics: bool = False
    clusters: Clusters = "mixture"
    fit_steps: int = 0
    training_share: float = 0.04
    checkpoint_interval: int = 100
    seed: int | None = None

    @property
    def private(self) -> bool:
        """Whether noise is added at all."""
        return math.isfinite(self.epsilon)

    def sample_rate(self, batch: int | None) -> float:
        """Poisson sample rate of a mechanism whose expected batch is `batch` units."""
        if self.n_units is None or batch is None:
            return DEFAULT_SAMPLE_RATE
        return min(1.0, batch / self.n_units)

    def to_dict(self) -> dict[str, Any]:
        """JSON values; infinity is the string "inf"."""
        return {k: "inf" if isinstance(v, float) and math.isinf(v) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainSettings":
        """The settings that `to_dict` wrote. Raises InputError if they are not."""
        try:
            names = {field.name for field in fields(cls)}
            known: dict[str, Any] = {k: math.inf if v == "inf" else v for k, v in values.items() if k in names}
            return cls(**known)
        except TypeError:
            raise InputError("The settings of the run do not fit", "config.json", "Start a new run.") from None


def _auto_batch(n_units: int | None) -> int | None:
    """About 2 sqrt(N), as a power of two from 64 to 1024: the noise of a mean gradient falls no further beyond it."""
    if n_units is None:
        return None
    return min(1024, max(64, 2 ** round(math.log2(2 * math.sqrt(n_units)))))


def _release_share(epsilon: float, n_units: int | None, least: float) -> float:
    """As much as keeps class rates to about one part in a hundred, between 10 % and 25 % of epsilon, and `least`.

    Gaussian mechanisms compose by their squares: 10 % of epsilon takes 1 % of the budget and makes the noise of
    training half a percent greater, and 2 % would make that of a rare class's rate four times as great.
    """
    if n_units is None or math.isinf(epsilon):
        return max(0.1, least)
    return max(least, min(0.25, max(0.1, 370 / (epsilon * n_units))))


def default_settings(
    preset: str, epsilon: float, delta: float, n_units: int | None, steps: int | None = None,
    seed: int | None = None, least_release_share: float = 0.0, one_signal: bool = False, **changes: Any,
) -> TrainSettings:  # fmt: skip
    """Settings of a preset. `changes` overrides any of them by name; values of None are left out.

    least_release_share: share of epsilon for releases, if more than class rates are released
    one_signal:          whether records are one signal, which has networks of its own, see `Schema.is_one_signal`

    Raises InputError for values out of range, PrivacyError for a delta above 1 / n_units, or above `LARGEST_DELTA` if
    n_units is None.
    """
    _check_budget(epsilon, delta, n_units)
    if preset not in PRESETS:
        raise InputError("There is no such preset", f"preset {preset}", f"Choose one of {', '.join(PRESETS)}.")
    common: dict[str, Any] = dict(preset=preset, epsilon=epsilon, delta=delta, n_units=n_units, seed=seed,
                  release_share=_release_share(epsilon, n_units, least_release_share))  # fmt: skip
    if preset == "auto":
        batch = _auto_batch(n_units)
        settings = TrainSettings(
            **common, autoencoder_batch=batch, autoencoder_steps=600, autoencoder_lr=1e-2, critic_batch=batch,
            critic_steps=400, critic_per_generator=2, critic_lr=1e-3, generator_lr=2e-4, decoder_lr=2e-5, beta1=0.5,
            beta2=0.99, critic_loss="hinge", statistics=True,
        )  # fmt: skip
        if one_signal:
            settings = replace(settings, generator_lr=2e-3, decoder_lr=2e-3, generator_ema=0.99)
    else:
        uci = preset == "rdpcgan-uci"
        settings = TrainSettings(
            **common, autoencoder_batch=None if n_units is None else 64, autoencoder_steps=2000, autoencoder_lr=1e-3,
            critic_batch=None if n_units is None else (128 if uci else 64), critic_steps=4000, critic_per_generator=1,
            critic_lr=1e-3, generator_lr=1e-3, decoder_lr=1e-4, beta1=0.9, beta2=0.999, critic_loss="wasserstein",
        )  # fmt: skip
    if changes.get("fit_steps"):  # tuning by private steps is asked for by their number
        settings = replace(settings, autoencoder_steps=0, critic_steps=0)
    overrides = {"critic_steps": steps, **changes}
    settings = replace(settings, **{k: v for k, v in overrides.items() if v is not None})
    _check_settings(settings)
    return settings


def _check_budget(epsilon: float, delta: float, n_units: int | None) -> None:
    if not epsilon > 0:
        raise InputError("epsilon must be greater than 0", f"epsilon {epsilon:g}", "Give a positive number or inf.")
    if not 0 < delta < 1:
        raise InputError("delta must lie between 0 and 1", f"delta {delta:g}", "1e-5 is usual; below 1 / units.")
    if n_units is None and delta > LARGEST_DELTA:
        raise PrivacyError(
            f"delta is greater than {LARGEST_DELTA:g}, the most that is allowed where n_units is not public",
            f"delta {delta:g}",
            "Give a delta below 1 / units, or state n_units in the schema if it is public.",
        )
    if n_units is not None and delta > 1 / n_units:
        raise PrivacyError(
            f"delta is greater than 1 / n_units = {1 / n_units:.3g}: publishing one person's record at random would "
            "meet such a guarantee",
            f"delta {delta:g}",
            "Give a smaller delta.",
        )


# What errors call settings that Python or the command sets by another name, in words that both know.
_KNOWN_AS = {"critic_steps": "steps", "autoencoder_batch": "batch size", "critic_batch": "batch size"}


def _check_settings(settings: TrainSettings) -> None:
    if settings.clusters not in CLUSTERS:
        raise InputError("There is no such way to find clusters", f"clusters {settings.clusters}",
                         f"Choose one of {', '.join(CLUSTERS)}.")  # fmt: skip
    counts = ("fit_steps", "autoencoder_steps", "critic_steps", "critic_per_generator", "checkpoint_interval")
    may_be_none = ("fit_steps", *(("autoencoder_steps", "critic_steps") if settings.fit_steps > 0 else ()))
    for name in (*counts, "autoencoder_batch", "critic_batch"):
        value, least = getattr(settings, name), 0 if name in may_be_none else 1
        if value is not None and value < least:
            where = f"{_KNOWN_AS.get(name, name)} {value}"
            how = "Give a positive whole number." if least else "Give a positive whole number, or 0 for none."
            raise InputError(f"{name} must be at least {least}", where, how)
    if not (math.isfinite(settings.max_grad_norm) and settings.max_grad_norm > 0):
        raise InputError("max_grad_norm must be positive", f"max_grad_norm {settings.max_grad_norm}", "Use 1.0.")
    if not 0 <= settings.generator_ema < 1:
        where = f"generator_ema {settings.generator_ema}"
        raise InputError("generator_ema must be at least 0 and less than 1", where, "Use 0.99, or 0 for none.")
    for name, usual in (("release_share", 0.1), ("training_share", 0.04)):
        value = getattr(settings, name)
        if not 0 < value < 1:
            raise InputError(f"{name} must lie between 0 and 1", f"{name} {value}", f"Use {usual}.")
    for batch in (settings.autoencoder_batch, settings.critic_batch):
        if batch is not None and settings.n_units is not None and batch > settings.n_units:
            raise InputError(
                "The expected batch is larger than n_units", f"batch {batch}", "Give a batch of at most n_units."
            )
