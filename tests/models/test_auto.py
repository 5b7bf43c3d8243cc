"""Networks for any table: shapes at every width, and the record head's distributions."""

import pytest
import torch

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.engine import PrivateStep, refuse_mixing_modules
from dpcgan_fast.models import is_conditional, make_networks
from dpcgan_fast.models.heads import NUMERIC_BINS, TEMPERATURE, RecordHead


def mixed_blocks():
    """A number, one that may be missing with its flag, a binary flag, and a categorical column of three."""
    return [
        Block("numeric", "a", 0, 1),
        Block("numeric", "b", 1, 1, guard=2),
        Block("absent", "b", 2, 1),
        Block("binary", "c", 3, 1),
        Block("categorical", "d", 4, 3),
    ]


def random_records(blocks, rows):
    records = torch.zeros(rows, blocks[-1].stop)
    for block in blocks:
        if block.kind == "numeric":
            records[:, block.start] = torch.rand(rows)
        elif block.kind == "categorical":
            records[torch.arange(rows), block.start + torch.randint(0, block.width, (rows,))] = 1
        else:
            records[:, block.start] = (torch.rand(rows) < 0.3).float()
    return records


def one_hot(rows, classes):
    return torch.nn.functional.one_hot(torch.randint(0, classes, (rows,)), classes).float()


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 16, 33, 178, 1071])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_any_width_and_number_of_classes(columns, classes):
    blocks = [Block("numeric" if i % 2 else "binary", f"x{i}", i, 1) for i in range(columns)]
    nets = make_networks("auto", blocks, classes)
    randomness = torch.Generator().manual_seed(0)
    records, labels = random_records(blocks, 3), one_hot(3, classes)
    output = nets.autoencoder(records, labels, nets.autoencoder_noise(3, randomness))
    losses = nets.autoencoder_loss(output, records)
    assert losses.shape == (3,)
    assert losses.isfinite().all()
    assert nets.critic(records, labels).shape == (3,)
    fakes = nets.generate(labels, randomness)
    assert fakes.shape == records.shape
    assert ((fakes >= 0) & (fakes <= 1)).all()
    assert is_conditional("auto")


def test_no_module_that_sees_data_mixes_rows():
    nets = make_networks("auto", mixed_blocks(), 2)
    refuse_mixing_modules(nets.autoencoder)
    refuse_mixing_modules(nets.critic)
    for module, inputs in (
        (nets.autoencoder, (random_records(mixed_blocks(), 5), one_hot(5, 2), torch.randn(5, 32))),
        (nets.critic, (random_records(mixed_blocks(), 5), one_hot(5, 2))),
    ):
        step = PrivateStep(module, torch.optim.SGD(module.parameters(), 0.1), 1.0, 1.0, 5.0)
        step(*inputs)  # looks for mixing at its first forward


def test_every_layer_that_sees_data_has_a_rule():
    nets = make_networks("auto", mixed_blocks(), 2)
    step = PrivateStep(nets.autoencoder, torch.optim.SGD(nets.autoencoder.parameters(), 0.1), 1.0, 1.0, 5.0)
    records = random_records(mixed_blocks(), 5)
    step.backward(nets.autoencoder_loss(step(records, one_hot(5, 2), torch.randn(5, 32)), records))
    assert "torch.func" not in str(step.last)


def drawn_by_formula(head, logits, randomness):
    """A draw written out: Gumbel noise, softmax, hard + soft - soft.detach(), and from one-hot rows to records."""
    uniform = torch.rand(logits.shape, generator=randomness)
    within = torch.rand(len(logits), len(head.numbers), generator=randomness)
    gumbel = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-7)))
    soft = torch.softmax((logits.masked_fill(head.unused, -1e9) + gumbel) / TEMPERATURE, 2)
    hard = torch.nn.functional.one_hot(soft.argmax(2), head.max_cells).to(soft.dtype)
    chosen = hard + (soft - soft.detach())
    records = torch.zeros(len(logits), head.width)
    cells = torch.arange(head.max_cells, dtype=logits.dtype)
    records[:, head.number_positions] = ((chosen[:, head.numbers] * cells).sum(2) + within) / NUMERIC_BINS
    records[:, head.flag_positions] = chosen[:, head.flags, 1]
    records[:, head.hot_positions] = chosen[:, head.hot_blocks, head.hot_cells]
    return torch.where(head.silent(records), head.idle, records)


