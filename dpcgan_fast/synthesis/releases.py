"""Facts of the data that the schema leaves private: planned by the schema, released once, paid for in the ledger."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines import has_statistics
from dpcgan_fast.data import cells
from dpcgan_fast.data.code_rows import CodeSets
from dpcgan_fast.data.dates import within_calendar
from dpcgan_fast.data.encoding import label_codes, wide_codecs
from dpcgan_fast.data.schema import OTHER, PRIVATE, Bounds, Column, Schema
from dpcgan_fast.data.units import UnitIndex
from dpcgan_fast.models import is_conditional
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Mechanism
from dpcgan_fast.privacy import releases as gaussian
from dpcgan_fast.privacy.denoising import denoised_counts
from dpcgan_fast.privacy.ledger import Reserves
from dpcgan_fast.privacy.quantiles import noisy_quantiles, quantile_grid
from dpcgan_fast.synthesis.code_autoencoder import MAX_GRAD_NORM, cluster_steps
from dpcgan_fast.synthesis.statistics import (
    CODE_AUTOENCODER,
    OF_STATISTICS,
    STATISTICS,
    releases_statistics,
    trains_for_clusters,
)  # fmt: skip
from dpcgan_fast.train.plan import BudgetPlan, PlannedRelease
from dpcgan_fast.train.settings import TrainSettings, default_settings

LABEL_HISTOGRAM, UNIT_COUNT = "label histogram", "unit count"
COARSE_BOUNDS, FINE_BOUNDS = "bounds, coarse", "bounds, fine"
QUANTILES = "quantiles"
CATEGORIES, CATEGORY_COUNTS = "categories: ", "counts of many categories"
CODES, CODE_NUMBERS = "code counts: ", "codes of a record: "
THRESHOLD_SHARE = 0.05  # of delta, for the thresholds of all category lists together
RATE_FLOOR = 1e-3
COUNTS_SHARE, QUANTILES_SHARE = 0.4, 0.15  # of epsilon, that releases take at least


@dataclass
class ReleasedFacts:
    """What was estimated, and paid for.

    rates:      class rates, None if public or without a label
    n_units:    noisy number of units, None if public
    bounds:     by column or signal name
    categories: by column name
    vocabularies: by column name, where they were private
    code_counts: by column name, records that have each code of the vocabulary, in its order
    quantiles: by column name, evenly spaced in probability
    category_rates: by column name, where there are many categories: of each class, shares of the positions of the
        column's one-hot
    statistics: name of those that rows are drawn from, or that networks are fitted to; empty if there are none
    parts:      the Gaussian releases that the statistics consist of, which cost together what their line in the ledger
        does; empty in a run of a version that did not keep them
    """

    rates: list[float] | None = None
    n_units: float | None = None
    bounds: dict[str, Bounds] = field(default_factory=dict)
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)
    vocabularies: dict[str, tuple[str, ...]] = field(default_factory=dict)
    code_counts: dict[str, list[float]] = field(default_factory=dict)
    quantiles: dict[str, tuple[float, ...]] = field(default_factory=dict)
    category_rates: dict[str, list[list[float]]] = field(default_factory=dict)
    statistics: str = ""
    parts: list[Mechanism] = field(default_factory=list)

    def units(self, settings: TrainSettings) -> float:
        """How many units there are, public or as it was released; one of the two there always is in a run."""
        units = settings.n_units if settings.n_units is not None else self.n_units
        assert units is not None
        return units

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "parts": [part.to_dict() for part in self.parts]}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ReleasedFacts":
        """The facts that `to_dict` wrote."""
        facts = cls(**values)
        facts.bounds = {name: (low, high) for name, (low, high) in facts.bounds.items()}
        facts.categories = {name: tuple(names) for name, names in facts.categories.items()}
        facts.vocabularies = {name: tuple(names) for name, names in facts.vocabularies.items()}
        facts.quantiles = {name: tuple(values) for name, values in facts.quantiles.items()}
        facts.parts = [Mechanism.from_dict(part) for part in values.get("parts", [])]
        return facts

    def sentences(self) -> list[str]:
        """One sentence a fact, for the privacy card."""
        lines = []
        if self.rates is not None:
            lines.append("class rates of the label: " + ", ".join(f"{rate:.4f}" for rate in self.rates))
        if self.n_units is not None:
            lines.append(f"number of units: {self.n_units:.1f}")
        lines += [f"bounds of {name}: {low:g} to {high:g}" for name, (low, high) in self.bounds.items()]
        lines += [f"{len(values)} quantiles of {name}" for name, values in self.quantiles.items()]
        lines += [f"categories of {name}: {len(names)} found" for name, names in self.categories.items()]
        lines += [f"how frequent each category of {name} is in each class" for name in self.category_rates]
        for name, names in self.vocabularies.items():
            none = "" if names else "; with so few records at this epsilon, give a public vocabulary"
            lines.append(f"codes of {name}: {len(names)} found{none}")
        if self.statistics:
            lines.append(f"statistics: {self.statistics}")
        lines += [f"how many records have each code of {name}, and how many codes records have"
                  for name in self.code_counts]  # fmt: skip
        return lines


def _private_numbers(schema: Schema) -> list[str]:
    """Names of columns and signals whose bounds are private."""
    return [c.name for c in schema.columns if c.bounds == PRIVATE] + [
        s.name for s in schema.signals if s.bounds == PRIVATE
    ]


def _private_quantiles(schema: Schema) -> list[Column]:
    return [column for column in schema.columns if column.quantiles == PRIVATE]


def _private_categories(schema: Schema) -> list[str]:
    return [column.name for column in schema.columns if column.categories == PRIVATE]


def _private_vocabularies(schema: Schema) -> list[str]:
    return [column.name for column in schema.columns if column.vocabulary == PRIVATE]


def least_release_share(schema: Schema, preset: str, statistics: bool = True) -> float:
    """Share of epsilon that the releases of a schema take at least; none where class rates or bounds are all.

    statistics: whether they may be what rows are drawn from
    How often each code or category occurs is most of what there is to know of many, and a release tells it better than
    training does; where rows are drawn from statistics, these tell it.
    """
    schema = schema.as_records()
    told = statistics and has_statistics(schema) and not _private_vocabularies(schema)
    if is_conditional(preset) and (schema.codes_columns() or wide_codecs(schema)) and not told:
        return COUNTS_SHARE
    return QUANTILES_SHARE if _private_quantiles(schema) else 0.0


def settings_for(
    schema: Schema, preset: str, epsilon: float, delta: float, steps: int | None = None, seed: int | None = None,
    **changes: Any,
) -> TrainSettings:  # fmt: skip
    """Settings of a preset for a schema, with the share of epsilon that its releases need.

    steps, seed, changes: as in `default_settings`, and so is what is raised
    """
    share = least_release_share(schema, preset, changes.get("statistics") is not False)
    return default_settings(preset, epsilon, delta, schema.n_units, steps, seed, share, schema.is_one_signal, **changes)


def planned_releases(schema: Schema, settings: TrainSettings) -> tuple[PlannedRelease, ...]:
    """What training will release first. A function of the schema and the settings alone.

    Class rates and counts of codes are released for nets that use them: the published ones do not.
    """
    planned = []
    numbers, lists, codes = _private_numbers(schema), _private_categories(schema), _private_vocabularies(schema)
    conditional = is_conditional(settings.preset)
    if numbers:
        sensitivity = math.sqrt(len(numbers))
        planned += [PlannedRelease(COARSE_BOUNDS, sensitivity), PlannedRelease(FINE_BOUNDS, sensitivity)]
    ranked = _private_quantiles(schema)
    if ranked:
        planned.append(PlannedRelease(QUANTILES, math.sqrt(len(ranked))))
    thresholds = {name: THRESHOLD_SHARE * settings.delta / (len(lists) + len(codes)) for name in [*lists, *codes]}
    planned += [PlannedRelease(CATEGORIES + name, 1.0, thresholds[name]) for name in lists]
    wide = wide_codecs(schema)
    if conditional and wide:
        planned.append(PlannedRelease(CATEGORY_COUNTS, math.sqrt(len(wide))))
    if conditional:
        norm = math.sqrt(gaussian.FULL_WEIGHT_CODES)
        names = [column.name for column in schema.codes_columns()]
        for name in names:
            planned += [
                PlannedRelease(CODES + name, norm, thresholds.get(name, 0.0)), PlannedRelease(CODE_NUMBERS + name, 1.0)
            ]  # fmt: skip
    label = schema.label_column()
    if label is not None and label.rates is None and conditional:
        planned.append(PlannedRelease(LABEL_HISTOGRAM, 1.0))
    if schema.n_units is None:
        planned.append(PlannedRelease(UNIT_COUNT, 1.0))
    if releases_statistics(schema, settings):
        planned.append(PlannedRelease(STATISTICS, 1.0, main=True))
    if trains_for_clusters(schema, settings):
        rate, steps = settings.sample_rate(settings.autoencoder_batch), cluster_steps(settings.epsilon)
        planned.append(PlannedRelease(CODE_AUTOENCODER, MAX_GRAD_NORM, steps=steps, sample_rate=rate))
    return tuple(planned)


@dataclass
class _Releaser:
    """Reserves a planned release in the ledger, makes it, and closes the line."""

    plan: BudgetPlan
    ledger: Reserves
    key: NoiseKey
    planned: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.planned = [one.mechanism for one in self.plan.releases if one.mechanism not in OF_STATISTICS]

    def __enter__(self) -> "_Releaser":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.planned:
            raise AssertionError(f"planned releases were not made: {self.planned}")

    def mechanism(self, name: str) -> Mechanism:
        self.planned.remove(name)
        return self.plan.mechanism(name)

    def release(self, name: str, values: np.ndarray) -> gaussian.Release:
        mechanism = self.mechanism(name)
        seq = self.ledger.reserve(mechanism, self.key.key_id)
        made = gaussian.noisy_release(
            name, values, mechanism.max_grad_norm, mechanism.noise_multiplier, self.key, mechanism.unit
        )
        self.ledger.close(seq, 1)
        return made

    def thresholded(self, name: str, names: list[str], counts: np.ndarray, most: int) -> tuple[list[str], np.ndarray]:
        """As `gaussian.thresholded_names`. most: names that a unit can hold and nobody else has"""
        mechanism = self.mechanism(name)
        seq = self.ledger.reserve(mechanism, self.key.key_id)
        made = gaussian.thresholded_names(names, counts, mechanism, most, self.key)
        self.ledger.close(seq, 1)
        return made


def make_releases(
    table: pa.Table, ids: np.ndarray | None, schema: Schema, plan: BudgetPlan, ledger: Reserves, key: NoiseKey,
    where: str,
) -> ReleasedFacts:  # fmt: skip
    """Estimates every fact that the plan says, and no other; not the statistics, which need the complete schema.

    ids: unit of each row (M,), None if every row is a unit
    Of each unit the first max_rows_per_unit rows count, and they weigh 1 together in every statistic, so that the L2
    sensitivity is what the plan says.
    """
    facts = ReleasedFacts()
    index = UnitIndex.from_ids(ids, np.ones(table.num_rows, bool), schema.max_rows_per_unit)
    rows, units = index.rows_of(np.arange(index.n_units))
    if len(rows) != table.num_rows or (np.diff(rows) != 1).any():  # a copy of what may be larger than memory
        table = table.take(pa.array(rows))
    weights = gaussian.unit_weights(units)
    with _Releaser(plan, ledger, key) as releaser:
        numbers = _private_numbers(schema)
        if numbers:
            facts.bounds = dict(
                zip(numbers, _release_bounds(table, numbers, weights, schema, releaser, where), strict=True)
            )
        if QUANTILES in releaser.planned:
            facts.quantiles = _release_quantiles(table, weights, schema, facts.bounds, releaser, where)
        for name in _private_categories(schema):
            facts.categories[name] = _release_categories(table[name], name, weights, schema, releaser)
        if CATEGORY_COUNTS in releaser.planned:
            facts.category_rates = _release_category_rates(table, weights, schema, releaser, where)
        for column in schema.codes_columns():
            if CODES + column.name in releaser.planned:
                _release_codes(table, column, releaser, facts, where)
        if LABEL_HISTOGRAM in releaser.planned:
            facts.rates = _release_rates(table, weights, schema, releaser, where)
        if UNIT_COUNT in releaser.planned:
            count = releaser.release(UNIT_COUNT, np.array([float(index.n_units)]))
            facts.n_units = gaussian.at_least_one(count.values[0])
    return facts


def _numbers(table: pa.Table, name: str, schema: Schema, where: str) -> np.ndarray:
    """(M, columns) float64 values of a column or of a signal's columns."""
    signal = next((s for s in schema.signals if s.name == name), None)
    columns = (name,) if signal is None else signal.columns
    return np.stack([cells.numeric_values(table[c], f"{where}, column {c}") for c in columns], axis=1)


