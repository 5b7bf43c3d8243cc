"""Scores within groups of people."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dpcgan_fast.evaluate import subgroups
from dpcgan_fast.evaluate.subgroups import subgroup_scores
from dpcgan_fast.evaluate.utility import auroc_uncertainty, predictions
from tests.evaluate.tables import patients, schema_of, with_column

TRAIN, TEST = patients(600, 1), patients(400, 2)
STAGE = {"name": "stage", "type": "categorical", "categories": ["low", "middle", "high"]}


@pytest.fixture(scope="module")
def found():
    return {"tstr": predictions(patients(500, 3), TEST, schema_of()), "trtr": predictions(TRAIN, TEST, schema_of())}


def test_groups_are_the_categories_of_public_columns_beside_the_label(found):
    groups = {(group["column"], group["group"]) for group in subgroup_scores(found, schema_of())}
    assert groups == {("sex", "F"), ("sex", "M"), ("smoker", "0"), ("smoker", "1")}


def test_a_groups_figure_is_the_auroc_of_its_rows_alone(found):
    for group in subgroup_scores(found, schema_of()):
        members = np.array([str(value) == group["group"] for value in TEST[group["column"]].to_pylist()])
        died = TEST["died"].to_numpy()[members]
        assert group["rows"] == members.sum()
        assert group["positives"] == died.sum()
        for name in ("tstr", "trtr"):
            probabilities = found[name].probabilities["gb"][members, 0]
            assert group[name] == pytest.approx(roc_auc_score(died, probabilities))
        width = auroc_uncertainty(group["tstr"], died.sum(), members.sum() - died.sum())
        assert group["uncertainty"] == pytest.approx(width)


def test_a_group_that_is_served_badly_shows():
    smoker = TRAIN["smoker"].to_numpy() == 1
    torn = np.where(smoker, np.random.default_rng(0).permutation(TRAIN["died"].to_numpy()), TRAIN["died"].to_numpy())
    badly = predictions(with_column(TRAIN, "died", torn), TEST, schema_of())
    groups = {(one["column"], one["group"]): one["tstr"] for one in subgroup_scores({"tstr": badly}, schema_of())}
    assert groups["smoker", "1"] < groups["smoker", "0"] - 0.05


def test_groups_with_few_rows_of_a_class_are_left_out(found, monkeypatch):
    died = TEST["died"].to_numpy()
    smallest = min(
        min(died[TEST["smoker"].to_numpy() == value].sum(), (1 - died)[TEST["smoker"].to_numpy() == value].sum())
        for value in (0, 1)
    )
    monkeypatch.setattr(subgroups, "MIN_OF_CLASS", smallest + 1)
    assert len([one for one in subgroup_scores(found, schema_of()) if one["column"] == "smoker"]) < 2
    monkeypatch.setattr(subgroups, "MIN_OF_CLASS", 10_000)
    assert subgroup_scores(found, schema_of()) == []


def test_columns_with_many_categories_and_later_ones_are_left_out(found, monkeypatch):
    monkeypatch.setattr(subgroups, "MOST_COLUMNS", 1)
    assert {one["column"] for one in subgroup_scores(found, schema_of())} == {"sex"}
    monkeypatch.setattr(subgroups, "MOST_GROUPS", 1)
    assert subgroup_scores(found, schema_of()) == []


def test_of_several_classes_the_figure_is_a_mean_without_an_interval():
    schema = schema_of(STAGE)
    found = predictions(TRAIN, TEST, schema)
    assert found is not None
    group = subgroup_scores({"tstr": found, "trtr": None}, schema)[0]
    members = np.array([value == "F" for value in TEST["sex"].to_pylist()])
    stages = np.array(TEST["stage"].to_pylist())[members]
    each = [
        roc_auc_score(stages == name, found.probabilities["gb"][members, index])
        for index, name in enumerate(STAGE["categories"])
    ]
    assert group["tstr"] == pytest.approx(np.mean(each))
    assert group["trtr"] is group["positives"] is group["uncertainty"] is None


def test_without_predictions_there_are_no_groups():
    assert subgroup_scores({"tstr": None, "trtr": None}, schema_of()) == []
