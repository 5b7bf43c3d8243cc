"""Quantiles of columns out of noisy histograms over public grids: which cells there are, and what is made of counts."""

import math

import numpy as np

from dpcgan_fast.privacy.denoising import closest_histogram

PARTS = 96  # of equal probability, between which the quantiles stand; public
_CELLS = 64  # of a grid, half of them for each end of the bounds
_RANGE = 1000.0  # the grid's widest cells are about so many times as wide as its narrowest


def quantile_grid(bounds: tuple[float, float], whole: bool) -> np.ndarray:
    """Edges of the cells of a histogram between bounds, fine at either end: (cells + 1,) float64, rising.

    whole: of whole numbers, each of which then lies in the middle of its cell or of one that holds others, too
    The grid is a function of the bounds, which are public or paid.
    """
    half = np.expm1(np.linspace(0.0, 1.0, _CELLS // 2 + 1) * math.log1p(_RANGE)) / _RANGE / 2
    share = np.concatenate([half, 1.0 - half[-2::-1]])
    inner = (bounds[0] * (1.0 - share) + bounds[1] * share)[1:-1]
    if whole:
        inner = np.floor(inner) + 0.5
    inner = np.unique(inner)
    return np.array([bounds[0], *inner[(inner > bounds[0]) & (inner < bounds[1])], bounds[1]])


def noisy_quantiles(noisy: np.ndarray, edges: np.ndarray, std: float) -> tuple[float, ...]:
    """PARTS - 1 quantiles, evenly spaced in probability, each between the edges and none below the one before.

    noisy: (cells,) counts with N(0, std^2) added to each; edges: (cells + 1,)
    As many rows as the noise of all cells may hide are spread evenly over the cells, so that numbers keep some room
    where the noise hides them. Post-processing.
    """
    counts = closest_histogram(noisy, max(1.0, noisy.sum())) + std / math.sqrt(len(noisy))
    below = np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    unit = math.ldexp(1.0, math.frexp(max(abs(edges[0]), abs(edges[-1])))[1] - 1)  # keeps slopes from overflowing
    found = np.interp(np.arange(1, PARTS) / PARTS, below, edges / unit) * unit
    return tuple(np.maximum.accumulate(np.clip(found, edges[0], edges[-1])).tolist())
