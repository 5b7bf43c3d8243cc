"""Train on one table, test on another."""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import utility
from dpcgan_fast.evaluate.features import Target
from tests.evaluate.tables import patients, schema_of, shuffled_label, with_column

STAGE = {"name": "stage", "type": "categorical", "categories": ["low", "middle", "high"]}


@pytest.fixture(scope="module")
def test_table():
    return patients(400, 2)


def test_every_learner_learns_more_from_real_rows_than_from_torn_labels(test_table):
    train = patients(600, 1)
    scores = utility.train_and_test(train, test_table, schema_of())
    torn = utility.train_and_test(shuffled_label(train), test_table, schema_of())
    assert scores is not None
    assert torn is not None
    assert set(scores) == {"gb", "rf", "lr"}
    for learner in scores:
        assert set(scores[learner]) == {"auroc", "ap"}
        assert scores[learner]["auroc"] > 0.8
        assert scores[learner]["ap"] > 0.6
        assert torn[learner]["auroc"] < scores[learner]["auroc"] - 0.1


def test_the_same_tables_give_the_same_scores(test_table):
    train = patients(200, 1)
    assert utility.train_and_test(train, test_table, schema_of()) == utility.train_and_test(
        train, test_table, schema_of()
    )


@pytest.mark.parametrize("constant", [0, 1])
def test_a_training_table_with_one_class_scores_as_a_constant_guess(constant, test_table):
    train = with_column(patients(100, 1), "died", np.full(100, constant))
    scores = utility.train_and_test(train, test_table, schema_of())
    rate = float(test_table["died"].to_numpy().mean())
    assert scores is not None
    for score in scores.values():
        assert score == {"auroc": 0.5, "ap": pytest.approx(rate)}
    assert "fewer than two classes" in " ".join(utility.training_notes(train, schema_of(), "synthetic"))


def test_a_class_of_a_single_row_is_learned_from_in_a_large_table_too(test_table):
    died = np.zeros(10_100, np.int64)  # scikit-learn's boosting holds rows of each class back beyond 10,000
    died[7] = 1
    train = with_column(patients(len(died), 1), "died", died)
    found = utility.predictions(train, test_table, schema_of(), ("gb",), len(died))
    assert found is not None
    assert 0.0 <= found.scores()["gb"]["auroc"] <= 1.0


def test_a_training_table_without_rows_scores_as_a_constant_guess(test_table):
    scores = utility.train_and_test(patients(10, 1).slice(0, 0), test_table, schema_of())
    assert scores is not None
    assert scores["gb"]["auroc"] == 0.5


def test_several_classes_are_averaged_each_against_the_rest(test_table):
    scores = utility.train_and_test(patients(600, 1), test_table, schema_of(STAGE))
    assert scores is not None
    assert scores["gb"]["auroc"] > 0.75


def test_a_class_that_the_training_table_lacks_is_a_constant_guess_for_that_class(test_table):
    train = patients(600, 1)
    train = train.filter(np.array(train["stage"].to_pylist()) != "high")
    full = utility.train_and_test(patients(600, 1), test_table, schema_of(STAGE))
    scores = utility.train_and_test(train, test_table, schema_of(STAGE))
    assert scores is not None
    assert full is not None
    assert scores["gb"]["auroc"] < full["gb"]["auroc"]


@pytest.mark.parametrize("positive", [["low"], ["low", "middle"]])
def test_a_positive_class_makes_a_categorical_label_binary(positive, test_table):
    scores = utility.train_and_test(patients(400, 1), test_table, schema_of({**STAGE, "positive": positive}))
    assert scores is not None
    assert scores["lr"]["auroc"] > 0.75


def test_a_test_table_with_one_class_is_bad_input(test_table):
    one_class = with_column(test_table, "died", np.ones(test_table.num_rows, int))
    with pytest.raises(
        InputError, match=r"one class of the label only.*\(the real test table, column died\)"
    ) as caught:
        utility.train_and_test(test_table, one_class, schema_of())
    assert caught.value.exit_code == 2


