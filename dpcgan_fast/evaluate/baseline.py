"""The yardstick: rows of independent columns and codes, drawn from noisy counts of each class at the model's epsilon.

A generative model that does not beat it has learned nothing from the data that ten lines of counting would not have.
"""

import math
from typing import Any

import dp_accounting
import numpy as np
import pyarrow as pa
import torch

from dpcgan_fast import ops
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.data.units import UnitIndex, unit_ids
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate.code_baseline import (
    independent_codes,
    number_histogram,
    prevalences,
    weighted_counts,
)
from dpcgan_fast.evaluate.columns import (
    bin_edges,
    bounds_of,
    cell_count,
    cells,
    coded_values,
    codes,
    label_of,
    modelled_columns,
    without_codes,
)
from dpcgan_fast.privacy.denoising import closest_histogram
from dpcgan_fast.privacy.releases import FULL_WEIGHT_CODES

BASELINE_NAME = "independent noisy histograms of each class"
# Covers the solver's tolerance (1e-12) and the rounding of counts that are sums of 1/rows.
_SAFETY = 1 + 1e-6
_EXACT = 2**53  # whole numbers beyond this have no exact float64


def noise_multiplier(epsilon: float, delta: float | None) -> float:
    """Standard deviation over L2 sensitivity of one Gaussian release at (epsilon, delta); 0 for epsilon = inf.

    Source: the analytic Gaussian mechanism, Balle and Wang, arXiv 1805.06530, theorem 8. Raises InputError for an
    epsilon that is not positive or a delta outside (0, 1).
    """
    if epsilon == math.inf:
        return 0.0
    if not epsilon > 0 or delta is None or not 0 < delta < 1:
        raise InputError(
            "The baseline needs an epsilon above 0 and a delta between 0 and 1",
            "privacy statement",
            "Use the run's own epsilon and delta.",
        )
    return float(dp_accounting.get_sigma_gaussian(epsilon, delta)) * _SAFETY


def independent_marginals(
    train_table: pa.Table,
    schema: Schema,
    epsilon: float,
    delta: float | None,
    rows: int,
    rng: np.random.Generator,
) -> pa.Table:
    """Synthetic rows whose columns are independent given the class; (epsilon, delta)-DP for adding or removing a unit.

    One joint Gaussian release gives the histogram of every column within every class, over public cells, and the counts
    of every code (see `code_baseline`). Classes come from the label's public rates or else from the same release;
    numbers are uniform within their bin.

    train_table: real training rows, with the unit's column if the schema has one
    epsilon:     math.inf for no noise
    rng:         draws the rows; the noise has a fresh key of its own

    Raises InputError for an epsilon or delta that is no privacy guarantee, or a table that does not fit.
    """
    histograms, counts = joint_histograms(train_table, schema), joint_code_counts(train_table, schema)
    std = noise_multiplier(epsilon, delta) * sensitivity(histograms, counts)
    noisy = noisy_parts([*histograms, *counts], std, ops.NoiseKey())
    released, counts = noisy[: len(histograms)], noisy[len(histograms) :]
    totals = np.mean([histogram.sum(axis=1) for histogram in released], axis=0)
    label = label_of(schema)
    drawn = rng.choice(len(totals), size=rows, p=_class_rates(totals, label))
    sampled: dict[str, Any] = {}
    if label is not None:
        sampled[label.name] = _as_values(label, drawn, rng)
    features, codes_columns = _features(schema), schema.codes_columns()
    for column, histogram in zip(features, released, strict=False):
        found = np.zeros(rows, dtype=np.int64)
        for index, total in enumerate(totals):
            members = drawn == index
            shares = closest_histogram(histogram[index], max(total, 1.0))
            found[members] = rng.choice(len(shares), size=int(members.sum()), p=shares / shares.sum())
        sampled[column.name] = _as_values(column, found, rng)
    numbers = released[len(released) - len(codes_columns) :]
    for column, own, own_numbers in zip(codes_columns, counts, numbers, strict=True):
        shares = prevalences(own, own_numbers, totals, std, column)
        sampled[column.name] = independent_codes(shares, drawn, column, rng)
    return pa.table({name: sampled[name] for name in schema.column_names()})


