"""PrivateStep: its clipped sums, what it adds to them, and what it refuses."""

import copy
import math
import re

import pytest
import torch
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.engine import PrivateStep
from tests.engine.nets import CLIP_SHRINK, NETS, clipped_sum_by_microbatches, flat, row_losses

MODES = ("auto", "direct", "gram", "materialise")


def sgd_step(module, max_grad_norm=1.0, noise_multiplier=0.0, expected_batch_size=1.0, lr=1.0, **kwargs):
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    return PrivateStep(module, optimizer, max_grad_norm, noise_multiplier, expected_batch_size, **kwargs)


def moved(module, step) -> dict[str, torch.Tensor]:
    """What step.step() takes from the parameters: with SGD at lr 1, the gradient."""
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    step.step()
    return {name: before[name].double() - p.detach().double() for name, p in module.named_parameters()}


def linear_critic(features=6):
    return nn.Sequential(nn.Flatten(), nn.Linear(features, 1))


def assert_close(got, expected, rtol):
    assert (flat(got) - flat(expected)).norm() <= rtol * flat(expected).norm() + 1e-12


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


class TestUpdate:
    def test_with_sgd_parameters_change_by_the_formula(self):
        module = linear_critic()
        x, fakes = torch.rand(5, 6), torch.rand(8, 6)
        key = ops.NoiseKey(3)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
        step = PrivateStep(module, optimizer, 0.4, 1.5, expected_batch_size=7.5, noise_key=key)
        private = clipped_sum_by_microbatches(module, x, 0.4)
        public = clipped_sum_by_microbatches(module, fakes, 0.4)
        noise = [torch.zeros(1, 6, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)]
        ops.gaussian_noise_(noise, 1.5 * 0.4, ops.NoiseKey(3))
        step.backward(row_losses(step(x)))
        step.backward(row_losses(step(fakes)), private=False)
        got = moved(module, step)
        for (name, change), drawn in zip(got.items(), noise, strict=True):
            expected = 0.5 * ((private[name] + drawn) / 7.5 + public[name] / 8)
            torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-6)

    def test_real_and_fake_forwards_may_both_be_open_before_their_backwards(self):
        module = linear_critic()
        x, fakes = torch.rand(5, 6), torch.rand(8, 6)
        step, other = sgd_step(module), sgd_step(copy.deepcopy(module))
        real_out, fake_out = step(x), step(fakes)
        step.backward(row_losses(real_out))
        step.backward(row_losses(fake_out), private=False)
        other.backward(row_losses(other(fakes)), private=False)
        other.backward(row_losses(other(x)))
        assert_close(moved(module, step), moved(other._module, other), rtol=1e-6)

    def test_fakes_are_averaged_over_their_own_number_across_calls(self):
        module, fakes = linear_critic(), torch.rand(9, 6)
        expected = {n: g / 9 for n, g in clipped_sum_by_microbatches(module, fakes, 0.3).items()}
        step = sgd_step(module, 0.3, expected_batch_size=1234.0)
        for part in fakes.split(4):
            step.backward(row_losses(step(part)), private=False)
        assert_close(moved(module, step), expected, rtol=1e-4)

    def test_fakes_get_no_noise_and_do_not_depend_on_the_real_rows(self):
        """The difference that the fakes make is the same whatever the real batch holds."""
        differences = []
        for rows in (1, 7):
            changes = []
            for with_fakes in (False, True):
                torch.manual_seed(5)
                module = linear_critic()
                step = sgd_step(module, noise_multiplier=2.0, noise_key=ops.NoiseKey(1))
                step.backward(row_losses(step(torch.rand(rows, 6))))
                if with_fakes:
                    step.backward(row_losses(step(torch.ones(4, 6))), private=False)
                changes.append(flat(moved(module, step)))
            differences.append(changes[1] - changes[0])
        torch.testing.assert_close(differences[0], differences[1], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("rows", [0, 3, 24])
    def test_the_divisor_is_the_public_expected_batch_size_whatever_was_drawn(self, rows):
        module = nn.Linear(2, 1, bias=False)
        step = sgd_step(module, 1e9, expected_batch_size=8.0)
        step.backward(step(torch.ones(rows, 2)).sum(1))
        assert moved(module, step)["weight"].tolist() == [[pytest.approx(rows / 8)] * 2]

    @pytest.mark.parametrize("with_backward", [True, False])
    def test_an_empty_batch_gets_its_noise_all_the_same(self, with_backward):
        module = nn.Linear(300, 300)
        step = sgd_step(module, 2.0, noise_multiplier=1.5, expected_batch_size=4.0)
        if with_backward:
            step.backward(row_losses(step(torch.zeros(0, 300))), torch.zeros(0, dtype=torch.int64))
        change = flat(moved(module, step))
        assert float(change.std()) == pytest.approx(2.0 * 1.5 / 4.0, rel=0.02)
        assert change.isfinite().all()

    def test_noise_has_its_nominal_standard_deviation_end_to_end(self):
        module = nn.Linear(1000, 1000, bias=False)
        module.weight.data.zero_()
        step = sgd_step(module, 0.8, noise_multiplier=1.1, expected_batch_size=16.0)
        step.backward(0.0 * step(torch.rand(32, 1000)).sum(1))
        ratio = float(flat(moved(module, step)).std()) / (0.8 * 1.1 / 16.0)
        assert 0.99568 < ratio < 1.00432

    def test_noise_is_drawn_once_a_step_after_all_chunks(self):
        module = nn.Linear(8, 1)
        key = ops.NoiseKey()
        step = sgd_step(module, noise_multiplier=1.0, noise_key=key)
        for part in torch.rand(12, 8).split(5):
            step.backward(row_losses(step(part)))
            assert key.position == 0
        step.step()
        assert key.position == 2, "one block for the weight, one for the bias"

    def test_every_trainable_parameter_gets_noise_even_if_no_loss_reached_it(self):
        module = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        module.forward = lambda x: module[0](x)  # type: ignore[method-assign]
        step = sgd_step(module, noise_multiplier=1.0)
        step.backward(row_losses(step(torch.rand(3, 4))))
        assert all(change.abs().min() > 0 for change in moved(module, step).values())

    def test_noise_multiplier_zero_clips_without_noise(self):
        module, x = linear_critic(), torch.rand(5, 6)
        step = sgd_step(module, 0.1, noise_multiplier=0.0)
        expected = clipped_sum_by_microbatches(module, x, 0.1)
        step.backward(row_losses(step(x)))
        assert_close(moved(module, step), expected, rtol=1e-5)

    def test_no_gradient_of_an_earlier_step_or_of_anyone_else_enters(self):
        module, x = linear_critic(), torch.rand(5, 6)
        step = sgd_step(module, lr=1.0)
        step.backward(row_losses(step(x)))
        step.step()
        assert all(p.grad is None for p in module.parameters())
        expected = clipped_sum_by_microbatches(module, x[:2], 1.0)
        row_losses(module(100 * x)).sum().backward()  # left in .grad by other code, un-noised
        step.backward(row_losses(step(x[:2])))
        assert_close(moved(module, step), expected, rtol=1e-5)
        assert all(p.grad is None for p in module.parameters())

    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
    def test_a_gradient_that_others_left_on_a_frozen_parameter_does_not_move_it(self, kind):
        module, x = linear_critic(), torch.rand(5, 6)
        optimizer = kind(module.parameters(), lr=0.1, weight_decay=0.0)
        row_losses(module(x)).sum().backward()
        module[1].weight.requires_grad_(False)
        before = module[1].weight.detach().clone()
        step = PrivateStep(module, optimizer, 1.0, 0.0, 1.0)
        step.backward(row_losses(step(x)))
        step.step()
        assert torch.equal(module[1].weight, before)

    def test_a_failing_optimizer_leaves_no_gradient_behind(self):
        class Broken(torch.optim.SGD):
            def step(self, closure=None):  # noqa: ARG002
                raise RuntimeError("device lost")

        module = linear_critic()
        step = PrivateStep(module, Broken(module.parameters(), lr=1.0), 1.0, 0.0, 1.0)
        step.backward(row_losses(step(torch.rand(5, 6))))
        with pytest.raises(RuntimeError, match="device lost"):
            step.step()
        assert all(p.grad is None for p in module.parameters())
        assert step._private_sum == {}

    @pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.AdamW])
    def test_any_optimizer_sees_the_private_gradient(self, kind):
        module, x = linear_critic(), torch.rand(5, 6)
        twin = copy.deepcopy(module)
        step = PrivateStep(module, kind(module.parameters(), lr=0.1), 0.3, 0.0, 5.0)
        step.backward(row_losses(step(x)))
        step.step()
        optimizer = kind(twin.parameters(), lr=0.1)
        for (_name, p), g in zip(
            twin.named_parameters(), clipped_sum_by_microbatches(twin, x, 0.3).values(), strict=True
        ):
            p.grad = (g / 5.0).float()
        optimizer.step()
        for a, b in zip(module.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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


class TestMisuse:
    def test_a_second_backward_through_the_same_forward(self):
        step = sgd_step(linear_critic())
        losses = row_losses(step(torch.rand(3, 6)))
        step.backward(losses)
        with pytest.raises(ValueError, match="would count twice"):
            step.backward(losses)

    def test_a_second_backward_through_the_same_forward_of_a_deeper_net(self):
        build, shape = NETS["conv critic"]
        step = sgd_step(build())
        out = step(torch.rand(3, *shape))
        step.backward(row_losses(out))
        with pytest.raises(ValueError, match="would count twice"):
            step.backward(2 * row_losses(out))

    def test_a_used_forward_mixed_with_a_fresh_one(self):
        build, shape = NETS["conv critic"]
        step = sgd_step(build())
        x = torch.rand(3, *shape)
        used = row_losses(step(x))
        step.backward(used)
        with pytest.raises(ValueError, match="would count twice"):
            step.backward(used + row_losses(step(x)))

    @pytest.mark.parametrize("reduce", [torch.mean, torch.sum, lambda losses: losses[:, None]])
    def test_losses_that_are_not_one_a_row(self, reduce):
        step = sgd_step(linear_critic())
        with pytest.raises(ValueError, match=r"Expected losses of shape \(B,\)"):
            step.backward(reduce(row_losses(step(torch.rand(3, 6)))))

    def test_losses_of_another_batch_size_than_the_forward(self):
        step = sgd_step(linear_critic())
        losses = row_losses(step(torch.rand(4, 6)))
        with pytest.raises(ValueError, match="to have the B rows of the losses as its leading dimension"):
            step.backward(losses[:2] + losses[2:])

    def test_losses_that_come_from_the_plain_module(self):
        module = linear_critic()
        step = sgd_step(module)
        with pytest.raises(ValueError, match="do not depend on a forward of this step"):
            step.backward(row_losses(module(torch.rand(3, 6))))

    def test_a_unit_that_returns_in_a_later_chunk(self):
        step = sgd_step(linear_critic())
        step.backward(row_losses(step(torch.rand(2, 6))), torch.tensor([4, 5]))
        with pytest.raises(ValueError, match="already in an earlier chunk"):
            step.backward(row_losses(step(torch.rand(2, 6))), torch.tensor([5, 6]))
        step.step()
        step.backward(row_losses(step(torch.rand(2, 6))), torch.tensor([5, 6]))

    def test_units_for_rows_that_touch_no_data(self):
        step = sgd_step(linear_critic())
        with pytest.raises(ValueError, match="private=False"):
            step.backward(row_losses(step(torch.rand(2, 6))), torch.tensor([4, 5]), private=False)

    def test_rows_that_are_not_the_leading_dimension_inside_the_net(self):
        class Folded(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(3, 1)

            def forward(self, x):
                return self.linear(x.reshape(-1, 3)).reshape(len(x), -1)

        with pytest.raises(ValueError, match=r"'linear'.* the leading dimension"):
            sgd_step(Folded())(torch.rand(4, 6))
        step = sgd_step(Folded())
        losses = row_losses(step(torch.rand(1, 6)))  # too few rows for the check of the forward
        with pytest.raises(ValueError, match="'linear' to have the B rows"):
            step.backward(losses)

    def test_no_error_tells_how_many_rows_were_drawn(self):
        """Nor a shape that does: the size of a Poisson draw is private, and error texts leave the process."""
        rows = 1237

        class Folded(nn.Module):
            def __init__(self, layer):
                super().__init__()
                self.layer = layer

            def forward(self, x):
                return self.layer(x.transpose(0, 1)).transpose(0, 1).flatten(1)

        class Own(nn.Linear):
            pass

        def misuse(module, x, units=None):
            step = sgd_step(module)
            step._rows_known_apart = {True}  # so that the errors of the backward are reached
            step.backward(row_losses(step(x)), units)

        flat_rows = torch.rand(rows, 6)
        for attempt in (
            lambda: misuse(Folded(nn.Linear(3, 1)), torch.rand(rows, 2, 3)),
            lambda: misuse(Folded(Own(3, 1)), torch.rand(rows, 2, 3)),
            lambda: misuse(linear_critic(), flat_rows, torch.zeros(rows - 1, dtype=torch.int64)),
            lambda: misuse(linear_critic(), flat_rows, torch.zeros(rows)),
        ):
            with pytest.raises(ValueError, match="row") as caught:
                attempt()
            assert not {str(rows), str(rows - 1)} & set(re.findall(r"\d+", str(caught.value)))

    def test_a_parameter_used_outside_of_its_layer(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.encode = nn.Linear(6, 3)

            def forward(self, x):
                return torch.tanh(self.encode(x)) @ self.encode.weight

        step = sgd_step(Tied())
        losses = row_losses(step(torch.rand(4, 6)))
        with pytest.raises(ValueError, match=r"'encode\.weight' is used outside"):
            step.backward(losses)

    @pytest.mark.parametrize(("fused", "place"), [(True, r"\(root\)"), (False, "1")])
    def test_an_input_changed_in_place_after_its_use(self, fused, place):
        step = sgd_step(linear_critic(), fused=fused)
        x = torch.rand(4, 6)
        losses = row_losses(step(x))
        x.add_(1)
        with pytest.raises(ValueError, match=f"An input of module '{place}' was changed in place"):
            step.backward(losses)

    def test_dropout_in_a_module_without_a_rule(self):
        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = nn.Parameter(torch.ones(6))
                self.drop = nn.Dropout(0.5)

            def forward(self, x):
                return self.drop(x * self.scale)

        step = sgd_step(Own())
        losses = row_losses(step(torch.rand(4, 6)))
        with pytest.raises(ValueError, match="contains dropout"):
            step.backward(losses)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (dict(max_grad_norm=0.0), "Expected max_grad_norm=0.0 >= 1e-12"),
            (dict(max_grad_norm=math.nan), "Expected max_grad_norm=nan >= 1e-12"),
            (dict(noise_multiplier=-1.0), "Expected a finite noise_multiplier=-1.0 >= 0"),
            (dict(noise_multiplier=math.inf), "noise_multiplier=inf"),
            (dict(max_grad_norm=math.inf, noise_multiplier=1.0), "Expected noise_multiplier=0 with max_grad_norm=inf"),
            (dict(expected_batch_size=0), "Expected a finite expected_batch_size=0 > 0"),
            (dict(expected_batch_size=math.nan), "expected_batch_size=nan"),
            (dict(norm_mode="ghost"), "Expected mode to be one of"),
        ],
    )
    def test_bad_settings(self, change, message):
        with pytest.raises(ValueError, match=message):
            sgd_step(linear_critic(), **{**dict(max_grad_norm=1.0), **change})

    def test_an_optimizer_with_parameters_of_another_module(self):
        module, other = linear_critic(), linear_critic()
        optimizer = torch.optim.SGD([*module.parameters(), *other.parameters()], lr=1.0)
        with pytest.raises(ValueError, match=r"holds 2 parameter\(s\) that are not the module's"):
            PrivateStep(module, optimizer, 1.0, 1.0, 1.0)

    def test_an_optimizer_without_trainable_parameters(self):
        module = linear_critic().requires_grad_(False)
        with pytest.raises(ValueError, match="no parameter of the module that requires a gradient"):
            sgd_step(module)


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
