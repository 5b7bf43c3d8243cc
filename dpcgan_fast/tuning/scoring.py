"""The score of a run: how well a classifier that learned from its synthetic rows tells the classes of real ones.

Real rows enter by one Gaussian release. All of its inputs but them are synthetic, and what is made of it is
post-processing, so that the score costs what the release costs.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.records import records_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.data.units import UnitIndex
from dpcgan_fast.data.visits import schema_of_sample
from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Mechanism
from dpcgan_fast.privacy.releases import noisy_release, unit_weights, weighted_histogram
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.synthesis.checks import RawTable
from dpcgan_fast.synthesis.privacy_statement import unit_name
from dpcgan_fast.train.data import TrainingData

SCORE = "score"
BINS = 16  # of the classifier's probabilities; public. An AUROC of .800 of normal scores is .799 by them
# Synthetic rows that the classifier learns from, and as many for the bins. Above 10,000, scikit-learn's boosting stops
# early by rows of each class that it sets aside, and fails where a class has one.
_LEAST_ROWS, _MOST_ROWS = 2_000, 10_000
_ROUNDS = 50  # of boosting, half of scikit-learn's default
_CHANCE = 0.5  # AUROC of a guess
WORST = -1.0  # score of a run from which no rows can be drawn, such as rows that keep to the schema's constraints


def check_label(schema: Schema) -> None:
    """Raises InputError for a schema without a label: there is nothing to score."""
    if schema.label is None:
        raise InputError(
            "A search needs a label: runs are scored by how well it can be learned from their synthetic rows",
            "schema",
            "Name the label in the schema, or train with settings of your own.",
        )


def score_mechanism(schema: Schema, noise_multiplier: float) -> Mechanism:
    """The one release that a score takes.

    Formal guarantee: its vector has a histogram for each class that is told apart (one for two classes), and a unit's
    rows, which weigh 1 together, fall into cells of every one. Adding or removing a unit changes each histogram by at
    most 1 in L1, thus in L2, and all together by at most the square root of their number.
    """
    return Mechanism(
        SCORE, "gaussian", 1.0, noise_multiplier, 1, math.sqrt(_histograms(schema)), unit=unit_name(schema)
    )


def _histograms(schema: Schema) -> int:
    label = schema.label_column()
    assert label is not None
    classes = len(label.classes())
    return classes if classes > 2 else 1


@dataclass(frozen=True)
class Judge:
    """A classifier of synthetic rows.

    learner: fitted; None if the synthetic rows are all of one class
    edges:   inner edges of the bins of the probability of each class that is told apart
    """

    learner: Any
    edges: tuple[np.ndarray, ...]

    def cells(self, records: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Cell of each row in each histogram, int64 (histograms, rows); it depends on that row alone.

        records: (rows, F); labels: int64 (rows,)
        """
        kinds = _told_apart(len(self.edges))
        probabilities = _probabilities(self.learner, records, len(self.edges))
        bins = [np.searchsorted(edges, own, side="right") for edges, own in zip(self.edges, probabilities, strict=True)]
        return np.stack([(labels == kind) * BINS + own for kind, own in zip(kinds, bins, strict=True)])


def _told_apart(histograms: int) -> tuple[int, ...]:
    """The class of each histogram; of two classes the second."""
    return tuple(range(histograms)) if histograms > 1 else (1,)


def _probabilities(learner: Any, records: np.ndarray, histograms: int) -> np.ndarray:
    """Of each class that is told apart, (histograms, rows); a class that no synthetic row has, has probability 0."""
    probabilities = np.zeros((max(2, histograms), len(records)))
    if learner is not None and len(records):
        with threadpool_limits(limits=1):  # see `evaluate.learners.guesses`
            probabilities[learner.classes_] = learner.predict_proba(records).T
    return probabilities[list(_told_apart(histograms))]


