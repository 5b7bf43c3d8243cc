"""Signals by their mean log power spectra and autocorrelations, class by class of the label."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.public_cells import codes, label_of, sample_of, scaled_numbers, signal_columns
from dpcgan_fast.data.schema import Schema, Signal

SIGNAL_ROWS = 20_000
MIN_ROWS = 20  # of a class, in each table
ALL_ROWS = "all rows"  # what the only class is called without a label
_FLOOR = 1e-12  # of the power, in squared widths of the bounds: that of a flat signal is not infinitely far
Spectra = dict[str, "ClassSpectrum"]
SpectralFigures = dict[str, float | dict[str, float] | None]

TOO_FEW = f"no class has {MIN_ROWS} rows in both tables, or the signal has fewer than two positions"


@dataclass(frozen=True)
class ClassSpectrum:
    """A signal's spectrum in the rows of one class.

    decibels:        mean over the rows of the power's logarithm, in dB, by frequency from one cycle over the signal's
                     length on: (length // 2,)
    autocorrelation: circular, of rows less their own mean, weighted by their power, from lag 1 on: (length // 2,)
    """

    decibels: np.ndarray
    autocorrelation: np.ndarray


def class_spectra(table: pa.Table, signal: Signal, schema: Schema) -> Spectra:
    """Spectra of the classes of the label that have enough rows, by class; of all rows without a label.

    At most 20,000 rows are looked at; values are scaled by the bounds, so that decibels compare with their width.
    """
    if len(signal.columns) < 2:
        return {}
    rows = sample_of(table, SIGNAL_ROWS)
    values = np.stack([scaled_numbers(rows, column) for column in signal_columns(signal)], axis=1)
    label = label_of(schema)
    if label is None:
        return {ALL_ROWS: _spectrum(values)} if len(values) >= MIN_ROWS else {}
    found = codes(rows, label)
    members = {name: values[found == index] for index, name in enumerate(label.classes())}
    return {name: _spectrum(own) for name, own in members.items() if len(own) >= MIN_ROWS}


def _spectrum(values: np.ndarray) -> ClassSpectrum:
    """values: (rows, length) float64"""
    length = values.shape[1]
    power = np.abs(np.fft.rfft(values, axis=1)) ** 2 / length
    power[:, 0] = 0.0  # the mean of a row is no oscillation
    decibels = 10 * np.log10(power[:, 1:] + _FLOOR).mean(axis=0)
    # Wiener and Khinchin: the autocorrelation is the inverse transform of the mean power.
    lags = np.fft.irfft(power.mean(axis=0), length)
    lags = lags / lags[0] if lags[0] > _FLOOR else np.zeros(length)
    return ClassSpectrum(decibels, lags[1 : length // 2 + 1])


def spectral_distances(table: pa.Table, real: pa.Table, schema: Schema) -> dict[str, SpectralFigures]:
    """How far each signal's spectra are from those of real rows; all are smaller the closer the tables are.

    spectrum_db:         mean over classes and frequencies of the absolute difference of mean log power, in dB
    spectrum_db_by:      the same for each class
    autocorrelation_mae: mean over classes and lags of the absolute difference of autocorrelations, in [0, 2]

    The first and the last are None, and the second is empty, where no class has enough rows in both tables.
    """
    figures: dict[str, SpectralFigures] = {}
    for signal in schema.signals:
        own, other = (class_spectra(part, signal, schema) for part in (table, real))
        figures[signal.name] = _distances(own, other)
    return figures


def _distances(own: Mapping[str, ClassSpectrum], other: Mapping[str, ClassSpectrum]) -> SpectralFigures:
    shared = [name for name in other if name in own]
    by_class = {name: float(np.abs(own[name].decibels - other[name].decibels).mean()) for name in shared}
    lags = [np.abs(own[name].autocorrelation - other[name].autocorrelation).mean() for name in shared]
    return {
        "spectrum_db": float(np.mean(list(by_class.values()))) if shared else None,
        "spectrum_db_by": by_class,
        "autocorrelation_mae": float(np.mean(lags)) if shared else None,
    }
