"""Losses that have no gradient row by row are refused before their backward; another reduction is told.

`make_private` wraps a module, and is told of the loss by `loss_reduction` alone. What the loss is, is looked at in the
first steps of an unmodified loop.
"""

import gc
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    log_softmax,
    mse_loss,
    normalize,
    relu,
)

from dpcgan_fast.adapters.opacus import GradSampleModule, loss_watch

ROWS, CLASSES = 8, 3
X = torch.randn(ROWS, 5, generator=torch.Generator().manual_seed(0))
Y = torch.arange(ROWS) % CLASSES
ONE_EACH = torch.arange(ROWS)
OWN_BACKWARD = torch.autograd.backward


def wrapped(loss_reduction="mean", **settings):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES))
    return GradSampleModule(net, loss_reduction=loss_reduction, **settings)


def rows_of(losses):
    """One loss a row."""
    return cross_entropy(losses, Y, reduction="none")


def halves(out):
    real, fake = out.chunk(2)
    return relu(1 - real).mean() + relu(1 + fake).mean()


def similarities(out):
    return cross_entropy(normalize(out) @ normalize(out).T, ONE_EACH)


def columns_of_zeros(out):
    out = out.clone()
    out[:, 0] = 0.0
    return out.square().mean()


COUPLED = {
    "square of a mean": lambda out: cross_entropy(out, Y).square(),
    "contrastive": similarities,
    "variance over rows": lambda out: out.var(0).sum(),
    "soft maximum over rows": lambda out: out.logsumexp(0).mean(),
    "compared with the mean": lambda out: (out - out.mean(0)).square().mean(),
    "beside a good one": lambda out: cross_entropy(out, Y) + 0.1 * similarities(out),
}
OF_A_PART = {
    "first rows": lambda out: cross_entropy(out[:4], Y[:4]),
    "every other row": lambda out: cross_entropy(out[::2], Y[::2]),
    "last rows, by losses": lambda out: rows_of(out)[-4:].mean(),
    "by a mask": lambda out: cross_entropy(out[Y > 1], Y[Y > 1]),
    "by indices": lambda out: cross_entropy(out.index_select(0, torch.tensor([0, 1])), Y[:2]),
    "by masked_select": lambda out: torch.masked_select(rows_of(out), Y > 1).mean(),
    "one row": lambda out: out[3].mean(),
    "a chunk": lambda out: out.chunk(2)[1].mean(),
    "one of pieces by size": lambda out: out.split([3, 5])[0].mean(),
    "the first of all rows": lambda out: out.unbind(0)[0].mean(),
}
GOOD_MEANS = {
    "cross entropy": lambda out: cross_entropy(out, Y),
    "weights of the row's own": lambda out: cross_entropy(out, Y, torch.rand(CLASSES), reduction="none").mean(),
    "a sum, divided": lambda out: rows_of(out).sum() / len(out),
    "batchmean": lambda out: kl_div(log_softmax(out, 1), torch.full_like(out, 1 / CLASSES), reduction="batchmean"),
    "sums of columns, mean over rows": lambda out: out.square().sum(1).mean(),
    "a critic's": lambda out: -out.mean(),
    "scaled": lambda out: 3.5 * cross_entropy(out, Y),
    "halves, with rows that a hinge leaves at zero": halves,
    "two slices": lambda out: cross_entropy(out[:4], Y[:4]) + cross_entropy(out[4:], Y[4:]),
    "one column": lambda out: out[:, 0].mean(),
    "the label's column": lambda out: -log_softmax(out, 1)[ONE_EACH, Y].mean(),
    "columns first": lambda out: out.T[0].mean(),
    "hinge": lambda out: relu(out - 10).mean(),
    "one row after another": lambda out: sum(cross_entropy(row, y) for row, y in zip(out, Y, strict=True)) / len(out),
    "by each row's index": lambda out: sum(cross_entropy(out[i], Y[i]) for i in range(ROWS)) / len(out),
    "divided, then added up": lambda out: (rows_of(out) / len(out)).sum(),
    "equal weights": lambda out: cross_entropy(out, Y, torch.full((CLASSES,), 2.0)),
    "written into a column": columns_of_zeros,
}


