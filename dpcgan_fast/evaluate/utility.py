"""Train on one table, test on another: how well a classifier learns the label from synthetic rows, judged on real ones.

Source of the idea: Esteban, Hyland and Rätsch, arXiv 1706.02633, section 4.2 (train on synthetic, test on real).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sklearn.metrics import average_precision_score, roc_auc_score

from dpcgan_fast.data.public_cells import sample_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate.features import Target, encode, target
from dpcgan_fast.evaluate.learners import LEARNERS, guesses

TRAINING_ROWS = 50_000
TEST_ROWS = 100_000
MIN_OF_CLASS = 20  # test rows with and without a class, below which its AUROC is mostly chance
Score = dict[str, float]
Scores = dict[str, Score]


def check_test_table(test: pa.Table, schema: Schema) -> None:
    """Raises InputError if the real test table cannot judge anything: no rows, or one class of the label only."""
    if test.num_rows == 0:
        raise InputError("The table has no rows", "the real test table", "Give a table of held-out real rows.")
    truth = target(test, schema)
    if truth is not None and not judged_classes(truth):
        raise InputError(
            "The table has one class of the label only, so that no score can be computed",
            f"the real test table, column {schema.label}",
            "Give held-out rows of both classes, for example by a stratified split.",
        )


@dataclass(frozen=True)
class Predictions:
    """What classifiers that learned from one table say about the label of real test rows.

    test:          the test rows that were scored, whose label is known
    truth:         their classes
    probabilities: by classifier, of each score's class (see `Target`): (rows, names) float64
    """

    test: pa.Table
    truth: Target
    probabilities: Mapping[str, np.ndarray]

    def accuracy(self) -> dict[str, float]:
        """By classifier, share of the test rows whose likeliest class is theirs; of a single score its side of 1/2."""
        found = {}
        for name, probabilities in self.probabilities.items():
            likeliest = probabilities[:, 0] > 0.5 if len(self.truth.names) == 1 else probabilities.argmax(axis=1)
            found[name] = float(np.mean(likeliest == self.truth.classes))
        return found

    def scores(self) -> Scores:
        """Area under the ROC curve and average precision of each classifier; of several classes their mean."""
        judged = judged_classes(self.truth)
        found = {}
        for name, probabilities in self.probabilities.items():
            rows = [(self.truth.is_class(index), probabilities[:, index]) for index in judged]
            found[name] = {
                "auroc": float(np.mean([roc_auc_score(*pair) for pair in rows])),
                "ap": float(np.mean([average_precision_score(*pair) for pair in rows])),
            }
        return found


def predictions(
    train_table: pa.Table, test_table: pa.Table, schema: Schema, learners: Sequence[str] = tuple(LEARNERS),
    most: int = TRAINING_ROWS,
) -> Predictions | None:  # fmt: skip
    """The predictions of gradient boosting "gb", a random forest "rf" and logistic regression "lr" with fixed seeds.

    learners: which of them
    most:     rows that are learned from, a fixed random sample where there are more

    None for a schema without a label. A training table with one class gives a constant guess. At most 100,000 rows are
    scored.

    Raises InputError if the test table is empty or has one class.
    """
    check_test_table(test_table, schema)
    test = _known_rows(test_table, schema, TEST_ROWS)
    train = _known_rows(train_table, schema, most)
    truth, taught = target(test, schema), target(train, schema)
    if truth is None or taught is None:
        return None
    x_train, x_test = (encode(table, schema, label=False).values for table in (train, test))
    found = {}
    for name in learners:
        # Columns are classes; a class that was never seen keeps probability 0, and nothing seen, a constant guess.
        probabilities = np.zeros((len(x_test), max(2, len(truth.names))))
        seen = np.unique(taught.classes)
        if len(seen) > 1:
            probabilities[:, seen] = guesses(LEARNERS[name](), x_train, taught.classes, x_test)
        found[name] = probabilities[:, 1:] if len(truth.names) == 1 else probabilities
    return Predictions(test, truth, found)


def train_and_test(train_table: pa.Table, test_table: pa.Table, schema: Schema) -> Scores | None:
    """Area under the ROC curve and average precision, on `test_table`, of classifiers trained on `train_table`.

    Returns {"gb": {"auroc": ..., "ap": ...}, "rf": ..., "lr": ...}, the scores of `predictions`, or None for a schema
    without a label. More than two classes: the mean over the classes, each against the rest. A training table with one
    class gives the score of a constant guess, AUROC 0.5 and an average precision equal to the positive rate.

    Raises InputError if the test table is empty or has one class.
    """
    found = predictions(train_table, test_table, schema)
    return None if found is None else found.scores()


def training_notes(train_table: pa.Table, schema: Schema, which: str) -> list[str]:
    """Sentences on what `train_and_test` does with this training table that a reader of its scores must know.

    which: what to call the table, such as "synthetic"
    """
    taught = target(train_table, schema)
    if taught is None:
        return []
    notes = []
    if train_table.num_rows > TRAINING_ROWS:
        notes.append(
            f"The classifiers learn from a fixed random sample of {TRAINING_ROWS:,} of the "
            f"{train_table.num_rows:,} {which} rows."
        )
    unknown = int((~taught.known).sum())
    if unknown:
        notes.append(f"{unknown:,} of the {which} rows have no known class of the label and are left out.")
    if len(np.unique(taught.classes[taught.known])) < 2:
        notes.append(
            f"The {which} table has fewer than two classes of the label, so that nothing can be learned from it: "
            "its scores are those of a constant guess."
        )
    return notes


def scarce_notes(test_table: pa.Table, schema: Schema) -> list[str]:
    """A warning if a class of the label has so few test rows that a score says little."""
    truth = target(test_table, schema)
    if truth is None:
        return []
    counts = np.bincount(truth.classes[truth.known])
    fewest = int(counts[counts > 0].min())
    if fewest >= MIN_OF_CLASS:
        return []
    return [
        f"WARNING: a class of the label has only {fewest} of the real test rows, so that scores say little. Hold back "
        f"more rows for evaluation: at least {MIN_OF_CLASS} of each class, better hundreds."
    ]


def auroc_uncertainty(auroc: float, positives: float, negatives: float) -> float:
    """Half the width of a 95 % interval of an AUROC. Source: Hanley and McNeil, Radiology 143 (1982), equation 2.

    Their variance is 0 at 0 and at 1, which a few rows reach by chance: there it is that of half a pair less.
    """
    half_a_pair = min(0.5, 0.5 / (positives * negatives))
    auroc = min(max(auroc, half_a_pair), 1 - half_a_pair)
    pairs_1, pairs_2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    spread = (positives - 1) * (pairs_1 - auroc**2) + (negatives - 1) * (pairs_2 - auroc**2)
    return 1.96 * math.sqrt(max(0.0, auroc * (1 - auroc) + spread) / (positives * negatives))


def _known_rows(table: pa.Table, schema: Schema, rows: int) -> pa.Table:
    found = target(table, schema)
    return sample_of(table if found is None or found.known.all() else table.filter(pa.array(found.known)), rows)


def judged_classes(truth: Target) -> list[int]:
    """The scores that the rows can judge: those of classes that some rows have and others have not."""
    members = [truth.is_class(index)[truth.known] for index in range(len(truth.names))]
    return [index for index, member in enumerate(members) if member.any() and not member.all()]
