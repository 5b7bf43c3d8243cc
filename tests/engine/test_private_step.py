"""PrivateStep: its clipped sums, the module that it leaves plain, and what it reports."""

import copy
import math

import pytest
import torch
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.engine import PrivateStep
from tests.engine.nets import CLIP_SHRINK, NETS, clipped_sum_by_microbatches, flat, row_losses
from tests.engine.steps import assert_close, linear_critic, moved, sgd_step

MODES = ("auto", "direct", "gram", "materialise")


class TestClippedSum:
    @pytest.mark.parametrize("name", NETS)
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("grouped", [False, True])
    def test_equals_the_float64_microbatch_reference(self, name, mode, grouped):
        build, shape = NETS[name]
        module = build().double()
        x = torch.rand(9, *shape, dtype=torch.float64)
        units = torch.tensor([3, 1, 3, 7, 1, 1, 9, 7, 4]) if grouped else None
        norms = [flat(clipped_sum_by_microbatches(module, x[i : i + 1], math.inf)).norm() for i in range(9)]
        median = float(torch.stack(norms).median())  # so that some rows are clipped and some are not
        expected = clipped_sum_by_microbatches(module, x, median, units)
        step = sgd_step(module, median, norm_mode=mode)
        step.backward(row_losses(step(x)), units)
        assert_close(moved(module, step), expected, rtol=1e-12)

    @pytest.mark.parametrize("name", NETS)
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.usefixtures("simd_level")
    def test_in_float32(self, name, mode):
        build, shape = NETS[name]
        module, x = build(), torch.rand(17, *shape)
        expected = clipped_sum_by_microbatches(module, x, 0.5)
        # A learning rate far below the parameters' own rounding would hide the sum; one far above shows it.
        step = sgd_step(module, 0.5, norm_mode=mode, lr=1e6)
        step.backward(row_losses(step(x)))
        got = {name: grad / 1e6 for name, grad in moved(module, step).items()}
        assert_close(got, expected, rtol=2e-5)

    @pytest.mark.parametrize("rows", [1, 2, 7, 64])
    @pytest.mark.parametrize("chunk", [1, 3, 64])
    def test_does_not_depend_on_chunks(self, rows, chunk):
        build, shape = NETS["conv critic"]
        module, x = build().double(), torch.rand(rows, *shape, dtype=torch.float64)
        expected = clipped_sum_by_microbatches(module, x, 0.3)
        step = sgd_step(module, 0.3)
        for part in x.split(chunk):
            step.backward(row_losses(step(part)))
        assert_close(moved(module, step), expected, rtol=1e-12)

    def test_clips_the_unit_and_not_its_rows(self):
        """A patient with 50 visits moves the sum by C, not by 50 C."""
        module = linear_critic()
        x = torch.rand(50, 6) + 1
        step = sgd_step(module, 1.0)
        step.backward(row_losses(step(x)), torch.zeros(50, dtype=torch.int64))
        assert float(flat(moved(module, step)).norm()) == pytest.approx(CLIP_SHRINK, rel=1e-6)

    def test_clips_over_all_layers_together(self):
        build, shape = NETS["autoencoder"]
        module = build()
        step = sgd_step(module, 1e-3)
        step.backward(row_losses(step(torch.rand(1, *shape))))
        assert float(flat(moved(module, step)).norm()) == pytest.approx(1e-3 * CLIP_SHRINK, rel=1e-4)

    def test_several_forwards_of_the_same_rows_add_before_the_norm(self):
        module = nn.Linear(4, 1, bias=False)
        x, y = torch.rand(5, 4), torch.rand(5, 4)
        step = sgd_step(module, 0.2)
        step.backward((step(x) + 2 * step(y)).squeeze(1))
        rows = x + 2 * y
        expected = (rows * (0.2 * CLIP_SHRINK / rows.norm(dim=1, keepdim=True)).clamp(max=1)).sum(0)
        torch.testing.assert_close(moved(module, step)["weight"].float()[0], expected, rtol=1e-5, atol=1e-6)

    def test_infinite_max_grad_norm_is_the_plain_gradient(self):
        build, shape = NETS["residual"]
        module, x = build(), torch.rand(8, *shape)
        plain = copy.deepcopy(module)
        row_losses(plain(x)).mean().backward()
        step = sgd_step(module, math.inf, expected_batch_size=8)
        step.backward(row_losses(step(x)))
        assert_close(moved(module, step), {n: p.grad for n, p in plain.named_parameters()}, rtol=1e-4)

    def test_frozen_parameters_neither_move_nor_count(self):
        module = nn.Sequential(nn.Linear(6, 5), nn.GroupNorm(1, 5), nn.Linear(5, 1)).double()
        module[0].weight.requires_grad_(False)
        module[1].bias.requires_grad_(False)
        x = torch.rand(4, 6, dtype=torch.float64)
        expected = clipped_sum_by_microbatches(module, x, 0.1)
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1.0)
        step = PrivateStep(module, optimizer, 0.1, 0.0, 1.0)
        step.backward(row_losses(step(x)))
        got = moved(module, step)
        assert got.pop("0.weight").abs().max() == 0
        assert got.pop("1.bias").abs().max() == 0
        assert_close(got, expected, rtol=1e-12)

    def test_half_types_are_measured_as_they_are_summed(self):
        module = nn.Sequential(nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(32, 1)).bfloat16()
        x = torch.rand(3, 1, 10, dtype=torch.bfloat16)
        step = sgd_step(module, 1e-3)
        sums = step._private_sum
        step.backward(row_losses(step(x)))
        total = math.sqrt(sum(float(g.square().sum()) for g in sums.values()))
        assert 0 < total <= 3e-3


