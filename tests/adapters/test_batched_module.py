"""dp_grad with a module: what the engine runs for all rows at once, and what it leaves to vmap."""

from unittest.mock import Mock

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from dpcgan_fast.adapters.functional import dp_grad
from dpcgan_fast.engine import fused
from tests.adapters.losses import assert_near, clipped_by_rows, loss_of, values_of
from tests.engine.nets import NETS, clipped_sum_by_microbatches


def test_the_module_may_be_given_values_other_than_its_own_and_keeps_its_own():
    build, shape = NETS["conv critic"]
    module, other = build(), build()
    before, kept = dict(module.named_parameters()), values_of(module)
    x = torch.randn(5, *shape)
    of_module = dp_grad(loss_of(module), max_grad_norm=0.5, module=module)
    for source in (other, module, other):
        sums, info = of_module(values_of(source), x)
        assert info.report.path == "module"
        assert info.report.engine.path == "fused"
        assert_near(sums, clipped_sum_by_microbatches(source, x, 0.5))
    sums, _ = of_module(dict(module.named_parameters()), x)
    assert_near(sums, clipped_sum_by_microbatches(module, x, 0.5))
    assert not any(s.requires_grad for s in sums.values())
    assert all(before[name] is p for name, p in module.named_parameters())
    assert all(torch.equal(kept[name], p) and p.grad is None for name, p in module.named_parameters())
    assert "forward" not in module.__dict__


def test_a_part_of_the_parameters_has_sums_for_itself():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    x = torch.randn(6, 4)
    part = {name: p for name, p in values_of(module).items() if name.startswith("2")}
    by_vmap, _ = dp_grad(loss_of(module), max_grad_norm=0.1)(part, x)
    by_module, info = dp_grad(loss_of(module), max_grad_norm=0.1, module=module)(part, x)
    assert info.report.path == "module"
    assert_near(by_module, by_vmap)


def test_rows_that_the_engine_runs_again_have_the_values_that_were_given(monkeypatch):
    """A row whose gradient cancels is run again in double, after the function has returned."""
    module, other = (
        nn.Sequential(nn.Conv1d(24, 48, 3, bias=False), nn.Tanh(), nn.Conv1d(48, 48, 3, bias=False)) for _ in range(2)
    )
    again = Mock(side_effect=fused.layers_again)
    monkeypatch.setattr(fused, "layers_again", again)
    x, weights = torch.randn(6, 24, 13), torch.randn(6, 48, 9)
    x[1] = torch.linspace(0.3, 0.7, 24)[:, None]
    weights[1] -= weights[1].mean(-1, keepdim=True)

    def loss_fn(params, x, weights):
        return (functional_call(module, params, (x.unsqueeze(0),)) * weights).sum()

    params = values_of(other)
    sums, info = dp_grad(loss_fn, max_grad_norm=1e-3, module=module)(params, x, weights)
    assert again.called
    assert info.report.engine.path == "fused"
    expected, _ = clipped_by_rows(loss_fn, params, list(zip(x, weights, strict=True)), 1e-3)
    assert_near(sums, expected, 1e-2)  # what is left of the row that cancels is rounding, and clipped to full size


def test_two_calls_of_the_module_in_one_loss_add_before_the_norm_is_taken():
    build, shape = NETS["conv critic"]
    module = build()

    def loss_fn(params, real, fake):
        score = functional_call(module, params, (fake.unsqueeze(0),)) - functional_call(
            module, params, (real.unsqueeze(0),)
        )
        return score.square().sum()

    real, fake = torch.randn(5, *shape), torch.randn(5, *shape)
    params = values_of(module)
    by_vmap, _ = dp_grad(loss_fn, max_grad_norm=0.1)(params, real, fake)
    of_module = dp_grad(loss_fn, max_grad_norm=0.1, module=module)
    for _ in range(2):
        by_module, info = of_module(params, real, fake)
        assert info.report.path == "module"
        assert_near(by_module, by_vmap)


def test_the_module_may_be_given_its_own_output():
    module = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))

    def loss_fn(params, x):
        once = functional_call(module, params, (x.unsqueeze(0),))
        return functional_call(module, params, (once + x,)).square().sum()

    params, x = values_of(module), torch.randn(5, 4)
    of_module = dp_grad(loss_fn, max_grad_norm=0.1, module=module)
    for _ in range(2):
        sums, info = of_module(params, x)
        assert info.report.path == "module"
        assert_near(sums, dp_grad(loss_fn, max_grad_norm=0.1)(params, x)[0])


class Centred(nn.Module):
    """Mixes the rows of a batch, which is nothing to a batch of one."""

    def forward(self, x):
        return x - 0.5 * x.mean(0)


def unbatched(module):
    return lambda params, x: functional_call(module, params, (x,)).square().sum()


def ignores_params(module):
    return lambda params, x: module(x.unsqueeze(0)).square().sum() + params["0.bias"].sum()


def decayed(module):
    return lambda params, x: loss_of(module)(params, x) + params["0.weight"].square().sum()


def scaled(module):
    return lambda params, x: loss_of(module)({name: 2 * p for name, p in params.items()}, x)


def linear_in_params(_module):
    return lambda params, x: x.sum() * torch.stack([p.sum() for p in params.values()]).sum()


