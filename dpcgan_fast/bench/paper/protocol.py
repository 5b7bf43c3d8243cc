"""The paper's protocol for one synthetic table: supervised, unsupervised, and as a whole."""

import math
from typing import Any

import pyarrow as pa

from dpcgan_fast.bench.paper import dimensions
from dpcgan_fast.bench.paper.dimensions import Matrix, matrix_of
from dpcgan_fast.bench.paper.systems import DELTA, DRAWN_ROWS, Synthetic
from dpcgan_fast.bench.paper.tables import PaperTable
from dpcgan_fast.data.public_cells import sample_of, typed_table
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import code_view, train_and_test
from dpcgan_fast.evaluate.code_structure import code_flags, code_structure
from dpcgan_fast.evaluate.fidelity import c2st
from dpcgan_fast.evaluate.utility import Scores
from dpcgan_fast.privacy import account

LEARNED_ROWS = 3000  # of any table that classifiers learn from
SEEN_CODES = 100  # by classifiers, the most frequent ones
_LEARNER = "gb"  # which decides among yardsticks


class Judge:
    """Measures tables against the real rows of one table; what these give is computed once.

    schema: of the tables to judge; it may lack the outcome
    """

    def __init__(self, table: PaperTable, schema: Schema):
        self._table, self._schema = table, schema
        self._view = code_view(schema, table.test, SEEN_CODES)
        self._wide_schema = schema if self._view is None else self._view.schema
        self._test = self._wide(table.test)
        self._test_matrix, self._train_matrix = (self._matrix(side) for side in (table.test, table.train))
        self._real_codes = self._code_figures(table.train)

    def _wide(self, table: pa.Table) -> pa.Table:
        names = list(self._schema.column_names())
        table = table.select(names)
        return typed_table(table if self._view is None else self._view.wide(table), self._wide_schema, "table")

    def scores(self, drawn: pa.Table) -> Scores | None:
        """Trained on the table and tested on real rows; None without a label."""
        if self._schema.label is None:
            return None
        return train_and_test(sample_of(self._wide(drawn), LEARNED_ROWS), self._test, self._wide_schema)

    def within(self, drawn: pa.Table) -> Scores | None:
        """Trained on one half of the table and tested on the other; None if that has one class only."""
        wide = self._wide(drawn)
        half = wide.num_rows // 2
        if self._schema.label is None:
            return None
        try:
            return train_and_test(sample_of(wide.slice(0, half), LEARNED_ROWS), wide.slice(half), self._wide_schema)
        except InputError:  # the half that is tested on has one class
            return None

    def likeness(self, drawn: pa.Table) -> dict[str, Any]:
        """Unsupervised measures."""
        own, test, codes = self._matrix(drawn), self._test_matrix, self._code_figures(drawn)
        found = {
            "dimension_probability": dimensions.dimension_probability(own, test),
            "dimension_prediction": self._prediction(codes, own),
            "mmd": dimensions.mmd(own, test),
            "ks": dimensions.ks(own, test),
            "c2st": c2st(self._wide(drawn), self._test, self._wide_schema),
        }
        return found | ({**codes, "violated_implications": self._violated(drawn)} if codes else {})

    def _matrix(self, table: pa.Table) -> Matrix:
        return matrix_of(sample_of(table, DRAWN_ROWS), self._schema)

    def _code_figures(self, table: pa.Table) -> dict[str, float | None]:
        """See `code_structure`; nothing without codes."""
        return {
            name: value
            for column in self._schema.codes_columns()
            for name, value in code_structure(table, self._table.test, column).items()
        }

    def _prediction(self, codes: dict[str, float | None], own: Matrix) -> dict[str, float | None]:
        if not own.codes:
            return dimensions.dimension_prediction(own, self._train_matrix, self._test_matrix)
        score, real = codes["prediction_ap"], self._real_codes["prediction_ap"]
        return {"ap": score, "real_ap": real, "ratio": score / real if score is not None and real else None}

    def _violated(self, drawn: pa.Table) -> float | None:
        (column,) = self._schema.codes_columns()
        return dimensions.violated(code_flags(drawn, column), self._table.implications)

    def everything(self, drawn: pa.Table, scores: Scores | None) -> dict[str, Any]:
        """All figures of a table. scores: from `scores`"""
        return {"tstr": scores, "sts": self.within(drawn), **self.likeness(drawn)}


def judged(table: PaperTable, synthetic: Synthetic, epsilon: float) -> dict[str, Any]:
    """Figures of a system's rows, of the best of them if they are several, and the epsilon that was spent on them.

    Raises AssertionError if more than epsilon was spent.
    """
    judge = Judge(table, synthetic.schema)
    scores = {name: judge.scores(drawn) for name, drawn in synthetic.tables.items()}
    best = max(scores, key=lambda name: (scores[name] or {}).get(_LEARNER, {}).get("auroc", 0.0))
    spent = max(account(own, DELTA).epsilon for own in synthetic.mechanisms.values())
    if spent > epsilon * (1 + 1e-9):
        raise AssertionError(f"{best}: epsilon {spent} was spent, more than {epsilon}")
    found = judge.everything(synthetic.tables[best], scores[best])
    mechanisms = [one.to_dict() for one in synthetic.mechanisms[best]]
    said = "inf" if math.isinf(spent) else spent
    return {"drawn_from": best, "epsilon_spent": said, "mechanisms": mechanisms, **found}


def judged_real(table: PaperTable) -> dict[str, Any]:
    """Figures of the real training rows: real-to-real."""
    judge = Judge(table, table.schema)
    return judge.everything(table.train, judge.scores(table.train))
