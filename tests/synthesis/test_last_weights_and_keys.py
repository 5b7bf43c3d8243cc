"""What a fit leaves is what its last private steps made, under noise keys of its own."""

import torch

from dpcgan_fast import ops
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.train.checkpoint import unpack
from tests.tables import FEW_STEPS, make_schema, make_table


def fit(path):
    return DPCGAN(make_schema(), 3.0, 1e-4, device="cpu", **FEW_STEPS).fit(make_table(), path)


def test_the_model_is_that_of_the_last_step_and_not_one_chosen_among_earlier_ones(monkeypatch, tmp_path):
    """A choice by a loss on real rows would be a query that nobody paid for."""
    after: dict[str, dict[str, torch.Tensor]] = {}
    real = PrivateStep.step

    def step(self):
        real(self)
        after[type(self._recorded.module).__name__] = {
            k: v.clone() for k, v in self._recorded.module.state_dict().items()
        }

    monkeypatch.setattr(PrivateStep, "step", step)
    fit(tmp_path / "run")
    final = unpack((tmp_path / "run" / "model.safetensors").read_bytes(), "model").tensors
    critic = {f"critic.{name}": value for name, value in after["Critic"].items()}
    encoder = {f"autoencoder.{name}": v for name, v in after["AutoEncoder"].items() if name.startswith("encoder.")}
    for name, value in {**critic, **encoder}.items():
        assert torch.equal(final[name], value), name


def test_one_secret_key_makes_all_noise_of_a_run_and_no_other_run_has_it(monkeypatch, tmp_path):
    keys: list[set[bytes]] = []
    real = ops.NoiseKey.take

    def take(self, blocks):
        words, first = real(self, blocks)
        keys[-1].add(bytes(words.numpy()))
        return words, first

    monkeypatch.setattr(ops.NoiseKey, "take", take)
    for name in ("a", "b"):
        keys.append(set())
        fit(tmp_path / name)
    assert len(keys[0]) == len(keys[1]) == 1
    assert keys[0] != keys[1]
