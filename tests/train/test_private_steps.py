"""What training feeds to its private steps: every drawn row once, and otherwise nothing but public quantities."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.models import Networks, sample_records
from dpcgan_fast.privacy import PoissonSampler
from dpcgan_fast.synthesis import DPCGAN, FitHooks
from dpcgan_fast.train import data as train_data
from dpcgan_fast.train import gan
from dpcgan_fast.train import session as session_module
from dpcgan_fast.train.checkpoint import checkpoint_paths, read_checkpoint
from dpcgan_fast.train.session import Silent
from tests.tables import FEW_STEPS, make_schema, make_table, schema_values

PHASES = ("autoencoder", "critic")
BATCH, STEPS = FEW_STEPS["critic_batch"], FEW_STEPS["steps"]


def model_of(epsilon=3.0, **changes):
    return DPCGAN(make_schema(), epsilon, 1e-4, device="cpu", **{**FEW_STEPS, **changes})


@dataclass
class Notes:
    """What was seen, one list a phase.

    samplers:    the sampler of each phase
    drawn:       step number and size of each draw
    taken:       for each private step, rows and kind (private or not) of each batch that went in
    units:       for each private step, the ids of the units of its private batches, None where rows are units
    noise_draws: noise draws that each private step made
    generated:   rows of each synthetic batch, over the whole run
    """

    samplers: list[PoissonSampler] = field(default_factory=list)
    drawn: list[list[tuple[int, int]]] = field(default_factory=list)
    taken: list[list[list[tuple[int, bool]]]] = field(default_factory=list)
    units: list[list[list[torch.Tensor | None]]] = field(default_factory=list)
    noise_draws: list[list[int]] = field(default_factory=list)
    generated: list[int] = field(default_factory=list)


@pytest.fixture
def notes(monkeypatch):
    """Notes that are taken in every fit of a test."""
    seen = Notes()
    real_draw, real_generate = PoissonSampler.draw, Networks.generate

    def draw(self, step):
        units = real_draw(self, step)
        if not any(sampler is self for sampler in seen.samplers):
            seen.samplers.append(self)
            seen.drawn.append([])
        seen.drawn[-1].append((step, len(units)))
        return units

    class NotedStep(PrivateStep):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            self.batches, self.ids, self.key = [], [], settings["noise_key"]
            seen.taken.append([])
            seen.units.append([])
            seen.noise_draws.append([])

        def backward(self, losses, units=None, private=True):
            self.batches.append((len(losses), private))
            if private:
                self.ids.append(units)
            super().backward(losses, units, private)

        def step(self):
            before = self.key.position
            super().step()
            seen.noise_draws[-1].append(int(self.key.position > before))
            seen.taken[-1].append(self.batches)
            seen.units[-1].append(self.ids)
            self.batches, self.ids = [], []

    def generate(self, labels, randomness):
        seen.generated.append(len(labels))
        return real_generate(self, labels, randomness)

    monkeypatch.setattr(PoissonSampler, "draw", draw)

    def sample(networks, labels, randomness):
        seen.generated.append(len(labels))
        return sample_records(networks, labels, randomness)

    monkeypatch.setattr(Networks, "generate", generate)
    monkeypatch.setattr(gan, "sample_records", sample)
    monkeypatch.setattr(session_module, "PrivateStep", NotedStep)
    return seen


@pytest.mark.parametrize("paired", [False, True])
def test_all_chunks_of_a_draw_enter_one_step_and_each_row_once(notes, monkeypatch, tmp_path, paired):
    monkeypatch.setattr(train_data, "MAX_CHUNK_ROWS", 10)
    model_of(paired_fakes=paired).fit(make_table(), tmp_path / "run")
    assert len(notes.taken) == len(PHASES)
    for drawn, taken in zip(notes.drawn, notes.taken, strict=True):
        assert len(taken) == len(drawn) == STEPS
        for (_, rows), batches in zip(drawn, taken, strict=True):
            private = [count for count, is_private in batches if is_private]
            assert sum(private) == rows
            assert len(private) == math.ceil(rows / 10)


@pytest.mark.parametrize("paired", [False, True])
def test_the_rows_of_a_patient_are_clipped_as_one_unit_in_both_phases(notes, tmp_path, paired):
    schema = make_schema(unit="patient", n_units=60, max_rows_per_unit=5)
    changes = {**FEW_STEPS, "autoencoder_batch": 20, "critic_batch": 20, "paired_fakes": paired}
    DPCGAN(schema, math.inf, 1e-4, device="cpu", **changes).fit(make_table(patients=60), tmp_path / "run")
    assert len(notes.units) == len(PHASES)
    for drawn, steps in zip(notes.drawn, notes.units, strict=True):
        for (_, units), ids in zip(drawn, steps, strict=True):
            assert all(unit is not None for unit in ids), "each row would be clipped on its own"
            assert len(torch.cat(ids).unique()) == units
            assert len(torch.cat(ids)) > units


def test_a_draw_without_rows_is_a_step_with_noise_like_any_other(notes, monkeypatch, tmp_path):
    """Neither skipped nor drawn anew: the number of steps and of noise draws says nothing about the data."""
    real_draw = PoissonSampler.draw
    without_rows = np.empty(0, np.int64)
    monkeypatch.setattr(PoissonSampler, "draw", lambda *step: (real_draw(*step), without_rows)[step[1] in (1, 2, 5)])
    model_of().fit(make_table(), tmp_path / "run")
    for drawn, taken, noise_draws in zip(notes.drawn, notes.taken, notes.noise_draws, strict=True):
        assert [step for step, _ in drawn] == list(range(STEPS))
        assert [any(private for _, private in batches) for batches in taken] == [True, False, False, True, True, False]
        assert noise_draws == [1] * STEPS


def test_each_step_has_a_draw_of_its_own_also_after_an_epoch(notes, tmp_path):
    model_of(math.inf, autoencoder_batch=200, critic_batch=200).fit(make_table(), tmp_path / "run")
    for drawn in notes.drawn:
        assert [step for step, _ in drawn] == list(range(STEPS)), "an epoch lasts two steps here"


@pytest.mark.parametrize("seed", [None, 3])
def test_autoencoder_and_critic_draw_independently(notes, tmp_path, seed):
    model_of(seed=seed).fit(make_table(), tmp_path / "run")
    assert len({sampler.key for sampler in notes.samplers}) == len(PHASES)


def test_the_sample_rate_is_public_whatever_the_number_of_rows(notes, tmp_path):
    for rows in (300, 400):
        model_of().fit(make_table(rows), tmp_path / f"{rows}")
    assert {sampler.n_units for sampler in notes.samplers} == {300, 400}
    assert {sampler.sample_rate for sampler in notes.samplers} == {BATCH / 400}


def test_the_number_of_fakes_is_public_whatever_was_drawn(notes, tmp_path):
    for rows in (300, 400):
        model_of().fit(make_table(rows), tmp_path / f"{rows}")
    fakes = [count for taken in notes.taken for batches in taken for count, private in batches if not private]
    assert len(fakes) == 2 * STEPS
    assert set(fakes) == {BATCH}, "the critic's"
    assert set(notes.generated) == {BATCH}, "the critic's and the generator's"


@pytest.mark.parametrize("paired", [False, True])
def test_the_public_random_state_in_a_checkpoint_does_not_tell_how_many_rows_were_drawn(tmp_path, paired):
    states = []
    for rows in (300, 400):
        model_of(paired_fakes=paired, seed=7).fit(make_table(rows), tmp_path / f"{rows}")
        newest = checkpoint_paths(tmp_path / f"{rows}" / "checkpoints")[-1]
        states.append(read_checkpoint(newest).tensors["randomness"])
    assert torch.equal(*states)


def test_the_running_epsilon_composes_releases_autoencoder_and_critic(tmp_path):
    model = model_of().fit(make_table(), tmp_path / "run")
    last = json.loads((tmp_path / "run" / "train_log.jsonl").read_text().splitlines()[-1])
    assert last["epsilon_rdp"] == pytest.approx(model.privacy()["epsilon_rdp"])


class Heard(Silent):
    """Notes all that progress is told."""

    def __init__(self):
        self.told = []

    def start(self, phase, total, done):
        self.told.append((phase, total, done))

    def advance(self, done, epsilon):
        self.told.append((done, epsilon))


def test_progress_is_told_nothing_of_the_data(tmp_path):
    heard = [Heard(), Heard()]
    for rows, progress in zip((300, 400), heard, strict=True):
        model_of().fit(make_table(rows), tmp_path / f"{rows}", hooks=FitHooks(progress=progress))
    assert heard[0].told == heard[1].told


@pytest.mark.parametrize("paired", [False, True])
def test_the_data_reaches_the_networks_through_private_steps_alone(monkeypatch, tmp_path, paired):
    """With those steps idle, other data gives the same networks: generator, fakes and labels see none of it."""
    monkeypatch.setattr(PrivateStep, "backward", lambda *_, **__: None)
    monkeypatch.setattr(PrivateStep, "step", lambda *_: None)
    columns = schema_values()["columns"]
    columns[4]["rates"] = [0.6, 0.4]
    for seed in (0, 1):
        model = DPCGAN(
            make_schema(columns=columns),
            3.0,
            1e-4,
            device="cpu",
            seed=7,
            paired_fakes=paired,
            statistics=False,
            **FEW_STEPS,
        )
        model.fit(make_table(seed=seed), tmp_path / f"{seed}")
    first, second = ((tmp_path / f"{seed}" / "model.safetensors").read_bytes() for seed in (0, 1))
    assert first == second
