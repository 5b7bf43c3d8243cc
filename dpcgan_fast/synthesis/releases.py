"""Facts of the data that the schema leaves private: planned by the schema, released once, paid for in the ledger."""

import math
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from dpcgan_fast.data import cells
from dpcgan_fast.data.schema import OTHER, PRIVATE, Bounds, Schema
from dpcgan_fast.data.units import UnitIndex
from dpcgan_fast.models import is_conditional
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Ledger, Mechanism
from dpcgan_fast.privacy import releases as gaussian
from dpcgan_fast.train.plan import BudgetPlan, PlannedRelease
from dpcgan_fast.train.settings import TrainSettings

LABEL_HISTOGRAM, UNIT_COUNT = "label histogram", "unit count"
COARSE_BOUNDS, FINE_BOUNDS = "bounds, coarse", "bounds, fine"
CATEGORIES = "categories: "
THRESHOLD_SHARE = 0.05  # of delta, for the thresholds of all category lists together
RATE_FLOOR = 1e-3


@dataclass
class ReleasedFacts:
    """What was estimated, and paid for.

    rates:      class rates, None if public or without a label
    n_units:    noisy number of units, None if public
    bounds:     by column or signal name
    categories: by column name
    """

    rates: list[float] | None = None
    n_units: float | None = None
    bounds: dict[str, Bounds] = field(default_factory=dict)
    categories: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def sentences(self) -> list[str]:
        """One sentence a fact, for the privacy card."""
        lines = []
        if self.rates is not None:
            lines.append("class rates of the label: " + ", ".join(f"{rate:.4f}" for rate in self.rates))
        if self.n_units is not None:
            lines.append(f"number of units: {self.n_units:.1f}")
        lines += [f"bounds of {name}: {low:g} to {high:g}" for name, (low, high) in self.bounds.items()]
        lines += [f"categories of {name}: {len(names)} found" for name, names in self.categories.items()]
        return lines


def _private_numbers(schema: Schema) -> list[str]:
    """Names of columns and signals whose bounds are private."""
    return [c.name for c in schema.columns if c.bounds == PRIVATE] + [
        s.name for s in schema.signals if s.bounds == PRIVATE
    ]


def _private_categories(schema: Schema) -> list[str]:
    return [column.name for column in schema.columns if column.categories == PRIVATE]


def planned_releases(schema: Schema, settings: TrainSettings) -> tuple[PlannedRelease, ...]:
    """What training will release first. A function of the schema and the settings alone.

    Class rates are released for nets that are conditional on the label; others have no use for them.
    """
    planned = []
    numbers, lists = _private_numbers(schema), _private_categories(schema)
    if numbers:
        sensitivity = math.sqrt(len(numbers))
        planned += [PlannedRelease(COARSE_BOUNDS, sensitivity), PlannedRelease(FINE_BOUNDS, sensitivity)]
    planned += [PlannedRelease(CATEGORIES + name, 1.0, THRESHOLD_SHARE * settings.delta / len(lists)) for name in lists]
    label = schema.label_column()
    if label is not None and label.rates is None and is_conditional(settings.preset):
        planned.append(PlannedRelease(LABEL_HISTOGRAM, 1.0))
    if schema.n_units is None:
        planned.append(PlannedRelease(UNIT_COUNT, 1.0))
    return tuple(planned)


@dataclass
class _Releaser:
    """Reserves a planned release in the ledger, makes it, and closes the line."""

    plan: BudgetPlan
    ledger: Ledger
    key: NoiseKey
    planned: list[str] = field(default_factory=list)

    def __enter__(self) -> "_Releaser":
        self.planned = [mechanism.mechanism for mechanism in self.plan.releases]
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


def make_releases(
    table: pa.Table, ids: np.ndarray | None, schema: Schema, plan: BudgetPlan, ledger: Ledger, key: NoiseKey, where: str
) -> ReleasedFacts:
    """Estimates every fact that the plan says, and no other.

    ids: unit of each row (M,), None if every row is a unit
    Of each unit the first max_rows_per_unit rows count, and they weigh 1 together in every statistic, so that the L2
    sensitivity is what the plan says.
    """
    facts = ReleasedFacts()
    index = UnitIndex.from_ids(ids, np.ones(table.num_rows, bool), schema.max_rows_per_unit)
    rows, units = index.rows_of(np.arange(index.n_units))
    table, weights = table.take(pa.array(rows)), gaussian.unit_weights(units)
    with _Releaser(plan, ledger, key) as releaser:
        numbers = _private_numbers(schema)
        if numbers:
            facts.bounds = dict(
                zip(numbers, _release_bounds(table, numbers, weights, schema, releaser, where), strict=True)
            )
        for name in _private_categories(schema):
            facts.categories[name] = _release_categories(table[name], name, weights, schema, releaser)
        if LABEL_HISTOGRAM in releaser.planned:
            facts.rates = _release_rates(table, weights, schema, releaser)
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
    return gaussian.fine_bounds(fine.values, rough, fine.std)


def _release_categories(
    column: pa.ChunkedArray, name: str, weights: np.ndarray, schema: Schema, releaser: _Releaser
) -> tuple[str, ...]:
    """Canonical names, so that the type that other cells give the column changes none; `__other__` is no category."""
    mechanism = releaser.mechanism(CATEGORIES + name)
    names, codes = cells.category_names(column, f"column {name}", reserved=(OTHER,))
    counts = gaussian.weighted_histogram(codes, weights, len(names))
    seq = releaser.ledger.reserve(mechanism, releaser.key.key_id)
    kept = gaussian.thresholded_categories(names, counts, mechanism, schema.max_rows_per_unit, releaser.key)
    releaser.ledger.close(seq, 1)
    return tuple(kept)


def _release_rates(table: pa.Table, weights: np.ndarray, schema: Schema, releaser: _Releaser) -> list[float]:
    label = schema.label_column()
    assert label is not None
    codes = (
        cells.binary_values(table[label.name], f"column {label.name}")
        if label.type == "binary"
        else cells.category_codes(table[label.name], label.classes(), f"column {label.name}")
    )
    histogram = gaussian.weighted_histogram(codes, weights, len(label.classes()))
    noisy = releaser.release(LABEL_HISTOGRAM, histogram)
    return gaussian.noisy_rates(noisy.values, RATE_FLOOR).tolist()
