"""Made-up heartbeats with the shape of the PTB table of arXiv 1805.00794: 14,552 beats of 187 samples, two classes.

A beat is a sum of Gaussian waves P, Q, R, S and T, as in the model of McSharry et al. (IEEE Transactions on Biomedical
Engineering 50, 2003). It begins shortly before its R peak, is scaled to [0, 1], and is followed by zeros, as in that
table. Beats of the second class tend to have what an infarction does: a deep Q wave, a raised ST segment, an inverted T
wave. Each of these varies from beat to beat and overlaps with the first class.
"""

import numpy as np
import pyarrow as pa

from dpcgan_fast.data.schema import Schema

BEATS, SAMPLES = 14_552, 187
ABNORMAL_SHARE = 0.722  # 10,506 beats of the PTB table
LABEL, SIGNAL = "abnormal", "ecg"
_RATE = 125.0  # samples a second
_R_AT = 0.06  # seconds
# Of Q, R, S, T and the next beat's P: mean height in units of the R peak, mean place and width in seconds from R.
_HEIGHTS = np.array([-0.14, 1.0, -0.20, 0.28, 0.12])
_PLACES = np.array([-0.030, 0.0, 0.034, 0.27, -0.17])
_WIDTHS = np.array([0.010, 0.011, 0.012, 0.050, 0.024])
_Q, _T, _P = 0, 3, 4


def heartbeats(beats: int = BEATS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Beats (N, 187) float64 in [0, 1] and whether each is abnormal, (N,) bool; they follow from the seed."""
    rng = np.random.default_rng([seed, BEATS])  # not the stream of a split
    abnormal = rng.random(beats) < ABNORMAL_SHARE
    severity = np.where(abnormal, rng.gamma(2.0, 0.5, beats), np.abs(rng.normal(0.0, 0.12, beats)))
    period = np.clip(rng.normal(0.82, 0.14, beats) - 0.03 * severity, 0.45, 1.4)  # seconds to the next beat
    heights = _HEIGHTS * (1 + 0.18 * rng.normal(size=(beats, 5)))
    heights[:, _Q] -= 0.16 * severity * rng.random(beats)
    heights[:, _T] -= 0.30 * severity * rng.random(beats)
    stretch = np.sqrt(period / 0.82)
    places = np.tile(_PLACES, (beats, 1)) + 0.004 * rng.normal(size=(beats, 5))
    places[:, _T] *= stretch
    places[:, _P] += period
    widths = _WIDTHS * np.exp(0.12 * rng.normal(size=(beats, 5)))
    raised = 0.14 * severity * rng.random(beats)  # the ST segment
    drift, phase = 0.03 * rng.normal(size=beats), 2 * np.pi * rng.random(beats)

    time = np.arange(SAMPLES) / _RATE - _R_AT
    signal = np.zeros((beats, SAMPLES))
    for wave in range(5):
        signal += _bump(time, places[:, wave], widths[:, wave], heights[:, wave])
    signal += _bump(time, 0.13 * stretch, np.full(beats, 0.055), raised)
    signal += drift[:, None] * np.sin(2 * np.pi * 0.3 * time + phase[:, None])
    signal += 0.012 * rng.normal(size=signal.shape)
    inside = time[None, :] < 0.97 * period[:, None]  # up to the next beat
    lowest = np.where(inside, signal, np.inf).min(axis=1, keepdims=True)
    highest = np.where(inside, signal, -np.inf).max(axis=1, keepdims=True)
    return np.where(inside, (signal - lowest) / (highest - lowest), 0.0), abnormal


def _bump(time: np.ndarray, place: np.ndarray, width: np.ndarray, height: np.ndarray) -> np.ndarray:
    """A Gaussian wave of each beat: (beats, samples)."""
    return height[:, None] * np.exp(-0.5 * ((time - place[:, None]) / width[:, None]) ** 2)


def heartbeat_table(beats: int = BEATS, seed: int = 0) -> pa.Table:
    """`heartbeats` as a table that `heartbeat_schema` describes."""
    signal, abnormal = heartbeats(beats, seed)
    columns = {f"X{sample + 1}": signal[:, sample] for sample in range(SAMPLES)}
    return pa.table({LABEL: abnormal.astype(np.int64), **columns})


def heartbeat_schema(n_units: int) -> Schema:
    """The public schema of a training part of so many beats, each a unit of its own."""
    signal = {"name": SIGNAL, "columns": ["X1", "...", f"X{SAMPLES}"], "bounds": [0, 1]}
    return Schema.from_dict(
        {
            "version": 1,
            "unit": None,
            "n_units": n_units,
            "label": LABEL,
            "columns": [{"name": LABEL, "type": "binary"}],
            "signals": [signal],
        }
    )