class TestLossesThatCoupleRows:
    @pytest.mark.parametrize("loss_reduction", ["mean", "sum"])
    @pytest.mark.parametrize("loss", COUPLED.values(), ids=COUPLED)
    def test_are_refused(self, loss, loss_reduction):
        with pytest.raises(ValueError, match="couples rows"):
            loss(wrapped(loss_reduction)(X)).backward()

    def test_a_row_of_several_forwards_may_be_compared_with_itself(self):
        module = wrapped()
        (module(X) - module(X + 1)).square().mean().backward()
        module = wrapped()
        with pytest.raises(ValueError, match="couples rows"):
            (module(X) - module(X + 1).roll(1, 0)).square().mean().backward()

    def test_public_rows_may_be_coupled_with_each_other_but_with_no_private_one(self):
        module = wrapped()

        def scores(noise=0.0):
            with module.public_rows():
                return module(torch.ones(5, 5) + noise)

        scores().mean().square().backward()
        (scores().mean().square() - module(X).mean()).backward()
        with pytest.raises(ValueError, match="couples rows"):
            (scores().mean() * module(X).mean()).backward()

    def test_are_found_where_the_first_losses_were_good(self):
        module = wrapped()
        cross_entropy(module(X), Y).backward()
        with pytest.raises(ValueError, match="couples rows"):
            similarities(module(X)).backward()

    def test_a_batch_of_one_row_says_nothing_of_those_that_follow(self):
        module = wrapped()
        for _ in range(5):
            module(X[:1]).mean().square().backward()
        with pytest.raises(ValueError, match="couples rows"):
            module(X).mean().square().backward()

    def test_are_refused_where_rows_come_second(self):
        steps = torch.randn(2, ROWS, 5)

        def linear():
            return GradSampleModule(nn.Linear(5, CLASSES), batch_first=False)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            linear()(steps).square().mean().backward()
        with pytest.raises(ValueError, match="couples rows"):
            linear()(steps).mean().square().backward()

    def test_outputs_may_be_one_number_a_row(self):
        """As a critic or a binary classifier gives that ends with squeeze."""

        class Critic(nn.Sequential):
            def forward(self, x):
                return super().forward(x).squeeze(1)

        def scores():
            return GradSampleModule(Critic(nn.Linear(5, 1)))(X)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            binary_cross_entropy_with_logits(scores(), (Y > 1).float()).backward()
        with pytest.raises(ValueError, match="couples rows"):
            scores().var().backward()

    def test_the_user_is_told_where_the_loss_is_the_modules_own(self):
        class WithLoss(nn.Sequential):
            def forward(self, x):
                return super().forward(x).mean().square()

        with pytest.warns(UserWarning, match=r"could not be seen.*a loss of its own"):
            GradSampleModule(WithLoss(nn.Linear(5, CLASSES)))(X).backward()

    def test_the_user_is_told_where_what_a_module_gave_is_given_to_a_module_again(self):
        encoder, decoder = GradSampleModule(nn.Linear(5, 5)), GradSampleModule(nn.Linear(5, 5))
        with pytest.warns(UserWarning, match="could not be seen.*was given what this one gave"):
            decoder(encoder(X)).square().mean().backward()
        code = encoder(X)
        with pytest.warns(UserWarning, match="could not be seen.*was given what this one gave"):
            encoder(code - code.mean(0)).square().mean().backward()

    def test_nothing_of_a_refused_loss_waits_for_the_optimizer(self):
        module = wrapped()
        with pytest.raises(ValueError, match="couples rows"):
            similarities(module(X)).backward()
        assert module.waiting == 0

    def test_the_user_is_told_where_it_cannot_be_seen(self):
        class Own(torch.autograd.Function):
            @staticmethod
            def forward(_ctx, out):
                return out.clone()

            @staticmethod
            @torch.autograd.function.once_differentiable
            def backward(_ctx, grad):
                return grad.clone()

        with pytest.warns(UserWarning, match="could not be seen.*OwnBackward") as said:
            Own.apply(wrapped()(X)).mean().backward()
        assert said[0].filename == __file__

        lengths = torch.full((ROWS,), 2)
        steps = log_softmax(torch.stack([wrapped()(X)] * 2), 2)
        loss = nn.functional.ctc_loss(steps, torch.ones(ROWS, 2, dtype=torch.long), lengths, lengths // 2)
        with pytest.warns(UserWarning, match="could not be seen.*ctc_loss"):
            loss.backward()


class TestLossesOfAPartOfTheRows:
    @pytest.mark.parametrize("loss", OF_A_PART.values(), ids=OF_A_PART)
    def test_are_refused_where_a_mean_was_announced(self, loss):
        with pytest.raises(ValueError, match="of a part of the rows"):
            loss(wrapped()(X)).backward()

    def test_are_what_they_are_as_sums(self):
        module = wrapped("sum")
        rows_of(module(X))[:4].sum().backward()
        assert module.waiting == 1

    def test_parts_that_are_taken_back_together_are_a_whole(self):
        out = wrapped()(X)
        torch.autograd.backward([cross_entropy(out[:4], Y[:4]), cross_entropy(out[4:], Y[4:])])


class TestReductions:
    @pytest.mark.parametrize(
        "loss",
        [
            lambda out: cross_entropy(out, Y, reduction="sum"),
            lambda out: -out.sum(),
            lambda out: out.sum((0, 1)),
            lambda out: out.sum(0).sum(),
            lambda out: -0.5 * (1 + out - out.exp()).sum(),
        ],
    )
    def test_a_sum_that_was_announced_as_a_mean_is_told(self, loss):
        with pytest.warns(UserWarning, match="'mean' was announced, but the loss is a sum") as said:
            loss(wrapped()(X)).backward()
        assert said[0].filename == __file__

    @pytest.mark.parametrize(
        "loss",
        [
            lambda out: cross_entropy(out, Y),
            lambda out: mse_loss(out, torch.ones_like(out)),
            lambda out: rows_of(out).mean(),
            lambda out: out.mean(0).sum(),
        ],
    )
    def test_a_mean_that_was_announced_as_a_sum_is_told(self, loss):
        with pytest.warns(UserWarning, match="'sum' was announced, but the loss is a mean"):
            loss(wrapped("sum")(X)).backward()

    @pytest.mark.parametrize("settings", [{"weight": torch.tensor([1.0, 2.0, 3.0])}, {"ignore_index": 0}], ids=str)
    def test_a_mean_by_weights_of_all_rows_is_refused(self, settings):
        with pytest.raises(ValueError, match="reduction='none'"):
            cross_entropy(wrapped()(X), Y, **settings).backward()
        pixels = wrapped()(X)[:, :, None, None].expand(-1, -1, 2, 2)
        with pytest.raises(ValueError, match="reduction='none'"):
            cross_entropy(pixels, Y[:, None, None].expand(-1, 2, 2).contiguous(), **settings).backward()

    def test_weights_that_a_batch_evens_out_are_weights(self):
        with pytest.raises(ValueError, match="reduction='none'"):
            cross_entropy(wrapped()(X), ONE_EACH % 2, torch.tensor([0.5, 1.5, 1.0])).backward()

    def test_a_mean_over_more_rows_than_its_dtype_counts_is_a_mean(self):
        net = GradSampleModule(nn.Linear(5, CLASSES).bfloat16())
        cross_entropy(net(torch.ones(257, 5).bfloat16()), torch.zeros(257, dtype=torch.long)).backward()
        assert net.waiting == 1

    @pytest.mark.parametrize("twice", [lambda mean: mean / ROWS, lambda mean: mean * (1 / ROWS)], ids=["/", "*"])
    def test_a_mean_divided_by_the_number_of_rows_is_told(self, twice):
        with pytest.warns(UserWarning, match="divided once more") as said:
            twice(cross_entropy(wrapped()(X), Y)).backward()
        assert said[0].filename == __file__


class TestGoodLosses:
    @pytest.mark.parametrize("loss", GOOD_MEANS.values(), ids=GOOD_MEANS)
    def test_pass_unsaid(self, loss):
        module = wrapped()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(4):
                loss(module(X)).backward()
        assert module.waiting == 4

    @pytest.mark.parametrize(
        "loss",
        [
            lambda out: cross_entropy(out, Y, reduction="sum"),
            lambda out: out.square().mean(1).sum(),
            lambda out: out.square().sum(0).mean(),
            lambda out: sum(cross_entropy(out[i], Y[i]) for i in range(ROWS)),
            lambda out: cross_entropy(out, Y) * len(out),
        ],
    )
    def test_sums_pass_unsaid(self, loss):
        module = wrapped("sum")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(module(X)).backward()
        assert module.waiting == 1

    def test_gradients_are_those_of_a_loss_that_was_not_looked_at(self):
        module = wrapped(fused=False)
        sums = []
        for _ in range(5):
            cross_entropy(module(X), Y).backward()
            (batch,) = module.take_pending()
            named = batch.recorded.gradients(batch.reached, batch.rows, units=False)
            sums.append([grad.sum(0) for _, of in named for grad in of.per_sample().values()])
        for first, last in zip(sums[0], sums[-1], strict=True):
            assert torch.equal(first, last)

    def test_a_compiled_loss_is_run(self):
        module = wrapped()
        torch.compile(cross_entropy, backend="eager")(module(X), Y).backward()
        assert module.waiting == 1


class TestTorchsOwnBackward:
    @pytest.fixture(autouse=True)
    def alone(self, monkeypatch):
        """Modules of other tests, whose losses were refused, still wait for a better one."""
        monkeypatch.setattr(loss_watch, "_WAITING", weakref.WeakSet())
        monkeypatch.setattr(torch.autograd, "backward", OWN_BACKWARD)

    def test_is_as_it_was_once_a_few_losses_were_seen(self):
        module = wrapped()
        is_own = []
        for _ in range(4):
            cross_entropy(module(X), Y).backward()
            is_own.append(torch.autograd.backward is OWN_BACKWARD)
        assert is_own == [False, False, True, True]

    def test_is_as_it_was_where_modules_follow_each_other(self):
        encoder, decoder = wrapped(), GradSampleModule(nn.Linear(CLASSES, 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(3):
                decoder(encoder(X)).mean().backward()
        assert torch.autograd.backward is OWN_BACKWARD

    @pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
    def test_may_be_replaced_by_others_too(self, late):
        calls = []

        def replace():
            inner = torch.autograd.backward

            def other(*args, **settings):
                calls.append(inner)
                return inner(*args, **settings)

            torch.autograd.backward = other
            return other

        module = wrapped()
        other = None if late else replace()
        module(X)
        other = other or replace()
        for _ in range(3):
            cross_entropy(module(X), Y).backward()
        assert torch.autograd.backward is other
        assert len(calls) == 3
        with pytest.raises(ValueError, match="couples rows"):
            wrapped()(X).mean().square().backward()

    def test_is_as_it_was_after_a_module_is_gone(self):
        module = wrapped()
        module(X)
        assert torch.autograd.backward is not OWN_BACKWARD
        del module
        gc.collect()
        torch.ones(2, requires_grad=True).sum().backward()
        assert torch.autograd.backward is OWN_BACKWARD

    def test_still_says_what_is_wrong_with_a_loss(self):
        with pytest.raises(RuntimeError, match="scalar outputs"):
            wrapped()(X).backward()
        with pytest.raises(RuntimeError, match="does not require grad"):
            wrapped()(X).detach().sum().backward()

    def test_takes_gradients_of_losses_that_are_no_single_numbers(self):
        module = wrapped("sum")
        rows_of(module(X)).backward(torch.ones(ROWS))
        assert module.waiting == 1
        with pytest.raises(ValueError, match="couples rows"):
            module(X).softmax(0).backward(torch.rand(ROWS, CLASSES))
