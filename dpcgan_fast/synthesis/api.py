"""`DPCGAN`: fit, sample, save, load."""

import contextlib
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from dpcgan_fast.baselines import STATISTICS
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.reading import TableSource
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.files import PRIVATE_FOLDER, machine_error
from dpcgan_fast.models import MakeNetworks, is_conditional, make_networks
from dpcgan_fast.synthesis import fitting
from dpcgan_fast.synthesis.anew import StatisticsAnew
from dpcgan_fast.synthesis.releases import settings_for
from dpcgan_fast.synthesis.run_folder import RunFolder
from dpcgan_fast.synthesis.sampling import Sampler
from dpcgan_fast.synthesis.statistics import draws_from_statistics, statistics_of
from dpcgan_fast.train import TrainSettings
from dpcgan_fast.train.checkpoint import digest, unpack
from dpcgan_fast.train.state import RELEASED, released_tensors


class DPCGAN:
    """A differentially private synthesiser of health records.

        model = DPCGAN(schema, epsilon=3.0, delta=1e-5)
        model.fit("patients.parquet")
        table = model.sample(10_000, where={"died": 1})

    schema:  every public fact about the table; see `Schema`
    epsilon: > 0, or `math.inf` for the non-private baseline
    delta:   in (0, 1), at most 1 / n_units
    preset:  "auto" for any table; "rdpcgan-uci" and "rdpcgan-mimic" for records of length 179 and 1071
    device:  "auto", "cpu" or "cuda"
    steps:   critic steps; by default what the preset says
    seed:    makes the run reproducible, and not private: whoever knows the seed can subtract the noise
    changes: any other field of `TrainSettings`

    Formal guarantee: what `fit` leaves behind, and everything that `sample` draws from it, is (epsilon,
    delta)-differentially private for adding or removing one unit, if no seed was given.
    Raises InputError for settings out of range, PrivacyError for a delta above 1 / n_units.
    """

    def __init__(
        self, schema: Schema, epsilon: float, delta: float, preset: str = "auto", device: str = "auto",
        steps: int | None = None, seed: int | None = None, **changes: Any,
    ):  # fmt: skip
        self.schema = schema
        self.settings: TrainSettings = settings_for(
            schema, preset, float(epsilon), float(delta), steps, seed, **changes
        )
        self._device_name = device
        self._begun: RunFolder | None = None  # has a ledger, so that the budget is at least partly spent
        self._folder: RunFolder | None = None  # is finished
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._sampler: Sampler | None = None

    @property
    def draws_from_statistics(self) -> bool:
        """Whether rows are drawn from statistics and not from networks: a rule of schema and settings alone."""
        return draws_from_statistics(self.schema.as_records(), self.settings)

    @property
    def folder(self) -> Path:
        """The run folder. Raises InputError before `fit`."""
        return self._fitted().path

    def fit(
        self, data: TableSource, out: str | Path | None = None, *, resume: bool = False,
        hooks: fitting.FitHooks | None = None,
    ) -> "DPCGAN":  # fmt: skip
        """Trains on a table: a path to CSV, Parquet or a folder, a DataFrame, or an Arrow table.

        out:    run folder; without it the run lives in a private temporary folder that `save` copies
        resume: go on with a stopped run in `out`; without `out`, with the one that this model began

        A model has one budget: once a fit has begun to touch the data, later ones can only go on with it.
        Raises InputError for data that does not fit the schema, PrivacyError if the budget of this model is spent or
        was begun elsewhere, StoppedError after a signal, MachineError if the disk is full.
        """
        device = fitting.pick_device(self._device_name)
        hooks = hooks if hooks is not None else fitting.FitHooks()
        if self._folder is not None:
            raise PrivacyError(
                f"The budget of epsilon {self.settings.epsilon:g} is spent by the first fit",
                str(self._folder.path),
                "Make a new DPCGAN; what both spend on the same people adds up.",
            )
        if resume and out is None and self._begun is not None:
            out = self._begun.path
        if self._begun is not None:
            self._refuse_second_run(out, resume)
        if resume:
            if out is None:
                raise InputError("There is no run to go on with", "fit(resume=True)", "Give the run folder as `out`.")
            folder = fitting.resume(data, self.schema, self.settings, out, device, hooks, self._remember)
        else:
            if out is None:
                self._temporary = tempfile.TemporaryDirectory(prefix="dpcgan-")
                out = Path(self._temporary.name) / "run"
            folder = fitting.start(data, self.schema, self.settings, out, device, hooks, self._remember)
        self._folder = folder
        self._sampler = load_sampler(folder, self.settings, device)
        return self

    def _remember(self, folder: RunFolder) -> None:
        self._begun = folder

    def _refuse_second_run(self, out: str | Path | None, resume: bool) -> None:
        """A fit that failed has spent what its ledger says; another run of the same model would spend it again."""
        assert self._begun is not None
        if not resume or out is None or Path(out).resolve() != self._begun.path.resolve():
            raise PrivacyError(
                f"An earlier fit of this model has begun to spend its epsilon of {self.settings.epsilon:g}",
                str(self._begun.path),
                "Go on with fit(data, resume=True), or make a new DPCGAN; what both spend adds up.",
            )

    def sample(self, n: int, where: Mapping[str, object] | None = None, seed: int | None = None) -> pa.Table:
        """Draws a synthetic table.

        n:     rows; with visits in the schema people, each of which has a row for each visit
        where: values that columns must have. A label of preset "auto" is met by construction, all else by rejection
        seed:  makes the draw reproducible; it costs no privacy

        Raises InputError for a column or value that does not exist.
        """
        tables = list(self.sample_batches(n, where, seed))
        return pa.concat_tables(tables)

    def sample_batches(
        self, n: int, where: Mapping[str, object] | None = None, seed: int | None = None
    ) -> Iterator[pa.Table]:
        """As `sample`, as an iterator of tables, so that the whole may be larger than memory."""
        self._fitted()
        assert self._sampler is not None
        randomness = torch.Generator(self._sampler.rates.device)
        randomness.manual_seed(secrets.randbits(63) if seed is None else seed)
        return self._sampler.batches(n, where or {}, randomness)

    @property
    def arrow_schema(self) -> pa.Schema:
        """Columns and types of the tables that `sample` gives."""
        self._fitted()
        assert self._sampler is not None
        return self._sampler.arrow_schema

    @property
    def released_schema(self) -> Schema:
        """The schema with released values in place of "private" ones."""
        self._fitted()
        assert self._sampler is not None
        return self._sampler.schema

    def privacy(self) -> dict[str, Any]:
        """What was guaranteed and spent: epsilon, delta, unit, mechanisms, accountant, and the card's other facts."""
        return self._fitted().read_config()["privacy"]

    def privacy_card(self) -> str:
        """The privacy card, as Markdown."""
        return self._fitted().card.read_text(encoding="utf-8")

    def statistics_anew(self) -> StatisticsAnew:
        """The run's statistics at other epsilons, for evaluation.

        Raises InputError for a run that draws its rows from networks, or has no privacy, and so no epsilon to go from.
        """
        config = self._fitted().read_config()
        assert self._sampler is not None
        if self._sampler.statistics is None or self.settings.clusters == "autoencoder":
            raise InputError(
                "The run's rows come from networks, or by way of one, which would have to be trained at each epsilon",
                "curve",
                "Leave it out; `dpcgan bench --suite paper` trains at several epsilons, on public tables.",
            )
        if not self.settings.private:
            raise InputError("The run has no finite epsilon", "curve", "Leave it out, or give a private run.")
        privacy, settings = config["privacy"], self.settings
        own = next(m["noise_multiplier"] for m in privacy["mechanisms"] if m["mechanism"] == STATISTICS)
        units = float(settings.n_units if settings.n_units is not None else config["released"]["n_units"])
        model, seeded = config["model_sha256"], privacy["seeded"]
        return StatisticsAnew(self._sampler, settings.epsilon, settings.delta, own, units, model, seeded)

    def save(self, path: str | Path) -> None:
        """Copies the run, and nothing else that was put into its folder, such as an evaluation's figures.

        Raises InputError if there is something at the path already.
        """
        source = self._fitted()
        target = Path(path)
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise InputError("There is something at the output path already", str(path), "Choose a new folder.")
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            shutil.copytree(source.path, partial, ignore=source.others)
            partial.chmod(PRIVATE_FOLDER)
            if target.exists():
                target.rmdir()
            partial.rename(target)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise machine_error(error, target) from error

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> "DPCGAN":
        """Opens a finished run. Raises InputError if it is none, unfinished, or damaged."""
        folder = RunFolder.open(path)
        config = folder.read_config()
        if not config["finished"]:
            raise InputError(
                "The run is not finished",
                str(path),
                "Finish it with fit(resume=True), or `dpcgan train ... --resume`, before sampling.",
            )
        settings = TrainSettings.from_dict(config["settings"])
        schema = Schema.from_dict(config["user_schema"], str(folder.config))
        model = cls.__new__(cls)
        model.schema, model.settings = schema, settings
        model._device_name, model._begun, model._folder, model._temporary = device, folder, folder, None
        model._sampler = load_sampler(folder, settings, fitting.pick_device(device))
        return model

    def _fitted(self) -> RunFolder:
        if self._folder is None:
            raise InputError("The model is not fitted", "DPCGAN", "Call fit first, or load a finished run.")
        return self._folder