def _release_bounds(
    table: pa.Table, names: list[str], weights: np.ndarray, schema: Schema, releaser: _Releaser, where: str
) -> list[Bounds]:
    values = [_numbers(table, name, schema, where) for name in names]
    flat = [v.ravel() for v in values]
    # A signal's samples share its row's weight, so that a row still weighs what it weighs.
    spread = [np.repeat(weights / v.shape[1], v.shape[1]) for v in values]
    coarse = releaser.release(COARSE_BOUNDS, gaussian.coarse_histograms(flat, spread))
    rough = gaussian.coarse_bounds(coarse.values, len(names), coarse.std)
    fine = releaser.release(FINE_BOUNDS, gaussian.fine_histograms(flat, spread, rough))
    dates = {column.name for column in schema.columns if column.type == "date"}
    found = zip(names, gaussian.fine_bounds(fine.values, rough, fine.std), strict=True)
    return [within_calendar(bounds) if name in dates else bounds for name, bounds in found]


def _release_quantiles(
    table: pa.Table, weights: np.ndarray, schema: Schema, released: dict[str, Bounds], releaser: _Releaser, where: str
) -> dict[str, tuple[float, ...]]:
    """Quantiles of the columns whose own are private. released: bounds by column name, where they were private."""
    columns = _private_quantiles(schema)
    grids = [quantile_grid(_bounds(column, released), column.integer) for column in columns]
    values = [cells.numeric_values(table[c.name], f"{where}, column {c.name}") for c in columns]
    noisy = releaser.release(QUANTILES, gaussian.histograms(values, [weights] * len(columns), grids))
    parts = np.split(noisy.values, np.cumsum([len(grid) - 1 for grid in grids])[:-1])
    return {
        column.name: noisy_quantiles(part, grid, noisy.std)
        for column, part, grid in zip(columns, parts, grids, strict=True)
    }


