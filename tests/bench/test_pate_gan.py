"""PATE-GAN: one unit changes one vote on each record, and nothing but noisy counts of votes leaves the teachers."""

import math

import numpy as np
import pytest
import torch

from dpcgan_fast.bench.paper import pate
from dpcgan_fast.bench.paper.heartbeats import heartbeat_schema, heartbeat_table
from dpcgan_fast.bench.paper.pate import QUERIES, Dealt, Teachers, fit_pate_gan, planned, teacher_count
from dpcgan_fast.data.units import UnitIndex
from dpcgan_fast.privacy import Ledger
from dpcgan_fast.privacy.ledger import charged

WIDTH, UNITS, TEACHERS = 6, 40, 7
BEATS, FEW_ROUNDS = 120, 3


def rows_and_units(seed: int) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Records, the unit of each (one to three rows), and the teacher that was drawn for each unit."""
    rng = np.random.default_rng(seed)
    units = np.repeat(np.arange(UNITS), rng.integers(1, 4, UNITS))
    records = torch.from_numpy(rng.random((len(units), WIDTH)).astype(np.float32))
    return records, units, rng.integers(TEACHERS, size=UNITS)


def teachers_of(records: torch.Tensor, units: np.ndarray, teacher_of_unit: np.ndarray) -> Teachers:
    index = UnitIndex.from_ids(units, np.ones(len(units), bool), 3)
    return Teachers(records, Dealt.of(index, teacher_of_unit, TEACHERS), seed=5)


def without(unit: int, records: torch.Tensor, units: np.ndarray, teacher_of_unit: np.ndarray) -> Teachers:
    """Teachers of the neighbouring table; the others' teachers stay, as they are drawn for each unit alone."""
    kept = units != unit
    renumbered = np.where(units > unit, units - 1, units)[kept]
    return teachers_of(records[torch.from_numpy(kept)], renumbered, np.delete(teacher_of_unit, unit))


@pytest.mark.parametrize("seed", range(12))
def test_one_unit_changes_one_vote_on_each_record(seed):
    """Whatever the generator shows to all in between."""
    records, units, teacher_of_unit = rows_and_units(seed)
    unit = seed * 3 % UNITS
    tables = (teachers_of(records, units, teacher_of_unit), without(unit, records, units, teacher_of_unit))
    shown = torch.Generator().manual_seed(seed)
    for _ in range(8):
        fakes, queries = (torch.rand(rows, WIDTH, generator=shown) for rows in (10, QUERIES))
        votes = []
        for teachers in tables:
            teachers.learn(fakes)
            votes.append(teachers.votes(queries))
        differing = (votes[0] != votes[1]).any(dim=1).nonzero().flatten().tolist()
        assert set(differing) <= {int(teacher_of_unit[unit])}
        change = (votes[0].double().sum(0) - votes[1].double().sum(0)).norm()
        assert change <= math.sqrt(QUERIES), "what the noise is scaled by"


def test_the_unit_that_is_taken_away_did_count():
    """Else the test above would hold of teachers that read no rows."""
    records, units, teacher_of_unit = rows_and_units(0)
    first, second = teachers_of(records, units, teacher_of_unit), without(0, records, units, teacher_of_unit)
    shown, queries = torch.Generator().manual_seed(0), torch.rand(5, WIDTH)
    for _ in range(5):
        fakes = torch.rand(10, WIDTH, generator=shown)
        first.learn(fakes)
        second.learn(fakes)
    own = int(teacher_of_unit[0])
    scores = [t._scores(queries.expand(TEACHERS, -1, -1)) for t in (first, second)]
    changed = (scores[0] != scores[1]).any(dim=1)
    assert changed[own]
    assert changed.sum() == 1


def test_units_are_dealt_whole_to_one_teacher_each():
    records, units, teacher_of_unit = rows_and_units(1)
    index = UnitIndex.from_ids(units, np.ones(len(units), bool), 3)
    dealt = Dealt.of(index, teacher_of_unit, TEACHERS)
    assert sorted(dealt.rows.tolist()) == list(range(len(records)))
    for teacher in range(TEACHERS):
        own = dealt.rows[dealt.starts[teacher] : dealt.starts[teacher + 1]]
        assert set(units[own]) == set(np.flatnonzero(teacher_of_unit == teacher))


