"""What a tree leaves of how columns depend on each other: correlations of the places that rows take within its chances.

Given class and parent, a row's cell is a stretch of the uniform distribution, and so of a standard normal one. Columns
that the tree does not join are drawn independent of each other if those normals are; here they are correlated. One sum
of products tells far more of a pair for the same noise than a table does, and one sum of normals of where the rows of a
class lie than a histogram does. Gaussian copulas: Nelsen, An Introduction to Copulas (2006), section 2.3.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.histograms import cells_at
from dpcgan_fast.baselines.parts import evenly
from dpcgan_fast.baselines.rows import Rows

_ROOM = 2.0  # standard deviations of a row's squared length above what is expected: longer rows are shortened to it
_LARGEST = 4.0  # of a normal; one of 16,000 is farther from 0
_GRID = np.linspace(-0.98, 0.98, 99)  # of correlations of all classes, by .02
_OWN_GRID = np.linspace(-0.6, 0.6, 61)  # of what those of a class differ from them by
_MEANS_GRID = np.linspace(-1.0, 1.0, 161)  # of the means of a class, in standard deviations of the normals
_MOST = 0.97  # of a correlation; at 1 a column would follow from another
_ROUNDS = 100  # of EM, which begins with all values of a grid alike
_LEAST_VARIANCE = 1e-3  # of what atoms tell of a normal, by which sums are divided; 1 is all


@dataclass(frozen=True)
class Step:
    """How a column is drawn.

    place:    of the column
    parent:   place of the column it depends on, drawn before it; None if there is none
    group_of: (cells of the parent,) int64; (1,) without one
    chances:  (class_count, groups, cells) of its cells, given class and the group of the parent's cell
    """

    place: int
    parent: int | None
    group_of: np.ndarray
    chances: np.ndarray

    def groups(self, found: dict[int, np.ndarray], rows: int) -> np.ndarray:
        """Group of each row's parent cell: (rows,) int64. found: cells of the columns by their places"""
        return np.zeros(rows, np.int64) if self.parent is None else self.group_of[found[self.parent]]


