"""Numbers and names as the page shows them."""

import math

import pytest

from dpcgan_fast.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "n/a"), (0.12345, "0.123"), (-0.0001, "0.000"), (math.inf, "infinite"), ("inf", "infinite"), (1, "1.000")],
)
def test_figures_have_three_decimals(value, text):
    assert wording.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (3.0, "3"),
        (2.74119, "2.741"),
        (0.0625, "0.0625"),
        (1200, "1,200"),
        (0, "0"),
        (1e-5, "1 \u00d7 10⁻⁵"),
        (2.5e-7, "2.5 \u00d7 10⁻⁷"),
        (3.2e9, "3.2 \u00d7 10⁹"),
        ("inf", "infinite"),
    ],
)
def test_parameters_have_significant_digits(value, text):
    assert wording.significant(value) == text


@pytest.mark.parametrize(("share", "text"), [(None, "n/a"), (0.0, "0.0%"), (0.0349, "3.5%"), (1.0, "100.0%")])
def test_shares_are_percentages(share, text):
    assert wording.percent(share) == text


def test_long_names_are_cut_and_hidden_characters_are_shown_by_their_codes():
    assert wording.shown("a" * 100) == "a" * 59 + "…"
    assert wording.shown("a\u202eb\x00c\ud800") == "a\\u202eb\\u0000c\\ud800"
    assert wording.shown("Größe 患者") == "Größe 患者"
    assert wording.shown_lines("one\ntwo\x1b") == "one\ntwo\\u001b"


def test_a_private_model_has_no_reasons_against_it():
    assert wording.not_private_reasons({"epsilon": 3.0, "private": True}) == []
    assert wording.not_private_reasons({"epsilon": 3.0, "private": False})
    assert wording.not_private_reasons({"epsilon": "inf", "private": False})