def twice_inside(module):
    return lambda params, x: vmap(lambda part: loss_of(module)(params, part))(torch.stack([x, -x])).sum()


@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (unbatched, "a batch of one row, as in x.unsqueeze"),
        (ignores_params, "with the parameters as they were given"),
        (decayed, "Parameter '0.weight' is used outside of the layer"),
        (scaled, "with the parameters as they were given"),
        (twice_inside, "inside of a vmap of its own"),
        (linear_in_params, "does not depend on a call"),
    ],
)
def test_what_the_engine_cannot_run_for_all_rows_takes_vmap_and_says_why(loss, why):
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    params, x = values_of(module), torch.randn(5, 4)
    expected, _ = dp_grad(loss(module), max_grad_norm=0.5)(params, x)
    sums, info = dp_grad(loss(module), max_grad_norm=0.5, module=module)(params, x)
    assert info.report.path == "vmap"
    assert why in info.report.why
    assert why in str(info.report)
    assert_near(sums, expected, 1e-7)
    assert "forward" not in module.__dict__


def test_parameters_of_another_kind_and_modules_with_hooks_take_vmap():
    module, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(5, 4)
    params, expected = values_of(module), clipped_sum_by_microbatches(module, x, 0.5)
    doubles = {name: p.double() for name, p in params.items()}
    sums, info = dp_grad(loss_of(module), max_grad_norm=0.5, module=module)(doubles, x.double())
    assert "has another shape, dtype or device" in info.report.why
    assert_near(sums, expected)

    def of_values(values, x):
        return loss_of(module)(dict(zip(params, values, strict=True)), x)

    sums, info = dp_grad(of_values, max_grad_norm=0.5, module=module)(list(params.values()), x)
    assert "not asked for a dict of parameters" in info.report.why
    assert_near(dict(zip(params, sums, strict=True)), expected)
    sums, info = dp_grad(of_values, max_grad_norm=0.5, module=module, argnums=(0,))(list(params.values()), x)
    assert "a tuple of arguments" in info.report.why
    module.register_forward_hook(lambda _module, _args, output: 2 * output)
    sums, info = dp_grad(loss_of(module), max_grad_norm=0.5, module=module)(params, x)
    assert "has hooks or a forward of its own" in info.report.why
    assert_near(sums, dp_grad(loss_of(module), max_grad_norm=0.5)(params, x)[0], 1e-7)


def test_rows_that_only_a_batch_would_mix_take_vmap():
    module = nn.Sequential(nn.Linear(4, 3), Centred(), nn.Linear(3, 1))
    params, x = values_of(module), torch.randn(5, 4)
    sums, info = dp_grad(loss_of(module), max_grad_norm=0.5, module=module)(params, x)
    assert info.report.path == "vmap"
    assert "Module '1' (Centred) mixes rows" in info.report.why
    expected, _ = clipped_by_rows(loss_of(module), params, [(row,) for row in x], 0.5)
    assert_near(sums, expected)


def test_a_convolution_without_a_batch_dimension_never_takes_rows_for_channels():
    module = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Conv1d(2, 1, 2))
    for rows in (1, 4):
        params, x = values_of(module), torch.randn(rows, 1, 9)
        expected, _ = dp_grad(unbatched(module), max_grad_norm=0.5)(params, x)
        sums, _ = dp_grad(unbatched(module), max_grad_norm=0.5, module=module)(params, x)
        assert_near(sums, expected)


def test_buffers_may_be_given_too():
    module = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
    module.register_buffer("shift", torch.zeros(1))
    buffers = {"shift": torch.ones(1)}

    def loss_fn(params, buffers, x):
        return functional_call(module, (params, buffers), (x.unsqueeze(0),)).square().sum()

    params, x = values_of(module), torch.randn(5, 4)
    of_module = dp_grad(loss_fn, max_grad_norm=0.5, in_dims=(None, None, 0), module=module)
    sums, info = of_module(params, buffers, x)
    assert info.report.path == "module"
    expected, _ = dp_grad(loss_fn, max_grad_norm=0.5, in_dims=(None, None, 0))(params, buffers, x)
    assert_near(sums, expected)


def test_dropout_draws_a_mask_for_each_row():
    module = nn.Sequential(nn.Linear(6, 50), nn.Dropout(0.5), nn.Linear(50, 1))
    x = torch.randn(1, 6).expand(8, 6)
    for given_module in (None, module):
        _, info = dp_grad(loss_of(module), max_grad_norm=0.5, module=given_module)(values_of(module), x)
        assert info.report.path == ("vmap" if given_module is None else "module")
        assert len(info.losses.unique()) == 8


def test_an_error_of_the_function_does_not_leave_the_path_behind():
    module = nn.Sequential(nn.Linear(3, 1))
    params, x = values_of(module), torch.randn(5, 3)

    def loss_fn(params, x, y):
        if y.shape != (1,):
            raise ValueError("y has another shape")
        return (functional_call(module, params, (x.unsqueeze(0),)) - y).square().sum()

    of_module = dp_grad(loss_fn, max_grad_norm=1.0, module=module)
    with pytest.raises(ValueError, match="y has another shape"):
        of_module(params, x, torch.randn(5, 2))
    assert of_module(params, x, torch.randn(5, 1))[1].report.path == "module"
