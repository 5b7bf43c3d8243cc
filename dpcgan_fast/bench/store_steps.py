"""Private steps of preset auto on a store, one at a time, as training takes them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.records import read_records
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.units import UnitIndex
from dpcgan_fast.models import make_networks
from dpcgan_fast.privacy import Ledger, PoissonSampler, noise_key, sampling_key
from dpcgan_fast.synthesis.privacy_statement import unit_name
from dpcgan_fast.synthesis.releases import planned_releases, settings_for
from dpcgan_fast.train.autoencoder import autoencoder_turn
from dpcgan_fast.train.data import Chunk, TrainingData
from dpcgan_fast.train.gan import critic_turn
from dpcgan_fast.train.plan import AUTOENCODER, make_plan
from dpcgan_fast.train.prefetch import drawn_chunks, one_draw
from dpcgan_fast.train.session import Session, Turn
from dpcgan_fast.train.settings import TrainSettings
from dpcgan_fast.train.state import TrainState, make_optimizers

EPSILON = 3.0
_STEPS = 1000  # of each mechanism that the plan has; no checkpoint comes before
_SEED = 1  # of draws and networks; noise has a fresh key


class StoreRun:
    """A run on a store whose releases are left out.

    settings:        with `batch` units expected in a step, and no free steps of the generator
    state:           what the steps change
    opening_seconds: from the files to data that can be drawn from
    """

    def __init__(self, store: Path, schema: Schema, batch: int, device: torch.device, folder: Path):
        begin = time.perf_counter()
        raw, _ = read_records(store, schema, str(store))
        codec = RecordCodec(schema)
        encoded = codec.encode(raw)
        index = UnitIndex.from_ids(None, encoded.kept, schema.max_rows_per_unit)
        data = TrainingData.from_encoded(encoded, index, codec.n_classes, True, True, device)
        self.opening_seconds = time.perf_counter() - begin
        self.settings = _settings(schema, batch)
        self._session = _session(data, self.settings, codec, schema, device, folder)
        self.state = self._session.state

    @contextmanager
    def steps(self, name: str) -> Iterator[tuple[Callable[[], None], Callable[[list[Chunk]], None]]]:
        """What takes the next private step of a mechanism, with its draw and whatever belongs to it in training; and
        what takes one on given rows."""
        take = (autoencoder_turn if name == AUTOENCODER else critic_turn)(self._session)
        turns = self._session.turns(name)
        try:
            yield lambda: take(next(turns)), lambda chunks: take(Turn(0, chunks))
        finally:
            turns.close()

    def draws(self, name: str, count: int) -> list[list[Chunk]]:
        """The rows of the first steps of a mechanism, in memory of their own."""
        data = self._session.data
        rate = self._session.plan.mechanism(name).sample_rate
        sampler = PoissonSampler(data.index.n_units, rate, sampling_key(name, self.settings.seed))
        chunks = drawn_chunks(data, sampler, range(count))
        return [[_copy(chunk) for chunk in one_draw(chunks)] for _ in range(count)]


def _copy(chunk: Chunk) -> Chunk:
    return Chunk(chunk.records.clone(), chunk.labels.clone(), chunk.units)


def _settings(schema: Schema, batch: int) -> TrainSettings:
    assert schema.n_units is not None
    batch = min(batch, schema.n_units)
    return settings_for(
        schema, "auto", EPSILON, 1 / (10 * schema.n_units), _STEPS, _SEED,
        autoencoder_steps=_STEPS, autoencoder_batch=batch, critic_batch=batch, critic_per_generator=_STEPS + 1,
        checkpoint_interval=_STEPS,
    )  # fmt: skip


def _session(
    data: TrainingData, settings: TrainSettings, codec: RecordCodec, schema: Schema, device: torch.device, folder: Path
) -> Session:
    networks = make_networks(settings.preset, codec.blocks, codec.n_classes, settings.seed).to(device)
    batches = {"autoencoder": settings.autoencoder_batch, "critic": settings.critic_batch}
    divisors = {name: float(batch) for name, batch in batches.items() if batch is not None}
    rates = torch.ones(codec.n_classes, device=device)
    randomness = torch.Generator(device).manual_seed(_SEED)
    state = TrainState(networks, make_optimizers(networks, settings), rates, divisors, randomness)
    plan = make_plan(settings, planned_releases(schema, settings), unit_name(schema))
    folder.mkdir()
    ledger = Ledger(folder / "ledger.jsonl", create=True)
    return Session(
        settings=settings, plan=plan, data=data, state=state, noise_key=noise_key(), where=str(folder), ledger=ledger,
        checkpoints=folder / "checkpoints", log=folder / "log.jsonl",
    )  # fmt: skip
