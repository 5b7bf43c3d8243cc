"""The two-sample tests and the outcome of the comparison, on tables whose answer is known."""

import numpy as np
import pyarrow as pa
import pytest
from scipy import sparse

from dpcgan_fast.baselines import INDEPENDENT
from dpcgan_fast.bench.paper import protocol
from dpcgan_fast.bench.paper.code_world import code_schema, code_table, vocabulary
from dpcgan_fast.bench.paper.outcome import outcome_auroc
from dpcgan_fast.bench.paper.protocol import Judge, Judges, judged
from dpcgan_fast.bench.paper.systems import Synthetic
from dpcgan_fast.bench.paper.tables import CODES, PaperTable
from dpcgan_fast.bench.paper.told_apart import LargeTest, c2st_signals
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.privacy import Mechanism

SAMPLES = 16
WAVES = Schema.from_dict(
    {
        "unit": None, "label": "y", "columns": [{"name": "y", "type": "binary"}],
        "signals": [{"name": "eeg", "columns": [f"X{i}" for i in range(SAMPLES)], "bounds": [-10, 10]}],
    }
)  # fmt: skip


def waves(rows: int, seed: int, label: int = 0, rough: bool = False) -> pa.Table:
    """Slow waves of random phase; rough: the same values of each row in random order."""
    rng = np.random.default_rng(seed)
    signal = 5 * np.sin(2 * np.pi * (np.arange(SAMPLES) / SAMPLES + rng.random((rows, 1))))
    signal = rng.permuted(signal, axis=1) if rough else signal
    return pa.table({"y": np.full(rows, label), **{f"X{i}": signal[:, i] for i in range(SAMPLES)}})


def test_signals_of_another_roughness_are_told_apart_and_those_of_the_same_kind_hardly():
    real = waves(400, 0)
    alike, rough = (c2st_signals(waves(2000, 1, rough=rough), real, WAVES) for rough in (False, True))
    assert alike is not None
    assert rough is not None
    assert alike < 0.65
    assert rough > 0.99


def test_labels_do_not_tell_signals_apart():
    real = waves(400, 0)
    assert c2st_signals(waves(800, 1, label=1), real, WAVES) == c2st_signals(waves(800, 1), real, WAVES)


def test_signals_are_told_apart_whatever_their_unit():
    wide = WAVES.model_copy(update={"signals": (WAVES.signals[0].model_copy(update={"bounds": (-1000, 1000)}),)})

    def scaled(table: pa.Table) -> pa.Table:
        return pa.table({n: table[n] if n == "y" else 100 * table[n].to_numpy() for n in table.column_names})

    own, real = waves(800, 1), waves(400, 0)
    assert c2st_signals(scaled(own), scaled(real), wide) == pytest.approx(c2st_signals(own, real, WAVES), abs=0.02)


def test_without_signals_or_rows_no_signals_are_told_apart():
    assert c2st_signals(waves(19, 0), waves(400, 0), WAVES) is None
    plain = Schema.from_dict({"unit": None, "columns": [{"name": "y", "type": "binary"}]})
    assert c2st_signals(waves(400, 0), waves(400, 1), plain) is None


# ---- codes


def together(rows: int, seed: int, shuffled: bool = False) -> sparse.csr_array:
    """Two codes that occur together, and four on their own; shuffled: all on their own."""
    rng = np.random.default_rng(seed)
    has = rng.random((rows, 6)) < 0.5
    has[:, 1] = rng.permutation(has[:, 0]) if shuffled else has[:, 0]
    return sparse.csr_array(has.astype(float))


def test_the_large_test_sees_what_occurs_together():
    test = LargeTest(together(1000, 0), np.arange(6))
    alike, apart = test.auroc(together(1000, 1)), test.auroc(together(1000, 1, shuffled=True))
    assert alike is not None
    assert apart is not None
    assert 0.4 < alike < 0.6
    assert apart > 0.7, "half of the rows cannot be"


def test_the_large_test_sees_the_number_of_all_codes():
    """Of the codes that are not seen one by one, all patients have one more."""
    test = LargeTest(sparse.csr_array(np.pad(together(500, 0).toarray(), ((0, 0), (0, 2)))), np.arange(6))
    more = sparse.csr_array(np.pad(together(500, 1).toarray(), ((0, 0), (0, 2)), constant_values=1.0))
    found = test.auroc(more)
    assert found is not None
    assert found > 0.6


def test_the_large_test_needs_as_many_synthetic_rows_as_fresh_ones():
    test = LargeTest(together(100, 0), np.arange(6))
    assert test.auroc(together(99, 1)) is None
    assert test.auroc(together(100, 1)) is not None


def patients(has: np.ndarray, outcome: np.ndarray) -> pa.Table:
    """has: (rows, codes), of the first codes of the vocabulary"""
    names = np.array(vocabulary())[: has.shape[1]]
    return pa.table({"dx": [names[row == 1].tolist() for row in has], "outcome": outcome})


def test_the_outcome_follows_from_codes_that_are_rare():
    rng = np.random.default_rng(0)
    has = (rng.random((600, 300)) < 0.02).astype(int)
    outcome = has[:, 299]
    table, test = patients(has[:300], outcome[:300]), patients(has[300:], outcome[300:])
    schema = code_schema(300)
    assert outcome_auroc(table, test, schema) == 1
    assert outcome_auroc(table.set_column(1, "outcome", [np.zeros(300, int)]), test, schema) == 0.5
    assert outcome_auroc(table, test.set_column(1, "outcome", [np.zeros(300, int)]), schema) is None
    assert outcome_auroc(table, test, code_schema(300, outcome=False)) is None


@pytest.fixture
def small_codes(monkeypatch) -> PaperTable:
    monkeypatch.setattr(protocol, "LARGE_ROWS", 400)
    table = code_table(600)
    return PaperTable(CODES, table.slice(0, 400), table.slice(400), code_schema(400))


def test_real_rows_of_codes_have_no_gap_and_all_of_the_prediction(small_codes):
    judge = Judge(small_codes, small_codes.schema)
    found = judge.likeness(small_codes.train)
    assert found["outcome_gap"] == 0
    assert found["dimension_prediction"]["ratio"] == 1
    assert found["c2st_large"] is not None
    assert "c2st_quantiles" not in found


def test_the_large_test_is_spared_where_the_small_one_tells_all(small_codes):
    judge = Judge(small_codes, small_codes.schema)
    bare = patients(np.tile([1, 0], (400, 1)), small_codes.train["outcome"].to_numpy())
    found = judge.likeness(bare)
    assert found["c2st"] >= protocol.TOLD_AT_ONCE
    assert found["c2st_large"] is None


def test_of_several_baselines_each_has_its_scores_and_its_error_of_co_occurrence(small_codes):
    mechanism = [Mechanism("rows", "gaussian", 1.0, 40.0, 1, 1.0)]
    tables = {INDEPENDENT: small_codes.test, "another": small_codes.train}
    drawn = Synthetic(tables, small_codes.schema, dict.fromkeys(tables, mechanism))
    found = judged(Judges(small_codes), drawn, 1.0)
    assert set(found["each"]) == set(tables)
    assert found["each"][INDEPENDENT]["cooccurrence_error"] == 0
    assert found["each"]["another"]["cooccurrence_error"] > 0
    assert found["each"][found["drawn_from"]]["auroc"] == found["tstr"]["gb"]["auroc"]
    alone = Synthetic({"": small_codes.train}, small_codes.schema, {"": mechanism})
    assert "each" not in judged(Judges(small_codes), alone, 1.0)
