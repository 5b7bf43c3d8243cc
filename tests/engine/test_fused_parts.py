"""Runs of layers inside a larger module: fused, the rest layer by layer, and the module stays as it was."""

import math

import pytest
import torch
from torch import nn

from dpcgan_fast.engine.fused import FusedGradient
from tests.engine.nets import NETS, clipped_sum_by_microbatches, flat, row_losses
from tests.engine.steps import Sum, relative


class Parts(nn.Module):
    """Layers of its own between two runs that can be fused, as in an autoencoder with a condition."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv1d(1, 6, 5, 2), nn.GroupNorm(2, 6), nn.LeakyReLU(0.2))
        self.code = nn.Linear(6 * 8 + 2, 12)
        self.columns = nn.Sequential(nn.ConvTranspose1d(3, 5, 4, 2, 1), nn.SiLU(), nn.ConvTranspose1d(5, 1, 4, 2, 1))
        self.scores = nn.Sequential(nn.Flatten(), nn.Linear(16, 7), nn.Tanh(), nn.Linear(7, 2))

    def forward(self, x):
        features = torch.cat([self.trunk(x).flatten(1), x[:, 0, :2]], 1)
        columns = self.columns(torch.tanh(self.code(features)).unflatten(1, (3, 4)))
        return self.scores(columns) + columns.mean((1, 2), keepdim=True).squeeze(2)


class TestParts:
    @pytest.mark.usefixtures("simd_level")
    def test_runs_inside_of_a_module_are_fused_and_the_rest_goes_layer_by_layer(self):
        module, x = Parts(), torch.rand(21, 1, 19)
        total = Sum(module, 0.1)
        assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.1))) <= 1e-5
        last = total.step.last
        assert (last.path, last.why) == ("mixed", "module 'code' (Linear) is in no nn.Sequential")
        assert {layer.name: layer.fused for layer in last.layers} == {
            "trunk.0": True, "trunk.1": True, "code": False, "columns.0": True, "columns.2": True, "scores.1": True,
            "scores.3": True,
        }  # fmt: skip

    def test_layers_of_a_run_may_be_called_one_by_one(self):
        class ByHand(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = nn.Sequential(nn.Conv1d(1, 4, 5, 2), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32, 2))

            def forward(self, x):
                for layer in self.net:
                    x = layer(x)
                return x

        module, x = ByHand(), torch.rand(7, 1, 19)
        total = Sum(module, 0.1)
        assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.1))) <= 1e-5
        assert total.step.last.path == "layerwise"

    def test_changes_after_construction_are_noticed(self):
        build, shape = NETS["conv critic"]
        x = torch.rand(5, *shape)

        changes = [
            lambda module: setattr(module[1], "negative_slope", 0.9),
            lambda module: module.__setitem__(1, nn.LeakyReLU(0.9)),
        ]
        for change in changes:
            module = build()
            total = Sum(module, 0.1)
            total.of(x)
            change(module)
            assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.1))) <= 1e-5
            assert total.step.last.path == "layerwise"

    def test_the_module_is_left_as_it_was(self):
        module, x = Parts(), torch.rand(3, 1, 19)
        step = Sum(module, 0.1).step
        step(x)
        assert all("forward" not in part.__dict__ and not part._forward_hooks for part in module.modules())

        def broken(_):
            raise RuntimeError("on its way")

        module.code.forward = broken
        with pytest.raises(RuntimeError, match="on its way"):
            step(x)
        del module.code.forward
        assert all("forward" not in part.__dict__ and not part._forward_hooks for part in module.modules())

    def test_gradients_of_the_input_pass_through_a_fused_run(self):
        build, shape = NETS["conv critic"]
        module, x = build(), torch.rand(5, *shape)
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        output = Sum(module, 0.1).step(inputs[0])
        (fused,) = torch.autograd.grad(row_losses(output).sum(), inputs[0])
        (plain,) = torch.autograd.grad(row_losses(module(inputs[1])).sum(), inputs[1])
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-6)

    def test_units_of_several_rows_and_shared_parameters(self):
        module, x = Parts(), torch.rand(9, 1, 19)
        units = torch.tensor([3, 1, 3, 7, 1, 1, 9, 7, 4])
        expected = flat(clipped_sum_by_microbatches(module, x, 0.1, units))
        assert relative(Sum(module, 0.1).of(x, units=units), expected) <= 1e-5
        twice, plain = Sum(module, 0.1), Sum(module, 0.1, fused=False)
        for total in (twice, plain):
            total.step.backward(row_losses(total.step(x)) + row_losses(total.step(x * 0.5)))
        assert twice.step.last.why == "several forwards share a loss, now or in an earlier backward"
        assert relative(twice.take(), plain.take()) <= 1e-6

    @pytest.mark.parametrize("bound", [0.1, math.inf])
    def test_a_row_that_is_not_finite_adds_zero_everywhere(self, bound):
        module, x = Parts(), torch.rand(20, 1, 19)
        x[3] = math.nan
        got = Sum(module, bound).of(x)
        assert relative(got, Sum(module, bound).of(torch.cat([x[:3], x[4:]]))) <= 1e-6


class Scaled(nn.Module):
    """A trained layer before a run whose output has a hook on its gradient."""

    def __init__(self):
        super().__init__()
        self.pre = nn.Linear(6, 6)
        self.run = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        self.out = nn.Linear(6, 1)

    def forward(self, x):
        hidden = self.run(self.pre(x))
        if hidden.requires_grad:
            hidden.register_hook(lambda grad: grad * 1e-3)
        return self.out(hidden)


def test_what_is_summed_is_what_was_measured_where_a_hook_changes_the_gradient():
    torch.manual_seed(1)
    module, x = Scaled(), torch.randn(1, 6)
    module.out.weight.data.mul_(1e4)
    total = Sum(module, 1.0)
    total.step.backward(total.step(x).squeeze(1) * 1e4)
    assert float(total.take().norm()) <= 1 + 1e-6
    assert total.step.last.path == "mixed"


def test_how_many_rows_cancel_does_not_move_what_another_adds():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Conv1d(24, 48, 3, bias=False), nn.Tanh(), nn.Conv1d(48, 48, 3, bias=False))
    x = torch.randn(12, 24, 13)
    weights = torch.randn_like(module(x))
    for i in range(2):  # the same value everywhere, and a gradient that sums to zero, far beyond the bound
        x[i] = torch.linspace(0.3, 0.7, 24)[:, None] + 0.01 * i
        weights[i] -= weights[i].mean(-1, keepdim=True)
        weights[i] *= 1e6

    def total(rows):
        total = Sum(module, 1e-3)
        total.step.backward((total.step(x[rows]) * weights[rows]).flatten(1).sum(1))
        return total.take()

    everyone, without_first = total(slice(None)), total(slice(1, None))
    assert float((everyone - without_first).norm()) <= 1e-3 * (1 + 1e-6)


class Twice(nn.Module):
    """One run is used twice, which the first backward finds out."""

    def __init__(self):
        super().__init__()
        self.used = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.Tanh())
        self.last = nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv1d(4, 2, 1))

    def forward(self, x):
        return self.last(self.used(x) + self.used(-x))


def test_all_chunks_of_a_step_are_taken_alike():
    """Otherwise a row whose squares single precision cannot hold counts in one chunk, and is dropped in another."""
    torch.manual_seed(0)
    module, x, weights = Twice(), torch.randn(8, 3, 16), torch.randn(8, 2, 16)
    x[4], weights[4], weights[0] = x[0], 5e18, 1e3

    def total(rows):
        total = Sum(module, 1.0)
        for chunk in torch.tensor(rows).split(4):
            total.step.backward((total.step(x[chunk]) * weights[chunk]).sum((1, 2)))
        return total.take()

    assert float((total(range(8)) - total(range(1, 8))).norm()) <= 1 + 1e-6


def test_a_backward_that_fails_among_its_layers_adds_nothing(monkeypatch):
    torch.manual_seed(0)
    module, x = Parts(), torch.rand(5, 1, 19)
    total = Sum(module, 0.1)
    step = total.step
    whole = FusedGradient.weighted
    failures = iter([False, True])

    def weighted(self, factor):
        if next(failures, False):
            raise MemoryError
        return whole(self, factor)

    monkeypatch.setattr(FusedGradient, "weighted", weighted)
    with pytest.raises(MemoryError):
        step.backward(row_losses(step(x)))
    assert not step._private_sum
    step.backward(row_losses(step(x)))
    assert relative(total.take(), flat(clipped_sum_by_microbatches(module, x, 0.1))) <= 1e-5


@pytest.mark.parametrize("fused", [True, False])
def test_a_module_under_two_names_counts_once(fused):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)
            self.block = nn.Sequential(self.layer, nn.Tanh())

        def forward(self, x):
            return self.block(x)

    torch.manual_seed(0)
    module, x = Named(), torch.randn(9, 6)
    total = Sum(module, 0.5, fused=fused)
    assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.5))) <= 1e-5


def test_a_sequence_that_uses_a_layer_twice_goes_layer_by_layer():
    torch.manual_seed(0)
    layer = nn.Linear(6, 6)
    module, x = nn.Sequential(layer, nn.Tanh(), layer), torch.randn(9, 6)
    total = Sum(module, 0.5)
    assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.5))) <= 1e-5
    assert total.step.last.why == "a parameter is used by two layers"
