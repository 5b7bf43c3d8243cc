"""The critic's step: which form it takes, and that the paper's joint form keeps units apart. The generator's step."""

from types import SimpleNamespace

import pytest
import torch

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.models import make_networks
from dpcgan_fast.train import gan
from dpcgan_fast.train.data import Chunk
from dpcgan_fast.train.gan import _generator_step, _paired_rows, _separate_rows
from dpcgan_fast.train.session import Turn
from dpcgan_fast.train.stepping import Stepping

ROWS, CLIP = 9, 0.7


@pytest.fixture
def networks():
    """The UCI preset in training mode, with running statistics that are not the first ones."""
    made = make_networks("rdpcgan-uci", [Block("numeric", "x", 0, 179)], 1, seed=0).train()
    made.generate(torch.zeros(16, 0), torch.Generator().manual_seed(1))
    return made


def paired_sum(networks, records, rows, latents):
    """The clipped sum of the critic's gradients over some rows, each with the fake of its own latent."""
    critic = networks.critic
    step = PrivateStep(critic, torch.optim.SGD(critic.parameters(), lr=0.0), CLIP, 0.0, 1.0)

    def generate(labels, randomness):  # noqa: ARG001
        return networks.decode(networks.generator(latents[rows], labels), labels, None)

    networks.generate = generate
    chunk = Chunk(records[rows], torch.zeros(len(rows), 0), None)
    session = SimpleNamespace(
        settings=SimpleNamespace(critic_loss="wasserstein"),
        state=SimpleNamespace(networks=networks),
        data=SimpleNamespace(n_labels=0, device=torch.device("cpu")),
        private_randomness=lambda _turn: torch.Generator(),
    )
    _paired_rows(session, Stepping(step, 1.0, None))(Turn(0, [chunk]))  # type: ignore[arg-type]
    return torch.cat([step._private_sum[p].flatten() for p in critic.parameters()])


def test_the_joint_form_leaves_the_generators_buffers_alone(networks):
    before = {name: buffer.clone() for name, buffer in networks.generator.named_buffers()}
    assert any("running" in name for name in before)
    paired_sum(networks, torch.rand(ROWS, 179), list(range(ROWS)), torch.randn(ROWS, 128))
    for name, buffer in networks.generator.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert networks.generator.training


def test_removing_a_unit_moves_the_joint_forms_sum_by_at_most_the_clipping_norm(networks):
    """Each row keeps the fake that it has, as where every row's latent is its own."""
    records, latents = torch.rand(ROWS, 179), torch.randn(ROWS, 128)
    records[0] *= 1e4
    latents[1] *= 1e3
    everyone = list(range(ROWS))
    whole = paired_sum(networks, records, everyone, latents)
    for gone in everyone:
        rest = paired_sum(networks, records, [row for row in everyone if row != gone], latents)
        assert float((whole - rest).norm()) <= CLIP * (1 + 1e-6)


@pytest.mark.parametrize("drawn", [(), (1,), (30, 12)], ids=["no rows", "one row", "two chunks"])
def test_fakes_are_as_many_as_the_public_expected_batch_whatever_was_drawn(drawn):
    """Their randomness is kept in checkpoints, whose state would else tell how many rows were drawn."""
    networks = make_networks("auto", [Block("numeric", f"X{i}", i, 1, sample=True) for i in range(40)], 2, seed=0)
    step = PrivateStep(networks.critic, torch.optim.SGD(networks.critic.parameters(), lr=0.0), CLIP, 0.0, 8.0)
    randomness, alone = (torch.Generator().manual_seed(3) for _ in range(2))
    session = SimpleNamespace(
        settings=SimpleNamespace(critic_loss="hinge"),
        state=SimpleNamespace(networks=networks, rates=torch.ones(2), randomness=randomness, divisors={"critic": 8.0}),
        data=SimpleNamespace(n_labels=2, device=torch.device("cpu")),
    )
    chunks = [Chunk(torch.rand(rows, 40), torch.eye(2)[torch.arange(rows) % 2], None) for rows in drawn]
    _separate_rows(session, Stepping(step, 8.0, None))(Turn(0, chunks))  # type: ignore[arg-type]
    networks.generate(gan.draw_labels(session, 8, alone), alone)  # type: ignore[arg-type]
    assert torch.equal(randomness.get_state(), alone.get_state())


# ---- the generator

CODES = [Block("numeric", "x", 0, 1), Block("codes", "dx", 1, 40)]


def generator_session(networks, width, classes):
    parameters = [*networks.generator.parameters(), *networks.decoder_parameters()]
    state = SimpleNamespace(
        networks=networks,
        rates=torch.ones(classes),
        randomness=torch.Generator().manual_seed(3),
        optimizers={"generator": torch.optim.SGD(parameters, lr=1.0)},
        generator_parameters=lambda: parameters,
    )
    data = SimpleNamespace(n_labels=classes, width=width, device=torch.device("cpu"))
    return SimpleNamespace(state=state, data=data)


def moved(networks, before):
    return torch.cat([(new - old).flatten() for new, old in zip(networks.parameters(), before, strict=True)])


@pytest.mark.parametrize("floats", [1, 41 * 4, 41 * 10, 1 << 21])
def test_the_generators_step_does_not_depend_on_how_many_records_are_held_at_once(monkeypatch, floats):
    monkeypatch.setattr(gan, "_FAKE_FLOATS", floats)
    fakes, at_once = 10, min(10, max(1, floats // 41))
    networks = make_networks("auto", CODES, 2, seed=0).train()
    with torch.no_grad():
        for parameter in networks.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    before = [parameter.detach().clone() for parameter in networks.parameters()]
    _generator_step(generator_session(networks, 41, 2), fakes)  # type: ignore[arg-type]
    found = moved(networks, before)
    assert all(parameter.grad is None for parameter in networks.parameters())
    with torch.no_grad():
        for parameter, old in zip(networks.parameters(), before, strict=True):
            parameter.copy_(old)
    session = generator_session(networks, 41, 2)
    randomness = session.state.randomness
    labels = gan.draw_labels(session, fakes, randomness)  # type: ignore[arg-type]
    records = torch.cat([networks.generate(part, randomness) for part in labels.split(at_once)])
    (-networks.critic(records, labels).mean()).backward()
    session.state.optimizers["generator"].step()
    whole = moved(networks, before)
    assert whole.norm() > 0
    assert torch.allclose(found, whole, rtol=1e-4, atol=1e-7)


def test_a_generator_that_mixes_rows_sees_them_all_at_once(monkeypatch, networks):
    """What its BatchNorm makes of a row depends on the others."""
    monkeypatch.setattr(gan, "_FAKE_FLOATS", 1)
    seen = []
    generate = networks.generate
    networks.generate = lambda labels, randomness: seen.append(len(labels)) or generate(labels, randomness)
    _generator_step(generator_session(networks, 179, 0), 7)  # type: ignore[arg-type]
    assert seen == [7]