def joint_histograms(table: pa.Table, schema: Schema) -> list[np.ndarray]:
    """Histogram within every class of every column but the label and codes, then of the number of codes of each column
    of codes: one (classes, cells) float64 array each.

    The rows of a unit, at most max_rows_per_unit, are averaged, so that the unit counts as one row. A row without a
    known class is not counted. Without other columns the label's own histogram is the only one, with one cell a class.

    Formal guarantee: adding or removing a unit moves all histograms together by at most sqrt(len(histograms)) in L2
    norm: in each of them the unit's part is non-negative and sums to at most 1.
    """
    classes, weights, class_count = _classes(table, schema)
    features, codes_columns = _features(schema), schema.codes_columns()
    if not features and not codes_columns:
        return [np.bincount(classes, weights, minlength=class_count).reshape(class_count, 1)]
    histograms = []
    for column in features:
        width = cell_count(column)
        counts = np.bincount(classes * width + cells(table, column), weights, minlength=class_count * width)
        # Whether a column has missing cells is public: a cell that is empty for certain need not be released.
        histograms.append(counts.reshape(class_count, width)[:, : width if column.missing else width - 1])
    return histograms + [number_histogram(table, column, classes, weights, class_count) for column in codes_columns]


def joint_code_counts(table: pa.Table, schema: Schema) -> list[np.ndarray]:
    """Weighted counts of every code within every class: one (classes, vocabulary) float64 array a column of codes.

    Formal guarantee: adding or removing a unit moves each of them by at most sqrt(FULL_WEIGHT_CODES) in L2 norm.
    """
    classes, weights, class_count = _classes(table, schema)
    return [weighted_counts(table, column, classes, weights, class_count) for column in schema.codes_columns()]


def sensitivity(histograms: list[np.ndarray], counts: list[np.ndarray]) -> float:
    """L2 norm of what a unit adds, at most, to all histograms and counts of codes together."""
    return math.sqrt(len(histograms) + FULL_WEIGHT_CODES * len(counts))


def _classes(table: pa.Table, schema: Schema) -> tuple[np.ndarray, np.ndarray, int]:
    """Class and weight of every row, (rows,) int64 and float64, 0 without a known class; then the number of classes."""
    label = label_of(schema)
    class_count = 1 if label is None else len(label.classes())
    classes = np.zeros(table.num_rows, dtype=np.int64) if label is None else codes(table, label)
    known = classes < class_count
    return np.where(known, classes, 0), row_weights(table, schema, known), class_count


def row_weights(table: pa.Table, schema: Schema, counted: np.ndarray) -> np.ndarray:
    """Weight of every row: (rows,) float64; those of one unit sum to 1, or to 0 if none of its rows is counted.

    counted: (rows,) bool, False for rows to leave out; of the rest, a unit's first max_rows_per_unit weigh the same
    """
    if schema.unit is not None and schema.unit not in table.column_names:
        raise InputError(
            "The training table lacks the unit's column",
            f"--train, column {schema.unit}",
            "Give the table that the model was trained on.",
        )
    index = UnitIndex.from_ids(unit_ids(table, schema, "--train"), counted, schema.max_rows_per_unit)
    used = np.diff(index.starts)
    weights = np.zeros(table.num_rows)
    weights[np.flatnonzero(counted)[index.rows]] = 1 / np.repeat(used, used)
    return weights


def noisy_parts(parts: list[np.ndarray], std: float, key: ops.NoiseKey) -> list[np.ndarray]:
    """One joint Gaussian release of all parts, with noise of this standard deviation."""
    joint = torch.from_numpy(np.concatenate([part.ravel() for part in parts]))
    ops.gaussian_noise_([joint], std, key)
    ends = np.cumsum([part.size for part in parts])[:-1]
    return [noisy.reshape(part.shape) for noisy, part in zip(np.split(joint.numpy(), ends), parts, strict=True)]


def _features(schema: Schema) -> list[Column]:
    return [column for column in modelled_columns(without_codes(schema)) if column.name != schema.label]


def _class_rates(totals: np.ndarray, label: Column | None) -> np.ndarray:
    if label is not None and label.rates is not None:
        return np.array(label.rates) / sum(label.rates)
    counts = np.maximum(totals, 0.0)
    return counts / counts.sum() if counts.sum() > 0 else np.full(len(totals), 1 / len(totals))


def _as_values(column: Column, found: np.ndarray, rng: np.random.Generator) -> pa.Array:
    """Values for sampled cells: whole or uniform numbers within the bin, names of categories, null where missing."""
    if column.type != "numeric":
        return coded_values(column, found)
    edges = bin_edges(column)
    missing = found == len(edges) - 1
    inside = np.where(missing, 0, found)
    values = rng.uniform(edges[inside], edges[inside + 1])
    if column.integer:
        lower, upper = bounds_of(column)
        whole = np.clip(np.rint(values), max(math.ceil(lower), -_EXACT), min(math.floor(upper), _EXACT))
        return pa.array(whole.astype(np.int64), mask=missing)
    return pa.array(values, mask=missing)
