"""Opacus's own classes with our kernels: the same numbers, and nothing left behind once it is taken back."""

import opacus
import pytest
import torch
from opacus.grad_sample import GradSampleHooks
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.adapters.opacus import accelerate
from tests.adapters.loops import NETS, data, net, private, train, vector

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Opacus warns of its own noise and hooks


@pytest.fixture
def accelerated():
    undo = accelerate()
    yield undo
    undo()


def conv2d():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.GroupNorm(1, 3), nn.Flatten(), nn.Linear(75, 2))


@pytest.mark.parametrize("name", NETS)
def test_an_epoch_moves_the_parameters_as_opacus_does(name):
    plain = net(name)
    train(*private(opacus.PrivacyEngine(), plain))
    undo = accelerate()
    try:
        quick = net(name)
        train(*private(opacus.PrivacyEngine(), quick))
    finally:
        undo()
    torch.testing.assert_close(vector(quick), vector(plain), rtol=1e-5, atol=1e-5)


def test_per_sample_gradients_are_those_of_opacus():
    x = torch.rand(4, 1, 5, 5)
    plain, quick = opacus.GradSampleModule(conv2d()), opacus.GradSampleModule(conv2d())
    plain(x).sum().backward()
    undo = accelerate()
    try:
        quick(x).sum().backward()
    finally:
        undo()
    for a, b in zip(plain.parameters(), quick.parameters(), strict=True):
        torch.testing.assert_close(a.grad_sample, b.grad_sample, rtol=1e-5, atol=1e-6)


def test_our_kernels_are_what_runs(accelerated, monkeypatch):  # noqa: ARG001
    clipped = []
    real = ops.clip_and_sum
    monkeypatch.setattr(ops, "clip_and_sum", lambda *args, **kwargs: (clipped.append(1), real(*args, **kwargs))[1])
    module, optimizer, loader = private(opacus.PrivacyEngine(), net())
    train(module, optimizer, loader)
    assert len(clipped) == len(loader)


def test_taking_it_back_leaves_opacus_as_it_was():
    samplers, clip = dict(GradSampleHooks.GRAD_SAMPLERS), opacus.optimizers.DPOptimizer.clip_and_accumulate
    undo = accelerate()
    assert samplers != GradSampleHooks.GRAD_SAMPLERS
    undo()
    assert samplers == GradSampleHooks.GRAD_SAMPLERS
    assert opacus.optimizers.DPOptimizer.clip_and_accumulate is clip


def test_an_empty_batch(accelerated):  # noqa: ARG001
    module, optimizer, _ = private(opacus.PrivacyEngine(), net(), noise_multiplier=1.0)
    before = vector(module)
    x, y = data().tensors
    nn.CrossEntropyLoss(reduction="sum")(module(x[:0]), y[:0]).backward()
    optimizer.step()
    assert bool((vector(module) != before).all())
