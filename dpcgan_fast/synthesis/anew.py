"""The statistics of a run at other epsilons: released anew for evaluation, beside what the run guarantees."""

import secrets
from dataclasses import dataclass, replace

import pyarrow as pa
import torch

from dpcgan_fast.baselines import noise_multiplier
from dpcgan_fast.privacy import noise_key
from dpcgan_fast.synthesis.sampling import Sampler
from dpcgan_fast.synthesis.statistics import unaccounted_statistics


@dataclass(frozen=True)
class StatisticsAnew:
    """Rows as a run would draw them if it had another epsilon.

    sampler:              of the run
    epsilon, delta:       the run's own; epsilon is finite
    own_noise_multiplier: of the run's own statistics
    units:                number of units, public or as the run released it
    run:                  SHA-256 of the run's model file
    seeded:               whether the run's own noise came from a seed, so that its epsilon protects nobody
    """

    sampler: Sampler
    epsilon: float
    delta: float
    own_noise_multiplier: float
    units: float
    run: str
    seeded: bool

    def noise_multiplier(self, epsilon: float) -> float:
        """That of one Gaussian release which costs what the statistics would cost at an epsilon and the run's delta.

        In units of 1 / noise_multiplier^2, of which epsilon and delta allow one Gaussian release a fixed amount, the
        statistics have the share that they have in the run.
        """
        own, other = (noise_multiplier(one, self.delta) for one in (self.epsilon, epsilon))
        return self.own_noise_multiplier * (other / own)

    def draw(self, table: pa.Table, epsilon: float, rows: int) -> pa.Table:
        """Releases the statistics of training rows with fresh, secret noise, and draws rows from them.

        table: as read for training, with the unit's column if the schema has one. Bounds and lists that the run paid
               for stay as the run released them

        Formal guarantee: each call is as private as one Gaussian release of `noise_multiplier(epsilon)`, beside what
        the run and other calls cost; no ledger has a line for it. Raises InputError if the table does not fit.
        """
        schema, multiplier = self.sampler.codec.schema, self.noise_multiplier(epsilon)
        fitted = unaccounted_statistics(table, schema, multiplier, noise_key(), "the training table")
        randomness = torch.Generator(self.sampler.rates.device)
        randomness.manual_seed(secrets.randbits(63))
        return pa.concat_tables(replace(self.sampler, statistics=fitted).batches(rows, {}, randomness))
