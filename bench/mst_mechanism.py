"""MST on a table of cells, by the package mbi: what `bench/mst.py` runs in mbi's own environment.

    mbi/bin/python bench/mst_mechanism.py TABLE.npz OUT.npz --rho 0.02 --rows 10000 --seed 0

TABLE.npz holds `cells`, (rows, columns) whole numbers from 0 on, and `sizes`, how many cells each column has; OUT.npz
gets `cells` of synthetic rows, drawn independently from the fitted model, and OUT.json the mechanisms that were taken.

Source: McKenna, Miklau and Sheldon, arXiv 2108.04978, algorithms 1 and 2. One third of rho each goes to all single
columns, to the choice of a spanning tree of pairs, and to the pairs. Noise is seeded: it is for benchmarks alone.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.cluster.hierarchy import DisjointSet

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_enable_compilation_cache", False)

from mbi import Dataset, Domain, LinearMeasurement, MarkovRandomField, estimation  # noqa: E402  reads what is set above

SHOWN = 3.0  # standard deviations of the noise above which a cell is kept apart, as in the paper
ITERATIONS = 10_000


def noisy(data: Dataset, cliques: list[tuple[str, ...]], std: float, rng: np.random.Generator) -> list[Any]:
    """A measurement of each marginal, all with the same noise."""
    exact = [np.asarray(data.project(clique).datavector()) for clique in cliques]
    return [
        LinearMeasurement(counts + rng.normal(0, std, counts.size), clique, std)
        for clique, counts in zip(cliques, exact, strict=True)
    ]


def merging(measurement: Any) -> np.ndarray:
    """Where each cell of a column goes: those that do not show above the noise become one, the last."""
    shown = np.asarray(measurement.noisy_measurement) >= SHOWN * measurement.stddev
    return np.where(shown, np.cumsum(shown) - 1, shown.sum())


def spanning_tree(data: Dataset, fitted: MarkovRandomField, rho: float, rng: np.random.Generator) -> list[Any]:
    """Pairs of columns of a tree, each by an exponential mechanism over what independence gets wrong.

    One row more or less changes a score by at most 1, so that a mechanism with parameter e costs e^2 / 8 of zCDP.
    """
    names = list(data.domain.attributes)
    single = {name: np.asarray(fitted.project(name).datavector()) for name in names}
    wrong = {}
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            independent = np.outer(single[first], single[second]).ravel() / single[first].sum()
            exact = np.asarray(data.project((first, second)).datavector())
            wrong[first, second] = float(np.abs(exact - independent).sum())
    parts, chosen = DisjointSet(names), []
    parameter = math.sqrt(8 * rho / (len(names) - 1))
    while len(chosen) < len(names) - 1:
        open_pairs = [pair for pair in wrong if not parts.connected(*pair)]
        scores = np.array([wrong[pair] for pair in open_pairs]) * parameter / 2
        pair = open_pairs[int(np.argmax(scores + rng.gumbel(size=len(scores))))]
        parts.merge(*pair)
        chosen.append(pair)
    return chosen


def mst(cells: np.ndarray, sizes: np.ndarray, rho: float, rows: int, seed: int) -> tuple[np.ndarray, list[Any]]:
    """Synthetic cells (rows, columns), and the mechanisms as [kind, parameter, times]."""
    rng = np.random.default_rng(seed)
    np.random.seed(seed)  # mbi draws from numpy's global generator
    names = [str(place) for place in range(len(sizes))]
    data = Dataset(dict(zip(names, cells.T, strict=True)), Domain(names, sizes))
    columns, pairs = len(names), len(names) - 1
    singles = noisy(data, [(name,) for name in names], math.sqrt(3 * columns / (2 * rho)), rng)
    places = {name: merging(single) for name, single in zip(names, singles, strict=True)}
    merged_sizes = [int(places[name].max()) + 1 for name in names]
    merged = Dataset({name: places[name][data.data[name]] for name in names}, Domain(names, merged_sizes))
    total = estimation.minimum_variance_unbiased_total(singles)  # once merged, they no longer give it to mbi
    singles = [single.compress(places, data.domain) for single in singles]
    fitted = estimation.MirrorDescent().estimate(merged.domain, singles, total, iters=ITERATIONS)
    tree = spanning_tree(merged, fitted, rho / 3, rng)
    doubles = noisy(merged, tree, math.sqrt(3 * pairs / (2 * rho)), rng)
    model = estimation.MirrorDescent().estimate(merged.domain, singles + doubles, total, iters=ITERATIONS)
    drawn = model.synthetic_data(rows, method="sample").data
    mechanisms = [
        ["gaussian", singles[0].stddev, columns],
        ["exponential", math.sqrt(8 * rho / 3 / pairs), pairs],
        ["gaussian", doubles[0].stddev, pairs],
    ]
    return np.stack([taken_apart(np.asarray(drawn[name]), places[name], rng) for name in names], axis=1), mechanisms


def taken_apart(drawn: np.ndarray, places: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A cell of each merged one, those that were merged being as likely."""
    counts = np.bincount(places)
    first = np.cumsum(counts) - counts
    return np.argsort(places, kind="stable")[first[drawn] + rng.integers(0, counts[drawn])]


def main() -> None:
    """Reads, runs, writes."""
    parser = argparse.ArgumentParser(description="MST on a table of cells.")
    parser.add_argument("table", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rho", type=float, required=True, help="zCDP of the whole")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    with np.load(given.table) as table:
        cells, mechanisms = mst(table["cells"], table["sizes"], given.rho, given.rows, given.seed)
    np.savez(given.out, cells=cells)
    given.out.with_suffix(".json").write_text(json.dumps(mechanisms))


if __name__ == "__main__":
    main()
