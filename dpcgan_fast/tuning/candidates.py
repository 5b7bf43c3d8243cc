"""The candidates of a search: training settings in a JSON file, checked before anything is read from the data."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.schema_errors import schema_message
from dpcgan_fast.errors import InputError
from dpcgan_fast.files import unreadable
from dpcgan_fast.synthesis.checks import check_schema
from dpcgan_fast.synthesis.releases import settings_for
from dpcgan_fast.train import TrainSettings
from dpcgan_fast.train.settings import Clusters, CriticLoss, Preset

_Count = Annotated[int, Field(ge=1)]
_CountOrNone = Annotated[int, Field(ge=0)]
_Positive = Annotated[float, Field(gt=0)]
_Momentum = Annotated[float, Field(ge=0, lt=1)]
_Share = Annotated[float, Field(gt=0, lt=1)]
_HOW = 'Correct the file: a list of objects with training settings, such as [{}, {"networks_only": true}].'


class Candidate(BaseModel):
    """Settings of one candidate, by the names of `TrainSettings` or of the options of `dpcgan train`.

    Those that are not given are what the preset says.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    preset: Preset = "auto"
    steps: _Count | None = None
    batch_size: _Count | None = None
    networks_only: bool | None = None
    autoencoder_batch: _Count | None = None
    autoencoder_steps: _Count | None = None
    autoencoder_lr: _Positive | None = None
    critic_batch: _Count | None = None
    critic_steps: _Count | None = None
    critic_per_generator: _Count | None = None
    critic_lr: _Positive | None = None
    generator_lr: _Positive | None = None
    decoder_lr: _Positive | None = None
    beta1: _Momentum | None = None
    beta2: _Momentum | None = None
    critic_loss: CriticLoss | None = None
    generator_ema: _Momentum | None = None
    paired_fakes: bool | None = None
    max_grad_norm: _Positive | None = None
    release_share: _Share | None = None
    statistics: bool | None = None
    clusters: Clusters | None = None
    fit_steps: _CountOrNone | None = None
    training_share: _Share | None = None

    @model_validator(mode="after")
    def _one_name_each(self) -> "Candidate":
        for option, names in _OPTIONS.items():
            given = [name for name in (option, *names) if getattr(self, name) is not None]
            if option in given and len(given) > 1:
                raise ValueError(f"{given[0]} and {given[1]} are the same setting; give one of them")
        return self

    def given(self) -> dict[str, Any]:
        """The settings as they were written."""
        return self.model_dump(exclude_unset=True)

    def settings(self, schema: Schema, epsilon: float, delta: float, seed: int | None) -> TrainSettings:
        """Settings of a run at this budget. Raises InputError or PrivacyError as `settings_for` does."""
        changes = self.model_dump(exclude={"preset", *_OPTIONS})
        for option, names in _OPTIONS.items():
            value = getattr(self, option)
            if value is not None:
                changes |= dict.fromkeys(names, not value if option == "networks_only" else value)
        return settings_for(schema, self.preset, epsilon, delta, seed=seed, **changes)


_OPTIONS: dict[str, tuple[str, ...]] = {  # of `dpcgan train`, and the settings that each sets
    "steps": ("critic_steps",),
    "batch_size": ("autoencoder_batch", "critic_batch"),
    "networks_only": ("statistics",),
}


@dataclass(frozen=True)
class Candidates:
    """The candidates of a search, in the order of their file, whose name is `where`."""

    each: tuple[Candidate, ...]
    where: str

    def check(self, schema: Schema, epsilon: float, delta: float) -> None:
        """Raises InputError, which names the candidate, for settings that fit neither each other nor the schema."""
        for number, candidate in enumerate(self.each, start=1):
            try:
                check_schema(schema, candidate.settings(schema, epsilon, delta, None))
            except InputError as error:
                raise InputError(error.what, f"{self.where}, candidate {number}: {error.where}", error.how) from None


def read_candidates(path: str | Path) -> Candidates:
    """Reads a JSON list of objects. Raises InputError that names the candidate and the setting."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(error, path, "candidates file") from None
    try:
        values = json.loads(text, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else f": {error}"
        raise InputError("The candidates are not valid JSON", f"{path}{line}", _HOW) from None
    if not isinstance(values, list) or not values:
        raise InputError("The candidates are no list, or an empty one", str(path), _HOW)
    return Candidates(tuple(_candidate(v, f"{path}, candidate {n}") for n, v in enumerate(values, start=1)), str(path))


def _candidate(values: object, where: str) -> Candidate:
    try:
        return Candidate.model_validate(values)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        place = "".join(f", {part}" for part in errors[0]["loc"][:1])
        names = ", ".join(Candidate.model_fields)
        how = f"Settings are {names}." if errors[0]["type"] == "extra_forbidden" else _HOW
        raise InputError(f"The settings do not fit: {schema_message(errors)}", f"{where}{place}", how) from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return values
