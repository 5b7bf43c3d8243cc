"""The paper's protocol for one synthetic table, and what the targets add: supervised, unsupervised, and as a whole."""

import math
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.bench.paper import dimensions
from dpcgan_fast.bench.paper.dimensions import Matrix, matrix_of
from dpcgan_fast.bench.paper.outcome import outcome_auroc
from dpcgan_fast.bench.paper.systems import DELTA, Synthetic
from dpcgan_fast.bench.paper.tables import PaperTable, fresh_patients
from dpcgan_fast.bench.paper.told_apart import LARGE_CODES, LARGE_ROWS, LargeTest, c2st_signals
from dpcgan_fast.data.public_cells import sample_of, typed_table
from dpcgan_fast.data.schema import Column, Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import code_view
from dpcgan_fast.evaluate.code_structure import by_frequency, code_flags, code_structure, cooccurrence
from dpcgan_fast.evaluate.fidelity import correlation_mae, correlations
from dpcgan_fast.evaluate.joint_cells import joint_tv_mean
from dpcgan_fast.evaluate.two_sample import c2st, c2st_quantile_bins
from dpcgan_fast.evaluate.utility import Scores, predictions
from dpcgan_fast.privacy import account

LEARNED_ROWS = 3000  # that forests and logistic regression learn from, and boosting within the rows; else all are
MEASURED_ROWS = 10_000  # of a table that is taken dimension by dimension
SEEN_CODES = 100  # by classifiers, the most frequent ones
TOLD_AT_ONCE = 0.95  # by the small two-sample test: the large one is spared where the small one reads so much
BOOSTING = "gb"  # which decides among yardsticks


class Judge:
    """Measures tables against the real rows of one table; what these give is computed once.

    schema: of the tables to judge; it may lack the outcome
    """

    def __init__(self, table: PaperTable, schema: Schema):
        self._table, self._schema = table, schema
        self._view = code_view(schema, table.test, SEEN_CODES)
        self._wide_schema = schema if self._view is None else self._view.schema
        self._test = self._wide(table.test)

    def _wide(self, table: pa.Table) -> pa.Table:
        names = list(self._schema.column_names())
        table = table.select(names)
        return typed_table(table if self._view is None else self._view.wide(table), self._wide_schema, "table")

    @property
    def _codes(self) -> Column | None:
        return next(iter(self._schema.codes_columns()), None)

    @cached_property
    def _matrices(self) -> tuple[Matrix, Matrix]:
        """Of training and of test rows."""
        return self._matrix(self._table.train), self._matrix(self._table.test)

    @cached_property
    def _real_codes(self) -> dict[str, float | None]:
        return self._code_figures(self._table.train)

    @cached_property
    def _real_outcome(self) -> float | None:
        return self.outcome(self._table.train)

    @cached_property
    def _correlations(self) -> np.ndarray:
        return correlations(self._test, self._wide_schema)[0]

    @cached_property
    def _large_test(self) -> LargeTest:
        assert self._codes is not None
        flags = code_flags(self._table.train, self._codes)
        return LargeTest(code_flags(fresh_patients(LARGE_ROWS), self._codes), by_frequency(flags)[:LARGE_CODES])

    def boosting(self, drawn: pa.Table) -> Scores | None:
        """Gradient boosting that learned from all rows of the table, tested on real rows; None without a label.

        Returns {"gb": {"auroc": ..., "ap": ..., "accuracy": ...}}, the first two a mean over the classes, each against
        the rest, if these are more than two.
        """
        found = predictions(self._wide(drawn), self._test, self._wide_schema, (BOOSTING,), max(1, drawn.num_rows))
        if found is None:
            return None
        return {BOOSTING: {**found.scores()[BOOSTING], "accuracy": found.accuracy()[BOOSTING]}}

    def _others(self, drawn: pa.Table) -> Scores:
        found = predictions(self._wide(drawn), self._test, self._wide_schema, ("rf", "lr"), LEARNED_ROWS)
        return {} if found is None else found.scores()

    def within(self, drawn: pa.Table) -> Scores | None:
        """Boosting, trained on one half of the table and tested on the other; None if that has one class only."""
        wide = self._wide(drawn)
        half = wide.num_rows // 2
        try:
            parts = wide.slice(0, half), wide.slice(half)
            found = predictions(*parts, self._wide_schema, (BOOSTING,), LEARNED_ROWS)
        except InputError:  # the half that is tested on has one class
            return None
        return None if found is None else found.scores()

    def likeness(self, drawn: pa.Table) -> dict[str, Any]:
        """Unsupervised measures."""
        own, (train, test) = self._matrix(drawn), self._matrices
        wide, real, schema = self._wide(drawn), self._test, self._wide_schema
        found = {
            "dimension_probability": dimensions.dimension_probability(own, test),
            "mmd": dimensions.mmd(own, test),
            "ks": dimensions.ks(own, test),
            "pairs_tv_mean": joint_tv_mean(wide, real, schema, 2),
            "c2st": c2st(wide, real, schema),
        }
        if self._codes is not None:
            return found | self._likeness_of_codes(drawn, self._codes, found["c2st"])
        found["dimension_prediction"] = dimensions.dimension_prediction(own, train, test)
        if schema.signals:
            return found | {"c2st_signals": c2st_signals(wide, real, schema)}
        error = correlation_mae(correlations(wide, schema)[0], self._correlations)
        return found | {"correlation_mae": error, "c2st_quantiles": c2st_quantile_bins(wide, real, schema)}

    def _likeness_of_codes(self, drawn: pa.Table, column: Column, told_apart: float | None) -> dict[str, Any]:
        codes, flags = self._code_figures(drawn), code_flags(drawn, column)
        own, real = self.outcome(drawn), self._real_outcome
        unlike = told_apart is None or told_apart >= TOLD_AT_ONCE
        return {
            **codes,
            "dimension_prediction": self._prediction(codes),
            "violated_implications": dimensions.violated(flags, self._table.implications),
            "outcome_auroc": own,
            "outcome_gap": None if own is None or real is None else real - own,
            "c2st_large": None if unlike else self._large_test.auroc(flags),
        }

    def cooccurrence_error(self, drawn: pa.Table) -> float | None:
        """See `cooccurrence`; None without codes."""
        if self._codes is None:
            return None
        return cooccurrence(*(code_flags(part, self._codes) for part in (drawn, self._table.test)))[0]

    def _matrix(self, table: pa.Table) -> Matrix:
        return matrix_of(sample_of(table, MEASURED_ROWS), self._schema)

    def _code_figures(self, table: pa.Table) -> dict[str, float | None]:
        """See `code_structure`."""
        assert self._codes is not None
        return code_structure(table, self._table.test, self._codes)

    def outcome(self, table: pa.Table) -> float | None:
        """See `outcome_auroc`; None without codes."""
        return outcome_auroc(table, self._table.test, self._schema)

    def _prediction(self, codes: dict[str, float | None]) -> dict[str, float | None]:
        score, real = codes["prediction_ap"], self._real_codes["prediction_ap"]
        return {"ap": score, "real_ap": real, "ratio": score / real if score is not None and real else None}

    def everything(self, drawn: pa.Table, boosting: Scores | None) -> dict[str, Any]:
        """All figures of a table. boosting: its own scores"""
        scores = None if boosting is None else {**boosting, **self._others(drawn)}
        return {"tstr": scores, "sts": self.within(drawn), **self.likeness(drawn)}


