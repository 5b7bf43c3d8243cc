"""What PrivateStep adds to its clipped sums and divides them by: noise, the public divisor, rows that touch no data."""

import copy

import pytest
import torch
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.engine import PrivateStep
from tests.engine.nets import clipped_sum_by_microbatches, flat, row_losses
from tests.engine.steps import assert_close, linear_critic, moved, sgd_step


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
        assert_close(moved(module, step), moved(other._recorded.module, other), rtol=1e-6)

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
