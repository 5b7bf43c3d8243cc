"""Tests of disclosure: a leaked training table fails them, an honest one passes, whatever its shape."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate import disclosure as subject
from dpcgan_fast.evaluate.disclosure import TOO_FEW, disclosure, disclosure_notes, distances, wilson_interval
from tests.evaluate.tables import patients, schema_of

DX: dict[str, Any] = {"name": "dx", "type": "codes", "vocabulary": ["A", "B", "C", "D"], "max_codes": 4}


def outcome(synthetic: pa.Table, train: pa.Table, test: pa.Table, schema: Schema | None = None) -> subject.Disclosure:
    found = disclosure(synthetic, train, test, schema or schema_of())
    assert found is not None
    return found


# ---- the tests


def test_a_leaked_training_table_is_caught():
    found = outcome(patients(300, 1), patients(300, 1), patients(300, 2))
    assert found.alarm
    assert found.membership_auroc > 0.95
    assert found.membership_interval[0] > 0.9
    assert found.nearer_to_train == 1
    assert found.nearer_interval[0] > 0.9
    assert found.distance_to_train == 0 < found.distance_to_test
    assert "disclose who was in the training table" in disclosure_notes(found)[0]
    assert disclosure_notes(found)[0].startswith("WARNING: ")


def test_a_partly_leaked_training_table_is_caught():
    leaked = pa.concat_tables([patients(400, 1).slice(0, 120), patients(280, 3)])
    assert outcome(leaked, patients(400, 1), patients(400, 2)).alarm


@pytest.mark.parametrize("rows", [60, 300, 2500])
def test_an_honest_table_is_not(rows):
    found = outcome(patients(rows, 3), patients(300, 1), patients(400, 2))
    assert not found.alarm
    assert found.nearer_interval[0] < 0.5 < found.nearer_interval[1]
    assert found.membership_interval[0] < 0.5 < found.membership_interval[1]
    assert found.rows == 300
    assert found.synthetic_rows == rows
    assert disclosure_notes(found) == []


def test_a_table_that_leaks_the_held_out_rows_is_on_the_other_side_of_chance():
    found = outcome(patients(300, 2), patients(300, 1), patients(300, 2))
    assert not found.alarm
    assert found.nearer_to_train == 0
    assert found.membership_auroc < 0.05


def test_swapping_training_and_held_out_rows_mirrors_both_figures():
    there = outcome(patients(200, 3), patients(250, 1), patients(250, 2))
    back = outcome(patients(200, 3), patients(250, 2), patients(250, 1))
    assert there.nearer_to_train + back.nearer_to_train == pytest.approx(1)
    assert there.membership_auroc + back.membership_auroc == pytest.approx(1)


def test_intervals_of_honest_tables_cover_chance_as_often_as_they_say():
    # Many synthetic rows share few neighbours here: with each as a trial of its own the intervals would be too short.
    schema = Schema.from_dict({"unit": None, "columns": [{"name": "x", "type": "numeric", "bounds": [-5, 5]}]})
    runs, missed = 200, {"nearer": 0, "auroc": 0}
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        tables = (pa.table({"x": rng.normal(size=rows)}) for rows in (1000, 60, 60))
        found = outcome(*tables, schema)
        missed["nearer"] += not found.nearer_interval[0] <= 0.5 <= found.nearer_interval[1]
        missed["auroc"] += not found.membership_interval[0] <= 0.5 <= found.membership_interval[1]
        assert not found.alarm
    assert missed["nearer"] / runs < 0.09  # 5 % are expected; fixed seeds
    assert missed["auroc"] / runs < 0.09


def test_rows_that_are_all_alike_are_ties_and_not_disclosure():
    schema = Schema.from_dict({"unit": None, "columns": [{"name": "b", "type": "binary"}]})
    table = pa.table({"b": [0, 1] * 50})
    found = outcome(table, table, table, schema)
    assert found.nearer_to_train == 0.5
    assert found.membership_auroc == 0.5
    assert not found.alarm


# ---- what they are made of


def test_distances_are_those_counted_column_by_column():
    columns = [
        {"name": "x", "type": "numeric", "bounds": [0, 10], "missing": True},
        {"name": "c", "type": "categorical", "categories": ["p", "q", "r"], "missing": True},
        {"name": "b", "type": "binary"},
        DX,
    ]
    schema = Schema.from_dict({"unit": None, "columns": columns})
    rng = np.random.default_rng(0)

    def table(rows: int) -> pa.Table:
        return pa.table({
            "x": [None if rng.random() < 0.2 else float(rng.uniform(0, 10)) for _ in range(rows)],
            "c": [[None, "p", "q", "r"][rng.integers(4)] for _ in range(rows)],
            "b": rng.integers(0, 2, rows),
            "dx": [[code for code in "ABCD" if rng.random() < 0.4] for _ in range(rows)],  # some have none
        })  # fmt: skip

    first, second = table(9), table(7)
    expected = np.zeros((9, 7))
    for i, one in enumerate(first.to_pylist()):
        for j, other in enumerate(second.to_pylist()):
            x, y = ((5.0 if row["x"] is None else row["x"]) / 10 for row in (one, other))
            square = (x - y) ** 2 + ((one["x"] is None) != (other["x"] is None))
            square += (one["c"] != other["c"]) + (one["b"] != other["b"])
            common = len(set(one["dx"]) & set(other["dx"]))
            if one["dx"] or other["dx"]:
                square += 1 - common / max(1, len(one["dx"]) * len(other["dx"])) ** 0.5
            expected[i, j] = square**0.5
    assert distances(first, second, schema) == pytest.approx(expected, abs=1e-7)


def test_both_figures_are_those_of_the_whole_matrix_of_distances(monkeypatch):
    monkeypatch.setattr(subject, "_BLOCK_ROWS", 37)
    synthetic, train, test = patients(100, 3), patients(80, 1), patients(80, 2)
    found = outcome(synthetic, train, test)
    to_train, to_test = (distances(synthetic, real, schema_of()) for real in (train, test))
    sides = [np.round(one.min(axis=1) ** 2, 9) for one in (to_train, to_test)]
    nearer = (sides[0] < sides[1]) + (sides[0] == sides[1]) / 2
    assert found.nearer_to_train == pytest.approx(nearer.mean())
    assert found.distance_to_train == pytest.approx(np.median(to_train.min(axis=1)), abs=1e-6)
    assert found.distance_to_test == pytest.approx(np.median(to_test.min(axis=1)), abs=1e-6)
    closest = [np.round(one.min(axis=0) ** 2, 9) for one in (to_train, to_test)]
    pairs = np.mean([(own < other) + (own == other) / 2 for own in closest[0] for other in closest[1]])
    assert found.membership_auroc == pytest.approx(pairs, abs=1e-6)


def test_the_order_of_rows_does_not_matter():
    tables = patients(120, 3), patients(90, 1), patients(90, 2)
    rng = np.random.default_rng(0)
    shuffled = [table.take(rng.permutation(table.num_rows)) for table in tables]
    plain, other = outcome(*tables), outcome(*shuffled)
    assert other.nearer_to_train == plain.nearer_to_train
    assert other.membership_auroc == pytest.approx(plain.membership_auroc)


def test_of_many_rows_equally_many_of_both_sides_are_looked_at(monkeypatch):
    monkeypatch.setattr(subject, "REAL_ROWS", 70)
    monkeypatch.setattr(subject, "SYNTHETIC_ROWS", 55)
    found = outcome(patients(100, 3), patients(200, 1), patients(90, 2))
    assert (found.rows, found.synthetic_rows) == (70, 55)


@pytest.mark.parametrize("few", [0, 1, 2])
def test_with_few_rows_in_one_table_there_is_no_test(few):
    tables = [patients(49 if place == few else 80, place) for place in range(3)]
    assert disclosure(*tables, schema_of()) is None
    assert disclosure_notes(None) == [f"disclosure is null: {TOO_FEW}."]


def test_the_interval_of_a_share_is_wilsons():
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81 of 263 and 0 of 20
    assert wilson_interval(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1.0, 20) == pytest.approx((0.8389, 1.0), abs=5e-5)