def drawn_along(
    steps: list[Step], residuals: "Residuals | None", classes: np.ndarray, rng: np.random.Generator
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """Cells of new rows, by the place of the column, and where within the cell each row lies: (rows,) each, in [0, 1).

    residuals: None if nothing is left over
    """
    normals = rng.standard_normal((len(classes), len(steps)))
    if residuals is not None:
        for index, factor in enumerate(residuals.factors):
            normals[classes == index] = normals[classes == index] @ factor.T
    found: dict[int, np.ndarray] = {}
    within: dict[int, np.ndarray] = {}
    for step in steps:
        groups, own = step.groups(found, len(classes)), normals[:, step.place]
        cells, inside = np.zeros(len(classes), np.int64), np.zeros(len(classes))
        kinds = classes * step.chances.shape[1] + groups
        for kind in np.unique(kinds):
            members = np.flatnonzero(kinds == kind)
            chances = step.chances.reshape(-1, step.chances.shape[2])[kind]
            at = evenly(own[members], rng)
            if residuals is not None and residuals.means is not None:
                at = ndtr(ndtri(at) + residuals.means[kind // step.chances.shape[1], step.place])
            cells[members], inside[members] = cells_at(chances, at)
        found[step.place], within[step.place] = cells, inside
    return found, within


@dataclass(frozen=True)
class Atoms:
    """The finest parts of a column's range: cells, or pieces of them.

    of_row: (rows,) whole numbers, the atom of each training row; from the number of atoms on, the last one
    cell:   (atoms,) int64, rising
    within: (class_count, atoms) chances within each cell
    """

    of_row: np.ndarray
    cell: np.ndarray
    within: np.ndarray

    def of_block(self, part: slice) -> np.ndarray:
        """The atoms of a block of rows."""
        return np.minimum(self.of_row[part], len(self.cell) - 1)


@dataclass(frozen=True)
class Residuals:
    """What steps leave of d columns, of each class.

    factors: (class_count, d, d) of correlations: independent standard normals times the transpose of a class's have its
             correlations, and variances of 1
    means:   (class_count, d) of the normals; None where correlations alone were released
    """

    factors: np.ndarray
    means: np.ndarray | None

    @classmethod
    def checked(cls, factors: np.ndarray, means: np.ndarray | None, class_count: int, columns: int) -> "Residuals":
        """Those that were kept. Raises ValueError if they are none."""
        expected = (class_count, columns, columns)
        if not (factors.shape == expected and np.allclose((factors**2).sum(axis=-1), 1.0)):
            raise ValueError("Expected factors of correlations.")
        if means is not None and not (means.shape == expected[:2] and (np.abs(means) <= _MEANS_GRID[-1]).all()):
            raise ValueError("Expected means of normals.")
        return cls(factors, means)

    def arrays(self) -> dict[str, np.ndarray]:
        """By the names of the fields."""
        return {"factors": self.factors} | ({} if self.means is None else {"means": self.means})


def release_residuals(
    rows: Rows,
    steps: list[Step],
    atoms: list[Atoms],
    totals: np.ndarray,
    budget: Budget,
    share: float,
    mean_weight: float = 0.0,
) -> Residuals:
    """Spends a share of the budget on correlations of columns beyond the steps, and on the means of their normals.

    steps:       in the order of drawing, one of each of d columns, made of released numbers
    atoms:       of the columns, by their places
    totals:      (class_count,) at least 1, released numbers of rows
    mean_weight: of a normal beside a product of two; 0 for correlations alone
    Formal guarantee: a unit moves the release by at most sqrt(L^4 (1 - 1/d) / 2 + w^2 L^2) in L2 norm, w being the
    weight and L^2 the squared length to which a row's normals are shortened: the squares of their products sum to
    (|r|^4 - sum r_i^4) / 2.
    """
    classes, count = len(totals), len(steps)
    scores: dict[int, np.ndarray] = {}
    variances = np.empty((classes, count))
    shares: dict[int, np.ndarray] = {}
    for step in steps:
        own = atoms[step.place]
        chances = step.chances[:, :, own.cell] * own.within[:, None, :]
        scores[step.place] = expected_normals(chances)
        weights = _group_shares(step, shares)
        shares[step.place] = np.einsum("cg,cgk->ck", weights, step.chances)
        variances[:, step.place] = np.einsum("cg,cga->c", weights, chances * scores[step.place] ** 2)
    expected = float(totals @ variances.sum(axis=1) / totals.sum())
    most = expected + _ROOM * math.sqrt(2 * expected) + 1e-9
    pairs = np.triu_indices(count, 1)
    weighs = mean_weight > 0
    sums = np.zeros((classes, len(pairs[0]) + weighs * count))
    for part, block in rows.blocks(count):
        normals = _normals_of(block, part, steps, atoms, scores)
        normals *= np.minimum(1.0, np.sqrt(most / np.maximum((normals**2).sum(axis=1), 1e-300)))[:, None]
        for index in range(classes):
            weighted = normals * (block.weights * (block.classes == index))[:, None]
            products = (normals.T @ weighted)[pairs]
            sums[index] += np.append(products, mean_weight * weighted.sum(axis=0)) if weighs else products
    sensitivity = math.sqrt(most**2 * (1 - 1 / count) / 2 + mean_weight**2 * most)
    name = f"correlations {'and means ' if weighs else ''}beyond the tree"
    noisy = budget.release(name, sums, sensitivity, share)
    variances = np.maximum(variances, _LEAST_VARIANCE)
    factors = _factors(noisy.values[:, : len(pairs[0])], noisy.std, totals, variances, pairs)
    if not weighs:
        return Residuals(factors, None)
    weights = totals[:, None] * variances
    means = noisy.values[:, len(pairs[0]) :] / (mean_weight * weights)
    errors = np.sqrt((noisy.std / mean_weight) ** 2 + weights) / weights
    return Residuals(factors, shrunk(means.ravel(), errors.ravel(), _MEANS_GRID).reshape(means.shape))


def _normals_of(
    block: Rows, part: slice, steps: list[Step], atoms: list[Atoms], scores: dict[int, np.ndarray]
) -> np.ndarray:  # fmt: skip
    """The normal that is expected of each cell of a block of rows, by the place of the column: (rows, d) float64.

    part: where the block is; scores: by place, (class_count, groups, atoms)
    """
    found = [own.of_block(part) for own in atoms]
    cells = {place: own.cell[found[place]] for place, own in enumerate(atoms)}
    normals = np.empty((len(block.classes), len(steps)))
    for step in steps:
        groups = step.groups(cells, len(block.classes))
        normals[:, step.place] = scores[step.place][block.classes, groups, found[step.place]]
    return normals


def expected_normals(chances: np.ndarray) -> np.ndarray:
    """Means of a standard normal within the stretches that atoms take of it, by their chances (..., atoms): bounded."""
    ends = np.cumsum(chances, axis=-1)
    ends = ends / np.maximum(ends[..., -1:], 1e-300)
    upper = ndtri(np.clip(ends, 0.0, 1.0))
    lower = np.concatenate([np.full((*upper.shape[:-1], 1), -np.inf), upper[..., :-1]], axis=-1)
    heights = [np.exp(-(bound**2) / 2) / math.sqrt(2 * math.pi) for bound in (lower, upper)]
    width = np.diff(ends, axis=-1, prepend=0.0)
    means = (heights[0] - heights[1]) / np.maximum(width, 1e-300)
    narrow = np.clip(np.nan_to_num(upper, posinf=_LARGEST, neginf=-_LARGEST), -_LARGEST, _LARGEST)
    return np.where(width > 1e-9, np.clip(means, -_LARGEST, _LARGEST), narrow)


def _group_shares(step: Step, shares: dict[int, np.ndarray]) -> np.ndarray:
    """Share of each group of the parent's cells within each class: (class_count, groups)."""
    if step.parent is None:
        return np.ones(step.chances.shape[:2])
    before = shares[step.parent]
    member = np.eye(step.chances.shape[1])[step.group_of[: before.shape[1]]]
    return before @ member


def _factors(
    sums: np.ndarray, std: float, totals: np.ndarray, variances: np.ndarray, pairs: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:  # fmt: skip
    """Correlations of all classes together, and how those of a class differ from them, as far as the noise lets see."""
    products = variances[:, pairs[0]] * variances[:, pairs[1]]  # an atom's mean varies less than the normal in it
    weights = totals[:, None] * products
    of_all = shrunk(
        sums.sum(axis=0) / weights.sum(axis=0),
        np.sqrt(len(sums) * std**2 + weights.sum(axis=0)) / weights.sum(axis=0), _GRID,
    )  # fmt: skip
    found = []
    for own, weight in zip(sums, weights, strict=True):
        differ = shrunk(own / weight - of_all, np.sqrt(std**2 + weight) / weight, _OWN_GRID) if len(sums) > 1 else 0.0
        matrix = np.eye(variances.shape[1])
        matrix[pairs] = np.clip(of_all + differ, -_MOST, _MOST)
        values, vectors = np.linalg.eigh(matrix, UPLO="U")
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
        found.append(factor / np.linalg.norm(factor, axis=1, keepdims=True))
    return np.array(found)


def shrunk(noisy: np.ndarray, std: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """Expected values given noisy ones, (n,) float64 each, where the noise of each has its own standard deviation.

    The values' own distribution, over a grid, is estimated from all of them, as in `denoising.denoised_counts`. None
    lies beyond the grid, not by rounding either.
    """
    exponents = -0.5 * ((noisy[:, None] - grid) / std[:, None]) ** 2  # (n, grid)
    likelihood = np.exp(exponents - exponents.max(axis=1, keepdims=True))
    share = np.full(len(grid), 1 / len(grid))
    chances = likelihood
    for _ in range(_ROUNDS):
        chances = likelihood * share
        chances /= chances.sum(axis=1, keepdims=True)
        share = chances.mean(axis=0)
    return np.clip(chances @ grid, grid[0], grid[-1])
