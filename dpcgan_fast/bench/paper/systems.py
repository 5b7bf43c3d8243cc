"""The systems of the paper's comparison, each with every mechanism that touched the data.

The published system, the ablations of its networks and DP-GAN take the same private steps, with the same records,
losses and settings; without an autoencoder its steps are none, and the decoder learns as fast as the generator does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from dpcgan_fast.baselines import baselines_for
from dpcgan_fast.bench.paper.code_world import code_schema
from dpcgan_fast.bench.paper.dense import make_dense
from dpcgan_fast.bench.paper.pate import fit_pate_gan
from dpcgan_fast.bench.paper.recipe import make_recipe
from dpcgan_fast.bench.paper.tables import CODES, PaperTable
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.models import MakeNetworks, make_networks
from dpcgan_fast.models.published import MIMIC, UCI
from dpcgan_fast.privacy import Ledger, noise_key
from dpcgan_fast.privacy.accountant import Charge
from dpcgan_fast.privacy.ledger import charged, read_ledger
from dpcgan_fast.synthesis import fitting
from dpcgan_fast.synthesis.api import load_sampler
from dpcgan_fast.synthesis.releases import settings_for
from dpcgan_fast.synthesis.statistics import draws_from_statistics
from dpcgan_fast.train import TrainSettings

DELTA = 1e-5
STEPS = 600  # of the critic, of published and fully connected networks; the autoencoder takes half as many
FIT_STEPS, TUNING_STEPS, TUNING_SHARE = 1000, 200, 0.3  # of networks fitted to statistics, and tuned after that
TIMES = 5  # as many rows as there are training rows, of `auto` where many are drawn
AUTO, AUTO_MORE, CODES_AE, YARDSTICK = "auto", f"auto-{TIMES}n", "codes-ae", "yardstick"


@dataclass(frozen=True)
class Synthetic:
    """Synthetic rows of one system.

    tables:     by name; those of a yardstick are several, of which the best is taken
    schema:     of these rows
    mechanisms: all that touched the data, together; each yardstick's on its own is (epsilon, delta)-DP
    """

    tables: dict[str, pa.Table]
    schema: Schema
    mechanisms: Mapping[str, Sequence[Charge]]


@dataclass(frozen=True)
class Task:
    """What a system is asked for.

    seed:   of noise and of all draws
    folder: empty, for its ledger and model
    steps:  of the critic, for published and fully connected networks
    """

    table: PaperTable
    epsilon: float
    seed: int
    folder: Path
    steps: int = STEPS

    @property
    def rows(self) -> int:
        """Synthetic rows to draw: as many as there are training rows."""
        return self.table.train.num_rows


Fit = Callable[[Task], Synthetic]


def _settings(preset: str, schema: Schema, task: Task, changes: dict[str, Any]) -> TrainSettings:
    told = {name: changes.get(name) for name in ("statistics", "fit_steps")}
    settings = settings_for(schema, preset, task.epsilon, DELTA, seed=task.seed, **told)
    if preset != AUTO:
        settings = replace(settings, autoencoder_steps=max(1, task.steps // 2), critic_steps=task.steps)
    elif draws_from_statistics(schema, replace(settings, **changes)):
        settings = replace(settings, autoencoder_steps=1, critic_steps=1)  # rows do not come from networks
    return replace(settings, **changes)


def _trained(
    task: Task, preset: str, schema: Schema, make: MakeNetworks, changes: dict[str, Any], times: int = 1
) -> Synthetic:
    """Trains networks as `DPCGAN.fit` does and draws rows from the run, so many times as many as the task says."""
    settings = _settings(preset, schema, task, changes)
    device = torch.device("cpu")
    out, hooks = task.folder / "run", fitting.FitHooks()
    folder = fitting.start(task.table.train, schema, settings, out, device, hooks, lambda _: None, make)
    sampler = load_sampler(folder, settings, device, make)
    drawn = pa.concat_tables(sampler.batches(times * task.rows, {}, torch.Generator().manual_seed(task.seed)))
    return Synthetic({"": drawn}, schema, {"": charged(read_ledger(folder.ledger)[0])})


def _without_autoencoder(settings: TrainSettings) -> dict[str, Any]:
    return {"autoencoder_steps": 0, "decoder_lr": settings.generator_lr}


def _networks(preset: str, make: MakeNetworks, autoencoder: bool, changes: dict[str, Any], times: int = 1) -> Fit:
    """A system of networks. preset: "" for the published one that the table calls for; times: see `_trained`"""

    def fit(task: Task) -> Synthetic:
        own, schema = preset or _published(task.table), task.table.schema
        if make is make_networks and own == "rdpcgan-mimic":
            assert schema.n_units is not None
            schema = code_schema(schema.n_units, outcome=False)  # its records have no place for an outcome
        more = {} if autoencoder else _without_autoencoder(_settings(own, schema, task, changes))
        return _trained(task, own, schema, make, {**changes, **more}, times)

    return fit


def _published(table: PaperTable) -> str:
    return "rdpcgan-mimic" if table.name == CODES else "rdpcgan-uci"


def _pate_gan(task: Task) -> Synthetic:
    table = task.table
    path = task.folder / "ledger.jsonl"
    with Ledger(path, create=True) as ledger:
        model = fit_pate_gan(table.train, table.schema, task.epsilon, DELTA, ledger, task.seed)
    drawn = model.sample(task.rows, task.seed)
    return Synthetic({"": drawn}, table.schema, {"": charged(read_ledger(path)[0])})


def _yardstick(task: Task) -> Synthetic:
    tables, mechanisms = {}, {}
    for baseline in baselines_for(task.table.schema):
        fitted = baseline.fit(task.table.train, task.epsilon, DELTA, noise_key(task.seed))
        tables[baseline.name] = fitted.sample(task.rows, np.random.default_rng(task.seed))
        mechanisms[baseline.name] = fitted.mechanisms
    return Synthetic(tables, task.table.schema, mechanisms)


@dataclass(frozen=True)
class System:
    """A system. about: what it is, for the table; fits: whether it can take a table"""

    about: str
    fit: Fit
    fits: Callable[[PaperTable], bool] = lambda _table: True


def _has_published_length(table: PaperTable) -> bool:
    """Signals and a binary label, which is one position of the record, or codes alone; more take more places."""
    signals, columns = table.schema.signals, table.schema.columns
    if not signals:
        return table.name == CODES
    lengths = {UCI.record_length, MIMIC.record_length}
    return [column.type for column in columns] == ["binary"] and len(signals[0].columns) + 1 in lengths


_ONLY_NETWORKS = {"statistics": False}
_FITTED = {"fit_steps": FIT_STEPS}
_TUNED = {**_FITTED, "critic_steps": TUNING_STEPS, "training_share": TUNING_SHARE}
SYSTEMS: dict[str, System] = {
    "rdpcgan": System(
        "the published networks and settings (`rdpcgan-uci`, or `rdpcgan-mimic` on codes alone), where a record has "
        "their length: 178 samples and a binary label, or 1,071 codes",
        _networks("", make_networks, True, {}),
        _has_published_length,
    ),
    "rdpcgan-no-ae": System(
        "the same without an autoencoder", _networks("", make_networks, False, {}), _has_published_length
    ),
    "rdpcgan-recipe": System(
        "the published networks of `rdpcgan-uci`, purely adversarial by the recipe of `conv-no-ae`: paid class rates, "
        "strengths apart from shapes, noise in every row, a score for each class",
        _networks(AUTO, make_recipe, False, _ONLY_NETWORKS),
        lambda table: table.name != CODES and _has_published_length(table),
    ),
    "dense": System(
        "fully connected networks with an autoencoder, published settings", _networks("", make_dense, True, {})
    ),
    "dp-gan": System("DP-GAN: fully connected networks, no autoencoder", _networks("", make_dense, False, {})),
    "pate-gan": System("PATE-GAN, its votes accounted without looking at the data", _pate_gan),
    "conv": System(
        "the convolutional networks of preset `auto` alone (`--networks-only`)",
        _networks(AUTO, make_networks, True, _ONLY_NETWORKS),
    ),
    "conv-no-ae": System(
        "the same without an autoencoder: purely adversarial, beside class rates",
        _networks(AUTO, make_networks, False, _ONLY_NETWORKS),
    ),
    "conv-fitted": System(
        "the networks of `conv`, fitted to rows drawn from the statistics of `auto` by steps that cost nothing "
        f"(`--fit-steps {FIT_STEPS}`)",
        _networks(AUTO, make_networks, True, _FITTED),
    ),
    "conv-tuned": System(
        f"the same, tuned by {TUNING_STEPS} private steps of the critic that have {TUNING_SHARE:g} of the budget; on "
        "signals",
        _networks(AUTO, make_networks, True, _TUNED),
        lambda table: bool(table.schema.signals),
    ),
    AUTO: System(
        "what `dpcgan train` does by default: rows from statistics on all of these tables",
        _networks(AUTO, make_networks, True, {}),
    ),
    AUTO_MORE: System(
        f"the same runs, of which {TIMES} times as many rows are drawn: that costs no privacy; on tables without codes",
        _networks(AUTO, make_networks, True, {}, TIMES),
        lambda table: not table.schema.codes_columns(),
    ),
    CODES_AE: System(
        "preset `auto` with `--clusters autoencoder`: a private convolutional autoencoder finds the clusters of codes",
        _networks(AUTO, make_networks, True, {"clusters": "autoencoder"}),
        lambda table: table.name == CODES,
    ),
    YARDSTICK: System(
        "the best of our baselines, chosen by the AUROC of gradient boosting on the test rows", _yardstick
    ),
}
