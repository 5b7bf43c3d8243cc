"""Private training of the autoencoder."""

from collections.abc import Callable
from contextlib import closing

from dpcgan_fast.train.plan import AUTOENCODER
from dpcgan_fast.train.session import Training, Turn
from dpcgan_fast.train.state import scale_learning_rate

_LAST_RATE = 0.02  # the learning rate falls linearly to this share of itself


def autoencoder_turn(session: Training) -> Callable[[Turn], None]:
    """What takes a private step of the autoencoder."""
    networks = session.state.networks
    optimizer = session.state.optimizers[AUTOENCODER]
    networks.autoencoder.train()
    step = session.private_step(AUTOENCODER, networks.autoencoder)
    backward = step.backward_of(
        lambda records, labels, noise: networks.autoencoder_loss(step(records, labels, noise), records)
    )
    total = session.settings.autoencoder_steps

    def take(turn: Turn) -> None:
        scale_learning_rate(optimizer, max(_LAST_RATE, 1 - turn.number / total))
        randomness = session.private_randomness(turn)
        for chunk in turn.chunks:
            noise = networks.autoencoder_noise(len(chunk.records), randomness)
            backward(chunk.records, chunk.labels, noise, units=chunk.units)
        step.step()

    return take


def train_autoencoder(session: Training) -> None:
    """Takes the autoencoder's private steps that the budget still holds."""
    take = autoencoder_turn(session)
    with closing(session.turns(AUTOENCODER)) as turns:
        for turn in turns:
            take(turn)
