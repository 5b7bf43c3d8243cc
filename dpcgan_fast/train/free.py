"""Training on rows that were made from what is released already: post-processing, of which the ledger knows nothing."""

from collections.abc import Generator
from dataclasses import replace

from dpcgan_fast.errors import StoppedError
from dpcgan_fast.privacy import PoissonSampler, sampling_key
from dpcgan_fast.train.autoencoder import train_autoencoder
from dpcgan_fast.train.data import TrainingData
from dpcgan_fast.train.gan import train_gan
from dpcgan_fast.train.plan import AUTOENCODER, CRITIC, make_plan
from dpcgan_fast.train.prefetch import Ahead, drawn_chunks, one_draw
from dpcgan_fast.train.session import Session, Turn
from dpcgan_fast.train.settings import TrainSettings
from dpcgan_fast.train.state import TrainState, make_optimizers

FITTING = "fitting "  # how its phases begin, as progress is told of them
_AUTOENCODER_TIMES = 2  # as many steps as the critic's: without noise it learns on
_BATCH = 128  # without noise there is nothing that a larger one would average out


class FreeSession(Session):
    """A session on synthetic rows: the same steps without clipping and noise, with no line in the ledger and no
    checkpoint. It stands for the run's own session, whose networks it trains.
    """

    def private_steps(self, name: str) -> Generator[Turn, None, None]:
        """The steps of a mechanism on the synthetic rows.

        Raises StoppedError if a stop was asked for; such a run begins to fit anew when it goes on.
        """
        mechanism = self.plan.mechanism(name)
        key = sampling_key(name, self.settings.seed)
        sampler = PoissonSampler(self.data.index.n_units, mechanism.sample_rate, key)
        self.progress.start(FITTING + name, mechanism.steps, 0)
        with Ahead(drawn_chunks(self.data, sampler, range(mechanism.steps))) as chunks:
            for number in range(mechanism.steps):
                if self.stop.requested:
                    raise StoppedError(
                        f"Stopped by {self.stop.signal_name}",
                        str(self.checkpoints.parent),
                        "Go on with resume=True (--resume).",
                    )
                yield Turn(number, one_draw(chunks))
                self.progress.advance(number + 1, None)


def fit_networks(session: Session, rows: TrainingData) -> None:
    """Trains the networks of a session, from where they are, by `fit_steps` on synthetic rows.

    rows: synthetic ones, made of what was released alone: nothing here protects them
    Optimizers are left as they were.
    """
    state = session.state
    settings = _free(session.settings, rows.index.n_units)
    divisors = {AUTOENCODER: float(_BATCH), CRITIC: float(_BATCH)}
    optimizers = make_optimizers(state.networks, settings)
    own = TrainState(state.networks, optimizers, state.rates, divisors, state.randomness)
    free = FreeSession(
        settings, make_plan(settings, (), "row"), rows, own, session.ledger, session.noise_key, session.checkpoints,
        session.log, session.progress, session.stop,
    )  # fmt: skip
    train_autoencoder(free)
    train_gan(free)


def _free(settings: TrainSettings, rows: int) -> TrainSettings:
    """Settings of a training without privacy on so many rows."""
    steps = settings.fit_steps
    return replace(
        settings, epsilon=float("inf"), n_units=rows, autoencoder_batch=_BATCH, critic_batch=_BATCH, statistics=False,
        autoencoder_steps=_AUTOENCODER_TIMES * steps, critic_steps=steps,
    )  # fmt: skip
