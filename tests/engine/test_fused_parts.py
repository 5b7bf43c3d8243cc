"""Runs of layers inside a larger module: fused, the rest layer by layer, and the module stays as it was."""

import math

import pytest
import torch
from torch import nn

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
        assert twice.step.last.why == "several forwards share a loss"
        assert relative(twice.take(), plain.take()) <= 1e-6

    @pytest.mark.parametrize("bound", [0.1, math.inf])
    def test_a_row_that_is_not_finite_adds_zero_everywhere(self, bound):
        module, x = Parts(), torch.rand(20, 1, 19)
        x[3] = math.nan
        got = Sum(module, bound).of(x)
        assert relative(got, Sum(module, bound).of(torch.cat([x[:3], x[4:]]))) <= 1e-6
