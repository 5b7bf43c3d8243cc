"""Networks for columns of many categories: embedded where they come in, of low rank where they go out."""

import pytest
import torch

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.models import make_networks, sample_records
from dpcgan_fast.models.wide import EMBEDDING
from tests.models.test_auto import random_records
from tests.models.test_codes import labels_of, networks
from tests.models.test_sampling import one_hot, seeded

WIDTHS = (70, 90)
MIXED = [
    Block("numeric", "x", 0, 1), Block("categorical", "c", 1, 3), Block("wide", "v", 4, 70), Block("wide", "w", 74, 90),
    Block("codes", "dx", 164, 5),
]  # fmt: skip
ALONE = [Block("wide", "v", 0, 70)]


def records_of(blocks, rows):
    records = random_records(blocks, rows)
    for block in blocks:
        if block.kind == "wide":
            records[:, block.start : block.stop] = one_hot(torch.randint(0, block.width, (rows,)), block.width)
    return records


def rates_of(nets):
    """Rates that differ between classes and columns; none of what pads the narrower column."""
    decoder = nets.autoencoder.wide
    rates = torch.rand(decoder.rates.shape, generator=seeded(3)) ** 4
    for i, width in enumerate(WIDTHS[: decoder.n_blocks]):
        rates[:, i, width:] = 0
    return rates / rates.sum(2, keepdim=True)


@pytest.mark.parametrize("released", [False, True])
def test_training_and_sampling_draw_from_the_same_distribution(released):
    nets, labels = networks(MIXED), labels_of(12_000)
    if released:
        nets.autoencoder.wide.start_at(rates_of(nets))
    got = sample_records(nets, labels, seeded(1))
    with torch.no_grad():
        expected = nets.generate(labels, seeded(2))
    assert got.shape == expected.shape == (12_000, MIXED[-1].stop)
    for block in MIXED[2:4]:
        assert (got[:, block.start : block.stop].sum(1) == 1).all()
    for own in (labels[:, 0] == 1, labels[:, 1] == 1):
        pairs = [(side[own][:, :40, None] * side[own][:, None, 60:]).flatten(1) for side in (got, expected)]
        for a, b in ((got[own], expected[own]), tuple(pairs)):
            error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() <= 6 * error + 2e-3).all()


@pytest.mark.parametrize("blocks", [MIXED, MIXED[:4], ALONE], ids=["mixed", "without codes", "alone"])
def test_private_steps_take_known_rules_and_keep_the_fused_runs(blocks):
    nets, labels, records = networks(blocks), labels_of(6), records_of(blocks, 6)
    for module, loss in (
        (nets.autoencoder, lambda step: nets.autoencoder_loss(step(records, labels, torch.randn(6, 32)), records)),
        (nets.critic, lambda step: step(records, labels)),
    ):
        step = PrivateStep(module, torch.optim.SGD(module.parameters(), 0.1), 1.0, 0.0, 6.0)
        step.backward(loss(step))
        step.step()
        assert "torch.func" not in str(step.last)
        assert "is in no nn.Sequential" in str(step.last)
        assert "trunk.0: fused conv1d" in str(step.last) or "layers.0: fused conv1d" in str(step.last)


def test_the_clipped_sum_is_that_of_rows_taken_alone():
    nets, labels, records, noise = networks(MIXED), labels_of(5), records_of(MIXED, 5), torch.randn(5, 32)
    parameters = dict(nets.autoencoder.named_parameters())
    expected = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for i in range(5):
        row = [part[i : i + 1] for part in (records, labels, noise)]
        loss = nets.autoencoder_loss(nets.autoencoder(*row), row[0]).sum()
        grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
        for name, grad in zip(parameters, grads, strict=True):
            expected[name] += 0 if grad is None else grad * min(1.0, 0.5 / norm)
    before = {name: p.detach().clone() for name, p in parameters.items()}
    step = PrivateStep(nets.autoencoder, torch.optim.SGD(parameters.values(), 1.0), 0.5, 0.0, 1.0)
    step.backward(nets.autoencoder_loss(step(records, labels, noise), records))
    step.step()
    for name, p in parameters.items():
        torch.testing.assert_close(before[name] - p.detach(), expected[name], atol=2e-5, rtol=1e-3)


def test_many_categories_make_neither_records_nor_other_columns_longer():
    nets = make_networks("auto", [Block("numeric", "x", 0, 1), Block("wide", "v", 1, 5000)], 2)
    assert nets.critic.input.length == 1 + EMBEDDING
    assert nets.columns_head.max_cells < 100
    assert nets.critic.input(torch.zeros(3, 5001)).shape == (3, 1 + EMBEDDING)


def test_calibrated_categories_are_as_frequent_in_each_class_as_was_released():
    nets = networks(MIXED)
    decoder, rates = nets.autoencoder.wide, rates_of(nets)
    with torch.no_grad():
        decoder.table.weight.mul_(3)  # so that the latent codes move the frequencies
    decoder.start_at(rates)
    labels = labels_of(20_000)

    def farthest():
        """Largest distance in total variation of a column in a class."""
        drawn = sample_records(nets, labels, seeded(4))
        return max(
            float((drawn[own][:, block.start : block.stop].mean(0) - rates[k, i, : block.width]).abs().sum()) / 2
            for k, own in enumerate((labels[:, 0] == 1, labels[:, 1] == 1))
            for i, block in enumerate(MIXED[2:4])
        )

    before = farthest()
    nets.calibrate(lambda rows, _: labels_of(rows), seeded(5))
    assert before > 0.2
    assert farthest() < 0.08


def test_codes_of_a_visit_know_of_the_visit_beyond_columns_of_many_categories():
    blocks = [
        Block("absent", "n", 0, 1), Block("wide", "w", 1, 70), Block("codes", "dx[1]", 71, 3),
        Block("codes", "dx[2]", 74, 3, guard=0),
    ]  # fmt: skip
    nets, labels = networks(blocks), labels_of(20_000)
    rates = torch.tensor([0.3, 0.2, 0.1] * 2)
    nets.start_codes(rates)
    nets.calibrate(lambda rows, _: labels_of(rows), seeded(5))
    with torch.no_grad():
        draws = [sample_records(nets, labels, seeded(7)), nets.generate(labels, seeded(8))]
    for drawn in draws:
        gone = drawn[:, 0] == 1
        assert 0.2 < gone.float().mean() < 0.8
        assert (drawn[:, 1:71].sum(1) == 1).all()
        assert (drawn[gone, 74:] == 0).all()
        assert ((drawn[:, 71:].mean(0) - rates).abs() <= 5 * (rates / 20_000).sqrt() + 0.08 * rates).all()


def test_a_column_of_which_nothing_was_released_keeps_what_was_learned():
    nets = networks(MIXED)
    decoder, rates = nets.autoencoder.wide, rates_of(nets)
    rates[:, 1] = 0
    decoder.start_at(rates)
    nets.calibrate(lambda rows, _: labels_of(rows), seeded(5))
    learned = 8 * decoder.prior.weight.t().unflatten(1, (2, 90))
    assert torch.equal(decoder.of_label()[:, 1], learned[:, 1])
    assert not torch.isclose(decoder.of_label()[:, 0], learned[:, 0]).any()