def _bounds(column: Column, released: dict[str, Bounds]) -> Bounds:
    bounds = released.get(column.name, column.bounds)
    assert isinstance(bounds, tuple)
    return bounds


def _release_categories(
    column: pa.ChunkedArray, name: str, weights: np.ndarray, schema: Schema, releaser: _Releaser
) -> tuple[str, ...]:
    """Canonical names, so that the type that other cells give the column changes none; `__other__` is no category."""
    names, codes = cells.category_names(column, f"column {name}", reserved=(OTHER,))
    counts = gaussian.weighted_histogram(codes, weights, len(names))
    kept, _ = releaser.thresholded(CATEGORIES + name, names, counts, schema.max_rows_per_unit)
    return tuple(kept)


def _release_codes(table: pa.Table, column: Column, releaser: _Releaser, facts: ReleasedFacts, where: str) -> None:
    """Counts of the codes of a vocabulary, which is found in the same release if it is private.

    Every row is a unit: a table with codes has one row a record, and one record a unit.
    """
    sets = CodeSets.of_column(table, column.name, column.separator, f"{where}, column {column.name}")
    if isinstance(column.vocabulary, tuple):
        names, rows = column.vocabulary, sets.within(column.vocabulary, column.max_codes)
    else:  # what a record has beyond its cap counts nowhere, so that a unit adds to at most max_codes names
        used = sets.capped(column.max_codes)
        names, rows = used.names, used.rows
    numbers = np.diff(rows.starts)
    (counts,) = rows.weighted_counts(len(names), gaussian.code_weights(numbers, gaussian.FULL_WEIGHT_CODES))
    if isinstance(column.vocabulary, tuple):
        noisy = releaser.release(CODES + column.name, counts)
        found = denoised_counts(noisy.values, noisy.std)
    else:
        kept, found = releaser.thresholded(CODES + column.name, list(names), counts, column.max_codes)
        facts.vocabularies[column.name] = tuple(kept)
    edges, bins = gaussian.number_edges(column.max_codes), gaussian.number_bins(numbers, column.max_codes)
    histogram = releaser.release(CODE_NUMBERS + column.name, np.bincount(bins, minlength=len(edges)).astype(float))
    lost = gaussian.lost_to_weights(histogram.values, column.max_codes, gaussian.FULL_WEIGHT_CODES)
    facts.code_counts[column.name] = (found * lost).tolist()


