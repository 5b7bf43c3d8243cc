"""Signals are compared by mean log power spectra and autocorrelations, class by class."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.public_cells import sample_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate import spectra
from dpcgan_fast.evaluate.spectra import ALL_ROWS, class_spectra, spectral_distances

LENGTH, WIDTH = 32, 40.0


def schema_of(length: int = LENGTH, label: bool = True) -> Schema:
    columns = [{"name": "y", "type": "categorical", "categories": ["rest", "seizure"]}] if label else []
    names = [f"X{i + 1}" for i in range(length)]
    signal = {"name": "eeg", "columns": names, "bounds": [-WIDTH / 2, WIDTH / 2]}
    return Schema.from_dict(
        {"unit": None, "columns": columns, "signals": [signal], **({"label": "y"} if label else {})}
    )


def waves(rows: int, seed: int, cycles: tuple[float, float] = (2, 6), strength: float = 1.0) -> pa.Table:
    """Waves of two cycles in rest and six in a seizure, with noise."""
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % 2
    phase, time = rng.uniform(0, 2 * np.pi, (rows, 1)), np.arange(LENGTH) / LENGTH
    values = 5 * np.sin(2 * np.pi * np.array(cycles)[y][:, None] * time + phase) + rng.normal(0, 0.5, (rows, LENGTH))
    return table_of(strength * values, y)


def table_of(values: np.ndarray, y: Any) -> pa.Table:
    names = {f"X{i + 1}": values[:, i] for i in range(values.shape[1])}
    return pa.table({"y": np.array(["rest", "seizure"])[y], **names})


def test_spectra_are_those_of_a_plain_fourier_sum():
    table = waves(40, 0)
    found = class_spectra(table, schema_of().signals[0], schema_of())
    values = np.stack([table[f"X{i + 1}"].to_numpy() for i in range(LENGTH)], axis=1) / WIDTH  # of the bounds
    for place, name in enumerate(("rest", "seizure")):
        own = values[np.arange(40) % 2 == place]
        for frequency in range(1, LENGTH // 2 + 1):
            wave = np.exp(-2j * np.pi * frequency * np.arange(LENGTH) / LENGTH)
            decibels = [10 * np.log10(abs(sum(row * wave)) ** 2 / LENGTH) for row in own]
            assert found[name].decibels[frequency - 1] == pytest.approx(np.mean(decibels), abs=1e-5)
        centred = own - own.mean(axis=1, keepdims=True)
        for lag in range(1, LENGTH // 2 + 1):
            products = (centred * np.roll(centred, lag, axis=1)).sum() / (centred**2).sum()
            assert found[name].autocorrelation[lag - 1] == pytest.approx(products, abs=1e-9)


def test_a_table_has_no_distance_from_itself():
    found = spectral_distances(waves(60, 0), waves(60, 0), schema_of())["eeg"]
    assert found == {"spectrum_db": 0, "spectrum_db_by": {"rest": 0, "seizure": 0}, "autocorrelation_mae": 0}


def test_waves_of_double_strength_are_6_decibels_off_and_correlate_alike():
    found = spectral_distances(waves(60, 0, strength=2.0), waves(60, 0), schema_of())["eeg"]
    assert found["spectrum_db"] == pytest.approx(20 * np.log10(2), abs=1e-3)
    assert found["autocorrelation_mae"] == pytest.approx(0, abs=1e-9)


def test_a_shifted_spectrum_shows_in_its_class_alone():
    same = spectral_distances(waves(400, 1), waves(400, 0), schema_of())["eeg"]
    shifted = spectral_distances(waves(400, 1, cycles=(2, 9)), waves(400, 0), schema_of())["eeg"]
    assert isinstance(shifted["spectrum_db_by"], dict)
    assert isinstance(same["spectrum_db_by"], dict)
    assert shifted["spectrum_db_by"]["seizure"] > 5 * same["spectrum_db_by"]["seizure"]
    assert shifted["spectrum_db_by"]["rest"] == same["spectrum_db_by"]["rest"]
    assert isinstance(shifted["autocorrelation_mae"], float)
    assert isinstance(same["autocorrelation_mae"], float)
    assert shifted["autocorrelation_mae"] > 10 * same["autocorrelation_mae"]


def test_distances_are_symmetric_and_blind_to_the_order_of_rows():
    first, second = waves(60, 0), waves(80, 1, cycles=(3, 5))
    there, back = (spectral_distances(*pair, schema_of())["eeg"] for pair in ((first, second), (second, first)))
    order = np.random.default_rng(0).permutation(60)
    shuffled = spectral_distances(first.take(order), second, schema_of())["eeg"]
    for key in ("spectrum_db", "autocorrelation_mae"):
        assert there[key] == pytest.approx(back[key])
        assert there[key] == pytest.approx(shuffled[key])


def test_a_flat_signal_is_far_off_and_not_infinitely():
    flat = table_of(np.ones((60, LENGTH)), np.arange(60) % 2)
    found = spectral_distances(flat, waves(60, 0), schema_of())["eeg"]
    assert isinstance(found["spectrum_db"], float)
    assert 20 < found["spectrum_db"] < 200
    assert np.all(class_spectra(flat, schema_of().signals[0], schema_of())["rest"].autocorrelation == 0)


def test_without_a_label_all_rows_are_one_class():
    found = spectral_distances(waves(60, 0), waves(60, 1), schema_of(label=False))["eeg"]
    assert isinstance(found["spectrum_db_by"], dict)
    assert set(found["spectrum_db_by"]) == {ALL_ROWS}


def test_a_class_with_few_rows_in_one_table_is_left_out():
    few = waves(100, 0).slice(0, 80).filter(np.array([i % 2 == 0 or i < 38 for i in range(80)]))  # 19 seizures
    found = spectral_distances(few, waves(60, 1), schema_of())["eeg"]
    assert isinstance(found["spectrum_db_by"], dict)
    assert set(found["spectrum_db_by"]) == {"rest"}


@pytest.mark.parametrize("rows", [0, 1, 30])
def test_without_a_class_in_both_tables_there_is_no_figure(rows):
    found = spectral_distances(waves(rows, 0), waves(60, 1), schema_of())["eeg"]
    assert found == {"spectrum_db": None, "spectrum_db_by": {}, "autocorrelation_mae": None}


def test_a_signal_of_one_position_has_no_spectrum():
    found = spectral_distances(waves(60, 0), waves(60, 1), schema_of(length=1))["eeg"]
    assert found["spectrum_db"] is None


@pytest.mark.parametrize("length", [2, 3])
def test_the_shortest_signals_have_a_spectrum(length):
    found = spectral_distances(waves(60, 0), waves(60, 1), schema_of(length=length))["eeg"]
    assert isinstance(found["spectrum_db"], float)
    assert np.isfinite(found["spectrum_db"])


def test_of_many_rows_a_fixed_sample_is_looked_at(monkeypatch):
    tables = [waves(300, seed) for seed in (0, 1)]
    whole, of_sample = (
        spectral_distances(*pair, schema_of()) for pair in (tables, [sample_of(table, 100) for table in tables])
    )
    monkeypatch.setattr(spectra, "SIGNAL_ROWS", 100)
    assert spectral_distances(*tables, schema_of()) == of_sample != whole
