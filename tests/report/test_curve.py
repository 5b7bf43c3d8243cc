"""The page shows a curve where there is one: its picture, what it says, and that publishing it reveals more."""

import re
from dataclasses import replace

import pytest

from dpcgan_fast.evaluate import CurveGrid, evaluate, utility_curve
from dpcgan_fast.report.curve import curve_picture
from dpcgan_fast.report.page import render
from tests.evaluate.tables import schema_of
from tests.evaluate.test_curve import SECRET, draws
from tests.report.pages import CARD, PRIVACY, SYNTHETIC, TEST, TRAIN, Page

HEADING = "Epsilon and utility"


def page_with_curve(label: bool = True) -> Page:
    schema = schema_of() if label else schema_of(label=None)
    metrics = evaluate(SYNTHETIC, TEST, schema, train=TRAIN, privacy=PRIVACY)
    *_, curve = utility_curve(draws(), TRAIN, TEST, schema, CurveGrid((0.5, 2.0, 8.0), 2), SECRET)
    return Page(render(replace(metrics, curve=curve), SYNTHETIC, TEST, schema, PRIVACY, CARD))


@pytest.fixture(scope="module")
def report() -> Page:
    return page_with_curve()


def section_of(page: Page) -> str:
    (found,) = [s for s in re.findall(r"<section>(.*?)</section>", page.html, flags=re.DOTALL) if HEADING in s]
    return found


def drawn_texts(page: Page) -> list[set[str]]:
    """The words in each image."""
    return [{(part.text or "").strip() for part in drawing.iter()} for drawing in page.drawings()]


def test_the_section_holds_the_picture_and_says_what_it_is(report):
    section = section_of(report)
    assert "<figure>" in section
    assert "Not differentially private: computed on real held-out records" in section
    assert "there are too few releases to tell whether it gets worse as epsilon grows" in section
    assert "Publishing the curve reveals more than the run" in section
    assert "An epsilon that is chosen by this curve is chosen by looking at the data." in section


def test_the_picture_has_every_epsilon_the_runs_own_and_real_rows(report):
    (alt,) = {alt for _, alt in report.images if alt.startswith("Means with intervals against epsilon")}
    assert "Told apart from real rows" in alt
    assert all(f"at epsilon {epsilon}" in alt for epsilon in ("0.5", "2", "8"))
    drawn = [texts for texts in drawn_texts(report) if "the run" in texts]
    assert drawn, "one for each background"
    assert all({"0.5", "2", "8", "real training rows", "synthetic rows"} <= texts for texts in drawn)


def test_its_figures_stand_in_a_table(report):
    rows = re.findall(r"<bdi>([\d.]+)</bdi></th>(.*?)</tr>", section_of(report))
    assert [epsilon for epsilon, _ in rows] == ["0.5", "2", "8"]
    assert all(row.count("\u00b1") == 3 for _, row in rows)


def test_without_a_label_there_is_one_panel(report):
    section = section_of(page_with_curve(label=False))
    assert "Told apart from real rows" in section
    assert "AUROC of gradient boosting, higher is better" not in section
    assert "AUROC of gradient boosting, higher is better" in section_of(report)


def test_without_a_curve_there_is_no_section():
    metrics = evaluate(SYNTHETIC, TEST, schema_of(), privacy=PRIVACY)
    assert metrics.curve is None
    assert HEADING not in render(metrics, SYNTHETIC, TEST, schema_of(), PRIVACY, CARD)
    assert curve_picture(metrics.to_dict()) is None
