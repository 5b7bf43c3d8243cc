"""One-shot Gaussian releases: statistics of the data that are paid for before training.

Each is a vector to which one unit contributes at most `sensitivity` in L2, whatever its rows hold: a unit's rows
weigh 1 together. What is then made of the noisy vector is post-processing.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm

from dpcgan_fast.ops import NoiseKey, gaussian_noise_
from dpcgan_fast.privacy.denoising import closest_histogram
from dpcgan_fast.privacy.mechanism import Mechanism

COARSE_EXPONENTS = range(-20, 41)  # bin edges +-2^k of the first bounds release; public
FINE_BINS = 128
CLEAR = 4  # standard deviations of the noise that a count must exceed to be taken for data
KEPT_TAIL = 5e-3  # share of the mass that refined bounds may cut off at either end without a margin
HIDDEN_TAIL = 0.02  # the same share beyond that margin, as two standard deviations of the noise
FULL_WEIGHT_CODES = 16  # of a record; those of one with more weigh less


@dataclass(frozen=True)
class Release:
    """A noisy vector and the mechanism that made it.

    values:  noisy sums, in units
    std:     standard deviation of the noise
    """

    values: np.ndarray
    std: float
    mechanism: Mechanism


def unit_weights(units: np.ndarray) -> np.ndarray:
    """Weight of each row so that every unit weighs 1 in all, see `row_weights`. units: (rows,) int64"""
    _, inverse, counts = np.unique(units, return_inverse=True, return_counts=True)
    return row_weights(counts[inverse])


def row_weights(counts: np.ndarray) -> np.ndarray:
    """Weight of a row of a unit that has so many, at least 1 each, (rows,) float64.

    Formal guarantee: a unit's weights sum to no more than 1, and to less by at most its number of rows times 2^-20.
    They are whole multiples of 2^-20: sums of up to 2^33 of them are exact, and their order does not matter.
    """
    return np.floor(2**20 / counts) / 2**20


def weighted_histogram(codes: np.ndarray, weights: np.ndarray, cells: int) -> np.ndarray:
    """Sum of weights in each cell; codes outside [0, cells) count nowhere. One unit moves it by at most 1 in L2."""
    inside = (codes >= 0) & (codes < cells)
    return np.bincount(codes[inside], weights=weights[inside], minlength=cells).astype(np.float64)


def code_weights(counts: np.ndarray, full: int) -> np.ndarray:
    """Weight of each record's codes, (N,): 1 for up to `full` codes, and less the more there are.

    counts: (N,) codes of each record
    Formal guarantee: a record's weighted codes, each in a cell of its own, have an L2 norm of at most sqrt(full).
    Weights are whole multiples of 2^-20: sums of up to 2^33 of them are exact, and their order does not matter.
    """
    return np.minimum(1.0, np.floor(np.sqrt(full / np.maximum(counts, 1)) * 2**20) / 2**20)


def number_edges(most: int) -> np.ndarray:
    """First numbers of the bins of a histogram of how many codes a record has, up to `most`: two bins an octave."""
    return np.unique([0, *(round(2 ** (k / 2)) for k in range(2 * most.bit_length()) if round(2 ** (k / 2)) <= most)])


def number_bins(counts: np.ndarray, most: int) -> np.ndarray:
    """Bin of each number of codes (N,), none above `most`, among those of `number_edges`, int64 (N,)."""
    return np.searchsorted(number_edges(most), counts, side="right") - 1


def number_middles(most: int) -> np.ndarray:
    """Middle number of codes of each bin of `number_edges`, (bins,) float64."""
    edges = number_edges(most)
    return (edges + np.append(edges[1:] - 1, most)) / 2


def lost_to_weights(noisy: np.ndarray, most: int, full: int) -> float:
    """By how much weighted counts of codes fall short of the counts, at least 1, from a noisy histogram of numbers.

    noisy: (bins,) records that have so many codes, in the bins of `number_edges(most)`; full: as for `code_weights`
    The codes of records with many are taken to be as frequent among these as among all.
    """
    records = closest_histogram(noisy, max(1.0, noisy.sum()))
    middle = number_middles(most)
    weighed = (records * middle * code_weights(middle, full)).sum()
    return float((records * middle).sum() / weighed) if weighed > 0 else 1.0


def noisy_release(
    name: str, values: np.ndarray, sensitivity: float, noise_multiplier: float, key: NoiseKey, unit: str
) -> Release:
    """Adds N(0, (noise_multiplier * sensitivity)^2) to every entry.

    values:           (n,) float64, to which one unit contributes at most `sensitivity` in L2
    noise_multiplier: 0 adds nothing
    """
    noisy = torch.from_numpy(np.array(values, dtype=np.float64))
    std = noise_multiplier * sensitivity
    gaussian_noise_([noisy], std, key)
    mechanism = Mechanism(name, "gaussian", 1.0, noise_multiplier, 1, sensitivity, unit=unit)
    return Release(noisy.numpy(), std, mechanism)


def coarse_edges() -> np.ndarray:
    """Public bin edges -2^40 .. -2^-20, 0, 2^-20 .. 2^40."""
    positive = np.array([2.0**k for k in COARSE_EXPONENTS])
    return np.concatenate([-positive[::-1], [0.0], positive])


def _bin(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin index of each value; values outside the edges go to the end bins, NaN to -1."""
    index = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
    return np.where(np.isnan(values), -1, index)


