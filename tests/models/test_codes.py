"""Networks for codes: sets of any width, likelihoods and draws of independent flags, frequencies that were released."""

import pytest
import torch
from torch import nn

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.models import make_networks, sample_records
from dpcgan_fast.models.code_head import CodesHead
from tests.models.test_sampling import one_hot, seeded

MIXED = [Block("numeric", "x", 0, 1), Block("categorical", "c", 1, 3), Block("codes", "dx", 4, 30)]
ALONE = [Block("codes", "dx", 0, 30)]


def networks(blocks, classes=2):
    nets = make_networks("auto", blocks, classes, seed=0)
    with torch.no_grad():
        for parameter in nets.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded()))
    return nets


def labels_of(rows, classes=2):
    return one_hot(torch.arange(rows) % classes, classes)


@pytest.mark.parametrize("blocks", [MIXED, ALONE], ids=["mixed", "alone"])
def test_training_and_sampling_draw_from_the_same_distribution(blocks):
    nets, labels = networks(blocks), labels_of(20_000)
    got = sample_records(nets, labels, seeded(1))
    with torch.no_grad():
        expected = nets.generate(labels, seeded(2))
    assert got.shape == expected.shape == (20_000, blocks[-1].stop)
    for own in (labels[:, 0] == 1, labels[:, 1] == 1):
        pairs = [(side[own][:, :, None] * side[own][:, None, :]).flatten(1) for side in (got, expected)]
        for a, b in ((got[own], expected[own]), tuple(pairs)):
            error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("width", [1, 2, 7, 8, 9, 300, 1595, 10_000])
@pytest.mark.parametrize("first", [0, 4])
def test_any_number_of_codes_has_networks_that_take_a_private_step(width, first):
    blocks = [*MIXED[: 2 * (first > 0)], Block("codes", "dx", first, width)]
    nets, labels = make_networks("auto", blocks, 2), labels_of(5)
    records = sample_records(nets, labels, seeded())
    assert records.shape == (5, first + width)
    assert torch.isin(records[:, first:], torch.tensor([0.0, 1.0])).all()
    for module, loss in (
        (nets.autoencoder, lambda step: nets.autoencoder_loss(step(records, labels, torch.randn(5, 32)), records)),
        (nets.critic, lambda step: step(records, labels)),
    ):
        step = PrivateStep(module, torch.optim.SGD(module.parameters(), 0.1), 1.0, 0.0, 5.0)
        losses = loss(step)
        assert losses.shape == (5,)
        step.backward(losses)
        step.step()
        assert all(parameter.isfinite().all() for parameter in module.parameters())
        assert "torch.func" not in str(step.last)


def test_the_likelihood_is_that_of_independent_flags():
    head, logits = CodesHead([Block("codes", "dx", 2, 3)]), torch.tensor([[0.0, 2.0, -1.0]])
    records = torch.tensor([[0.3, 0.7, 1.0, 0.0, 1.0]])
    chances = torch.sigmoid(logits[0])
    expected = -(chances[0].log() + (1 - chances[1]).log() + chances[2].log())
    assert float(head.nll(logits, records)) == pytest.approx(float(expected), rel=1e-6)


def test_draws_follow_the_logits_and_hide_no_nan():
    head = CodesHead([Block("codes", "dx", 0, 4)])
    drawn = head.draw(torch.tensor([[0.0, 2.0, -3.0, 40.0]]).expand(40_000, -1), seeded())
    assert drawn.mean(0).tolist() == pytest.approx([0.5, 0.881, 0.047, 1.0], abs=0.012)
    bad = head.draw(torch.tensor([[0.0, float("nan")]]), seeded())
    assert bad.isnan().tolist() == [[False, True]]


def test_gradients_pass_through_a_draw_as_through_its_soft_form():
    head = CodesHead([Block("codes", "dx", 0, 5)])
    logits = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    head.draw(logits, seeded(3)).sum().backward()
    uniform = torch.rand(3, 5, generator=seeded(3), dtype=torch.float32).double()
    soft_logits = logits.detach().clone().requires_grad_()
    torch.sigmoid((soft_logits + uniform.logit()) / 0.5).sum().backward()
    assert torch.allclose(logits.grad, soft_logits.grad, rtol=1e-4)


@pytest.mark.parametrize("blocks", [MIXED, ALONE], ids=["mixed", "alone"])
def test_calibration_brings_every_code_to_its_rate(blocks):
    nets = networks(blocks)
    rates = torch.rand(30, generator=seeded(5)) ** 3 * 0.8 + 1e-3
    nets.autoencoder.codes.start_at(rates)
    nets.calibrate(lambda n, randomness: one_hot(torch.randint(0, 2, (n,), generator=randomness), 2), seeded(6))
    drawn = sample_records(nets, labels_of(40_000), seeded(7))[:, -30:].mean(0)
    assert ((drawn - rates).abs() <= 5 * (rates * (1 - rates) / 40_000).sqrt() + 0.08 * rates).all()


def test_codes_of_a_visit_count_and_are_drawn_where_there_is_the_visit_as_often_as_was_released():
    blocks = [Block("absent", "n", 0, 1), Block("codes", "dx[1]", 1, 3), Block("codes", "dx[2]", 4, 3, guard=0)]
    nets = networks(blocks)
    rates = torch.tensor([0.3, 0.1, 0.02, 0.2, 0.1, 0.02])
    nets.autoencoder.codes.start_at(rates)
    nets.calibrate(lambda n, randomness: one_hot(torch.randint(0, 2, (n,), generator=randomness), 2), seeded(6))
    with torch.no_grad():
        draws = [sample_records(nets, labels_of(40_000), seeded(7)), nets.generate(labels_of(40_000), seeded(8))]
    for drawn in draws:
        gone = drawn[:, 0] == 1
        assert 0.2 < gone.float().mean() < 0.8
        assert (drawn[gone, 4:] == 0).all()
        assert ((drawn[:, 1:].mean(0) - rates).abs() <= 5 * (rates * (1 - rates) / 40_000).sqrt() + 0.08 * rates).all()
    logits = torch.randn(1, 6)
    gone, there = (torch.tensor([[flag, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]) for flag in (1.0, 0.0))
    each = nn.functional.binary_cross_entropy_with_logits(logits, there[:, 1:], reduction="none")
    assert float(nets.codes_head.nll(logits, gone)) == pytest.approx(float(each[:, :3].sum()), rel=1e-6)
    assert float(nets.codes_head.nll(logits, there)) == pytest.approx(float(each.sum()), rel=1e-6)


def test_rates_are_kept_with_the_weights_and_are_not_trained():
    nets, again = networks(ALONE), networks(ALONE)
    nets.autoencoder.codes.start_at(torch.linspace(0, 1, 30))
    again.load_state_dict(nets.state_dict())
    assert torch.equal(again.autoencoder.codes.rates, nets.autoencoder.codes.rates)
    assert again.autoencoder.codes.bias.isfinite().all()
    assert not any(
        name.endswith((".bias", ".rates")) and parameter.shape == (30,) for name, parameter in nets.named_parameters()
    )


def test_codes_say_nothing_of_the_latent_code_before_training():
    codes = make_networks("auto", ALONE, 2).autoencoder.codes
    assert torch.sigmoid(codes.bias).sum() == pytest.approx(10, rel=0.01), "and a record has about ten of them"
    assert isinstance(codes, nn.Module)
