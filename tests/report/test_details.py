"""The tables that look closer: what they say, that each says what it means, and that none may be released."""

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate import Metrics, evaluate
from dpcgan_fast.report import details
from dpcgan_fast.report.page import render
from tests.evaluate.tables import schema_of
from tests.report.pages import CARD, PRIVACY, SYNTHETIC, TEST, TRAIN, Page, page

VOCABULARY = tuple(f"C{i}" for i in range(30))
CONSTRAINTS = [
    {"kind": "at_most", "columns": ["first", "last"]},
    {"kind": "implies", "columns": ["dx"], "code": "C1", "implied": "C2"},
]
SCHEMA = Schema.from_dict({
    "unit": None,
    "label": "y",
    "columns": [
        {"name": "y", "type": "binary"},
        {"name": "sex", "type": "categorical", "categories": ["F", "M"]},
        {"name": "first", "type": "numeric", "bounds": [0, 20]},
        {"name": "last", "type": "numeric", "bounds": [0, 20]},
        {"name": "dx", "type": "codes", "vocabulary": VOCABULARY, "max_codes": 20},
    ],
    "signals": [{"name": "eeg", "columns": ["X1", "...", "X16"], "bounds": [-5, 5]}],
    "constraints": CONSTRAINTS,
})  # fmt: skip


def table(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    y, first = rng.integers(0, 2, rows), rng.integers(0, 10, rows)
    held = rng.random((rows, 30)) < 0.1 + 0.3 * (np.arange(30) % 3 == rng.integers(0, 3, (rows, 1)))
    values = np.sin(np.arange(16) * 0.8 * (1 + y[:, None])) + rng.normal(0, 0.3, (rows, 16))
    return pa.table({
        "y": y, "sex": np.array(["F", "M"])[rng.integers(0, 2, rows)], "first": first,
        "last": first + rng.integers(-1, 9, rows), "dx": [[VOCABULARY[i] for i in np.flatnonzero(row)] for row in held],
        **{f"X{i + 1}": values[:, i] for i in range(16)},
    })  # fmt: skip


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return evaluate(table(150, 3), table(160, 2), SCHEMA, train=table(170, 1), privacy=PRIVACY)


@pytest.fixture(scope="module")
def values(metrics) -> dict[str, Any]:
    return json.loads(metrics.to_json())


@pytest.fixture(scope="module")
def report(metrics) -> Page:
    return Page(render(metrics, table(150, 3), table(160, 2), SCHEMA, PRIVACY, CARD))


def sections(found: Page) -> dict[str, str]:
    """The text of every section, by its heading."""
    parts = re.findall(r"<section>(.*?)</section>", found.html, flags=re.DOTALL)
    texts = [Page(part).text for part in parts]
    return {text.split(":")[0].strip(): text for text in texts}


def test_every_figure_of_the_file_stands_on_the_page(values, report):
    text = sections(report)
    assert f"{values['c2st_by']['lr']:.3f}" in text["All columns at once"]
    for key in ("cooccurrence_error", "cooccurrence_r", "prediction_ap", "prediction_chance"):
        assert f"{values['codes']['dx'][key]:.3f}" in text["Codes of dx"]
    assert f"{values['spectra']['eeg']['spectrum_db']:.2f}" in text["Signals"]
    assert f"{values['spectra']['eeg']['spectrum_db_by']['1']:.2f}" in text["Signals"]
    assert f"{values['spectra']['eeg']['autocorrelation_mae']:.3f}" in text["Signals"]
    assert f"{values['subgroups'][0]['tstr']:.3f}" in text["Prediction"]
    assert f"{values['rules'][0]['test']['broken']:.2%}" in text["Rules"]
    assert f"{values['disclosure']['membership_auroc']:.3f}" in text["Disclosure"]
    assert f"{values['disclosure']['nearer_to_train']:.1%}" in text["Disclosure"]


def test_sections_that_look_at_real_rows_are_not_for_release(report):
    for name, text in sections(report).items():
        if name.split(" ")[0] not in ("Privacy", "How"):
            assert "Not differentially private: computed on real held-out records" in text


def test_every_figure_says_in_which_direction_it_is_better(values):
    measures = [*details.code_measures(values), *details.spectrum_measures(values)]
    assert len(measures) == 2
    for measure in measures:
        assert all("is better" in row.explanation for row in measure.rows)
    *tests, distance = details.disclosure_rows(values)
    assert all("is better" in row.explanation for row in tests)
    assert "by chance" in distance.explanation


def test_real_rows_and_the_baseline_stand_beside_the_synthetic_ones(values):
    floor, baseline = values["floor"]["codes"]["dx"], values["baseline"]["codes"]["dx"]
    row = details.code_measures(values)[0].rows[0]
    figures = (values["codes"]["dx"], floor, baseline)
    assert row.cells == tuple(f"{source['cooccurrence_error']:.3f}" for source in figures)
    (name, cells), *_ = details.told_apart_rows(values)
    assert name == "Gradient boosting"
    assert cells == [f"{source['c2st']:.3f}" for source in (values, values["floor"], values["baseline"])]


def test_all_baselines_are_compared_by_their_codes(values):
    comparison = details.code_measures(values)[0].comparison
    assert comparison is not None
    assert len(comparison.rows) == len(values["baselines"]) + 2
    assert comparison.rows[0][0] == "The model"
    assert comparison.rows[-1][0] == "Real training rows"
    assert all(len(cells) == len(comparison.headings) for _, cells in comparison.rows)


def test_disclosure_is_said_to_be_tested_and_not_guaranteed(report):
    assert "These are tests, not guarantees." in sections(report)["Disclosure"]


def test_a_leak_stands_in_a_banner():
    text = page(TRAIN, schema=schema_of()).text
    assert "Warning. The synthetic rows lie nearer to the training rows than to as many held-out rows" in text[:3500]


def test_signals_have_a_picture_of_their_spectra_by_class(report):
    (words,) = [alt for _, alt in report.images if "log power" in alt]
    assert words.endswith("for 0, 1.")


def test_without_a_training_table_figures_of_real_rows_are_not_known_and_disclosure_is_left_out(values):
    alone = evaluate(table(150, 3), table(160, 2), SCHEMA, privacy=PRIVACY).to_dict()
    assert details.disclosure_rows(alone) == []
    assert details.code_measures(alone)[0].comparison is None
    assert details.code_measures(alone)[0].rows[0].cells[1:] == ("n/a", "n/a")
    assert details.rule_rows(alone)[0][1][1] == "n/a"
    assert details.subgroup_rows(alone)[0][1][3] == "n/a"
    assert details.subgroup_rows(values)[0][1][3] != "n/a"


def test_a_table_without_codes_signals_and_rules_has_no_such_sections():
    found = set(sections(page(SYNTHETIC, TEST, schema_of(), train=None)))
    assert {"Prediction", "Single columns", "Pairs of columns", "All columns at once"} <= found
    assert not found & {"Signals", "Rules", "Disclosure"}
    assert not [name for name in found if name.startswith("Codes")]


def test_an_empty_synthetic_table_has_a_page():
    text = sections(page(table(0, 3), table(160, 2), SCHEMA, train=None))
    assert "n/a" in text["Codes of dx"]
    assert "n/a" in text["Signals"]
    assert "All columns at once" not in text