def histograms(columns: list[np.ndarray], weights: list[np.ndarray], edges: list[np.ndarray]) -> np.ndarray:
    """Histograms of all columns, one after another, each over its own edges. L2 sensitivity sqrt(len(columns)).

    columns, weights: values of each column and their weights, (rows,) each; a unit weighs at most 1 in a column
    """
    triples = zip(columns, weights, edges, strict=True)
    return np.concatenate([weighted_histogram(_bin(c, e), w, len(e) - 1) for c, w, e in triples])


def coarse_histograms(columns: list[np.ndarray], weights: list[np.ndarray]) -> np.ndarray:
    """Histograms of all columns over the public edges. L2 sensitivity sqrt(len(columns)); see `histograms`."""
    return histograms(columns, weights, [coarse_edges()] * len(columns))


def coarse_bounds(noisy: np.ndarray, columns: int, std: float) -> list[tuple[float, float]]:
    """Outer edges of the bins that stand clear of the noise, a column each; (0, 1) where none does."""
    edges = coarse_edges()
    bounds = []
    for counts in noisy.reshape(columns, -1):
        clear = np.flatnonzero(counts > CLEAR * std)
        bounds.append((float(edges[clear[0]]), float(edges[clear[-1] + 1])) if len(clear) else (0.0, 1.0))
    return bounds


def fine_histograms(
    columns: list[np.ndarray], weights: list[np.ndarray], bounds: list[tuple[float, float]]
) -> np.ndarray:
    """Histograms of all columns over equal bins between their coarse bounds. L2 sensitivity sqrt(len(columns))."""
    return histograms(columns, weights, [np.linspace(low, high, FINE_BINS + 1) for low, high in bounds])


def fine_bounds(noisy: np.ndarray, coarse: list[tuple[float, float]], std: float) -> list[tuple[float, float]]:
    """Coarse bounds, narrowed at either end as far as the noise lets one tell that next to nothing lies outside.

    A column that the noise hides keeps its coarse bounds.
    """
    bounds = []
    for counts, (low, high) in zip(noisy.reshape(len(coarse), -1), coarse, strict=True):
        edges = np.linspace(low, high, FINE_BINS + 1)
        first, last = _kept_bins(counts, std)
        bounds.append((float(edges[first]), float(edges[last])))
    return bounds


