"""Training on signals: nothing but private steps sees the data, and the running averages that rows are drawn with."""

import math

import pytest
import torch

from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.errors import StoppedError
from dpcgan_fast.models import make_networks
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.train import default_settings
from dpcgan_fast.train.checkpoint import checkpoint_paths, read_checkpoint
from dpcgan_fast.train.state import TrainState, make_optimizers
from tests.models.test_signals import labels_of, signal
from tests.synthesis.runs import model_bytes, stopping_hooks
from tests.tables import FEW_STEPS, make_signals, signal_schema

CLIP = 0.7


def model_of(**changes):
    return DPCGAN(signal_schema(), 3.0, 1e-4, device="cpu", statistics=False, **{**FEW_STEPS, **changes})


class TestPrivacy:
    @pytest.mark.parametrize("paired", [False, True])
    def test_the_data_reaches_the_networks_through_private_steps_alone(self, monkeypatch, tmp_path, paired):
        """With those steps idle, other data gives the same networks, to the byte."""
        monkeypatch.setattr(PrivateStep, "backward", lambda *_, **__: None)
        monkeypatch.setattr(PrivateStep, "step", lambda *_: None)
        schema = signal_schema()
        rates = schema.columns[0].model_copy(update={"rates": (0.6, 0.4)})
        schema = schema.model_copy(update={"columns": (rates,)})
        for seed in (0, 1):
            model = DPCGAN(schema, 3.0, 1e-4, device="cpu", seed=7, paired_fakes=paired, statistics=False, **FEW_STEPS)
            model.fit(make_signals(seed=seed), tmp_path / f"{seed}")
        first, second = ((tmp_path / f"{seed}" / "model.safetensors").read_bytes() for seed in (0, 1))
        assert first == second

    def critic_step(self):
        critic = make_networks("auto", signal(40), 2, seed=0).critic
        return PrivateStep(critic, torch.optim.SGD(critic.parameters(), 1.0), CLIP, 0.0, 1.0), critic

    def moved(self, records, labels, private=True):
        """How far one step without noise moves the critic, at a rate and an expected batch of 1."""
        step, critic = self.critic_step()
        before = torch.cat([p.detach().flatten() for p in critic.parameters()])
        step.backward(1e3 * step(records, labels), private=private)
        step.step()
        return before - torch.cat([p.detach().flatten() for p in critic.parameters()])

    def test_one_record_more_moves_the_critics_sum_by_at_most_the_clipping_norm(self):
        """Whatever it holds: among the rows are a flat one and one at the bounds."""
        records, labels = torch.rand(6, 40, generator=torch.Generator().manual_seed(1)), labels_of(6)
        records[0], records[1] = 0.5, (torch.arange(40) % 2).float()
        whole = self.moved(records, labels)
        for gone in range(6):
            rest = [row for row in range(6) if row != gone]
            change = float((whole - self.moved(records[rest], labels[rest])).norm())
            assert CLIP / 2 < change <= CLIP * (1 + 1e-5), "the losses are so steep that every row is clipped"

    def test_fakes_are_clipped_as_real_records_are(self):
        """Or the critic would weigh fakes of steep losses more, and real = fake would be no equilibrium."""
        fakes, labels = torch.rand(4, 40, generator=torch.Generator().manual_seed(2)), labels_of(4)
        real, fake = self.moved(fakes, labels), self.moved(fakes, labels, private=False)
        assert torch.allclose(real, 4 * fake, atol=1e-5), "the same rows, once as a sum and once as a mean"
        assert float(fake.norm()) <= CLIP * (1 + 1e-5)


def state_of(ema=0.9):
    networks = make_networks("auto", signal(40), 2, seed=0)
    settings = default_settings("auto", 1.0, 1e-5, 1000, one_signal=True, generator_ema=ema)
    optimizers = make_optimizers(networks, settings)
    return TrainState(networks, optimizers, torch.ones(2), {"critic": 1.0}, torch.Generator())


def set_to(state, value):
    with torch.no_grad():
        for parameter in state.generator_parameters():
            parameter.fill_(value)


