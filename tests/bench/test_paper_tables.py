"""The made-up tables of the paper's comparison follow from a seed, and have the shapes that are stated."""

import numpy as np
import pytest

from dpcgan_fast.bench.paper.code_world import CODES, OUTCOME_RATE, code_schema, code_table, code_world
from dpcgan_fast.bench.paper.heartbeats import ABNORMAL_SHARE, BEATS, SAMPLES, heartbeat_table, heartbeats
from dpcgan_fast.bench.paper.systems import SYSTEMS
from dpcgan_fast.bench.paper.tables import (
    FIVE_CLASSES,
    HEARTBEATS,
    SUPPORT2_LEFT_OUT,
    TABLES,
    fresh_patients,
    paper_table,
)
from dpcgan_fast.data.datasets import DATA_FOLDER_VARIABLE, data_folder
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate.features import target

PATIENTS = 4000
HAS_EPILEPTIC = (folder := data_folder()) is not None and any(folder.glob("epileptic_seizure.*"))


@pytest.fixture(scope="module")
def patients() -> tuple[np.ndarray, np.ndarray]:
    return code_world().patients(PATIENTS, seed=0)


# ---- heartbeats


def test_heartbeats_have_the_shape_of_the_table_that_they_stand_for():
    signal, abnormal = heartbeats()
    assert signal.shape == (BEATS, SAMPLES) == (14_552, 187)
    assert signal.min() == 0
    assert signal.max() == 1
    assert abs(abnormal.mean() - ABNORMAL_SHARE) < 0.02
    peaks = signal.argmax(axis=1)
    assert np.quantile(peaks, 0.95) < 12, "a beat begins shortly before its R peak"
    assert (signal[:, -1] == 0).mean() > 0.9, "and is followed by zeros"


def test_heartbeats_follow_from_their_seed():
    first, again, other = (heartbeats(50, seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_classes_of_heartbeats_overlap_and_differ():
    signal, abnormal = heartbeats(4000)
    t_wave = signal[:, 35:48].mean(axis=1)
    sick, healthy = t_wave[abnormal], t_wave[~abnormal]
    assert abs(sick.mean() - healthy.mean()) > 0.02
    assert np.quantile(sick, 0.9) > np.quantile(healthy, 0.5) > np.quantile(sick, 0.1)


@pytest.mark.parametrize("split", [0, 1])
def test_a_split_does_not_depend_on_what_the_beats_are(split):
    """Generator and split draw from streams of their own: one stream for both would put one class into the test."""
    table = paper_table(HEARTBEATS, split)
    shares = [np.mean(part["abnormal"].to_numpy()) for part in (table.train, table.test)]
    assert max(abs(share - ABNORMAL_SHARE) for share in shares) < 0.03
    assert table.schema.n_units == table.train.num_rows


# ---- codes


def test_patients_follow_from_their_seed_in_one_world(patients):
    world = code_world()
    has, outcome = world.patients(PATIENTS, seed=0)
    assert np.array_equal(has, patients[0])
    assert np.array_equal(outcome, patients[1])
    assert not np.array_equal(world.patients(PATIENTS, seed=1)[0], has)


def test_a_patient_has_about_one_percent_of_1071_codes(patients):
    has, outcome = patients
    assert has.shape == (PATIENTS, CODES) == (PATIENTS, 1071)
    assert 9 < has.sum(axis=1).mean() < 13
    assert has.sum(axis=1).min() >= 1
    assert abs(outcome.mean() - OUTCOME_RATE) < 0.02


def test_codes_that_imply_others_come_with_them(patients):
    has = patients[0]
    implications = code_world().public_implications()
    assert len(implications) == 60
    assert sum(has[:, code].sum() for code, _ in implications) > 100
    for code, implied in implications:
        assert has[has[:, code] == 1, implied].all()


def test_codes_occur_together_more_than_independent_ones_would(patients):
    has = patients[0]
    frequent = np.argsort(-has.mean(axis=0))[:50]
    found = np.corrcoef(has[:, frequent], rowvar=False)[np.triu_indices(50, 1)]
    by_chance = 1 / np.sqrt(PATIENTS)
    assert np.abs(found).mean() > 2 * by_chance


def test_a_table_of_codes_reads_back_as_its_flags(patients):
    codec = RecordCodec(code_schema(PATIENTS))
    encoded = codec.encode(code_table(PATIENTS, seed=0))
    assert np.array_equal(encoded.records, patients[0])
    assert np.array_equal(encoded.labels, patients[1])


def test_fresh_patients_are_others_of_the_same_world():
    table, fresh = code_table(200), fresh_patients(200)
    assert not table.equals(fresh)
    assert fresh.equals(fresh_patients(200))
    assert fresh.schema == table.schema


def test_codes_alone_have_the_published_record_length():
    assert RecordCodec(code_schema(100, outcome=False), joint=True).width == 1071


# ---- public tables


def test_support2_lacks_what_gives_the_outcome_away():
    table = paper_table("support2", 0)
    names = set(table.schema.column_names())
    assert names == set(table.train.column_names)
    leaks = ("death", "d.time", "surv", "prg", "dnr", "sfdm2", "slos", "charges", "tot", *SUPPORT2_LEFT_OUT)
    assert not [name for name in names if name.startswith(leaks)]
    assert table.schema.label == "hospdead"
    assert table.schema.n_units == table.train.num_rows == 7284


@pytest.mark.skipif(not HAS_EPILEPTIC, reason="the file is not here")
def test_epileptic_seizures_are_a_table_of_two_classes_and_one_of_five():
    two, five = (paper_table(name, 0) for name in ("epileptic", FIVE_CLASSES))
    truth = target(five.test, five.schema)
    assert truth is not None
    assert truth.names == ("1", "2", "3", "4", "5")
    assert np.array_equal(truth.classes == 0, two.test["y"].to_numpy() == 1), "of the same rows"
    assert [SYSTEMS["rdpcgan"].fits(table) for table in (two, five)] == [True, False], "five classes need more places"


# ---- all


def test_a_table_that_is_not_there_is_named_with_where_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=r"cardio\.csv"):
        paper_table("cardio", 0)
    with pytest.raises(InputError, match=", ".join(TABLES)):
        paper_table("nothing", 0)


def test_heartbeats_are_a_table_of_one_label_and_one_signal():
    table = heartbeat_table(10)
    assert table.column_names == ["abnormal", *(f"X{i}" for i in range(1, 188))]
