"""PATE-GAN (Jordon, Yoon and van der Schaar, ICLR 2019), accounted without looking at the votes.

Units are dealt to teachers, each of which learns to tell its own rows from generated ones, without any noise. All that
leaves them is, for each generated record that the student asks about, how many teachers take it for real, with
Gaussian noise. Student and generator learn from generated records and these answers alone, and never see a row.

Other than published, the student takes the share of the votes and not their majority, learns from earlier answers
again, and also asks about scattered records, and classes are drawn by paid rates: with the majority on generated
records alone the teachers soon rejected all of them, and the student learned nothing.

Formal guarantee: the answers of a round are a Gaussian mechanism of L2 sensitivity sqrt(queries), for adding or
removing a unit, and all rounds and the label histogram compose exactly. A unit goes to one teacher, drawn for it alone,
so that with it one teacher changes, and one vote on each record. Each teacher is a function of its own rows, of its own
randomness, and of what the generator has shown to all.
"""

import math
import secrets
from dataclasses import dataclass

import dp_accounting
import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from dpcgan_fast.bench.paper.dense import DenseNetworks
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.units import UnitIndex, unit_ids
from dpcgan_fast.models import initial_weights, sample_records
from dpcgan_fast.models.layers import LEAKY_SLOPE
from dpcgan_fast.ops import NoiseKey, gaussian_noise_
from dpcgan_fast.privacy import Ledger, Mechanism, calibrate_noise_multiplier, noise_key
from dpcgan_fast.privacy.releases import noisy_release

VOTES, LABELS = "votes", "label histogram"
ROUNDS, QUERIES = 250, 8  # of generator and teachers; records that the student asks about in each
UNITS_PER_TEACHER, FEWEST_TEACHERS, MOST_TEACHERS = 100, 10, 200
TEACHER_HIDDEN, TEACHER_ROWS, TEACHER_STEPS, TEACHER_LR = 8, 16, 2, 5e-3
STUDENT_STEPS, STUDENT_LR, GENERATOR_STEPS, GENERATED_ROWS, GENERATOR_LR = 10, 3e-3, 2, 128, 2e-4
REMEMBERED_ROUNDS = 40  # whose answers the student learns from again: they are paid for
_LABELS_SHARE = 0.1  # of epsilon, for class rates, as the presets have it
_BETAS = (0.5, 0.99)