def judge_of(model: DPCGAN, seed: int | None) -> Judge | None:
    """The classifier that learns from one draw of a model's synthetic rows, and bins that even out another draw.

    None if no such rows can be drawn: that of a run which is then destroyed must not become known by an error.
    """
    schema = model.released_schema
    units = schema.n_units or _MOST_ROWS
    rows = min(_MOST_ROWS, max(_LEAST_ROWS, units))
    codec = RecordCodec(schema.as_records())
    try:
        drawn = [model.sample(rows, seed=None if seed is None else seed + draw) for draw in range(2)]
    except InputError:
        return None
    learned, binned = (_encoded(table, schema, codec) for table in drawn)
    learner = None
    if len(np.unique(learned[1])) > 1:
        learner = HistGradientBoostingClassifier(max_iter=_ROUNDS, random_state=0)
        with threadpool_limits(limits=1):
            learner.fit(*learned)
    levels = np.linspace(0, 1, BINS + 1)[1:-1]
    probabilities = _probabilities(learner, binned[0], _histograms(schema))
    return Judge(learner, tuple(np.quantile(own, levels) for own in probabilities))


def _encoded(table: pa.Table, schema: Schema, codec: RecordCodec) -> tuple[np.ndarray, np.ndarray]:
    """Records (rows, F) and classes (rows,) of a synthetic table, which has no unit column but where it has visits."""
    own = schema_of_sample(schema, table.column_names)
    own = own if own.visits is not None else own.model_copy(update={"unit": None})
    encoded = codec.encode(records_of(table, own, "synthetic rows"))
    assert encoded.labels is not None
    return encoded.records, encoded.labels


def noisy_score(judge: Judge | None, raw: RawTable, schema: Schema, mechanism: Mechanism, key: NoiseKey) -> float:
    """Area under the ROC curve on real rows, from noisy counts; over more than two classes the mean of each against the
    rest. In [0, 1]; without a judge `WORST`, which reads no real row.

    schema:    with released values in place of "private" ones
    mechanism: of `score_mechanism`; the ledger must have it before this is called

    Formal guarantee: as private as the mechanism; see `score_mechanism`. It reads all units, also those that the run
    trained on: training and score are composed one after the other, so that nothing rests on how units are split.
    """
    if judge is None:
        return WORST
    counts = exact_counts(judge, raw, schema)
    noisy = noisy_release(
        mechanism.mechanism, counts, mechanism.max_grad_norm, mechanism.noise_multiplier, key, mechanism.unit
    )
    return auroc(noisy.values)


def exact_counts(judge: Judge, raw: RawTable, schema: Schema) -> np.ndarray:
    """The vector that `noisy_score` releases, without noise: (histograms * 2 * BINS,); never to leave the process."""
    records = schema.as_records()
    codec = RecordCodec(records)
    encoded = codec.encode(raw.table, raw.where)
    index = UnitIndex.from_ids(raw.ids, encoded.kept, schema.max_rows_per_unit)
    data = TrainingData.from_encoded(encoded, index, codec.n_classes, True, True, torch.device("cpu"))
    buffer = data.buffer()
    cells = 2 * BINS
    counts = np.zeros((len(judge.edges), cells))
    for cut in data.cuts(np.arange(index.n_units)):
        chunk = data.gather(cut, buffer)
        found = judge.cells(chunk.records.numpy(), chunk.labels.numpy().argmax(axis=1))
        weights = unit_weights(cut.units)
        counts += np.stack([weighted_histogram(row, weights, cells) for row in found])
    return counts.ravel()


def auroc(counts: np.ndarray) -> float:
    """Mean area under the ROC curve of histograms (histograms * 2 * BINS,), in each of which the other classes come
    first; noisy ones may have negative counts. Where a side is empty it is 1/2.

    Rows of one bin are taken for ties (Fawcett, Pattern Recognition Letters 27 (2006), section 7).
    """
    areas = []
    for others, own in counts.reshape(-1, 2, BINS):
        below = np.cumsum(others) - others / 2
        pairs = others.sum() * own.sum()
        enough = min(others.sum(), own.sum()) >= 1
        areas.append(float(np.clip((own * below).sum() / pairs, 0, 1)) if enough else _CHANCE)
    return float(np.mean(areas))