class TestRecordHead:
    @pytest.mark.parametrize(
        "blocks",
        [
            mixed_blocks(),
            [Block("numeric", "a", 0, 1), Block("categorical", "wide", 1, 40), Block("binary", "c", 41, 1)],
            [Block("numeric", f"x{i}", i, 1) for i in range(9)],
            [Block("binary", "c", 0, 1)],
        ],
        ids=["mixed", "more categories than bins", "numbers", "one flag"],
    )
    def test_a_draw_and_its_gradient_are_those_of_the_formula_bit_by_bit(self, blocks):
        head = RecordHead(blocks)
        logits = 3 * torch.randn(64, head.n_blocks, head.max_cells)
        weights = torch.randn(64, head.width)
        got, expected = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        records = head.draw(got, torch.Generator().manual_seed(7))
        by_formula = drawn_by_formula(head, expected, torch.Generator().manual_seed(7))
        assert torch.equal(records, by_formula)
        (records * weights).sum().backward()
        (by_formula * weights).sum().backward()
        assert got.grad is not None
        assert expected.grad is not None
        assert torch.equal(got.grad, expected.grad)

    def test_logits_that_are_no_numbers_give_records_that_are_none(self):
        head = RecordHead(mixed_blocks())
        logits = torch.zeros(2, 5, head.max_cells)
        logits[1] = float("nan")
        records = head.draw(logits, torch.Generator().manual_seed(1))
        assert records[0].isfinite().all()
        assert records[1].isnan().all()

    def test_cells_are_where_the_record_lies(self):
        head = RecordHead(mixed_blocks())
        record = torch.tensor([[0.0, 0.999, 1.0, 0.0, 0.0, 0.0, 1.0], [1.0, 0.5, 0.0, 1.0, 1.0, 0.0, 0.0]])
        assert head.cells(record).tolist() == [
            [0, NUMERIC_BINS - 1, 1, 0, 2], [NUMERIC_BINS - 1, NUMERIC_BINS // 2, 0, 1, 0]
        ]  # fmt: skip

    def test_drawn_records_are_as_discrete_as_real_ones(self):
        head = RecordHead(mixed_blocks())
        drawn = head.draw(torch.randn(200, 5, head.max_cells), torch.Generator().manual_seed(1))
        assert torch.isin(drawn[:, 2:], torch.tensor([0.0, 1.0])).all()
        assert (drawn[:, 4:].sum(1) == 1).all()
        assert ((drawn[:, :2] >= 0) & (drawn[:, :2] <= 1)).all()

    def test_drawing_follows_the_distribution_of_the_logits(self):
        head = RecordHead(mixed_blocks())
        logits = torch.zeros(1, 5, head.max_cells)
        logits[0, 4, :3] = torch.log(torch.tensor([0.6, 0.3, 0.1]))
        logits[0, 0, :] = -20.0
        logits[0, 0, 5] = 0.0
        drawn = head.draw(logits.expand(40_000, -1, -1), torch.Generator().manual_seed(2))
        assert drawn[:, 4:].mean(0).tolist() == pytest.approx([0.6, 0.3, 0.1], abs=0.015)
        assert drawn[:, 0].min() >= 5 / NUMERIC_BINS
        assert drawn[:, 0].max() <= 6 / NUMERIC_BINS

    def test_the_likelihood_is_that_of_the_cells(self):
        head = RecordHead(mixed_blocks())
        uniform = head.nll(torch.zeros(1, 5, head.max_cells), torch.tensor([[0.3, 0.3, 0.0, 1.0, 0.0, 1.0, 0.0]]))
        cells = torch.tensor([NUMERIC_BINS, NUMERIC_BINS, 2, 2, 3.0])
        assert float(uniform) == pytest.approx(float(cells.log().sum()), rel=1e-5)

    def test_an_absent_number_counts_nothing(self):
        head = RecordHead(mixed_blocks())
        logits = torch.randn(1, 5, head.max_cells)
        one, other = (torch.tensor([[0.3, value, 1.0, 1.0, 0.0, 1.0, 0.0]]) for value in (0.1, 0.9))
        assert float(head.nll(logits, one)) == float(head.nll(logits, other))

    def test_what_a_flag_rules_out_is_drawn_idle_and_has_no_gradient_but_what_is_hidden_stays(self):
        """The second flag stands under the first, and all else under the second."""
        blocks = [
            Block("absent", "n", 0, 1),
            Block("absent", "n", 1, 1, guard=0),
            Block("numeric", "a", 2, 1, guard=1),
            Block("categorical", "d", 3, 3, guard=1),
            Block("binary", "c", 6, 1, guard=1),
            Block("numeric", "first", 7, 1, guard=1, hidden=True),
        ]
        head = RecordHead(blocks)
        logits = torch.zeros(400, 6, head.max_cells)
        logits[:, 4, 1] = logits[:, 3, 2] = 50.0
        logits.requires_grad_()
        drawn = head.draw(logits, torch.Generator().manual_seed(5))
        gone = (drawn[:, 0] == 1) | (drawn[:, 1] == 1)
        assert 0.6 < gone.float().mean() < 0.9
        assert (drawn[drawn[:, 0] == 1, 1] == 1).all()
        idle = torch.tensor([0.5, 1.0, 0.0, 0.0, 0.0])
        assert (drawn[gone, 2:7] == idle).all()
        assert (drawn[~gone, 5:7] == 1).all()
        assert drawn[gone, 7].unique().numel() > 50
        drawn.sum().backward()
        assert logits.grad is not None
        assert (logits.grad[gone, 2:5] == 0).all()
        assert (logits.grad[~gone, 2] != 0).any()
        assert (logits.grad[gone, 5] != 0).any()

    def test_the_likelihood_leaves_out_what_a_flag_rules_out(self):
        blocks = [Block("absent", "n", 0, 1), Block("categorical", "d", 1, 3, guard=0)]
        head = RecordHead(blocks)
        logits = torch.randn(1, 2, head.max_cells)
        flag = -float(torch.log_softmax(logits[0, 0, :2], 0)[1])
        assert float(head.nll(logits, torch.tensor([[1.0, 1.0, 0.0, 0.0]]))) == pytest.approx(flag)

    def test_gradients_pass_through_a_draw(self):
        head = RecordHead(mixed_blocks())
        logits = torch.randn(4, 5, head.max_cells, requires_grad=True)
        head.draw(logits, torch.Generator().manual_seed(3)).sum().backward()
        assert logits.grad is not None
        assert (logits.grad[:, 0] != 0).any()
        assert logits.grad.isfinite().all()

    def test_a_draw_is_reproducible_and_leaves_the_global_random_state_alone(self):
        head, before = RecordHead(mixed_blocks()), torch.get_rng_state()
        logits = torch.randn(4, 5, head.max_cells, generator=torch.Generator().manual_seed(0))
        draws = [head.draw(logits, torch.Generator().manual_seed(4)) for _ in range(2)]
        assert torch.equal(*draws)
        assert torch.equal(torch.get_rng_state(), before)


def test_training_and_sampling_take_the_same_path():
    """Records do not change with the mode: nothing in the nets acts differently when they are trained."""
    nets = make_networks("auto", mixed_blocks(), 2)
    labels = one_hot(6, 2)
    drawn = [nets.train(mode).generate(labels, torch.Generator().manual_seed(5)) for mode in (True, False)]
    assert torch.equal(*drawn)


def test_at_first_the_generator_is_the_identity_so_that_records_are_those_of_the_autoencoder():
    nets = make_networks("auto", mixed_blocks(), 2)
    latent, labels = torch.randn(3, 32), one_hot(3, 2)
    moved = nets.generator(latent, labels) - latent
    assert torch.allclose(moved, moved[:1].expand_as(moved), atol=1e-6), "a constant, from the last bias alone"
