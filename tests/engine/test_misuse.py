"""What PrivateStep refuses, and what it says then."""

import math
import re

import pytest
import torch
from torch import nn

from dpcgan_fast.engine import PrivateStep
from tests.engine.nets import NETS, row_losses
from tests.engine.steps import linear_critic, sgd_step


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

    def test_a_loss_that_went_to_its_own_backward(self):
        """Its gradient is dropped, and the step is noise alone, as without any backward; but not without a word."""
        module = linear_critic()
        step = sgd_step(module)
        step(torch.rand(3, 6)).mean().backward()
        before = module[1].weight.detach().clone()
        with pytest.warns(UserWarning, match=r"step\.backward was not called"):
            step.step()
        assert torch.equal(module[1].weight, before)

    def test_an_empty_draw_is_no_misuse(self):
        step = sgd_step(linear_critic())
        step.backward(row_losses(step(torch.rand(0, 6))))
        step.step()

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
            step._recorded.rows_known_apart = {True}  # so that the errors of the backward are reached
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


class TestLossesThatMixRows:
    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize(
        "loss",
        [
            lambda out: (out - out.mean()).square(),
            lambda out: out / out.detach().norm() * out.sum(),
            lambda out: out.flip(0),
            lambda out: torch.cat([out[:1], out[1:] - out[:-1]]),
            lambda out: torch.arange(4) * (out - out.mean()),
        ],
        ids=["centred", "scaled by a sum", "of another row", "of the row before", "but for the first"],
    )
    @pytest.mark.parametrize("public_rows_first", [True, False])
    def test_are_refused_at_the_first_batch(self, loss, fused, public_rows_first):
        net = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(12, 1))
        step = PrivateStep(net, torch.optim.SGD(net.parameters()), 1.0, 1.0, 4.0, fused=fused)
        if public_rows_first:
            step.backward(step(torch.rand(4, 1, 8)).squeeze(1), private=False)
        with pytest.raises(ValueError, match="A loss depends on another row"):
            step.backward(loss(step(torch.rand(4, 1, 8)).squeeze(1)))

    def test_a_batch_without_gradients_settles_nothing(self):
        net = nn.Sequential(nn.Linear(3, 1))
        step = PrivateStep(net, torch.optim.SGD(net.parameters()), 1.0, 1.0, 4.0)
        step.backward(0 * step(torch.rand(4, 3)).squeeze(1))
        out = step(torch.rand(4, 3)).squeeze(1)
        with pytest.raises(ValueError, match="A loss depends on another row"):
            step.backward(out - out.mean())

    def test_rows_that_are_not_finite_are_no_sign_of_it(self):
        net = nn.Sequential(nn.Linear(3, 1))
        step = PrivateStep(net, torch.optim.SGD(net.parameters()), 1.0, 1.0, 4.0)
        x = torch.rand(4, 3)
        x[1:] = torch.tensor([[float("nan")], [float("inf")], [-float("inf")]])
        step.backward(step(x).squeeze(1).exp())

    def test_several_dimensions_are_told_apart_from_a_reduced_loss(self):
        net = nn.Sequential(nn.Linear(3, 1))
        step = PrivateStep(net, torch.optim.SGD(net.parameters()), 1.0, 1.0, 4.0)
        with pytest.raises(ValueError, match=r"losses.flatten\(1\).sum\(1\)"):
            step.backward(step(torch.rand(4, 3)))
        with pytest.raises(ValueError, match="reduction='none'"):
            step.backward(step(torch.rand(4, 3)).mean())
