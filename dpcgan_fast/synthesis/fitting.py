"""Fitting, from a table to a trained run folder: everything that happens between the schema and the model file."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dpcgan_fast import ops
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.reading import TableSource
from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.units import UnitIndex, unit_ids
from dpcgan_fast.errors import InputError, MachineError, PrivacyError
from dpcgan_fast.models import MakeNetworks, Networks, is_conditional, make_networks
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, account, noise_key
from dpcgan_fast.privacy.accountant import refuse_overspending
from dpcgan_fast.privacy.ledger import charged, taken_by_run
from dpcgan_fast.synthesis.checks import RawTable, check_before_reading, check_schema, check_table
from dpcgan_fast.synthesis.choice import Choice
from dpcgan_fast.synthesis.fitted_networks import fit_to_statistics
from dpcgan_fast.synthesis.privacy_statement import composed_releases, statement
from dpcgan_fast.synthesis.releases import ReleasedFacts, make_releases
from dpcgan_fast.synthesis.run_folder import RunFolder
from dpcgan_fast.synthesis.starting import fresh_networks, start_networks
from dpcgan_fast.synthesis.statistics import release_statistics, releases_statistics
from dpcgan_fast.train import TrainSettings, train_autoencoder, train_gan
from dpcgan_fast.train.checkpoint import checkpoint_paths, digest, pack, read_checkpoint
from dpcgan_fast.train.data import TrainingData
from dpcgan_fast.train.plan import AUTOENCODER, CRITIC, BudgetPlan
from dpcgan_fast.train.session import Progress, Session, Silent
from dpcgan_fast.train.state import TrainState, make_optimizers
from dpcgan_fast.train.stopping import StopRequest


@dataclass
class FitHooks:
    """What a caller may watch or ask while a fit runs.

    progress: told of phases and steps
    stop:     asked after every step
    dropped:  called once with the names of the data's columns that the schema does not name
    """

    progress: Progress = field(default_factory=Silent)
    stop: StopRequest = field(default_factory=StopRequest)
    dropped: Callable[[tuple[str, ...]], None] | None = None


def pick_device(asked: str) -> torch.device:
    """The device for `auto`, `cpu` or `cuda`.

    Raises InputError for another name, MachineError if `cuda` is asked for and cannot be used, saying why.
    """
    if asked not in ("auto", "cpu", "cuda"):
        raise InputError("There is no such device", f"device {asked}", "Choose auto, cpu or cuda.")
    missing = None
    if not torch.cuda.is_available():
        missing = "torch sees no GPU"
    elif not ops.has_cuda_kernels():
        missing = "this build has no CUDA kernels: " + str(ops.native_module().build_info()["cuda_reason"])
    if asked == "cuda" and missing is not None:
        raise MachineError(f"The GPU cannot be used: {missing}", "device cuda", "Use device cpu.")
    return torch.device("cpu" if asked == "cpu" or missing is not None else "cuda")


def read_raw(source: TableSource, schema: Schema, hooks: FitHooks) -> RawTable:
    """Reads the records of `schema.as_records()`. Raises InputError if a column is missing or cannot be read."""
    where = str(source) if isinstance(source, (str, Path)) else "data"
    table, extra = read_records(source, schema, where)
    if extra and hooks.dropped is not None:
        hooks.dropped(extra)
    ids = None if schema.merges_rows else unit_ids(table, schema, where)  # else every row is a unit
    return RawTable(table, ids, where)


def _divisors(settings: TrainSettings, released: ReleasedFacts) -> dict[str, float]:
    """Expected batch sizes: public, or the public sample rate times a paid number of units."""
    divisors = {}
    for name, batch in ((AUTOENCODER, settings.autoencoder_batch), (CRITIC, settings.critic_batch)):
        divisors[name] = settings.sample_rate(batch) * released.units(settings)
    return divisors


def _state(
    schema: Schema, settings: TrainSettings, released: ReleasedFacts, networks: Networks, codec: RecordCodec,
    device: torch.device,
) -> TrainState:  # fmt: skip
    label = schema.label_column()
    rates = released.rates or (
        list(label.rates) if label is not None and label.rates is not None else [1.0] * codec.n_classes
    )
    start_networks(networks, codec, settings, released)
    randomness = torch.Generator(device)
    randomness.manual_seed(secrets.randbits(63) if settings.seed is None else settings.seed)
    return TrainState(
        networks,
        make_optimizers(networks, settings),
        torch.tensor(rates, device=device),
        _divisors(settings, released),
        randomness,
    )


def start(
    source: TableSource, schema: Schema, settings: TrainSettings, out: str | Path, device: torch.device,
    hooks: FitHooks, begun: Callable[[RunFolder], None], make: MakeNetworks = make_networks,
    choice: Choice | None = None,
) -> RunFolder:  # fmt: skip
    """Trains in a new run folder. If something fails before the first mechanism, no folder is left behind.

    begun:  called as soon as there is a ledger, after which the run may have spent something, whatever happens to it
    make:   what makes the networks; a comparison may train others by the same steps
    choice: of the search that chose the settings. Inside a private selection epsilon and delta of the settings are
            those of the selection as a whole, and so is every epsilon that the run's files state
    """
    if choice is not None and choice.plan is not None:
        check_schema(schema, settings, make)
        plan = choice.plan
    else:
        plan = check_before_reading(schema, settings, make)
    records = schema.as_records()
    raw = read_raw(source, schema, hooks)
    check_table(raw, schema, [settings])
    folder = RunFolder.create(out)
    try:
        folder.write_config(
            {
                "settings": settings.to_dict(),
                "user_schema": schema.model_dump(mode="json"),
                "data": _name_of(source),
                "plan": plan.to_dict(),
                "finished": False,
            }
        )
        ledger = Ledger(folder.ledger, create=True)
    except BaseException:
        folder.remove()
        raise
    begun(folder)
    with ledger:
        key = noise_key(settings.seed)
        if choice is not None:
            ledger.reserve(choice.opening, key.key_id)
        released = make_releases(raw.table, raw.ids, records, plan, ledger, key, raw.where)
        complete = _with_released(schema, released)
        folder.write(folder.schema, complete.to_json())
        complete = complete.as_records()
        statistics: dict[str, torch.Tensor] = {}
        if releases_statistics(records, settings):
            found = release_statistics(raw.table, complete, plan, ledger, key, settings.seed, raw.where)
            statistics, released.statistics, released.parts = found
        codec, networks = fresh_networks(complete, settings, device, make)
        state = _state(records, settings, released, networks, codec, device)
        state.released = statistics
        session = _session(folder, settings, plan, raw, codec, state, ledger, key, schema, hooks, device)
        folder.write_config({**folder.read_config(), "released": released.to_dict(), "device": str(device.type)})
        session.save()
        _train(session, codec, released)
        finish(folder, session, schema, released, stopped="", choice=choice)
    return folder


def _with_released(schema: Schema, released: ReleasedFacts) -> Schema:
    return schema.with_released(released.bounds, released.categories, released.vocabularies, released.quantiles)


def _session(
    folder: RunFolder, settings: TrainSettings, plan: BudgetPlan, raw: RawTable, codec: RecordCodec, state: TrainState,
    ledger: Ledger, key: NoiseKey, schema: Schema, hooks: FitHooks, device: torch.device,
) -> Session:  # fmt: skip
    encoded = codec.encode(raw.table, raw.where)
    index = UnitIndex.from_ids(raw.ids, encoded.kept, schema.max_rows_per_unit)
    conditional = is_conditional(settings.preset)
    rows_are_units = schema.unit is None or schema.max_rows_per_unit == 1 or schema.merges_rows
    data = TrainingData.from_encoded(encoded, index, codec.n_classes, conditional, rows_are_units, device)
    return Session(
        settings=settings, plan=plan, data=data, state=state, noise_key=key, where=str(folder.path),
        progress=hooks.progress, stop=hooks.stop, ledger=ledger, checkpoints=folder.checkpoints, log=folder.log,
    )  # fmt: skip


def _train(session: Session, codec: RecordCodec, released: ReleasedFacts) -> None:
    """What is still to be done: the free fit, where it is asked for, and then the private steps."""
    if session.settings.fit_steps and not session.state.fitted:
        fit_to_statistics(session, codec, released.units(session.settings))
        session.save()
    train_autoencoder(session)
    train_gan(session)


def resume(
    source: TableSource, schema: Schema, settings: TrainSettings, out: str | Path, device: torch.device,
    hooks: FitHooks, begun: Callable[[RunFolder], None],
) -> RunFolder:  # fmt: skip
    """Goes on with a stopped run, by the plan that it was started with.

    begun: called before anything more is spent
    Steps that the ledger charges are spent, whether or not a checkpoint has them.

    Raises InputError if schema or settings are not those of the run, PrivacyError if the ledger is broken, older than
    the checkpoint or not that of the plan, or if it leaves no budget for what is missing.
    """
    folder = RunFolder.open(out)
    config = folder.read_config()
    _check_same_run(config, schema, settings, source, folder)
    with Ledger(folder.ledger) as ledger:
        if config["finished"]:
            raise PrivacyError("The run is finished and its budget is spent", str(out), "Start a new run.")
        plan = BudgetPlan.from_dict(config.get("plan"), str(folder.config))
        plan.refuse_other(taken_by_run(ledger.lines), str(ledger.path))
        paths = checkpoint_paths(folder.checkpoints)
        if not paths:
            raise PrivacyError(
                "The run stopped before its first checkpoint, and what was released then is lost",
                str(folder.checkpoints),
                "Start a new run in a new folder; what this one spent stays spent.",
            )
        checkpoint = read_checkpoint(paths[-1])
        _check_ledger_is_as_new(ledger, checkpoint.values, paths[-1])
        composed_releases(config["released"], taken_by_run(ledger.lines), str(folder.config))
        released = ReleasedFacts.from_dict(config["released"])
        complete = _with_released(schema, released)
        codec, networks = fresh_networks(complete.as_records(), settings, device, make_networks)
        state = _state(schema.as_records(), settings, released, networks, codec, device)
        state.restore(checkpoint.tensors, checkpoint.values)
        key = noise_key(settings.seed, checkpoint.values["noise_position"] or 0)
        raw = read_raw(source, schema, hooks)
        session = _session(folder, settings, plan, raw, codec, state, ledger, key, schema, hooks, device)
        begun(folder)
        _charge_torn_line(session)
        _train(session, codec, released)
        missing = sum(plan.mechanism(name).steps - steps for name, steps in state.steps.items())
        note = f"{missing} steps were lost to a crash; they stay charged." if missing else ""
        finish(folder, session, schema, released, stopped=note)
    return folder


def _charge_torn_line(session: Session) -> None:
    """A line that a crash tore may have been a reservation: a block is charged in its place, and never taken."""
    if not session.ledger.torn:
        return
    charged_steps = session.ledger.charged_steps(AUTOENCODER)
    name = AUTOENCODER if charged_steps < session.plan.autoencoder.steps else CRITIC
    mechanism = session.plan.mechanism(name)
    left = mechanism.steps - session.ledger.charged_steps(name)
    if left > 0:
        block = mechanism.with_steps(min(left, session.settings.checkpoint_interval))
        seq = session.ledger.reserve(block, session.noise_key.key_id)
        session.ledger.close(seq, block.steps)


def _name_of(source: TableSource) -> str:
    """A file's name, for a person to notice another table. A fingerprint of its content would tell who is in it."""
    return Path(source).absolute().name if isinstance(source, (str, Path)) else "a table in memory"


