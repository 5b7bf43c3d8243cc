"""A step that is captured once and repeated: the same numbers as PrivateStep, for batches of any size.

Without a GPU the work is run again in place of a replay; all else is what runs there.
"""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.engine import GraphedStep, PrivateStep, RunAgain
from tests.engine.nets import clipped_sum_by_microbatches, row_losses

ROWS = 4
CLIP = 0.3
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, weight_decay=0.01),
    "sgd with momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-2, betas=(0.5, 0.99)),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=1e-3, alpha=0.9),
}


def net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv1d(1, 6, 5, 2), nn.GroupNorm(2, 6), nn.LeakyReLU(0.2), nn.Conv1d(6, 1, 9))


def private_step(module, optimizer=None, noise_multiplier=0.0, seed=1, **options):
    optimizer = optimizer if optimizer is not None else torch.optim.SGD(module.parameters(), lr=1.0)
    key = ops.NoiseKey(seed)
    return PrivateStep(module, optimizer, CLIP, noise_multiplier, 8.0, noise_key=key, **options)


def graphed(step, rows=ROWS):
    """A graphed step and its backward of private rows."""
    whole = GraphedStep(step, rows, capture=RunAgain())
    return whole, whole.backward_of(lambda x: row_losses(step(x)), (torch.rand(3, 1, 21),))