def test_an_empty_test_table_is_bad_input(test_table):
    with pytest.raises(InputError, match=r"no rows \(the real test table\)"):
        utility.train_and_test(test_table, test_table.slice(0, 0), schema_of())


def test_a_schema_without_a_label_has_no_scores(test_table):
    assert utility.train_and_test(test_table, test_table, schema_of(label=None)) is None


def test_rows_without_a_known_class_are_left_out_and_counted(test_table):
    labels = test_table["died"].to_pylist()
    labels[:7] = [None] * 7
    table = with_column(test_table, "died", labels)
    assert utility.train_and_test(patients(200, 1), table, schema_of()) is not None
    assert utility.training_notes(table, schema_of(), "synthetic")[0].startswith("7 of the synthetic rows")


def test_the_cap_on_training_rows_is_said(test_table, monkeypatch):
    monkeypatch.setattr(utility, "TRAINING_ROWS", 100)
    assert "sample of 100 of the 400 synthetic rows" in utility.training_notes(test_table, schema_of(), "synthetic")[0]


def test_a_column_that_is_missing_throughout_is_no_obstacle(test_table):
    train = with_column(patients(200, 1), "bmi", [None] * 200)
    assert utility.train_and_test(train, test_table, schema_of()) is not None


def test_the_uncertainty_of_an_auroc_is_that_of_simulated_test_tables():
    rng = np.random.default_rng(0)
    positives, negatives, runs = 60, 140, 2000
    higher = rng.exponential(3.0, (runs, positives, 1)) > rng.exponential(1.0, (runs, 1, negatives))
    aurocs = higher.mean(axis=(1, 2))  # of two exponentials, for which the formula is derived: 3 / (3 + 1)
    width = utility.auroc_uncertainty(0.75, positives, negatives)
    assert width == pytest.approx(1.96 * aurocs.std(), rel=0.08)


def test_an_auroc_of_1_on_few_rows_is_uncertain():
    for auroc in (0.0, 1.0):
        few, many = (utility.auroc_uncertainty(auroc, rows, rows) for rows in (3, 300))
        assert few > 0.2
        assert 0 < many < 0.01
    assert utility.auroc_uncertainty(1.0, 1, 1) > 0.9


def test_a_class_with_few_test_rows_is_warned_of(test_table):
    died = test_table["died"].to_numpy()
    for count, warned in ((19, True), (20, False)):
        rows = np.concatenate([np.flatnonzero(died == 0), np.flatnonzero(died == 1)[:count]])
        notes = utility.scarce_notes(test_table.take(pa.array(rows)), schema_of())
        assert [note.startswith("WARNING: a class of the label has only 19 of") for note in notes] == [True] * warned
    assert utility.scarce_notes(test_table, schema_of(label=None)) == []


def test_accuracy_counts_rows_whose_likeliest_class_is_theirs(test_table):
    three = utility.Predictions(
        test_table, Target(np.array([0, 1, 2, 2]), ("low", "middle", "high")),
        {"gb": np.array([[0.6, 0.4, 0.0], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5], [0.1, 0.2, 0.7]])},
    )  # fmt: skip
    assert three.accuracy() == {"gb": 0.75}
    two = utility.Predictions(
        test_table, Target(np.array([0, 1, 1, 1]), ("1",)), {"lr": np.array([[0.2], [0.9], [0.4], [0.6]])}
    )
    assert two.accuracy() == {"lr": 0.75}


def test_a_learner_that_may_see_more_rows_learns_from_more(test_table):
    train, schema = patients(600, 1), schema_of()
    few, again, all_rows = (utility.predictions(train, test_table, schema, ("gb",), most) for most in (60, 60, 600))
    assert few is not None
    assert again is not None
    assert all_rows is not None
    assert set(few.probabilities) == {"gb"}
    assert few.scores() == again.scores()
    assert few.scores()["gb"]["auroc"] < all_rows.scores()["gb"]["auroc"]
