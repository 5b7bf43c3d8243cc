"""The one-pass update moves parameters as the optimizer would, keeps its state, and says where it does not apply."""

import copy

import pytest
import torch
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.engine.update import noisy_gradients, own_step
from dpcgan_fast.privacy import noise_key
from tests.engine.nets import row_losses

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    "sgd with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.99), weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, alpha=0.9),
}


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(1, 6, 5, 2), nn.GroupNorm(2, 6), nn.LeakyReLU(0.2), nn.Conv1d(6, 1, 9))


def train(module, optimizer, steps=5, fakes=True, hook=False):
    """Some noised steps; a hook on the optimizer makes it take its own step."""
    if hook:
        optimizer.register_step_post_hook(lambda *_: None)
    step = PrivateStep(module, optimizer, 0.1, 0.5, 8.0, noise_key=noise_key(seed=1))
    torch.manual_seed(0)
    for _ in range(steps):
        step.backward(row_losses(step(torch.rand(7, 1, 21))))
        if fakes:
            step.backward(row_losses(step(torch.rand(5, 1, 21))), private=False)
        step.step()
    return step


def vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fakes", [True, False])
@pytest.mark.usefixtures("simd_level")
def test_it_is_the_optimizers_own_step_for_the_same_noise(name, fakes):
    ours, theirs = net(), net()
    one, other = OPTIMIZERS[name](ours.parameters()), OPTIMIZERS[name](theirs.parameters())
    assert train(ours, one, fakes=fakes).last.update.startswith("one pass")
    assert train(theirs, other, fakes=fakes, hook=True).last.update == "optimizer.step(): the optimizer has hooks"
    torch.testing.assert_close(vector(ours), vector(theirs), rtol=1e-5, atol=1e-6)
    assert (vector(ours) - vector(net())).norm() > 1e-3
    for entry, state in one.state_dict()["state"].items():
        for key, value in state.items():
            torch.testing.assert_close(value, other.state_dict()["state"][entry][key], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_goes_on_from_the_state_that_it_left(name):
    module = net()
    optimizer = OPTIMIZERS[name](module.parameters())
    train(module, optimizer, steps=2)
    copied = copy.deepcopy(module)
    restored = OPTIMIZERS[name](copied.parameters())
    restored.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameter, other in zip(module.parameters(), copied.parameters(), strict=True):
        parameter.grad = torch.ones_like(parameter)
        other.grad = torch.ones_like(other)
    optimizer.step()
    restored.step()
    assert torch.equal(vector(module), vector(copied))


def test_a_step_without_rows_is_noise_alone_and_leaves_no_gradient():
    module = net()
    before = vector(module)
    step = PrivateStep(module, torch.optim.SGD(module.parameters(), lr=1.0), 2.0, 3.0, 4.0)
    step.step()
    moved = before - vector(module)
    assert float(moved.std()) == pytest.approx(2.0 * 3.0 / 4.0, rel=0.3)
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda p: torch.optim.AdamW(p), "AdamW is not plain SGD, Adam or RMSprop"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "the optimizer uses amsgrad"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.1), "the optimizer uses dampening"),
        (lambda p: torch.optim.RMSprop(p, momentum=0.1), "the optimizer uses momentum"),
        (lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 0.1}]), "several parameter groups"),
    ],
)
def test_other_optimizers_take_their_own_step_and_the_report_says_why(make, why):
    module = net()
    step = train(module, make(list(module.parameters())), steps=1)
    assert step.last.update.startswith("optimizer.step(): ")
    assert why in step.last.update
    assert f"update: {step.last.update}" in str(step.last)


def test_a_scheduler_that_counts_steps_keeps_counting():
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    step = train(module, optimizer, steps=1)
    scheduler.step()
    assert step.last.update == "optimizer.step(): a learning rate scheduler counts the optimizer's steps"


def test_parameters_changed_by_it_are_noticed_by_autograd():
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    step = PrivateStep(module, optimizer, 1.0, 0.0, 1.0)
    x = torch.rand(3, 1, 21, requires_grad=True)
    plain = module(x).sum()
    step.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        plain.backward()


class TestGradientsForAnOptimizersOwnStep:
    """`noisy_gradients`: what is left in `p.grad` where the optimizer takes its own step."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("public", [False, True], ids=["private", "with public rows"])
    def test_they_are_the_noised_means(self, dtype: torch.dtype, public: bool):
        torch.manual_seed(0)
        parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in ((3, 5), (700,), ())]
        sums = [torch.randn(p.shape, dtype=torch.float64) for p in parameters]
        public_sums = [torch.randn(p.shape, dtype=torch.float64) for p in parameters] if public else []
        expected = [total.clone() for total in sums]
        ops.gaussian_noise_(expected, 0.5, ops.NoiseKey(seed=3))
        expected = [total / 8 + (public_sums[i] / 4 if public else 0.0) for i, total in enumerate(expected)]
        grads = noisy_gradients(parameters, sums, public_sums, 0.5, ops.NoiseKey(seed=3), 8.0, 4.0)
        for grad, want in zip(grads, expected, strict=True):
            assert grad.dtype == dtype
            torch.testing.assert_close(grad, want.to(dtype))


def stepped_by_its_rule(module, **settings):
    optimizer = torch.optim.SGD(module.parameters(), 0.1, **settings)
    for parameter in module.parameters():
        parameter.grad = torch.arange(parameter.numel(), dtype=torch.float32).view_as(parameter).cos()
    own_step(optimizer, list(module.parameters()))
    return optimizer


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"weight_decay": 0.1}, {"maximize": True}])
def test_an_own_step_is_that_of_torch_bit_for_bit(settings):
    ours, theirs = net(), net()
    stepped_by_its_rule(ours, **settings)
    optimizer = torch.optim.SGD(theirs.parameters(), 0.1, **settings)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.grad = one.grad.clone()
    optimizer.step()
    assert torch.equal(vector(ours), vector(theirs))
    assert not torch.equal(vector(ours), vector(net()))


def test_an_own_step_calls_what_others_have_put_on_the_optimizers():
    module, calls = net(), []
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    optimizer.register_step_post_hook(lambda *_: calls.append("hook"))
    own_step(optimizer, list(module.parameters()))
    replaced = torch.optim.SGD(module.parameters(), 0.1)
    replaced.step = lambda: calls.append("replaced")
    own_step(replaced, list(module.parameters()))
    assert calls == ["hook", "replaced"]


def test_an_own_step_leaves_what_has_no_gradient():
    module = net()
    first, *others = module.parameters()
    for parameter in others:
        parameter.grad = torch.ones_like(parameter)
    own_step(torch.optim.SGD(module.parameters(), 0.1), list(module.parameters()))
    assert torch.equal(first, next(net().parameters()))
    assert all(not torch.equal(p, q) for p, q in zip(others, list(net().parameters())[1:], strict=True))
