"""Signals by how strong they are and by which waves they consist of, see `bands`; of shapes, an average for each class.

Strength is the root mean square amplitude about the middle of the bounds; waves are the coefficients of the orthonormal
discrete cosine transform (DCT-II). Of a row of unit length their squares sum to 1, whatever the row holds, so that a
release of all of them has the sensitivity of a single histogram.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from scipy.fft import dct, idct

from dpcgan_fast.baselines.bands import Bands, Strong, release_bands
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.histograms import drawn_cells, shares_of
from dpcgan_fast.baselines.parts import SETTLED, Totals, checked_chances, numbers_of
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.public_cells import bounds_of, numbers, signal_columns
from dpcgan_fast.data.schema import Column, Signal

STRENGTHS = 24  # bins of the root mean square, evenly spaced in its logarithm
_WEAKEST = 1 / 400  # of half the width of the bounds: weaker rows count with those
_SMALLEST_HALF = 1e-300  # so that a share of it is no subnormal number
_SILENT = 1e-100  # of half the width: weaker rows have no waves. The squares of stronger ones do not underflow
# Of what a signal may spend. Source: measured on UCI Epileptic.
_STRENGTH_SHARE, _MEAN_SHARE = 0.1, 0.1
_WEIGHT = 4.0  # of a signal's part, where a histogram of one column weighs 1
# Standard deviations of the noise that a mean must exceed: more where the mean is next to nothing of a row, for there
# false means stand out among weak waves.
_CLEAR, _CLEAR_OF_LITTLE = 2.0, 4.0
_MUCH = 0.1  # of the power of rows: what their mean has of it where they have a shape in common
# Standard deviations of the noise that the number of rows in a bin of strengths must reach. A few false rows where all
# real ones are of another class cost boosting .004 of average precision once many rows are drawn (epsilon 10). Where
# few are, emptying costs .001 to .003 at epsilon 1, and nothing above it. Source: measured on UCI Epileptic.
_CLEAR_STRENGTH = 2.0


@dataclass(frozen=True)
class _Scale:
    """What the bounds of a signal say of its rows. middle: of them; half: of their width."""

    middle: float
    half: float

    @classmethod
    def of(cls, columns: tuple[Column, ...]) -> "_Scale":
        lower, upper = bounds_of(columns[0])
        return cls(lower / 2 + upper / 2, max(upper / 2 - lower / 2, _SMALLEST_HALF))

    def edges(self) -> np.ndarray:
        """Of the bins of strengths, (STRENGTHS + 1,)."""
        return self.half * np.geomspace(_WEAKEST, 1.0, STRENGTHS + 1)

    def rows_of(self, rows: Rows, columns: tuple[Column, ...]) -> np.ndarray:
        """Values less the middle, over half the width: (rows, length) float64, in [-1, 1] but for rounding."""
        return (np.stack([numbers(rows.table, column) for column in columns], axis=1) - self.middle) / self.half

    def waves_of(self, rows: Rows, columns: tuple[Column, ...]) -> np.ndarray:
        """Waves of length 1 of each row, see `_unit_waves`: (rows, length) float64."""
        return _unit_waves(self.rows_of(rows, columns))

    def bins(self, values: np.ndarray) -> np.ndarray:
        """Bin of each row's strength, (rows,) int64."""
        strength = self.half * np.sqrt((values**2).mean(axis=1))
        return np.clip(np.searchsorted(self.edges(), strength, side="right") - 1, 0, STRENGTHS - 1)

    def strengths(self, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A strength within each bin, evenly in its logarithm."""
        logs = np.log(self.edges())
        return np.exp(rng.uniform(logs[bins], logs[bins + 1]))


@dataclass
class Waves:
    """The part of a signal by, for each class, a histogram of strengths, the mean of each wave, and bands of waves."""

    signal: Signal
    weight: float = _WEIGHT

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnWaves":
        """Releases of strengths and means, and those of `release_bands`."""
        columns, name = signal_columns(self.signal), self.signal.name
        scale = _Scale.of(columns)
        bins = np.empty(len(rows.classes), np.int64)
        sums = np.zeros((rows.class_count, len(columns)))
        for part, block in rows.blocks(len(columns)):
            values = scale.rows_of(block, columns)
            bins[part] = scale.bins(values)
            sums += block.sums(_unit_waves(values))
        counts = rows.histogram(bins, STRENGTHS)
        strengths = budget.release(f"strengths: {name}", counts, 1.0, share * _STRENGTH_SHARE)
        totals = np.maximum(strengths.values.sum(axis=1), 1.0)
        means = budget.release(f"waves: {name}", sums, 1.0, share * _MEAN_SHARE)
        mean = _clear(means.values, means.std, totals) / totals[:, None]
        # All bins count here: rows of those that are not drawn are in the sums of bands, too.
        strong = Strong(shares_of(strengths.values, totals) * totals[:, None], bins)
        left = share * (1 - _STRENGTH_SHARE - _MEAN_SHARE)

        def waves(block: Rows) -> np.ndarray:
            return scale.waves_of(block, columns) - mean[block.classes]

        bands = release_bands(rows, len(columns), waves, strong, budget, left)
        said = Totals(strengths.values.sum(axis=1), strengths.std**2 * STRENGTHS)
        return _DrawnWaves(columns, scale, strengths.values, mean, bands, said, std=strengths.std)

    def restored(self, arrays: Mapping[str, np.ndarray]) -> "_DrawnWaves":
        """See `KeptPart.restored`."""
        columns, mean = signal_columns(self.signal), arrays["mean"]
        bands = Bands.restored(arrays, len(columns))
        shares = checked_chances(arrays["shares"], len(bands.levels), STRENGTHS)
        if bands.groups.shape != shares.shape or mean.shape != (len(shares), len(columns)):
            raise ValueError("Expected strengths and means of waves of each class.")
        if not np.isfinite(mean).all():
            raise ValueError("Expected finite means of waves.")
        return _DrawnWaves(columns, _Scale.of(columns), np.empty((0, 0)), mean, bands, SETTLED, shares)


def _clear_shares(noisy: np.ndarray, std: float, totals: np.ndarray) -> np.ndarray:
    """Share of each bin of strengths within each class, (class_count, STRENGTHS), from noisy counts of the same shape.

    Bins that do not stand clear of the noise are empty, but in a class of which none does.
    """
    shares = shares_of(noisy, totals)
    clear = shares * totals[:, None] >= _CLEAR_STRENGTH * std
    shares = np.where(clear | ~clear.any(axis=1, keepdims=True), shares, 0.0)
    return shares / shares.sum(axis=1, keepdims=True)


def _clear(means: np.ndarray, std: float, totals: np.ndarray) -> np.ndarray:
    """Noisy sums (class_count, length) of unit rows, 0 where they do not stand clear of the noise."""
    power = (means**2 - std**2).sum(axis=1) / totals**2
    least = np.where(power > _MUCH, _CLEAR, _CLEAR_OF_LITTLE) * std
    return np.where(np.abs(means) > least[:, None], means, 0.0)


@dataclass
class _DrawnWaves:
    """strengths: (class_count, STRENGTHS) noisy numbers of rows; mean: (class_count, length) of rows of unit length."""

    columns: tuple[Column, ...]
    scale: _Scale
    strengths: np.ndarray
    mean: np.ndarray
    bands: Bands
    totals: Totals
    _shares: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    std: float = 0.0  # of the noise of the strengths

    def settle(self, totals: np.ndarray) -> None:
        self._shares = _clear_shares(self.strengths, self.std, totals)

    def arrays(self) -> dict[str, np.ndarray]:
        """See `KeptDrawn.arrays`."""
        return {"shares": self._shares, "mean": self.mean, **self.bands.arrays()}

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        bins = drawn_cells(self._shares, classes, rng)
        waves = self.bands.draw(classes, bins, rng)
        waves += self.mean[classes]
        return _signal(waves, self.scale.strengths(bins, rng), self.columns, self.scale)


@dataclass
class Strength:
    """The part of a signal by one number of each class, the mean logarithm of its strength, and white noise."""

    signal: Signal
    weight: float = _WEIGHT

    def release(self, rows: Rows, budget: Budget, share: float) -> "_DrawnStrength":
        """One release of numbers of units and of sums, whose mean is taken over the units."""
        columns = signal_columns(self.signal)
        scale = _Scale.of(columns)
        weakest = scale.half * _WEAKEST
        both = np.zeros((rows.class_count, 2))
        for _, block in rows.blocks(len(columns)):
            values = scale.rows_of(block, columns)
            strength = np.clip(scale.half * np.sqrt((values**2).mean(axis=1)), weakest, scale.half)
            scaled = np.log(strength / weakest) / -math.log(_WEAKEST)  # in [0, 1]
            both += block.sums(np.stack([np.ones_like(scaled), scaled], axis=1))
        noisy = budget.release(f"strength: {self.signal.name}", both, math.sqrt(2), share)
        return _DrawnStrength(columns, scale, noisy.values[:, 1], Totals(noisy.values[:, 0], noisy.std**2))


@dataclass
class _DrawnStrength:
    """sums: (class_count,) noisy sums of scaled logarithms."""

    columns: tuple[Column, ...]
    scale: _Scale
    sums: np.ndarray
    totals: Totals
    _strength: np.ndarray = field(default_factory=lambda: np.empty(0))

    def settle(self, totals: np.ndarray) -> None:
        self._strength = self.scale.half * _WEAKEST ** (1 - np.clip(self.sums / totals, 0.0, 1.0))

    def draw(self, classes: np.ndarray, rng: np.random.Generator) -> dict[str, pa.Array]:
        waves = rng.standard_normal((len(classes), len(self.columns)))
        return _signal(waves, self._strength[classes], self.columns, self.scale)


def _signal(
    waves: np.ndarray, strength: np.ndarray, columns: tuple[Column, ...], scale: _Scale
) -> dict[str, pa.Array]:  # fmt: skip
    """Columns of rows that consist of these waves, whatever their sum of squares, and are so strong."""
    unit = waves / np.linalg.norm(waves, axis=1, keepdims=True)
    rows = np.asarray(idct(unit, axis=1, norm="ortho", overwrite_x=True))
    rows *= (strength * np.sqrt(len(columns)))[:, None]
    rows += scale.middle
    np.clip(rows, *bounds_of(columns[0]), out=rows)
    return {column.name: numbers_of(column, rows[:, place]) for place, column in enumerate(columns)}


def _unit_waves(values: np.ndarray) -> np.ndarray:
    """Waves of rows, (rows, length) float64, each of length 1, or 0 if its row is silent. values: within [-1, 1]

    Formal guarantee: no row has an L2 norm above 1 (but for rounding), whatever it holds: below _SILENT squares
    underflow, and a norm that is too small would scale the row beyond all bounds.
    """
    waves = np.asarray(dct(values, axis=1, norm="ortho"))
    norms = np.linalg.norm(waves, axis=1, keepdims=True)
    heard = norms > _SILENT
    return np.where(heard, waves, 0.0) / np.where(heard, norms, 1.0)
