"""Text and typed columns mean the same, and a cell that means nothing is named by its row."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpcgan_fast.data.cells import (
    MISSING,
    MISSING_TEXTS,
    UNKNOWN,
    binary_values,
    category_codes,
    category_names,
    distinct,
    is_missing,
    numbered,
    numeric_values,
    parse_numbers,
)
from dpcgan_fast.errors import InputError

SENTINEL = "Zq8sentinel"
PLACE = "data.csv, column x"


def texts(*cells):
    return pa.chunked_array([pa.array(list(cells), pa.string())])


def test_every_missing_text_is_missing_in_any_case_and_with_blanks():
    cells = [form for text in MISSING_TEXTS for form in (text, text.upper(), f" {text}\t")] + [None]
    assert np.isnan(numeric_values(texts(*cells, "x"[:0]), PLACE)).all()
    assert (binary_values(texts(*cells), PLACE) == MISSING).all()
    assert (category_codes(texts(*cells), ["a"]) == MISSING).all()


@given(
    cells=st.lists(st.none() | st.sampled_from(sorted(MISSING_TEXTS)) | st.text("nNaA/uL \u00a0\u2003é", max_size=9)),
    cut=st.integers(0, 5),
)
def test_short_and_blank_texts_are_missing_by_the_rule_for_all(cells, cut):
    """Texts that are too long to be missing are not looked at; in a column of large strings all of them are."""
    column = texts(*cells)
    in_pieces = pa.chunked_array([*column.slice(0, cut).chunks, *column.slice(cut).chunks], pa.string())
    assert is_missing(in_pieces).tolist() == is_missing(column.cast(pa.large_string())).tolist()
    assert is_missing(texts("NULL", "nulls", "  \u2003 n/A\u00a0 ", "")).tolist() == [True, False, True, True]


@given(st.lists(st.none() | st.text("ab ", max_size=2)))
def test_numbers_of_values_are_those_with_the_values(cells):
    values, codes = distinct(texts(*cells), PLACE)
    assert numbered(texts(*cells), PLACE).tolist() == codes.tolist()
    assert [None if code == MISSING else values[code] for code in codes] == cells


@given(st.lists(st.none() | st.floats(allow_nan=False)))
def test_numbers_read_alike_from_text_and_from_floats(numbers):
    expected = np.array([np.nan if number is None else number for number in numbers], np.float64)
    typed = numeric_values(pa.array(numbers, pa.float64()), PLACE)
    text = numeric_values(texts(*("" if number is None else repr(number) for number in numbers)), PLACE)
    np.testing.assert_array_equal(typed, expected)
    np.testing.assert_array_equal(text, expected)


def test_forms_of_numbers():
    forms = [" 5 ", "+5", ".5", "5.", "1e400", "-1e400", "9" * 300, "9" * 400, "inf", "-Infinity", "True", "false", "?"]
    expected = [5, 5, 0.5, 5, np.inf, -np.inf, 1e300, np.inf, np.inf, -np.inf, 1, 0, np.nan]
    np.testing.assert_allclose(numeric_values(texts(*forms), PLACE), expected)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([True, None, False]), [1, np.nan, 0]),
        (pa.array([1, None, 2**60], pa.int64()), [1, np.nan, 2.0**60]),
        (pa.array([1, 2], pa.uint8()), [1, 2]),
        (pa.array([1.5, np.nan], pa.float32()), [1.5, np.nan]),
        (pa.array([Decimal("1.5"), None]), [1.5, np.nan]),
        (pa.array(["1", "NA", "1"]).dictionary_encode(), [1, np.nan, 1]),
        (pa.array(["1", "NA"], pa.large_string()), [1, np.nan]),
        (pa.array(["1", "NA"], pa.string_view()), [1, np.nan]),
        (pa.array([None, None]), [np.nan, np.nan]),
        (pa.array([], pa.string()), []),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else "",
)
def test_numbers_of_every_type(array, expected):
    np.testing.assert_array_equal(numeric_values(array, PLACE), expected)


@pytest.mark.parametrize("bad", [SENTINEL, "1,5", "1_000", "0x10", "12 kg", "1\x002", "--1"])
@pytest.mark.parametrize("read", [numeric_values, binary_values])
def test_text_that_is_no_number_is_refused_with_its_row(bad, read):
    column = pa.chunked_array([["1", "NA", "2"], ["", bad, bad]])
    with pytest.raises(InputError, match=r"data.csv, column x, row 5\b") as caught:
        read(column, PLACE)
    assert bad not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("array", [pa.array([[1]]), pa.array([0], pa.timestamp("s")), pa.array([{SENTINEL: 1}])])
def test_types_that_are_no_numbers_are_refused(array):
    with pytest.raises(InputError, match="type") as caught:
        numeric_values(array, PLACE)
    assert SENTINEL not in str(caught.value)


def test_flags_are_the_nearest_of_0_and_1():
    forms = ["0", "1", "0.0", "1.0", "true", "FALSE", "-3", "0.49", "0.5", "17", "inf", "-inf", "", "?"]
    np.testing.assert_array_equal(
        binary_values(texts(*forms), PLACE), [0, 1, 0, 1, 1, 0, 0, 0, 1, 1, 1, 0, MISSING, MISSING]
    )


@given(st.lists(st.sampled_from(["a", "b", "c", "d", None])))
def test_category_codes_are_positions_in_the_list(cells):
    position = {"b": 0, "a": 1, None: MISSING}
    codes = category_codes(pa.array(cells, pa.string()), ["b", "a"])
    assert codes.tolist() == [position.get(cell, UNKNOWN) for cell in cells]


@pytest.mark.parametrize(
    ("categories", "array", "expected"),
    [
        (["0", "1", "2"], pa.array(["1.0", "2.00", "0", "01"]), [1, 2, 0, UNKNOWN]),
        (["0.0", "1.0"], pa.array(["0", "1", "1.0"]), [0, 1, 1]),
        (["0", "1"], pa.array([1.0, 0.0, 0.5, np.nan, np.inf]), [1, 0, UNKNOWN, MISSING, UNKNOWN]),
        (["0.0", "1.0"], pa.array([1, 0, None]), [1, 0, MISSING]),
        (["0.5", "1"], pa.array([0.5, 1.0]), [0, 1]),
        (["0", "1"], pa.array([True, False, None]), [1, 0, MISSING]),
        (["false", "true"], pa.array([True, False]), [1, 0]),
        (["0", "1"], pa.array(["True", "FALSE", "yes"]), [1, 0, UNKNOWN]),
        (["False", "True"], pa.array([True, False]), [1, 0]),
        (["a b", "c"], pa.array([" a b ", "c\t", "ab"]), [0, 1, UNKNOWN]),
        (["NA", "EU"], pa.array(["NA", "na", "EU"]), [0, MISSING, 1]),
        (["1", "1.0"], pa.array(["1.0", "1"]), [1, 0]),
        (["2020-01-02"], pa.array([18263], pa.date32()), [0]),
        (["a"], pa.array(["a", None, "z"]).dictionary_encode(), [0, MISSING, UNKNOWN]),
        (["a"], pa.array([None, None]), [MISSING, MISSING]),
        (["1.50"], pa.array([Decimal("1.50")]), [0]),
        (["a"], pa.array([], pa.string()), []),
    ],
)
def test_categories_match_across_types(categories, array, expected):
    assert category_codes(array, categories).tolist() == expected


def test_nested_cells_are_no_categories():
    with pytest.raises(InputError, match="single values"):
        category_codes(pa.array([[1], [2]]), ["1"])


def test_distinct_values_come_in_order_of_appearance_across_chunks():
    column = pa.chunked_array([["b", None], ["a", "b"], ["c"]])
    values, codes = distinct(column, PLACE)
    assert values == ["b", "a", "c"]
    assert codes.tolist() == [0, -1, 1, 0, 2]


def test_parse_numbers_tells_missing_from_not_a_number():
    numbers, wrong = parse_numbers(texts("1", "NA", "x", None), words={})
    np.testing.assert_array_equal(numbers, [1, np.nan, np.nan, np.nan])
    assert wrong.tolist() == [False, False, True, False]


@pytest.mark.parametrize("odd", ["?", "x", "true", "+5", "nan(ab)"])
@pytest.mark.parametrize("cell", ["nan(ab)", "-nan", "NaN", "inf", "1e400", "0x10", "1_0", ".5", "+5", "5 ", "q"])
def test_whether_a_text_is_a_number_does_not_depend_on_other_cells(cell, odd):
    alone = parse_numbers(texts(cell), {"?": np.nan, "true": 1.0})
    beside = parse_numbers(texts(cell, odd), {"?": np.nan, "true": 1.0})
    for value, again in zip(alone, beside, strict=True):
        np.testing.assert_array_equal(value, again[:1])


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, 0, 1, None]),
        pa.array([1.0, 0.0, 1.0, np.nan]),
        pa.array(["1", " 0", "1.0", "NA"]),
        pa.array(["1.0", "0.00", "1", None]),
    ],
)
def test_a_category_has_one_name_whatever_the_type_of_its_column(array):
    names, codes = category_names(array, PLACE)
    assert names == ["1", "0"]
    assert codes.tolist() == [0, 1, 0, MISSING]


def test_booleans_are_named_as_category_codes_reads_them():
    names, codes = category_names(pa.array([True, None, False]), PLACE)
    assert (names, codes.tolist()) == (["true", "false"], [0, MISSING, 1])
    assert category_codes(pa.array([True, False]), names).tolist() == [0, 1]