def vector(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def batches(*sizes):
    return [torch.rand(size, 1, 21, generator=torch.Generator().manual_seed(i)) for i, size in enumerate(sizes)]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fused", [True, False])
def test_it_takes_the_steps_of_private_step_for_batches_of_any_size(name, fused):
    ours, theirs = net(), net()
    step = private_step(ours, OPTIMIZERS[name](ours.parameters()), 0.5, fused=fused)
    plain = private_step(theirs, OPTIMIZERS[name](theirs.parameters()), 0.5, fused=fused)
    whole, real = graphed(step)
    fake = whole.backward_of(lambda x: row_losses(step(x)), (torch.rand(1, 1, 21),), private=False)
    sizes = (1, ROWS, 0, 3 * ROWS + 1, 2)
    for x, fakes in zip(batches(*sizes), batches(*reversed(sizes)), strict=True):
        real(x)
        fake(fakes)
        whole.step()
        for chunk in x.split(ROWS):
            plain.backward(row_losses(plain(chunk)))
        for chunk in fakes.split(ROWS):
            plain.backward(row_losses(plain(chunk)), private=False)
        plain.step()
    torch.testing.assert_close(vector(ours), vector(theirs), rtol=1e-6, atol=1e-7)
    assert (vector(ours) - vector(net())).norm() > 1e-3
    assert step._noise_key.position == plain._noise_key.position


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("count", [0, 1, ROWS - 1])
@pytest.mark.parametrize("rubbish", [0.0, 1e30, math.nan, math.inf])
def test_rows_beyond_those_given_add_exactly_zero_whatever_their_memory_holds(fused, count, rubbish):
    sums = []
    for held in (0.5, rubbish):
        whole, real = graphed(private_step(net(), fused=fused))
        real._inputs[0].fill_(held)
        whole._valid.fill_(count)
        real._inputs[0][:count] = torch.rand(count, 1, 21, generator=torch.Generator().manual_seed(0))
        real._replay()
        sums.append(whole._sums.clone())
    assert torch.equal(*sums)
    assert bool(sums[0].any()) == (count > 0)


@settings(max_examples=25)
@given(st.integers(0, 11), st.integers(1, 5), st.sampled_from([1e-3, 0.3, 1e3]))
def test_the_sum_is_that_of_microbatches_of_one_unit(count, rows, scale):
    module = net()
    x = scale * torch.rand(count, 1, 21)
    expected = clipped_sum_by_microbatches(module, x, CLIP)
    whole, real = graphed(private_step(module), rows)
    real(x)
    for got, total in zip(whole._private, expected.values(), strict=True):
        torch.testing.assert_close(got, total, rtol=1e-4, atol=1e-6)


def test_removing_a_row_moves_the_sum_by_at_most_the_bound():
    x = 100 * torch.rand(2 * ROWS + 1, 1, 21)
    whole, real = graphed(private_step(net()))
    real(x)
    every = whole._sums.clone()
    for out in range(len(x)):
        whole._sums.zero_()
        real(torch.cat([x[:out], x[out + 1 :]]))
        assert (every - whole._sums).norm() <= CLIP * (1 + 1e-6)


def test_capturing_and_a_step_without_rows_release_nothing_but_noise():
    module = net()
    before = vector(module)
    whole, real = graphed(private_step(module))
    assert torch.equal(vector(module), before)
    real(torch.zeros(0, 1, 21))
    whole.step()
    assert torch.equal(vector(module), before), "no noise was asked for, and there are no rows"
    noisy, _ = graphed(private_step(module, noise_multiplier=2.0))
    noisy.step()
    moved = vector(module) - before
    assert float(moved.std()) == pytest.approx(2.0 * CLIP / 8.0, rel=0.3)


def test_sums_are_cleared_by_the_step_and_others_gradients_never_enter():
    module = net()
    whole, real = graphed(private_step(module))
    (x,) = batches(5)
    real(x)
    whole.step()
    assert not whole._sums.any()
    before = vector(module)
    row_losses(module(100 * x)).sum().backward()
    whole.step()
    assert torch.equal(vector(module), before)
    assert all(p.grad is None for p in module.parameters())


def test_a_replay_of_the_update_that_no_step_armed_moves_nothing():
    module = net()
    step = private_step(module, noise_multiplier=1.0)
    whole, _ = graphed(step)
    whole.step()
    before, position = vector(module), step._noise_key.position
    whole._update()
    assert torch.equal(vector(module), before)
    assert step._noise_key.position == position == whole._blocks


def test_every_step_takes_fresh_noise_also_when_others_draw_from_the_key():
    module = net()
    step = private_step(module, noise_multiplier=1.0)
    whole, _ = graphed(step)
    moves = []
    for _ in range(3):
        before = vector(module)
        whole.step()
        moves.append(vector(module) - before)
        step._noise_key.take(5)
    assert step._noise_key.position == 3 * (whole._blocks + 5)
    for i in range(3):
        for j in range(i):
            assert (moves[i] - moves[j]).abs().min() > 0


def test_learning_rates_and_counted_steps_are_followed_from_step_to_step():
    module, twin = net(), net()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    other = torch.optim.Adam(twin.parameters(), lr=1e-2)
    whole, real = graphed(private_step(module, optimizer))
    plain = private_step(twin, other)
    for i, x in enumerate(batches(3, 4, 2)):
        for either in (optimizer, other):
            either.param_groups[0]["lr"] = 1e-2 / (i + 1)
        real(x)
        whole.step()
        plain.backward(row_losses(plain(x)))
        plain.step()
    torch.testing.assert_close(vector(module), vector(twin), rtol=1e-6, atol=1e-7)
    assert [float(state["step"]) for state in optimizer.state.values()] == [3.0] * 6


def test_an_existing_state_goes_on():
    module = net()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    step = private_step(module, optimizer)
    (x,) = batches(4)
    step.backward(row_losses(step(x)))
    step.step()
    twin = copy.deepcopy(module)
    other = torch.optim.Adam(twin.parameters(), lr=1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    whole, real = graphed(step)
    real(x)
    whole.step()
    plain = private_step(twin, other)
    plain.backward(row_losses(plain(x)))
    plain.step()
    torch.testing.assert_close(vector(module), vector(twin), rtol=1e-6, atol=1e-7)


def test_the_report_says_how_the_work_is_repeated():
    step = private_step(net(), fused=False)
    whole, real = graphed(step)
    real(*batches(2))
    whole.step()
    assert step.last.path == "layerwise"
    assert step.last.repeated == f"run again, no graph, {ROWS} rows at a time"
    assert step.last.update.endswith("run again, no graph")
    assert f"repeated: {step.last.repeated}" in str(step.last)
    step.backward(row_losses(step(*batches(2))))
    assert step.last.repeated == ""


# What is refused.


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_no_graph():
    with pytest.raises(ValueError, match=r"Expected a module on a GPU.*this one is on cpu. Use PrivateStep"):
        GraphedStep(private_step(net()), ROWS)


def test_a_replay_needs_rows():
    with pytest.raises(ValueError, match="rows=0 >= 1"):
        GraphedStep(private_step(net()), 0, capture=RunAgain())


def test_optimizers_that_take_their_own_step_are_refused_also_later():
    module = net()
    with pytest.raises(ValueError, match="AdamW is not plain SGD"):
        graphed(private_step(module, torch.optim.AdamW(module.parameters())))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    step = private_step(module, optimizer)
    whole, _ = graphed(step)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    with pytest.raises(ValueError, match="scheduler"):
        whole.step()
    assert step._noise_key.position == 0


def test_state_or_parameters_that_were_replaced_are_noticed():
    module = net()
    optimizer = torch.optim.Adam(module.parameters())
    whole, real = graphed(private_step(module, optimizer))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    with pytest.raises(ValueError, match="was replaced since the capture"):
        whole.step()
    with pytest.raises(ValueError, match="was replaced since the capture"):
        real(*batches(2))
    module = net()
    whole, real = graphed(private_step(module))
    module[0].weight.data = module[0].weight.data.clone()
    with pytest.raises(ValueError, match="was replaced since the capture"):
        real(*batches(2))


def test_a_module_in_another_mode_is_noticed():
    module = net()
    _, real = graphed(private_step(module))
    module.eval()
    with pytest.raises(ValueError, match=r"train\(\) or eval\(\) since the capture"):
        real(*batches(2))


@pytest.mark.parametrize(
    "wrong", [(torch.rand(2, 1, 20),), (torch.rand(2, 1, 21).double(),), (torch.rand(2, 1, 21),) * 2, ()]
)
def test_rows_of_another_shape_or_kind_are_refused(wrong):
    whole, real = graphed(private_step(net()))
    with pytest.raises(ValueError, match=r"Expected 1 tensor\(s\) of one number of rows B: \(B, 1, 21\) torch.float32"):
        real(*wrong)
    assert not whole._sums.any()


def test_losses_that_are_reduced_over_rows_are_refused():
    step = private_step(net())
    whole = GraphedStep(step, ROWS, capture=RunAgain())
    with pytest.raises(ValueError, match=r"Expected losses of shape \(4,\), one a row of the replay, got \(\)"):
        whole.backward_of(lambda x: row_losses(step(x)).mean(), (torch.rand(2, 1, 21),))
    with pytest.raises(ValueError, match="one tensor or more, each of one row or more"):
        whole.backward_of(lambda x: row_losses(step(x)), (torch.rand(0, 1, 21),))


def test_after_a_replay_that_failed_among_others_it_takes_no_step(monkeypatch):
    step = private_step(net())
    whole, real = graphed(step)
    replay, done = real._replay, []

    def failing():
        if done:
            raise MemoryError
        replay()
        done.append(True)

    monkeypatch.setattr(real, "_replay", failing)
    (x,) = batches(ROWS + 1)
    with pytest.raises(MemoryError):
        real(x)
    monkeypatch.undo()
    for go_on in (whole.step, lambda: real(x)):
        with pytest.raises(ValueError, match="would count twice"):
            go_on()


def test_a_capture_leaves_a_forward_that_waits_for_its_backward():
    step = private_step(net())
    losses = row_losses(step(torch.rand(3, 1, 21)))
    graphed(step)
    step.backward(losses)
    assert step.last is not None


@pytest.mark.parametrize("private", [True, False])
def test_losses_that_mix_rows_are_refused_before_the_capture(private):
    step = private_step(net())
    whole = GraphedStep(step, ROWS, capture=RunAgain())

    def centred(x):
        losses = row_losses(step(x))
        return losses - losses.mean()

    with pytest.raises(ValueError, match="A loss depends on another row"):
        whole.backward_of(centred, (torch.rand(3, 1, 21),), private=private)
