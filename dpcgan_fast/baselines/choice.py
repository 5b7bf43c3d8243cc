"""The baselines: what the same epsilon buys without any model that is trained.

A generative model that does not beat the best of them has learned nothing from the data that a page of counting would
not have.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines.budget import Budget, noise_multiplier
from dpcgan_fast.baselines.codes import Codes
from dpcgan_fast.baselines.histograms import Classes, Histograms, drawn_cells, has_cells
from dpcgan_fast.baselines.mixed_codes import MixedCodes
from dpcgan_fast.baselines.parts import Drawn, Part, values_of
from dpcgan_fast.baselines.rows import TRAINING_TABLE, Rows
from dpcgan_fast.baselines.signals import Strength, Waves
from dpcgan_fast.baselines.tree import MOST_COLUMNS, Tree
from dpcgan_fast.data.public_cells import label_of, modelled_columns, without_codes
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy.mechanism import Mechanism

INDEPENDENT = "independent histograms"
SIZED = "independent histograms and numbers of codes"
MIXED = "numbers, clusters and pairs of codes"
COUNTED = "numbers and frequencies of codes, as people are few for clusters and pairs"  # what `MIXED` may come to
TREE = "a tree of columns"
STRENGTH = "one strength of the signal"
WAVES = "strengths and waves of the signal"


@dataclass(frozen=True)
class Baseline:
    """A baseline for the tables of a schema. name: as reports print it"""

    name: str
    schema: Schema
    parts: tuple[Part, ...]

    def fit(
        self, table: pa.Table, epsilon: float, delta: float | None, key: NoiseKey | None = None
    ) -> "FittedBaseline":
        """Releases what rows are drawn from; (epsilon, delta)-DP for adding or removing a unit, given the schema: what
        was itself released from these rows (bounds, lists) costs what it cost on top. Errors are not covered.

        table:   real training rows, with the unit's column if the schema has one; dates as whole numbers of days (see
                 `data.dates.with_days`)
        epsilon: math.inf for no noise
        key:     of the noise; a fresh one by default. With a seeded one the result is marked, for it is not private

        Raises InputError for an epsilon or delta that is no privacy guarantee, or a table that does not fit.
        """
        return self.release(table, noise_multiplier(epsilon, delta), NoiseKey() if key is None else key)

    def release(
        self, table: pa.Table, noise_multiplier: float, key: NoiseKey, where: str = TRAINING_TABLE
    ) -> "FittedBaseline":
        """As `fit`, with what one Gaussian release of this noise multiplier costs. where: of the table, for errors

        Formal guarantee: everything together is as private as that one release, see `Budget`.
        """
        drawn, mechanisms = self.paid(table, noise_multiplier, key, where)
        said = [part.totals for part in drawn]
        precision = np.array([1 / max(totals.variance, 1e-12) for totals in said])
        totals = np.maximum(precision @ np.array([one.values for one in said]) / precision.sum(), 1.0)
        for part in drawn:
            part.settle(totals)
        rates = _class_rates(totals, label_of(self.schema))
        return FittedBaseline(self.name, self.schema, drawn, rates, mechanisms, key.seeded)

    def paid(
        self, table: pa.Table, noise_multiplier: float, key: NoiseKey, where: str = TRAINING_TABLE
    ) -> tuple[tuple[Drawn, ...], list[Mechanism]]:
        """All that `release` takes from the data: parts that are still to be settled, and their mechanisms."""
        rows = Rows.of(table, self.schema, where)
        budget = Budget(noise_multiplier, key, "row" if self.schema.unit is None else self.schema.unit)
        whole = sum(part.weight for part in self.parts)
        return tuple(part.release(rows, budget, part.weight / whole) for part in self.parts), budget.mechanisms


@dataclass(frozen=True)
class FittedBaseline:
    """A baseline to draw from.

    rates:      (class_count,) of the classes
    mechanisms: what was released, and its noise
    seeded:     whether the noise came from a seed: whoever knows it can subtract the noise
    """

    name: str
    schema: Schema
    parts: tuple[Drawn, ...]
    rates: np.ndarray
    mechanisms: list[Mechanism]
    seeded: bool

    def sample(self, rows: int, rng: np.random.Generator, only: int | None = None) -> pa.Table:
        """Synthetic rows with the schema's columns, in their order, dates as int64 days; post-processing.

        only: the class of all rows; None to draw each by the rates

        All rows are drawn at once, in about three times the memory of the table that is returned, and with codes 1 kB
        a row besides. For more than about 65,536 rows draw several tables, as `synthesis.sampling` does.
        """
        alike = np.zeros(rows, np.int64)
        classes = drawn_cells(self.rates[None], alike, rng) if only is None else alike + only
        label = label_of(self.schema)
        sampled: dict[str, pa.Array] = {} if label is None else {label.name: values_of(label, classes, rng)}
        for part in self.parts:
            sampled |= part.draw(classes, rng)
        empty = pa.nulls(rows, pa.string())  # a column whose list of categories turned out empty
        return pa.table({name: sampled.get(name, empty) for name in self.schema.column_names()})


def baselines_for(schema: Schema) -> tuple[Baseline, ...]:
    """The baselines that fit a schema, a rule of the schema alone; independent histograms come first.

    schema: of records (see `Schema.as_records`), with all bounds, categories and vocabularies known
    Raises InputError if one is not.
    """
    signals = {name for signal in schema.signals for name in signal.columns}
    modelled = modelled_columns(without_codes(schema))
    features = [column for column in modelled if column.name != schema.label and has_cells(column)]
    single = tuple(column for column in features if column.name not in signals)
    codes = schema.codes_columns()

    def baseline(name: str, columns: tuple[Column, ...], *more: Part) -> Baseline:
        parts = [*more, *([Histograms(columns)] if columns else [])]
        return Baseline(name, schema, tuple(parts) or (Classes(),))

    found = [baseline(INDEPENDENT, tuple(features), *(Codes(column) for column in codes))]
    mixed_codes = tuple(MixedCodes(column, mixed=True) for column in codes)
    if codes:
        found.append(baseline(SIZED, tuple(features), *(MixedCodes(column, mixed=False) for column in codes)))
        found.append(baseline(MIXED, tuple(features), *mixed_codes))
    for name, part in ((STRENGTH, Strength), (WAVES, Waves)):
        if schema.signals:
            found.append(baseline(name, single, *(part(signal) for signal in schema.signals), *mixed_codes))
    if 2 <= len(single) <= MOST_COLUMNS:
        waves = (Waves(signal) for signal in schema.signals)
        found.append(baseline(TREE, (), Tree(single), *waves, *mixed_codes))
    return tuple(found)


def _class_rates(totals: np.ndarray, label: Column | None) -> np.ndarray:
    if label is not None and label.rates is not None:
        return np.array(label.rates) / sum(label.rates)
    return totals / totals.sum()
