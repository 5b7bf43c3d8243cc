"""All evaluation figures of one synthetic table: what `metrics.json` holds."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from dpcgan_fast.baselines import STATISTICS, baselines_for, noise_multiplier
from dpcgan_fast.data.public_cells import without_codes
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.code_figures import code_distances
from dpcgan_fast.evaluate.disclosure import disclosure, disclosure_notes
from dpcgan_fast.evaluate.features import target
from dpcgan_fast.evaluate.fidelity import fidelity
from dpcgan_fast.evaluate.learners import LEARNERS
from dpcgan_fast.evaluate.nulls import null_notes
from dpcgan_fast.evaluate.overlap import real_as_synthetic_notes, share_of_copies, shares_a_unit
from dpcgan_fast.evaluate.rules import rule_figures, rule_notes
from dpcgan_fast.evaluate.schema_fit import outside_schema
from dpcgan_fast.evaluate.sides import Comparison, Side
from dpcgan_fast.evaluate.spectra import SpectralFigures, spectral_distances
from dpcgan_fast.evaluate.subgroups import subgroup_scores
from dpcgan_fast.evaluate.utility import (
    TEST_ROWS,
    TRAINING_ROWS,
    Scores,
    auroc_uncertainty,
    check_test_table,
    predictions,
    scarce_notes,
    train_and_test,
    training_notes,
)
from dpcgan_fast.evaluate.verdict import best_first, judge
from dpcgan_fast.files import write_whole

NOTICE = (
    "These evaluation figures are computed on real held-out records and are not differentially private: do not release "
    "them with the synthetic table."
)
DISJOINT = (
    "The training table and the test table must share no unit (no person): the figures assume it, and nothing in them "
    "proves it."
)
_SAME_TABLE = 0.5  # of the test rows, equal to a training row: with more, one table is taken to hold the other
_COPIED = 0.01  # of the synthetic rows, by which more of them than of the test rows may equal a training row


@dataclass(frozen=True)
class Metrics:
    """Evaluation figures; `to_json` gives the text of `metrics.json`.

    private:          always False: the figures come from real held-out rows
    epsilon, delta:   the model's, which the baseline is given too; epsilon may be inf, and then delta may be None
    tstr:             scores trained on synthetic rows, tested on real ones; None without a label
    trtr:             trained on real rows; None without a label or a training table
    baseline:         name, scores and distances of the best of the baselines; None without a training table
    baselines:        those of all that fit the schema, best first; None without a training table
    score_kind:       "an AUROC", or how it is averaged over classes
    marginal_tv_mean, correlation_mae, pairs_tv_mean, triples_tv_mean, c2st, c2st_binned, c2st_by, marginal_tv: see
                      `fidelity.Fidelity`
    codes:            how far codes are off, for each codes column (see `code_distances`)
    spectra:          how far spectra are off, for each signal (see `spectral_distances`)
    floor:            the same distances of real training rows from the test rows; None without a training table
    copies:           share of synthetic, and for comparison of test rows, that equal a training row cell for cell
    subgroups:        scores within groups of test rows (see `subgroup_scores`); None without a label
    rules:            how many rows break each constraint of the schema (see `rule_figures`)
    outside_schema:   by column, share of the real test cells outside its bounds or list (see `outside_schema`)
    disclosure:       tests of whether training rows show through (see `disclosure.Disclosure`); None without a training
                      table or with too few rows
    rows:             number of rows of each table
    uncertainty:      half the width of a 95 % interval of the first AUROC, which the test table's size alone decides
    verdict:          standing against the baseline, a headline, and sentences (see `verdict.Verdict`)
    notes:            what a reader must know about how the figures came about
    curve:            utility at several epsilons (see `curve.utility_curve`); None unless it was asked for
    """

    notice: str
    private: bool
    epsilon: float
    delta: float | None
    verdict: dict[str, Any]
    tstr: Scores | None
    trtr: Scores | None
    baseline: dict[str, Any] | None
    baselines: list[dict[str, Any]] | None
    score_kind: str
    marginal_tv_mean: float
    correlation_mae: float
    pairs_tv_mean: float | None
    triples_tv_mean: float | None
    c2st: float | None
    c2st_binned: float | None
    c2st_by: dict[str, float] | None
    marginal_tv: dict[str, float]
    codes: dict[str, dict[str, float | None]]
    spectra: dict[str, SpectralFigures]
    floor: dict[str, Any] | None
    copies: dict[str, float] | None
    subgroups: list[dict[str, Any]] | None
    rules: list[dict[str, Any]]
    outside_schema: dict[str, float | None]
    disclosure: dict[str, Any] | None
    rows: dict[str, int | None]
    uncertainty: float | None
    notes: tuple[str, ...]
    curve: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The figures as JSON values; infinity is the string "inf"."""
        return {**asdict(self), "epsilon": "inf" if self.epsilon == math.inf else self.epsilon}

    def to_json(self) -> str:
        """The text of `metrics.json`."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def write(self, path: str | Path) -> None:
        """Writes `metrics.json`, readable by its owner alone. Raises MachineError if the machine cannot write."""
        write_whole(path, self.to_json(), private=True)


def evaluate(
    synthetic: pa.Table, test: pa.Table, schema: Schema, *, train: pa.Table | None = None, privacy: Mapping[str, Any]
) -> Metrics:
    """Judges synthetic rows against real held-out rows; the result is not differentially private.

    synthetic, test: rows with the schema's columns; the test rows took no part in training
    schema:          the run's own, with released values in place of "private" ones
    train:           the real training rows, with the unit's column if the schema has one: they give the real-to-real
                     figures and the baselines, both None without them
    privacy:         the model's statement; "epsilon" (or "inf") and "delta" are used, for the baselines

    Tables of visits are turned into records, and the columns of records (see `Schema.as_records`) are compared; a
    synthetic one needs the unit's column, too.
    A codes column is judged as the columns of a `CodeView`, and `codes` compares its codes (see `code_distances`).

    Raises InputError if a table does not fit the schema, or the test table is empty or has one class.
    """
    comparison = Comparison.with_real(test, schema)
    of = comparison.side(synthetic, "the synthetic table", synthetic=True)
    known = None if train is None else comparison.side(train, "the training table")
    return _evaluate_sides(of, known, comparison, privacy)


def _evaluate_sides(of: Side, known: Side | None, comparison: Comparison, privacy: Mapping[str, Any]) -> Metrics:
    """of, known: the synthetic rows, and the training rows if there are any"""
    real, narrow_schema, schema, view = comparison.real, comparison.narrow, comparison.wide, comparison.view
    synthetic, test, train = of.wide, real.wide, None if known is None else known.wide
    check_test_table(test, schema)
    epsilon, delta = float(privacy["epsilon"]), privacy.get("delta")
    drawn_from = str(privacy.get("drawn_from", ""))
    given = {"the real test table": test} | ({} if train is None else {"the real training table": train})
    notes = [DISJOINT, *real_as_synthetic_notes(synthetic, given, schema)]
    notes += [*_drawn_notes(drawn_from), *training_notes(synthetic, schema, "synthetic")]
    if synthetic.num_rows == 0:
        notes.append("The synthetic table has no rows: its distances are the largest there are.")
    if schema.label is None:
        notes.append("tstr and trtr are null: the schema has no label, so that there is nothing to predict.")
    if test.num_rows > TEST_ROWS:
        notes.append(f"The scores are computed on a fixed random sample of {TEST_ROWS:,} of the test rows.")
    real_to_real, baselines, floor, copies, tested = None, None, None, None, None
    if known is None or train is None:
        notes.append(
            "trtr, baseline, floor and disclosure are null: no real training table was given (train), so that the "
            "synthetic rows can be compared neither with real training data nor with a baseline, nor be held against "
            "the rows that they must not disclose."
        )
    else:
        real_to_real = predictions(train, test, schema)
        rows = min(max(synthetic.num_rows, 1), TRAINING_ROWS)
        source = train if view is None else known.narrow
        baselines = _baselines(source, rows, comparison, epsilon, delta)
        floor = {"name": "real training rows against real test rows", **_distances(known, comparison)}
        copies = {
            "synthetic": share_of_copies(synthetic, train, schema),
            "test": share_of_copies(test, train, schema),
        }
        tested = disclosure(of.narrow, known.narrow, real.narrow, narrow_schema)
        notes += [*training_notes(train, schema, "real training"), *_overlap_notes(train, test, schema, copies)]
        notes += disclosure_notes(tested)
    predicted = predictions(synthetic, test, schema)
    tstr = None if predicted is None else predicted.scores()
    figures: dict[str, Any] = {
        "epsilon": epsilon,
        "tstr": tstr,
        "trtr": None if real_to_real is None else real_to_real.scores(),
        "baseline": None if baselines is None else baselines[0],
        "baselines": baselines,
        "score_kind": _score_kind(test, schema),
        "codes": {},
        **_distances(of, comparison),
        "floor": floor,
        "uncertainty": _uncertainty(tstr, test, schema),
    }
    judged = {"tstr": predicted, "trtr": real_to_real}
    subgroups = None if predicted is None else subgroup_scores(judged, without_codes(narrow_schema))
    by_name = {"synthetic": of.narrow, "test": real.narrow, "train": None if known is None else known.narrow}
    rules = rule_figures(by_name, narrow_schema)
    outside, not_fitting = outside_schema(real.narrow, narrow_schema, {} if view is None else view.known)
    notes += [*scarce_notes(test, schema), *not_fitting, *null_notes(figures, subgroups), *rule_notes(narrow_schema)]
    notes += [] if view is None else view.notes()
    return Metrics(
        notice=NOTICE,
        private=False,
        delta=delta,
        verdict=asdict(judge({**figures, "drawn_from": drawn_from})),
        copies=copies,
        subgroups=subgroups,
        rules=rules,
        outside_schema=outside,
        disclosure=None if tested is None else asdict(tested),
        rows={
            "synthetic": synthetic.num_rows,
            "test": test.num_rows,
            "train": None if train is None else train.num_rows,
        },
        notes=tuple(notes),
        **figures,
    )


def _drawn_notes(drawn_from: str) -> list[str]:
    if not drawn_from.startswith(STATISTICS):
        return [f"The run draws its rows from its {drawn_from}."] if drawn_from else []
    return [
        f"The run draws its rows from {drawn_from}. Preset auto does so where networks make no better rows; a baseline "
        "of the same name differs by its own noise alone."
    ]


def _baselines(
    source: pa.Table, rows: int, comparison: Comparison, epsilon: float, delta: float | None
) -> list[dict[str, Any]]:
    """Name, scores and distances of each baseline that fits the schema, best first. source: real training rows

    Their noise_multiplier is that of one release at (epsilon, delta): where there are several, each has more noise.
    """
    found = []
    for baseline in baselines_for(comparison.narrow):
        drawn = baseline.fit(source, epsilon, delta).sample(rows, np.random.default_rng(0))
        side = comparison.side(drawn, "baseline")
        scored = train_and_test(side.wide, comparison.real.wide, comparison.wide)
        scores: Mapping[str, Any] = scored or dict.fromkeys(LEARNERS)
        distances = _distances(side, comparison)
        multiplier = noise_multiplier(epsilon, delta)
        found.append({"name": baseline.name, **scores, **distances, "rows": rows, "noise_multiplier": multiplier})
    return best_first(found)


def _distances(side: Side, comparison: Comparison) -> dict[str, Any]:
    """All distances of a table from the real test rows."""
    real, schema, view = comparison.real, comparison.wide, comparison.view
    of_codes = {} if view is None else {"codes": code_distances(side.narrow, real.narrow, view)}
    of_signals = {"spectra": spectral_distances(side.wide, real.wide, schema)}
    return {**asdict(fidelity(side.wide, real.wide, schema)), **of_codes, **of_signals}


def _overlap_notes(train: pa.Table, test: pa.Table, schema: Schema, copies: dict[str, float]) -> list[str]:
    notes = []
    if shares_a_unit(train, test, schema):
        notes.append(
            "WARNING: the training and the test table have units in common, so that the figures are better than the "
            f"truth. Split the table by {schema.unit} and train again."
        )
    if copies["test"] > _SAME_TABLE:
        notes.append(
            f"WARNING: {copies['test']:.0%} of the test rows also stand, cell for cell, in the training table. Unless "
            "the table has few different rows, they were not held out, and the figures are better than the truth."
        )
    # Where tables have few different rows, half of all may equal a training row, and how many do is chance as well.
    by_chance = 3 * math.sqrt(copies["test"] * (1 - copies["test"]) / test.num_rows)
    if copies["synthetic"] > copies["test"] + max(_COPIED, by_chance):
        notes.append(
            f"WARNING: {copies['synthetic']:.1%} of the synthetic rows are copies, cell for cell, of training rows "
            f"(of the real test rows {copies['test']:.1%} are). The synthetic table may hold real records."
        )
    return notes


def _score_kind(test: pa.Table, schema: Schema) -> str:
    truth = target(test, schema)
    return "an AUROC" if truth is None or len(truth.names) == 1 else "a mean AUROC (each class against the rest)"


def _uncertainty(tstr: Scores | None, test: pa.Table, schema: Schema) -> float | None:
    truth = target(test, schema)
    if tstr is None or truth is None or len(truth.names) > 1:
        return None
    rate, rows = truth.is_class(0)[truth.known].mean(), min(int(truth.known.sum()), TEST_ROWS)
    return auroc_uncertainty(tstr["gb"]["auroc"], rate * rows, (1 - rate) * rows)
