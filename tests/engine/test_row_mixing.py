"""Modules that mix rows are refused by name, in train and in eval mode."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from dpcgan_fast.engine import PrivateStep, row_mixing
from dpcgan_fast.engine.recorded import RecordedModule


def step_of(module):
    return PrivateStep(module, torch.optim.SGD(module.parameters(), lr=1.0), 1.0, 1.0, 1.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "mixing",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm2d(4),
        nn.SyncBatchNorm(4),
        nn.LazyBatchNorm1d(),
        nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        nn.InstanceNorm1d(4, track_running_stats=True),
        nn.LSTM(4, 4),
        nn.GRU(4, 4),
        nn.MultiheadAttention(4, 2),
        nn.Softmax(dim=0),
        nn.Flatten(0),
    ],
    ids=lambda m: type(m).__name__,
)
def test_refused_at_construction_with_its_path(mixing, training):
    module = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"inner": mixing}))
    module.train(training)
    with pytest.raises(ValueError, match=rf"Module '1.inner' \({type(mixing).__name__}\) mixes rows"):
        step_of(module)


class BatchCentred(nn.Module):
    """What no list of kinds knows: a statistic over the batch in a module of the user's own."""

    def forward(self, x):
        return x - x.mean(0)


class MinibatchDiscrimination(nn.Module):
    def forward(self, x):
        distances = torch.cdist(x, x)
        return torch.cat([x, torch.exp(-distances).sum(1, keepdim=True)], 1)


@pytest.mark.parametrize("mixing", [BatchCentred(), MinibatchDiscrimination()])
@pytest.mark.parametrize("training", [True, False])
def test_a_mixing_module_of_ones_own_is_found_at_the_first_forward(mixing, training):
    module = nn.Sequential(nn.Linear(4, 4), mixing, nn.LazyLinear(1))
    module(torch.rand(2, 4))
    step = step_of(module.train(training))
    with pytest.raises(ValueError, match=rf"Module '1' \({type(mixing).__name__}\) mixes rows"):
        step(torch.rand(5, 4))


class KeepsMean(nn.Module):
    """Rows stay apart, and what is stored of them leaves the step without noise."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x


class ReplacesMean(KeepsMean):
    def forward(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x


class KeepsLastRow(KeepsMean):
    def forward(self, x):
        self.mean.copy_(x.detach()[-1])
        return x


class CountsRows(KeepsMean):
    def forward(self, x):
        self.mean += len(x)
        return x


@pytest.mark.parametrize("storing", [KeepsMean, ReplacesMean, KeepsLastRow, CountsRows])
def test_a_module_that_stores_what_it_is_given_in_a_buffer_is_refused_with_the_buffers_name(storing):
    step = step_of(nn.Sequential(nn.Linear(4, 4), storing()))
    with pytest.raises(ValueError, match=rf"Module '1' \({storing.__name__}\) .* buffer 'mean'"):
        step(torch.rand(5, 4))


@pytest.mark.parametrize("storing", [KeepsMean, ReplacesMean, KeepsLastRow])
def test_so_it_is_where_batches_have_one_row(storing):
    step = step_of(nn.Sequential(nn.Linear(4, 4), storing()))
    with pytest.raises(ValueError, match=rf"Module '1' \({storing.__name__}\) .* buffer 'mean'"):
        step(torch.rand(1, 4))


class SequenceFirst(nn.Module):
    """Rows lead outside of it and not inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):  # (B, L, 4)
        return self.inner(x.transpose(0, 1)).transpose(0, 1).flatten(1)  # through (L, B, 4)


class OwnLinear(nn.Linear):
    """Has no layer rule."""


@pytest.mark.parametrize("length", [2, 3, 4, 7])
@pytest.mark.parametrize("inner", [nn.Linear(4, 3), OwnLinear(4, 3)])
def test_rows_that_do_not_lead_inside_are_found_even_where_another_dimension_is_as_long(inner, length):
    step = step_of(SequenceFirst(inner))
    with pytest.raises(ValueError, match=r"Module 'inner' .* the leading dimension"):
        step(torch.rand(length, length, 4))


class Recurrent(nn.Module):
    def __init__(self, take):
        super().__init__()
        self.inner, self.take = nn.LSTM(4, 3, num_layers=2, batch_first=True), take

    def forward(self, x):  # (B, L, 4)
        return self.take(*self.inner(x))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("rows", [2, 5])
def test_a_final_state_has_its_layers_in_front_even_if_there_are_as_many_as_rows(rows):
    step = step_of(Recurrent(lambda output, _: output[:, -1]))
    step.backward(step(torch.rand(rows, 6, 4)).sum(1))
    step = step_of(Recurrent(lambda _, state: state[0].transpose(0, 1).flatten(1)))
    with pytest.raises(ValueError, match="final state of module 'inner'"):
        step.backward(step(torch.rand(rows, 6, 4)).sum(1))


def test_what_is_not_trained_may_have_other_dimensions_in_front():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.out = nn.Embedding(7, 4).requires_grad_(False), nn.Linear(4, 1)

        def forward(self, x):  # (B, 7, 4)
            return self.out(x + self.table(torch.arange(7))).flatten(1)

    step = step_of(Positions())
    step.backward(step(torch.rand(5, 7, 4)).sum(1))


