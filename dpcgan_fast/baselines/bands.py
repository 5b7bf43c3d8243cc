"""Waves of unit rows by how much of a row is in each band of them, and by which waves of a row go together.

How much of it is in each band differs from row to row more than chance would have it, and what is much in one band goes
with much or little in others: recordings of a brain at rest, say, each have a rhythm of their own. A single spectrum
has rows all alike in that. Logarithms of the powers of bands are near to a normal distribution, of which a few noisy
moments tell everything.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.rows import Rows

_LEAST_POWER = 1e-7  # mean square of a wave of a row of unit length: less counts as that
_SMALLEST = 1e-14  # mean square of a band whose waves are not looked at
# Source of all below: measured on UCI Epileptic.
_MEAN_SHARE, _WAVE_SHARE = 0.15, 0.25  # of what bands may spend: where levels lie at all, and pairs of waves
_REACH = 1.5  # nats from the mean level, times the root of the number of bands, beyond which rows count as nearer
_GROUPS = 3  # of strength
_CLEAR_LEVELS = 0.1  # nats^2: noise of an entry of the covariance of levels that groups of strength may have
_CLEAR_WAVES = 0.3  # about the largest eigenvalue of the noise of correlations of waves, which have a mean one of 1
_MOST_WAVES = 256  # that are looked at in pairs
_LEAST_VARIANCE = 0.02  # of eigenvalues


def band_edges(length: int) -> np.ndarray:
    """First waves of the bands, and the length: octaves up to wave 8, then halves of octaves, (bands + 1,) int64."""
    octaves = [8 << k for k in range(max(0, length.bit_length() - 3))]
    inner = [edge for first in octaves for edge in (first, first + first // 2)]
    inner = [edge for edge in (1, 2, 4, *inner) if edge < length]
    if inner and inner[-1] > 4 and length - inner[-1] < inner[-1] / 2:
        inner.pop()  # the last band is no narrower than the others
    return np.array([0, *inner, length])


def levels_of(waves: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Logarithm of the mean square of each band: (rows, bands) float64 in [log _LEAST_POWER, 0]."""
    return np.log(np.clip(_powers(waves, edges), _LEAST_POWER, 1.0))


