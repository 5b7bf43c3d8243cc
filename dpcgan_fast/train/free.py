"""Training on rows that were made from what is released already: post-processing, of which the ledger knows nothing."""

import math
from collections.abc import Generator
from dataclasses import replace

from dpcgan_fast.train.autoencoder import train_autoencoder
from dpcgan_fast.train.data import TrainingData
from dpcgan_fast.train.gan import train_gan
from dpcgan_fast.train.plan import AUTOENCODER, CRITIC, make_plan
from dpcgan_fast.train.prefetch import Ahead, drawn_chunks, one_draw
from dpcgan_fast.train.session import Session, Training, Turn
from dpcgan_fast.train.settings import TrainSettings
from dpcgan_fast.train.state import TrainState, make_optimizers

_FITTING = "fitting "  # how its phases begin, as progress is told of them
_AUTOENCODER_TIMES = 2  # as many steps as the critic's: without noise it learns on
_BATCH = 128  # without noise there is nothing that a larger one would average out


class FreeTraining(Training):
    """Training on synthetic rows: the same steps without clipping and noise. It knows of no ledger or checkpoint."""

    def turns(self, name: str) -> Generator[Turn, None, None]:
        """The steps of a mechanism on the synthetic rows.

        Raises StoppedError if a stop was asked for; such a run begins to fit anew when it goes on.
        """
        steps = range(self.plan.mechanism(name).steps)
        self.progress.start(_FITTING + name, len(steps), 0)
        with Ahead(drawn_chunks(self.data, self.sampler(name), steps)) as chunks:
            for number in steps:
                if self.stop.requested:
                    raise self.stopped()
                yield Turn(number, one_draw(chunks))
                self.progress.advance(number + 1, None)


def is_free(phase: str) -> bool:
    """Whether the steps of a phase, as progress is told of it, cost nothing."""
    return phase.startswith(_FITTING)


def train_free(session: Session, rows: TrainingData) -> None:
    """Trains the networks of a session, from where they are, by `fit_steps` on synthetic rows.

    rows: synthetic ones, made of what was released alone: nothing here protects them
    The session's optimizers stay as they are.
    """
    settings = _free(session.settings, rows.index.n_units)
    networks, divisors = session.state.networks, {AUTOENCODER: float(_BATCH), CRITIC: float(_BATCH)}
    own = TrainState(
        networks, make_optimizers(networks, settings), session.state.rates, divisors, session.state.randomness
    )
    free = FreeTraining(
        settings=settings, plan=make_plan(settings, (), "row"), data=rows, state=own, noise_key=session.noise_key,
        where=session.where, progress=session.progress, stop=session.stop,
    )  # fmt: skip
    train_autoencoder(free)
    train_gan(free)


def _free(settings: TrainSettings, rows: int) -> TrainSettings:
    """Settings of a training without privacy on so many rows."""
    steps = settings.fit_steps
    return replace(
        settings, epsilon=math.inf, n_units=rows, autoencoder_batch=_BATCH, critic_batch=_BATCH, statistics=False,
        autoencoder_steps=_AUTOENCODER_TIMES * steps, critic_steps=steps,
    )  # fmt: skip