class Judges:
    """The judges of a table, one for each set of columns that systems draw."""

    def __init__(self, table: PaperTable):
        self.table = table
        self._known: dict[tuple[str, ...], Judge] = {}

    def of(self, schema: Schema) -> Judge:
        """The judge of tables with a schema."""
        names = schema.column_names()
        if names not in self._known:
            self._known[names] = Judge(self.table, schema)
        return self._known[names]


def judged(judges: Judges, synthetic: Synthetic, epsilon: float) -> dict[str, Any]:
    """Figures of a system's rows, of the best of them if they are several, and the epsilon that was spent on them.

    Of several, "each" has what boosting learned from it and its error of co-occurrence, by its name.
    Raises AssertionError if more than epsilon was spent.
    """
    judge = judges.of(synthetic.schema)
    scores = {name: judge.boosting(drawn) for name, drawn in synthetic.tables.items()}
    best = max(scores, key=lambda name: (scores[name] or {}).get(BOOSTING, {}).get("auroc", 0.0))
    spent = max(account(own, DELTA).epsilon for own in synthetic.mechanisms.values())
    if spent > epsilon * (1 + 1e-9):
        raise AssertionError(f"{best}: epsilon {spent} was spent, more than {epsilon}")
    found = judge.everything(synthetic.tables[best], scores[best])
    if len(scores) > 1:
        found["each"] = {
            name: {**(own or {}).get(BOOSTING, {}), "cooccurrence_error": judge.cooccurrence_error(drawn)}
            for (name, drawn), own in zip(synthetic.tables.items(), scores.values(), strict=True)
        }
    mechanisms = [one.to_dict() for one in synthetic.mechanisms[best]]
    said = "inf" if math.isinf(spent) else spent
    return {"drawn_from": best, "epsilon_spent": said, "mechanisms": mechanisms, **found}


def judged_real(judges: Judges) -> dict[str, Any]:
    """Figures of the real training rows: real-to-real."""
    table = judges.table
    judge = judges.of(table.schema)
    return judge.everything(table.train, judge.boosting(table.train))