def even_waves(waves: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Waves with a mean square of 1 in each band of each row, or of 0 where there is next to nothing.

    Formal guarantee: the first n waves of a row, n an edge, have an L2 norm of at most sqrt(n), but for rounding.
    """
    powers = _powers(waves, edges)
    scale = np.where(powers > _SMALLEST, 1 / np.sqrt(np.maximum(powers, _SMALLEST)), 0.0)
    return waves * np.repeat(scale, np.diff(edges), axis=1)


def _powers(waves: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.add.reduceat(waves**2, edges[:-1], axis=1) / np.diff(edges)


@dataclass(frozen=True)
class Strong:
    """How strong rows are, as it was released.

    counts: (class_count, bins) numbers of rows, none negative
    bins:   (rows,) int64, of each training row
    """

    counts: np.ndarray
    bins: np.ndarray

    def ranks(self) -> np.ndarray:
        """Share of a class's rows that are weaker than those of a bin, with half of its own: (class_count, bins)."""
        middles = np.cumsum(self.counts, axis=1) - self.counts / 2
        return middles / np.maximum(self.counts.sum(axis=1, keepdims=True), 1.0)

    def groups(self, most: int) -> np.ndarray:
        """Group of each class's bins, rising, (class_count, bins) int64: groups hold about as many rows."""
        return np.minimum((self.ranks() * most).astype(np.int64), most - 1)

    def between(self, knots: int) -> np.ndarray:
        """How near each bin is to knots that are evenly spaced in rank, from the weakest row to the strongest:
        (class_count, bins, knots), none negative, those of a bin sum to 1, and at most two of them are not 0.

        Formal guarantee: those of a bin have an L2 norm of at most 1.
        """
        away = np.abs(self.ranks()[..., None] * (knots - 1) - np.arange(knots))
        return np.maximum(1 - away, 0.0)


@dataclass(frozen=True)
class Bands:
    """What waves are drawn from.

    groups: (class_count, bins) int64, the group of strength of each bin
    levels: (class_count, bins, bands) float64, mean logarithm of the mean square, for each bin of strength
    spread: (class_count, groups, bands, bands), symmetric roots of the covariances of levels
    pairs:  (class_count, n, n), symmetric roots of the covariances of the first n waves, n an edge or 0
    """

    length: int
    groups: np.ndarray
    levels: np.ndarray
    spread: np.ndarray
    pairs: np.ndarray

    def draw(self, classes: np.ndarray, bins: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Waves of rows of these classes and bins of strength, (rows, length) float64."""
        edges, groups = band_edges(self.length), self.groups[classes, bins]
        waves = rng.standard_normal((len(classes), self.length))
        levels = rng.standard_normal((len(classes), len(edges) - 1))
        paired = self.pairs.shape[1]
        for label in np.unique(classes):
            members = classes == label
            waves[members, :paired] = waves[members, :paired] @ self.pairs[label]
            for group in np.unique(groups[members]):
                own = members & (groups == group)
                levels[own] = self.levels[label, bins[own]] + levels[own] @ self.spread[label, group]
        heights = np.exp(np.clip(levels, np.log(_LEAST_POWER), 0.0) / 2)
        drawn = even_waves(waves, edges)
        drawn *= np.repeat(heights, np.diff(edges), axis=1)
        return drawn

    def arrays(self) -> dict[str, np.ndarray]:
        """All but the length, by names that `restored` knows."""
        return {"groups": self.groups, "levels": self.levels, "spread": self.spread, "pairs": self.pairs}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], length: int) -> "Bands":
        """What `arrays` gave. Raises KeyError or ValueError for anything else."""
        found = cls(length, arrays["groups"], arrays["levels"], arrays["spread"], arrays["pairs"])
        classes, groups, bands = found.spread.shape[:3]
        paired = found.pairs.shape[-1]
        edges = band_edges(length)
        whole = found.groups.dtype == np.int64 and (found.groups >= 0).all() and (found.groups < groups).all()
        finite = all(np.isfinite(own).all() for own in found.arrays().values())
        square = found.spread.shape == (classes, groups, bands, bands)
        square = square and found.pairs.shape == (classes, paired, paired)
        square = square and found.levels.shape == (*found.groups.shape, bands)
        if not (whole and finite and square and bands == len(edges) - 1 and paired in edges):
            raise ValueError("Expected levels and pairs of waves that fit each other and the signal's length.")
        return found


def release_bands(
    rows: Rows, length: int, waves: Callable[[Rows], np.ndarray], strong: Strong, budget: Budget, share: float
) -> Bands:
    """Spends a share of the budget on bands of waves, in two or three releases.

    waves: of a block of rows, (its rows, length) float64: what rows of unit length are beside a mean that is known.
           They are asked for once, for all of them together take several times the memory of the table
    How many groups of strength and how many waves in pairs there are follows from the noise and the released counts.
    Mean levels are straight lines in the rank of strength, between as many knots as there are groups and one more:
    whether the strong rows of a class have other waves than its weak ones shows at little noise, too.
    Formal guarantee: what is released of each row is a vector of L2 norm at most 1, spread over knots by weights whose
    norm is at most 1, or its products, whose norm is its square, or both. A unit's rows weigh 1 together, so that it
    moves a release by no more than one row can.
    """
    edges = band_edges(length)
    classes, bands = len(strong.counts), len(edges) - 1
    of_class = np.maximum(strong.counts.sum(axis=1), 1.0)
    paired = _paired(edges, budget.std(1.0, share * _WAVE_SHARE) / of_class.mean())
    left = share * (1 - _MEAN_SHARE - (_WAVE_SHARE if paired else 0.0))

    levels, half = np.empty((len(rows.classes), bands)), -np.log(_LEAST_POWER) / 2
    places, of_pairs = np.zeros((classes, bands)), np.zeros((classes, paired * (paired + 1) // 2))
    for part, block in rows.blocks(length):
        own = waves(block)
        levels[part] = levels_of(own, edges)
        places += block.sums((levels[part] + half) / (half * np.sqrt(bands)))  # of norm at most 1
        if paired:
            even = even_waves(own, edges)[:, :paired] / np.sqrt(paired)
            of_pairs += _products(block, even, np.zeros(len(even), np.int64), 1)[:, 0]
    rough = budget.release("levels of bands", places, 1.0, share * _MEAN_SHARE)
    middle = np.clip(rough.values / of_class[:, None] * np.sqrt(bands), -1.0, 1.0) * half - half

    reach = _REACH * np.sqrt(bands)
    std = budget.std(np.sqrt(2), left)
    many = std * reach**2 * _GROUPS / of_class.mean() <= _CLEAR_LEVELS
    groups = strong.groups(_GROUPS if many else 1)
    count = int(groups.max()) + 1
    knots = count + 1
    between = strong.between(knots)
    sums, products = np.zeros((classes, knots, bands)), np.zeros((classes, count, bands * (bands + 1) // 2))
    for part, block in rows.blocks(length):
        near = (levels[part] - middle[block.classes]) / reach
        near /= np.maximum(1.0, np.linalg.norm(near, axis=1, keepdims=True))
        weights = between[block.classes, strong.bins[part]]
        sums += np.stack([block.sums(near * weights[:, [knot]]) for knot in range(knots)], axis=1)
        products += _products(block, near, groups[block.classes, strong.bins[part]], count)
    both = np.concatenate([sums.reshape(classes, -1), products.reshape(classes, -1)], axis=1)
    noisy = budget.release("levels of bands and their products", both, np.sqrt(2), left)
    sums, products = np.split(noisy.values, [knots * bands], axis=1)
    moved = _lines(sums.reshape(classes, knots, bands), between, strong.counts, noisy.std)  # (classes, bins, bands)
    inside = (groups[:, None] == np.arange(count)[:, None]) * strong.counts[:, None]  # (classes, groups, bins)
    numbers = np.maximum(inside.sum(axis=2), 1.0)
    square = _square(_shrunk(products.reshape(classes, count, -1), numbers, noisy.std, axes=(0, 1)), bands)
    # The mean of all cells' products holds their means, too: what is drawn is as wide as the rows of a cell.
    known = np.einsum("cgb,cbi,cbj->cgij", inside / numbers[..., None], moved, moved)
    spread = _root((square - known) * reach**2)
    pairs = np.empty((classes, 0, 0))
    if paired:
        noisy = budget.release("pairs of waves", of_pairs, 1.0, share * _WAVE_SHARE)
        pairs = _root(paired * _square(_shrunk(noisy.values, of_class, noisy.std, axes=(0,)), paired))
    return Bands(length, groups, middle[:, None] + moved * reach, spread, pairs)


def _paired(edges: np.ndarray, std: float) -> int:
    """How many of the first waves are looked at in pairs. std: of the noise of a row's share"""
    fits = [n for n in edges if n <= _MOST_WAVES and std * n * np.sqrt(2 * n) <= _CLEAR_WAVES]
    return int(max(fits)) if fits[-1] > 1 else 0


def _products(rows: Rows, values: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Weighted sums of products of all pairs of values, each pair once, by class and group.

    values: (rows, n) of L2 norm at most 1; returns (class_count, count, n (n + 1) / 2) float64
    Formal guarantee: products of two different values are taken times sqrt(2), so that those of a row have an L2 norm
    that is the square of the row's.
    """
    n = values.shape[1]
    upper = np.triu_indices(n)
    scale = np.where(upper[0] == upper[1], 1.0, np.sqrt(2))
    found = np.zeros((rows.class_count, count, len(scale)))
    for label in range(rows.class_count):
        for group in range(count):
            members = np.flatnonzero((rows.classes == label) & (groups == group))
            own = values[members]
            found[label, group] = ((own * rows.weights[members, None]).T @ own)[upper] * scale
    return found


def _square(products: np.ndarray, n: int) -> np.ndarray:
    """Symmetric matrices (..., n, n) of the products that `_products` gives, (..., n (n + 1) / 2)."""
    upper = np.triu_indices(n)
    found = np.zeros((*products.shape[:-1], n, n))
    found[..., upper[0], upper[1]] = products / np.where(upper[0] == upper[1], 1.0, np.sqrt(2))
    return found + np.swapaxes(np.triu(found, 1), -1, -2)


def _shrunk(sums: np.ndarray, numbers: np.ndarray, std: float, axes: tuple[int, ...]) -> np.ndarray:
    """Means of cells out of noisy sums (..., n), each as near to that of all cells along the axes as its noise says.

    numbers: (...) rows of each cell, positive; std: of the noise of a sum
    """
    means = sums / numbers[..., None]
    of_all = sums.sum(axis=axes, keepdims=True) / numbers.sum(axis=axes, keepdims=True)[..., None]
    away = means - of_all
    distance = (away**2).sum(axis=-1)
    return of_all + _kept(distance, sums.shape[-1] * (std / numbers) ** 2)[..., None] * away


def _kept(distance: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Share of a squared distance that is kept. noise: its expectation by noise alone

    Source: the positive part of the estimator of James and Stein, 1961.
    """
    return np.maximum(1 - noise / np.maximum(distance, np.maximum(noise, 1e-300)), 0.0)


def _lines(sums: np.ndarray, between: np.ndarray, counts: np.ndarray, std: float) -> np.ndarray:
    """Mean of each bin of strength, by least squares, with straight lines between the knots: (class_count, bins, n).

    sums:    (class_count, knots, n) noisy sums of rows, weighted by how near each is to a knot
    between: (class_count, bins, knots) these weights, see `Strong.between`
    counts:  (class_count, bins) numbers of rows, none negative; std: of the noise of a sum
    What knots say beside the mean of all rows counts as much as the noise lets it. Weights add up to 1, so that the
    sums add up to that of all rows.
    """
    found = np.zeros((*between.shape[:2], sums.shape[2]))
    for label, (own, of_knots, number) in enumerate(zip(sums, between, counts, strict=True)):
        inverse = np.linalg.pinv((of_knots.T * number) @ of_knots, rcond=1e-9, hermitian=True)
        of_all = own.sum(axis=0) / max(number.sum(), 1.0)
        away = inverse @ own - of_all
        noise = own.shape[1] * np.sum(inverse**2) * std**2
        found[label] = of_all + _kept((away**2).sum(), noise) * of_knots @ away
    return found


def _root(matrices: np.ndarray) -> np.ndarray:
    """Symmetric roots of symmetric matrices (..., n, n), no eigenvalue of which counts as less than the least."""
    values, vectors = np.linalg.eigh(matrices)
    return (vectors * np.sqrt(np.maximum(values, _LEAST_VARIANCE))[..., None, :]) @ np.swapaxes(vectors, -1, -2)