def test_a_teacher_without_rows_reads_none():
    records, units, _ = rows_and_units(2)
    everything_to_one = np.zeros(UNITS, np.int64)
    fakes, queries = torch.rand(10, WIDTH), torch.rand(5, WIDTH)
    votes = []
    for table in (records, 1 - records):
        teachers = teachers_of(table, units, everything_to_one)
        for _ in range(5):
            teachers.learn(fakes)
        votes.append(teachers._scores(queries.expand(TEACHERS, -1, -1)))
    assert torch.equal(votes[0][1:], votes[1][1:])
    assert not torch.equal(votes[0][0], votes[1][0])


@pytest.fixture
def fitted(tmp_path):
    """Fits a few rounds to heartbeats; gives the model and what the ledger charges."""

    def fit(seed=0, table=None, epsilon=5.0, name="ledger.jsonl"):
        table = heartbeat_table(BEATS, 3) if table is None else table
        with Ledger(tmp_path / name, create=True) as ledger:
            model = fit_pate_gan(table, heartbeat_schema(BEATS), epsilon, 1e-3, ledger, seed, FEW_ROUNDS)
            return model, charged(ledger.lines)

    return fit


def test_student_and_generator_see_votes_and_labels_alone(fitted, monkeypatch):
    """With the answers held fixed, two tables of other beats and the same labels give the same weights."""
    monkeypatch.setattr(
        Teachers, "votes", lambda self, queries: torch.zeros(self.number, len(queries), dtype=torch.bool)
    )
    table = heartbeat_table(BEATS, 3)
    other = table
    for place, name in enumerate(table.column_names[1:], 1):
        other = other.set_column(place, name, [1.0 - table[name].to_numpy()])
    first, second = fitted(table=table)[0], fitted(table=other, name="other.jsonl")[0]
    for own, theirs in zip(first.networks.parameters(), second.networks.parameters(), strict=True):
        assert torch.equal(own, theirs)


def test_every_round_has_the_noise_that_is_charged(fitted, monkeypatch):
    drawn = []
    original = pate.gaussian_noise_

    def spy(tensors, std, key):
        drawn.append((tensors[0].shape, std))
        original(tensors, std, key)

    monkeypatch.setattr(pate, "gaussian_noise_", spy)
    _, mechanisms = fitted()
    labels, votes = mechanisms
    assert (labels.mechanism, votes.mechanism) == (pate.LABELS, pate.VOTES)
    assert (labels.steps, votes.steps) == (1, FEW_ROUNDS)
    assert votes.max_grad_norm == math.sqrt(QUERIES)
    assert drawn == [((QUERIES,), votes.noise_multiplier * math.sqrt(QUERIES))] * FEW_ROUNDS


def test_the_plan_is_of_public_facts_alone():
    assert planned(math.inf, 1e-5, "row")[1].noise_multiplier == 0
    assert [teacher_count(n) for n in (100, 9200, 10**6)] == [10, 92, 200]


def test_rows_are_of_the_schema_and_follow_from_the_seed(fitted):
    model, again = fitted()[0], fitted(name="again.jsonl")[0]
    table = model.sample(30, 1)
    assert table.equals(again.sample(30, 1))
    assert table.column_names == list(heartbeat_schema(BEATS).column_names())
    assert table.num_rows == 30
    other = fitted(seed=1, name="other.jsonl")[0]
    assert not table.equals(other.sample(30, 1))


def test_tables_without_what_it_needs_are_refused(tmp_path):
    schema = heartbeat_schema(BEATS).model_copy(update={"n_units": None})
    with Ledger(tmp_path / "l", create=True) as ledger, pytest.raises(ValueError, match="n_units"):
        fit_pate_gan(heartbeat_table(BEATS), schema, 1.0, 1e-3, ledger, 0)