def _check_same_run(
    config: dict[str, Any], schema: Schema, settings: TrainSettings, source: TableSource, folder: RunFolder
) -> None:
    if config["data"] != _name_of(source):
        raise InputError(
            f"The run was started on another table, {config['data']}", str(folder.path), "Resume with the same table."
        )
    if Schema.from_dict(config["user_schema"], str(folder.config)) != schema:
        raise InputError("The schema is not that of the run", str(folder.path), "Resume with the same schema file.")
    before, now = TrainSettings.from_dict(config["settings"]).to_dict(), settings.to_dict()
    changed = sorted(name for name in now if before.get(name) != now[name])
    if changed:
        raise InputError(
            f"Settings differ from those of the run: {', '.join(changed)}",
            str(folder.path),
            "Resume with the options that the run was started with.",
        )


def _check_ledger_is_as_new(ledger: Ledger, values: dict[str, Any], path: Path) -> None:
    seq, head = values["ledger_seq"], values["ledger_head"]
    if seq >= len(ledger.lines) or (seq >= 0 and ledger.lines[seq].hash != head):
        raise PrivacyError(
            "The ledger is older than the checkpoint, or belongs to another run",
            f"{ledger.path}, {path.name}",
            "Restore the ledger; without it nobody knows what was spent.",
        )


def finish(
    folder: RunFolder, session: Session, schema: Schema, released: ReleasedFacts, stopped: str,
    choice: Choice | None = None,
) -> None:  # fmt: skip
    """Writes the model, the privacy card and the final configuration.

    Raises PrivacyError, before it writes anything, if the ledger charges more than the run claims.
    """
    settings, state, lines = session.settings, session.state, session.ledger.lines
    refuse_overspending(charged(lines), settings.epsilon, settings.delta, str(session.ledger.path))
    spent = account(charged(lines), settings.delta)
    privacy = statement(settings, schema, session.plan, released, lines, spent, stopped, choice)
    tensors = {name: t.detach().cpu().contiguous() for name, t in state.networks.state_dict().items()}
    if settings.fit_steps == 0:  # else rows are drawn from the networks
        tensors |= state.released_named()
    content = pack(tensors, {"rates": state.rates.tolist()})
    folder.write(folder.model, content)
    folder.write(folder.card, privacy.pop("card"))
    folder.write_config({**folder.read_config(), "finished": True, "privacy": privacy, "model_sha256": digest(content)})