def test_found_in_eval_mode_although_training_mode_was_clean():
    class EvalOnly(nn.Module):
        def forward(self, x):
            return x if self.training else x - x.mean(0)

    module = nn.Sequential(nn.Linear(4, 4), EvalOnly())
    step = step_of(module)
    step(torch.rand(5, 4))
    module.eval()
    with pytest.raises(ValueError, match="mixes rows"):
        step(torch.rand(5, 4))


@pytest.mark.parametrize("mixing", [BatchCentred(), nn.BatchNorm1d(4, affine=False, track_running_stats=False)])
def test_found_where_it_takes_the_place_of_another_module_later(mixing):
    module = nn.Sequential(nn.Linear(4, 4), nn.Identity(), nn.Linear(4, 2))
    step = step_of(module)
    step(torch.rand(5, 4))
    module[1] = mixing
    with pytest.raises(ValueError, match="mixes rows"):
        step(torch.rand(5, 4))


def test_found_at_the_first_batch_that_has_two_rows():
    step = step_of(nn.Sequential(nn.Linear(4, 4), BatchCentred()))
    step(torch.rand(0, 4))
    step(torch.rand(1, 4))
    with pytest.raises(ValueError, match="mixes rows"):
        step(torch.rand(2, 4))


def test_the_check_leaves_buffers_and_the_random_state_alone():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x):
            self.calls += 1
            return nn.functional.dropout(x, 0.5)

    module = nn.Sequential(nn.Linear(4, 4), Counting())
    step = step_of(module)
    torch.manual_seed(7)
    step(torch.rand(5, 4))
    after = torch.rand(1)
    torch.manual_seed(7)
    module[1](module[0](torch.rand(5, 4)))
    assert torch.equal(torch.rand(1), after)
    assert module[1].calls.item() == 2, "one call of each of the two forwards above"


@pytest.mark.parametrize(
    "module",
    [
        nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4)),
        nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.InstanceNorm1d(2), nn.Softmax(dim=1)),
    ],
)
def test_modules_that_keep_rows_apart_pass(module):
    step = step_of(module)
    step.backward(step(torch.rand(5, 4)).flatten(1).sum(1))
    step.step()


def test_rows_that_are_sorted_for_a_layer_and_put_back_are_found():
    """Its output for a row depends on that row alone, but one layer's gradients are those of other rows."""

    class Sorted(nn.Module):
        def __init__(self, drop=0.0):
            super().__init__()
            self.first, self.second, self.drop = nn.Linear(4, 4), nn.Linear(4, 1), nn.Dropout(drop)

        def forward(self, x):
            order = x[:, 0].argsort()
            return self.second(self.drop(self.first(x))[order])[order.argsort()]

    x = torch.tensor([[3.0, 1, 2, 0], [1, 0, 1, 1], [4, 2, 2, 2], [2, 5, 1, 0]])
    with pytest.raises(ValueError, match=r"Module 'second' \(Linear\) mixes rows: it is given the rows in another"):
        row_mixing.refuse_mixed_outputs(Sorted(), (x,), {}, 4)
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    assert row_mixing.refuse_mixed_outputs(module, (x,), {}, 4), "what dropout makes random is no other order"


class TestPackedSequences:
    """Their rows lie one after another, however many there are at each position."""

    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.GRU(3, 4, batch_first=True)

        def forward(self, x, lengths):
            packed = x if lengths is None else pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return self.inner(packed)[1][-1]

    def refused(self, *args):
        with pytest.raises(ValueError, match="a packed sequence has its rows one after another") as raised:
            step_of(self.Recurrent())(*args)
        return str(raised.value)

    @pytest.mark.parametrize("lengths", [[4, 4, 4], [2, 4, 1]])
    def test_that_are_made_inside_are_refused_by_the_layer_that_takes_them(self, lengths):
        assert "'inner' (GRU)" in self.refused(torch.rand(3, 4, 3), torch.tensor(lengths))

    def test_that_are_given_are_refused(self):
        assert "(Recurrent)" in self.refused(pack_sequence([torch.rand(4, 3), torch.rand(2, 3)]), None)


class TestRowsInSecondPlace:
    """As in sequences, (positions, rows, features)."""

    @staticmethod
    def forward(inner, x):
        module = nn.Sequential(nn.Linear(2, 3), inner, nn.Linear(3, 1))
        trainable = {p: name for name, p in module.named_parameters()}
        recorded = RecordedModule(module, trainable, fused=True, norm_mode="auto", measure=True, row_dim=1)
        return recorded.forward((x,), {})

    def test_rows_that_mix_are_refused(self):
        class Centred(nn.Module):
            def forward(self, x):
                return x - x.mean(1, keepdim=True)

        with pytest.raises(ValueError, match="changes with another row's input"):
            self.forward(Centred(), torch.rand(4, 6, 2))

    @pytest.mark.parametrize("shape", [(4, 6, 2), (6, 6, 2), (3, 3, 2)])
    def test_positions_may_mix_and_rows_may_come_to_the_front(self, shape):
        class Last(nn.Module):
            def forward(self, x):
                return torch.cumsum(x, 0)[-1]

        output, _ = self.forward(Last(), torch.rand(*shape))
        assert output.shape == (shape[1], 1)