class TestSensitivity:
    """Removing one unit never moves the sum by more than C (1 + 1e-6)."""

    @pytest.mark.parametrize("name", NETS)
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("chunk", [3, 64])
    @pytest.mark.parametrize("grouped", [False, True])
    def test_removing_a_unit(self, name, mode, chunk, grouped):
        build, shape = NETS[name]
        module = build()
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(12, *shape, generator=generator)
            x[0] *= 1e6
            x[1] = 5 + 1e-4 * x[1]
            units = torch.arange(12) // 3 if grouped else torch.arange(12)
            whole = self.clipped_sum(module, x, units, mode, chunk)
            for unit in units.unique()[:4]:
                rest = self.clipped_sum(module, x[units != unit], units[units != unit], mode, chunk)
                assert float((whole - rest).norm()) <= 0.7 * (1 + 1e-6)

    @staticmethod
    def clipped_sum(module, x, units, mode, chunk):
        step = sgd_step(module, 0.7, norm_mode=mode)
        for part in units.unique().split(max(1, chunk // 3)):
            rows = torch.isin(units, part)
            step.backward(row_losses(step(x[rows])), units[rows])
        return torch.cat([step._private_sum[p].flatten() for p in module.parameters() if p in step._private_sum])

    @pytest.mark.parametrize("bad", [math.nan, math.inf, 1e38])
    @pytest.mark.parametrize("name", ["conv critic", "autoencoder", "sequence", "own module"])
    def test_a_unit_that_is_not_finite_counts_as_zero(self, name, bad):
        build, shape = NETS[name]
        module, x = build(), torch.rand(4, *shape)
        expected = clipped_sum_by_microbatches(module, x[1:], 1.0)
        x[0].fill_(bad)
        step = sgd_step(module, 1.0, lr=1e6)
        step.backward(row_losses(step(x)))
        got = {n: g / 1e6 for n, g in moved(module, step).items()}
        if math.isfinite(bad) and flat(got).isfinite().all():
            assert (flat(got) - flat(expected)).norm() <= 1 + 1e-5
        else:
            assert_close(got, expected, rtol=1e-4)

    def test_a_unit_with_one_bad_row_loses_all_its_rows(self):
        module, x = linear_critic(), torch.rand(4, 6)
        x[1, 2] = math.nan
        expected = clipped_sum_by_microbatches(module, x[2:], 1.0)
        step = sgd_step(module, 1.0)
        step.backward(row_losses(step(x)), torch.tensor([0, 0, 1, 2]))
        assert_close(moved(module, step), expected, rtol=1e-5)


class TestPlainModule:
    def test_the_module_itself_stays_plain_pytorch(self):
        build, shape = NETS["conv critic"]
        module, x = build(), torch.rand(3, *shape)
        before = {name: list(m._forward_hooks) for name, m in module.named_modules()}
        step = sgd_step(module)
        out = step(x)
        assert {name: list(m._forward_hooks) for name, m in module.named_modules()} == before
        torch.testing.assert_close(out, module(x))
        row_losses(module(x)).sum().backward()
        assert all(p.grad is not None for p in module.parameters())

    def test_hooks_are_gone_after_a_forward_that_fails(self):
        module = linear_critic()
        step = sgd_step(module)
        with pytest.raises(RuntimeError):
            step(torch.rand(3, 7))
        assert all(not m._forward_hooks for m in module.modules())

    def test_without_gradients_it_is_a_plain_forward(self):
        module = linear_critic()
        step = sgd_step(module)
        with torch.no_grad():
            out = step(torch.rand(3, 6))
        assert not out.requires_grad
        assert step._calls == []

    def test_keyword_arguments_and_several_inputs(self):
        class Conditional(nn.Module):
            def __init__(self):
                super().__init__()
                self.x, self.y = nn.Linear(4, 3), nn.Linear(2, 3)

            def forward(self, both, *, label=None):
                x, label = (both[:, :4], both[:, 4:]) if label is None else (both, label)
                return self.x(x) * torch.tanh(self.y(label))

        module, x, label = Conditional().double(), torch.rand(5, 4).double(), torch.rand(5, 2).double()
        expected = clipped_sum_by_microbatches(module, torch.cat([x, label], 1), 0.2)
        step = sgd_step(module, 0.2)
        step.backward(row_losses(step(x, label=label)))
        assert_close(moved(module, step), expected, rtol=1e-12)


class TestLast:
    def test_says_which_path_and_mode_each_layer_took_and_why(self):
        build, shape = NETS["own module"]
        module = build()
        step = sgd_step(module)
        step.backward(row_losses(step(torch.rand(3, *shape))))
        assert step.last is not None
        by_name = {layer.name: layer for layer in step.last.layers}
        assert by_name["0"].rule == "linear"
        assert by_name["0"].mode == "gram"
        assert by_name["1"].rule == "torch.func"
        assert "no rule for this use of OwnParameter" in by_name["1"].reason
        assert step.last.path == "layerwise"
        assert step.last.backend == "native"
        assert "torch.func" in str(step.last)

    def test_holds_nothing_that_depends_on_the_batch_unless_asked(self):
        reports = []
        for rows in (2, 9):
            module = linear_critic()
            step = sgd_step(module)
            step.backward(row_losses(step(torch.rand(rows, 6))))
            reports.append(step.last)
        assert reports[0] == reports[1]
        assert reports[0].debug == {}
        step = sgd_step(linear_critic(), debug=True)
        step.backward(row_losses(step(torch.rand(9, 6))))
        assert step.last.debug == {"rows": 9, "chunks": 1}


def test_opacus_gives_the_same_norms_and_clipped_sums():
    """Cross-check with another implementation: Opacus' hooks on nets that it supports."""
    grad_sample = pytest.importorskip("opacus.grad_sample", reason="Opacus comes with the dev extra")
    build_sequence = lambda: nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.ReLU(), nn.Linear(7, 2))  # noqa: E731
    for build, shape in (NETS["conv critic"], (build_sequence, (6, 5))):
        module, x = build(), torch.rand(11, *shape)
        theirs = grad_sample.GradSampleModule(copy.deepcopy(module), loss_reduction="sum")
        row_losses(theirs(x)).sum().backward()
        grads = [p.grad_sample for p in theirs.parameters()]
        norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
        sums, our_norms = ops.clip_and_sum(grads, 0.5)
        torch.testing.assert_close(our_norms, norms, rtol=1e-5, atol=0)
        step = sgd_step(module, 0.5, lr=1e6)
        step.backward(row_losses(step(x)))
        got = {n: g / 1e6 for n, g in moved(module, step).items()}
        assert_close(got, dict(enumerate(sums)), rtol=5e-5)