class TestAverages:
    def test_they_are_even_at_first_and_then_decay(self):
        state = state_of(ema=0.75)
        expected = 0.0
        for count, value in enumerate([4.0, 8.0, 0.0, 12.0, 2.0, 6.0], start=1):
            set_to(state, value)
            state.average(0.75, count)
            weight = max(0.25, 1 / count)
            expected += weight * (value - expected)
            assert all(torch.allclose(average, torch.tensor(expected)) for average in state.averaged)

    def test_they_take_the_place_of_generator_and_decoder_and_of_nothing_else(self):
        state = state_of()
        set_to(state, 1.0)
        state.average(0.9, 1)
        set_to(state, 5.0)
        critic = [p.detach().clone() for p in state.networks.critic.parameters()]
        state.take_averages()
        assert all(bool((p == 1.0).all()) for p in state.networks.autoencoder.decoder.parameters())
        assert all(bool((p == 1.0).all()) for p in state.networks.generator.parameters())
        assert all(torch.equal(p, old) for p, old in zip(state.networks.critic.parameters(), critic, strict=True))

    def test_a_checkpoint_holds_them(self):
        state, other = state_of(), state_of()
        state.average(0.9, 1)
        set_to(state, 3.0)
        state.average(0.9, 2)
        state.steps |= {"critic": 2}
        other.restore(state.tensors(), state.values())
        assert len(other.averaged) == len(state.averaged) > 0
        assert all(torch.equal(a, b) for a, b in zip(other.averaged, state.averaged, strict=True))

    def test_rows_are_drawn_with_them(self, tmp_path):
        """The model holds the averages of the last checkpoint, and its critic as it was."""
        model = model_of(seed=5).fit(make_signals(), tmp_path / "run")
        last = read_checkpoint(checkpoint_paths(tmp_path / "run" / "checkpoints")[-1]).tensors
        names = [n for n, _ in model._sampler.networks.named_parameters()]  # type: ignore[union-attr]
        own = dict(model._sampler.networks.named_parameters())  # type: ignore[union-attr]
        drawn_with = {n for n in names if n.startswith(("generator.", "autoencoder.decoder."))}
        kept = [tensor for name, tensor in last.items() if name.startswith("averaged.")]
        assert len(kept) == len(drawn_with)
        for name in drawn_with:
            assert any(average.shape == own[name].shape and torch.equal(average, own[name]) for average in kept), name
        assert any(not torch.equal(last[f"networks.{name}"], own[name]) for name in drawn_with)
        for name in set(names) - drawn_with:
            assert torch.equal(last[f"networks.{name}"], own[name]), name

    @pytest.mark.parametrize("decay", [-0.1, 1.0, math.nan])
    def test_a_decay_out_of_range_is_refused(self, decay):
        with pytest.raises(ValueError, match="generator_ema must be at least 0"):
            model_of(generator_ema=decay)


@pytest.mark.parametrize(("phase", "steps"), [("autoencoder", 5), ("critic", 1), ("critic", 2), ("critic", 5)])
def test_a_seeded_run_that_was_stopped_and_resumed_equals_one_that_was_not(tmp_path, phase, steps):
    whole = model_of(seed=5).fit(make_signals(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        model_of(seed=5).fit(make_signals(), tmp_path / "run", hooks=stopping_hooks(phase, steps))
    resumed = model_of(seed=5).fit(make_signals(), tmp_path / "run", resume=True)
    assert model_bytes(resumed) == model_bytes(whole)


def test_the_ledger_has_autoencoder_and_critic(tmp_path):
    model = model_of().fit(make_signals(), tmp_path / "run")
    taken = dict.fromkeys(("autoencoder", "critic"), 0)
    for mechanism in model.privacy()["mechanisms"]:
        if mechanism["mechanism"] in taken:
            taken[mechanism["mechanism"]] += mechanism["steps"]
    assert taken == dict.fromkeys(taken, FEW_STEPS["steps"])
    assert model.privacy()["drawn_from"] == "networks"
    assert model.sample(50).num_rows == 50