def _release_category_rates(
    table: pa.Table, weights: np.ndarray, schema: Schema, releaser: _Releaser, where: str
) -> dict[str, list[list[float]]]:
    """Shares of the categories within each class. Rows of no known class count nowhere."""
    label = schema.label_column()
    n_classes = 1 if label is None else len(label.classes())
    classes = np.zeros(table.num_rows, np.int64) if label is None else label_codes(label, table[label.name], where)
    codecs = wide_codecs(schema)
    histograms = []
    for name, codec in codecs.items():
        width = codec.blocks[0].width
        slots = codec.slots(table[name], f"{where}, column {name}")
        histograms.append(
            gaussian.weighted_histogram(np.where(classes < 0, -1, classes * width + slots), weights, n_classes * width)
        )
    noisy = releaser.release(CATEGORY_COUNTS, np.concatenate(histograms))
    parts = np.split(noisy.values, np.cumsum([len(histogram) for histogram in histograms])[:-1])
    rates = {}
    for name, part in zip(codecs, parts, strict=True):
        counts = [denoised_counts(of_class, noisy.std) for of_class in part.reshape(n_classes, -1)]
        rates[name] = [gaussian.noisy_rates(of_class, 0.0).tolist() for of_class in counts]
    return rates


def _release_rates(
    table: pa.Table, weights: np.ndarray, schema: Schema, releaser: _Releaser, where: str
) -> list[float]:  # fmt: skip
    label = schema.label_column()
    assert label is not None
    codes = label_codes(label, table[label.name], where)
    histogram = gaussian.weighted_histogram(codes, weights, len(label.classes()))
    noisy = releaser.release(LABEL_HISTOGRAM, histogram)
    return gaussian.noisy_rates(noisy.values, RATE_FLOOR).tolist()