def load_sampler(
    folder: RunFolder, settings: TrainSettings, device: torch.device, make: MakeNetworks = make_networks
) -> Sampler:
    """The sampler of a finished run. make: as in `fitting.start`. Raises InputError if a file of it is damaged."""
    try:
        content = folder.model.read_bytes()
    except OSError as error:
        where = f"{folder.model}: {type(error).__name__}"
        raise InputError("The model file cannot be read", where, "Restore it from a copy.") from None
    if digest(content) != folder.read_config()["model_sha256"]:
        raise InputError(
            "The model file is damaged: its checksum does not match", str(folder.model), "Restore it from a copy."
        )
    loaded = unpack(content, str(folder.model))
    conditional = is_conditional(settings.preset)
    schema = Schema.from_json(folder.schema)
    codec = RecordCodec(schema.as_records(), joint=not conditional)
    networks = make(settings.preset, codec.blocks, codec.n_classes, None)
    try:
        networks.load_state_dict({n: t for n, t in loaded.tensors.items() if not n.startswith(RELEASED)})
    except RuntimeError:
        raise InputError("The model file does not fit the schema", str(folder.model), "Restore the run.") from None
    seeded, where = settings.seed is not None, str(folder.model)
    rates = _class_rates(loaded.values, where).to(device)
    released = released_tensors(loaded.tensors)
    kept = statistics_of(released, codec.schema, seeded, where) if released else None
    visits = schema if schema.visits else None
    return Sampler(networks.to(device).eval(), codec, rates, conditional, visits, kept)


def _class_rates(values: Any, where: str) -> torch.Tensor:
    """Of a model file's values; Raises InputError if there are none."""
    with contextlib.suppress(KeyError, TypeError, ValueError, RuntimeError):
        rates = torch.tensor(values["rates"])
        if all(math.isfinite(rate) and rate >= 0 for rate in rates.tolist()):
            return rates
    raise InputError("The model file holds no class rates", where, "Restore it from a copy.")
