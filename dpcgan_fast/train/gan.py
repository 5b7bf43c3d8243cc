"""Adversarial training: a private critic, and a generator and decoder that see the data only through it."""

from collections.abc import Callable
from contextlib import closing
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dpcgan_fast.models import sample_records
from dpcgan_fast.train.plan import CRITIC
from dpcgan_fast.train.session import Training, Turn
from dpcgan_fast.train.settings import CriticLoss
from dpcgan_fast.train.state import scale_learning_rate
from dpcgan_fast.train.stepping import Stepping

_FAKE_FLOATS = 1 << 21  # of records that the generator's gradient passes through at once; each takes dozens
_LAST_RATE = 0.1  # learning rates fall linearly to this share of themselves


def real_loss(scores: Tensor, kind: CriticLoss) -> Tensor:
    """The critic's loss on real rows, one a row; (B,) -> (B,)."""
    return F.relu(1 - scores) if kind == "hinge" else -scores


def fake_loss(scores: Tensor, kind: CriticLoss) -> Tensor:
    """The critic's loss on fake rows, one a row; (B,) -> (B,)."""
    return F.relu(1 + scores) if kind == "hinge" else scores


def draw_labels(session: Training, count: int, randomness: torch.Generator) -> Tensor:
    """One-hot labels (count, K) by the public or paid class rates; K = 0 where the label is part of the record."""
    classes = session.data.n_labels
    if classes == 0:
        return torch.zeros(count, 0, device=session.data.device)
    drawn = torch.multinomial(session.state.rates, count, replacement=True, generator=randomness)
    return F.one_hot(drawn, classes).float()


def critic_turn(session: Training) -> Callable[[Turn], None]:
    """What takes a private step of the critic, and every now and then a free one of the generator."""
    settings, state = session.settings, session.state
    state.networks.train()
    step = session.private_step(CRITIC, state.networks.critic)
    add_rows = (_paired_rows if settings.paired_fakes else _separate_rows)(session, step)

    def take(turn: Turn) -> None:
        rate = max(_LAST_RATE, 1 - turn.number / settings.critic_steps)
        for optimizer in (state.optimizers[CRITIC], state.optimizers["generator"]):
            scale_learning_rate(optimizer, rate)
        add_rows(turn)
        step.step()
        if (turn.number + 1) % settings.critic_per_generator == 0:
            _generator_step(session, _fakes_per_step(session))
            if settings.generator_ema > 0:
                state.average(settings.generator_ema, (turn.number + 1) // settings.critic_per_generator)

    return take


def train_gan(session: Training) -> None:
    """Takes the critic's private steps that the budget still holds, and the generator's free steps in between."""
    state = session.state
    state.networks.train()
    if state.steps[CRITIC] == 0:
        state.networks.calibrate(partial(draw_labels, session), state.randomness)
    take = critic_turn(session)
    with closing(session.turns(CRITIC)) as turns:
        for turn in turns:
            take(turn)
    state.take_averages()
    state.networks.calibrate(partial(draw_labels, session), state.randomness)


def _fakes_per_step(session: Training) -> int:
    """Public: the expected batch."""
    return max(1, round(session.state.divisors[CRITIC]))


def _separate_rows(session: Training, step: Stepping) -> Callable[[Turn], None]:
    """Real rows clipped and noised; fakes touch no data: clipped on their own, in public number, without noise."""
    kind, fakes, randomness = session.settings.critic_loss, _fakes_per_step(session), session.state.randomness
    real = step.backward_of(lambda records, labels: real_loss(step(records, labels), kind))
    fake = step.backward_of(lambda records, labels: fake_loss(step(records, labels), kind), private=False)

    def add(turn: Turn) -> None:
        for chunk in turn.chunks:
            real(chunk.records, chunk.labels, units=chunk.units)
        labels = draw_labels(session, fakes, randomness)
        fake(sample_records(session.state.networks, labels, randomness), labels)

    return add


def _paired_rows(session: Training, step: Stepping) -> Callable[[Turn], None]:
    """The paper's joint form: every real row with a fake of its own, both in the unit's loss before clipping.

    As many fakes are drawn as there are rows, which is private: their randomness is not the run's public one, and the
    generator is in its sampling mode, in which no fake depends on how many others there are. In training mode its
    BatchNorm would tie each unit's gradient to the other units of the batch, and count the batch in its statistics.
    """
    kind, networks = session.settings.critic_loss, session.state.networks

    def loss(records: Tensor, labels: Tensor, fakes: Tensor, fake_labels: Tensor) -> Tensor:
        return real_loss(step(records, labels), kind) + fake_loss(step(fakes, fake_labels), kind)

    backward = step.backward_of(loss)

    def add(turn: Turn) -> None:
        randomness = session.private_randomness(turn)
        networks.generator.eval()
        try:
            for chunk in turn.chunks:
                labels = draw_labels(session, len(chunk.records), randomness)
                fakes = sample_records(networks, labels, randomness)
                backward(chunk.records, chunk.labels, fakes, labels, units=chunk.units)
        finally:
            networks.generator.train()

    return add


def _generator_step(session: Training, fakes: int) -> None:
    """The generator, and the decoder at its small rate, move to where the critic scores higher: post-processing."""
    networks, randomness = session.state.networks, session.state.randomness
    optimizer = session.state.optimizers["generator"]
    parameters = session.state.generator_parameters()
    labels = draw_labels(session, fakes, randomness)
    most = fakes if networks.generator_mixes_rows else max(1, _FAKE_FLOATS // session.data.width)
    optimizer.zero_grad(set_to_none=True)
    for part in labels.split(most):
        loss = -networks.critic(networks.generate(part, randomness), part).sum() / fakes
        for parameter, grad in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = grad if parameter.grad is None else parameter.grad + grad
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