def teacher_count(n_units: int) -> int:
    """Public: more teachers drown the noise, and each knows less."""
    return min(MOST_TEACHERS, max(FEWEST_TEACHERS, n_units // UNITS_PER_TEACHER))


def planned(epsilon: float, delta: float, unit: str, rounds: int = ROUNDS) -> tuple[Mechanism, Mechanism]:
    """The label histogram and all rounds of votes, together within (epsilon, delta); no noise for epsilon inf."""
    noise = 0.0 if math.isinf(epsilon) else float(dp_accounting.get_sigma_gaussian(_LABELS_SHARE * epsilon, delta))
    labels = Mechanism(LABELS, "gaussian", 1.0, noise, 1, 1.0, unit=unit)

    def votes(noise_multiplier: float) -> Mechanism:
        return Mechanism(VOTES, "gaussian", 1.0, noise_multiplier, rounds, math.sqrt(QUERIES), unit=unit)

    return labels, votes(calibrate_noise_multiplier(lambda noise: [labels, votes(noise)], epsilon, delta))


@dataclass(frozen=True)
class Dealt:
    """Rows by the teacher that has them.

    rows:   (n,) int64, by teacher; starts: (teachers + 1,) int64, where those of each begin
    """

    rows: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, index: UnitIndex, teacher_of_unit: np.ndarray, teachers: int) -> "Dealt":
        """teacher_of_unit: (units,) int64, each drawn on its own: no teacher's rows depend on another unit."""
        rows, units = index.rows_of(np.arange(index.n_units))
        teacher = teacher_of_unit[units]
        counts = np.bincount(teacher, minlength=teachers)
        return cls(rows[np.argsort(teacher, kind="stable")], np.concatenate([[0], np.cumsum(counts)]))


class Teachers:
    """Classifiers with one hidden layer, of which each learns from its own rows; no value passes between them.

    records: (N, F), of which a teacher touches the rows that `dealt` gives it; without any it sees generated ones alone
    """

    def __init__(self, records: Tensor, dealt: Dealt, seed: int):
        self._records, self._randomness = records, torch.Generator().manual_seed(seed)
        self._rows = torch.from_numpy(np.append(dealt.rows, 0))
        self._first = torch.from_numpy(dealt.starts[:-1]).unsqueeze(1)
        self._count = torch.from_numpy(np.diff(dealt.starts)).unsqueeze(1)
        self.number, width = len(self._count), records.shape[1]
        self._weights = [
            self._drawn(width, TEACHER_HIDDEN), self._drawn(1, TEACHER_HIDDEN),
            self._drawn(TEACHER_HIDDEN, 1), self._drawn(1, 1),
        ]  # fmt: skip
        self._optimizer = torch.optim.Adam(self._weights, lr=TEACHER_LR)

    def _drawn(self, inputs: int, outputs: int) -> Tensor:
        limit = 1 / math.sqrt(self._records.shape[1] if inputs == 1 else inputs)
        drawn = torch.rand(self.number, inputs, outputs, generator=self._randomness)
        return ((2 * drawn - 1) * limit).requires_grad_()

    def _scores(self, records: Tensor) -> Tensor:
        """Scores (teachers, B) of records (teachers, B, F), of each teacher by its own weights."""
        first, bias, last, offset = self._weights
        hidden = F.leaky_relu(torch.baddbmm(bias, records, first), LEAKY_SLOPE)
        return torch.baddbmm(offset, hidden, last).squeeze(2)

    def _own_rows(self) -> Tensor:
        """Rows of its own for each teacher, (teachers, TEACHER_ROWS, F), zeros for one that has none."""
        drawn = torch.rand(self.number, TEACHER_ROWS, generator=self._randomness)  # as many whatever the table
        places = torch.minimum((drawn * self._count).long(), (self._count - 1).clamp(min=0))
        rows = self._records[self._rows[torch.where(self._count > 0, self._first + places, 0)]]
        return torch.where((self._count > 0).unsqueeze(2), rows, 0.0)

    def learn(self, fakes: Tensor) -> None:
        """One step of each teacher, on rows of its own and on generated records (B, F)."""
        real, fake = self._scores(self._own_rows()), self._scores(fakes.expand(self.number, -1, -1))
        has_rows = (self._count > 0).float()
        loss = (F.softplus(-real).mean(1, keepdim=True) * has_rows).sum() + F.softplus(fake).mean(1).sum()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    @torch.no_grad()
    def votes(self, queries: Tensor) -> Tensor:
        """Which teachers take which generated records (B, F) for real: (teachers, B) bool."""
        return self._scores(queries.expand(self.number, -1, -1)) > 0


@dataclass(frozen=True)
class PateGan:
    """A trained generator. rates: (K,) of the classes"""

    networks: DenseNetworks
    codec: RecordCodec
    rates: Tensor

    def sample(self, rows: int, seed: int) -> pa.Table:
        """Synthetic rows of the codec's types."""
        randomness = torch.Generator().manual_seed(seed)
        labels = _draw_labels(self.rates, rows, randomness)
        records = sample_records(self.networks, labels, randomness)
        return self.codec.decode(records.numpy(), labels.argmax(1).numpy())


def _draw_labels(rates: Tensor, rows: int, randomness: torch.Generator) -> Tensor:
    """One-hot labels (rows, K) by their rates."""
    return F.one_hot(torch.multinomial(rates, rows, replacement=True, generator=randomness), len(rates)).float()


def fit_pate_gan(
    table: pa.Table, schema: Schema, epsilon: float, delta: float, ledger: Ledger, seed: int | None,
    rounds: int = ROUNDS,
) -> PateGan:  # fmt: skip
    """Trains on a table; (epsilon, delta)-DP for adding or removing a unit, if no seed was given.

    schema: complete and public, with n_units, a label, and one row for each unit
    ledger: new; its lines are written before the noise is drawn
    """
    if schema.n_units is None or schema.label is None or schema.max_rows_per_unit != 1:
        raise ValueError("Expected a public n_units, a label, and one row for each unit.")
    of_labels, of_votes = planned(epsilon, delta, "row" if schema.unit is None else schema.unit, rounds)
    codec = RecordCodec(schema)
    encoded = codec.encode(table)
    assert encoded.labels is not None
    index = UnitIndex.from_ids(unit_ids(table, schema), encoded.kept, schema.max_rows_per_unit)
    labels = F.one_hot(torch.from_numpy(encoded.labels), codec.n_classes).float()
    first_seed = secrets.randbits(62) if seed is None else seed
    number = teacher_count(schema.n_units)
    dealt = Dealt.of(index, np.random.default_rng(first_seed).integers(number, size=index.n_units), number)
    teachers = Teachers(torch.cat([torch.from_numpy(encoded.records), labels], 1), dealt, first_seed + 1)
    with initial_weights(first_seed + 2):
        networks = DenseNetworks(codec.width, codec.n_classes, binary=False)
    key = noise_key(seed)

    seq = ledger.reserve(of_labels, key.key_id)
    histogram = labels[torch.from_numpy(index.rows)].double().sum(0).numpy()
    noisy = noisy_release(LABELS, histogram, 1.0, of_labels.noise_multiplier, key, of_labels.unit)
    ledger.close(seq, 1)
    rates = torch.from_numpy(np.maximum(noisy.values, 1.0) / np.maximum(noisy.values, 1.0).sum()).float()
    seq = ledger.reserve(of_votes, key.key_id)
    _train(networks, teachers, rates, of_votes, key, torch.Generator().manual_seed(first_seed + 3))
    ledger.close(seq, of_votes.steps)
    return PateGan(networks.eval(), codec, rates)


def _train(
    networks: DenseNetworks, teachers: Teachers, rates: Tensor, votes: Mechanism, key: NoiseKey,
    randomness: torch.Generator,
) -> None:  # fmt: skip
    """Rounds in which the teachers learn, answer the student once, and the generator follows the student."""
    student = torch.optim.Adam(networks.critic.parameters(), lr=STUDENT_LR, betas=_BETAS)
    parameters = [*networks.generator.parameters(), *networks.decoder_parameters()]
    generator = torch.optim.Adam(parameters, lr=GENERATOR_LR, betas=_BETAS)

    def fakes(rows: int) -> tuple[Tensor, Tensor]:
        labels = _draw_labels(rates, rows, randomness)
        return sample_records(networks, labels, randomness), labels

    asked: list[tuple[Tensor, Tensor, Tensor]] = []
    for _ in range(votes.steps):
        for _ in range(TEACHER_STEPS):
            teachers.learn(torch.cat(fakes(TEACHER_ROWS), 1))
        records, labels = fakes(QUERIES)
        records = _scattered(records, randomness)
        count = teachers.votes(torch.cat([records, labels], 1)).double().sum(0)
        gaussian_noise_([count], votes.noise_multiplier * votes.max_grad_norm, key)
        share = (count / teachers.number).clamp(0.0, 1.0).float()
        asked = [*asked, (records, labels, share)][-REMEMBERED_ROUNDS:]
        known, classes, shares = (torch.cat(parts) for parts in zip(*asked, strict=True))
        for _ in range(STUDENT_STEPS):
            loss = F.binary_cross_entropy_with_logits(networks.critic(known, classes), shares)
            student.zero_grad()
            loss.backward()
            student.step()
        for _ in range(GENERATOR_STEPS):
            labels = _draw_labels(rates, GENERATED_ROWS, randomness)
            loss = F.softplus(-networks.critic(networks.generate(labels, randomness), labels)).mean()
            generator.zero_grad()
            loss.backward()
            generator.step()


def _scattered(records: Tensor, randomness: torch.Generator) -> Tensor:
    """Generated records (B, F), half of them with a random share of their positions drawn evenly from [0, 1].

    Of records that are all alike, and that all teachers reject, a student learns nothing.
    """
    half = len(records) // 2
    moved, other, share = records[:half], *(torch.rand(half, n, generator=randomness) for n in (records.shape[1], 1))
    drawn = torch.rand(moved.shape, generator=randomness) < share
    return torch.cat([torch.where(drawn, other, moved), records[half:]])
