"""Features and classes for scikit-learn."""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.evaluate.features import encode, target
from tests.evaluate.tables import schema_of


def test_columns_become_scaled_numbers_one_hot_categories_and_marks_for_missing():
    table = pa.table(
        {
            "age": [55, 130],
            "bmi": [20.0, None],
            "sex": ["M", None],
            "smoker": [1, 0],
            "died": [0, 1],
        }
    )
    encoded = encode(table, schema_of())
    assert encoded.names == (
        "age", "bmi", "bmi is missing", "sex = F", "sex = M", "sex = __other__", "sex is missing", "smoker", "died",
    )  # fmt: skip
    expected = [[0.5, 0.2, 0, 0, 1, 0, 0, 1, 0], [1, np.nan, 1, 0, 0, 0, 1, 0, 1]]
    assert np.array_equal(encoded.values, np.array(expected), equal_nan=True)


def test_the_label_is_left_out_of_the_features_that_predict_it():
    assert "died" not in encode(pa.table({"age": [1], "died": [0]}), schema_of(columns=[]), label=False).names


def test_the_positive_class_of_a_binary_label_is_1_and_rows_without_a_label_have_none():
    found = target(pa.table({"died": [0, 1, None]}), schema_of(columns=[]))
    assert found is not None
    assert found.names == ("1",)
    assert found.classes.tolist() == [0, 1, -1]
    assert found.is_class(0).tolist() == [False, True, False]


@pytest.mark.parametrize(("positive", "expected"), [(["high"], [0, 0, 1, -1]), (["low", "high"], [1, 0, 1, -1])])
def test_positive_classes_of_a_categorical_label_stand_against_the_rest(positive, expected):
    label = {"name": "stage", "type": "categorical", "categories": ["low", "middle", "high"], "positive": positive}
    found = target(pa.table({"stage": ["low", "middle", "high", "zzz"]}), schema_of(label, columns=[]))
    assert found is not None
    assert found.classes.tolist() == expected
    assert len(found.names) == 1


def test_without_positive_every_class_stands_against_the_rest():
    label = {"name": "stage", "type": "categorical", "categories": ["low", "middle", "high"]}
    found = target(pa.table({"stage": ["low", "middle", "high", None]}), schema_of(label, columns=[]))
    assert found is not None
    assert found.names == ("low", "middle", "high")
    assert found.is_class(2).tolist() == [False, False, True, False]


def test_a_schema_without_a_label_has_no_target():
    assert target(pa.table({"age": [1]}), schema_of(label=None)) is None