def _kept_bins(counts: np.ndarray, std: float) -> tuple[int, int]:
    """First bin to keep and the one after the last, from the noisy counts alone; all bins if in doubt.

    Kept is what stands clear of the noise, and a margin for the tails that do not: up to half of its width, if the
    noise could hide more than KEPT_TAIL in as many bins. Of the bins beyond it, at either end, as many are cut off as
    show nothing together and could not hide more than HIDDEN_TAIL either, were the data spread evenly over them.
    """
    bins, total = len(counts), counts.sum()
    clear = _clear_range(counts, std)
    if clear is None or total <= 0:
        return 0, bins
    width = clear[1] - clear[0]
    margin = math.ceil(width / 2 * min(1.0, CLEAR * std * math.sqrt(width) / (KEPT_TAIL * total)))

    def cut(outside: np.ndarray) -> int:
        most = len(outside) if std == 0 else min(len(outside), int((HIDDEN_TAIL * total / (2 * std)) ** 2))
        return most if outside[:most].sum() <= 2 * std * math.sqrt(most) else 0

    return cut(counts[: max(0, clear[0] - margin)]), bins - cut(counts[clear[1] + margin :][::-1])


def _clear_range(counts: np.ndarray, std: float) -> tuple[int, int] | None:
    """From the first to the last run of bins whose sum stands clear of its noise; None if none does.

    Runs of 1, 2, 4, .. bins are looked at in turn, each time those alone that lie outside of what was found before.
    """
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    first, last = len(counts), 0
    for length in (2**k for k in range(len(counts).bit_length())):
        starts = np.flatnonzero(sums[length:] - sums[:-length] > CLEAR * std * math.sqrt(length))
        starts = starts[(starts + length <= first) | (starts >= last)]
        if len(starts):
            first, last = min(first, int(starts[0])), max(last, int(starts[-1]) + length)
    return (first, last) if first < last else None


def category_threshold(std: float, delta: float, largest_weight: float = 1.0) -> float:
    """Count above which a category may be named, so that one that a single unit holds appears with probability delta.

    A unit can add at most `largest_weight` to a category that nobody else has; the noise must lift it over the
    threshold: P(largest_weight + N(0, std^2) > threshold) = delta. With std 0 the threshold is that weight.
    Source: stability-based histograms, arXiv 0907.3227 (Korolova et al.), with Gaussian noise.
    """
    if not 0 < delta < 1:
        raise ValueError(f"Expected delta={delta} in (0, 1).")
    return largest_weight + std * float(norm.isf(delta))


def thresholded_names(
    names: list[str], counts: np.ndarray, mechanism: Mechanism, most_alone: int, key: NoiseKey
) -> tuple[list[str], np.ndarray]:
    """Names whose noisy count clears the threshold, most frequent first, and these counts.

    names, counts: those that any unit adds to, and their weights over units, of which a unit adds at most 1 to a name
    mechanism:     with the delta that this list may spend
    most_alone:    names that a unit can hold and nobody else has: its rows, or the cap on its codes
    """
    release = noisy_release(
        mechanism.mechanism, counts, mechanism.max_grad_norm, mechanism.noise_multiplier, key, mechanism.unit
    )
    threshold = category_threshold(release.std, mechanism.delta / most_alone)
    kept = np.flatnonzero(release.values > threshold)
    # Where counts are equal the names decide: their order in the data would tell whose rows come first.
    kept = np.array(sorted(kept, key=lambda i: (-release.values[i], names[i])), dtype=np.int64)
    return [names[i] for i in kept], release.values[kept]


def noisy_rates(noisy: np.ndarray, floor: float) -> np.ndarray:
    """Class rates from a noisy histogram: negative counts read as 0, and every class keeps a public smallest share."""
    counts = np.maximum(noisy, 0.0)
    rates = counts / counts.sum() if counts.sum() > 0 else np.full(len(counts), 1.0 / len(counts))
    rates = np.maximum(rates, floor)
    return rates / rates.sum()


def at_least_one(noisy_count: float) -> float:
    """A noisy number of units as a divisor: never below 1."""
    return max(1.0, float(noisy_count)) if math.isfinite(noisy_count) else 1.0
