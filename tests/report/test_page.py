"""The page says first what matters, says what it is, and does nothing but show itself."""

import re
import stat
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import MachineError
from dpcgan_fast.evaluate import Metrics, evaluate
from dpcgan_fast.report import write_report
from dpcgan_fast.report.page import render
from tests.evaluate.tables import schema_of, shuffled_label, with_column
from tests.report.pages import CARD, PRIVACY, SYNTHETIC, TEST, TRAIN, Page, page

NOT_FOR_RELEASE = (
    "These evaluation figures are computed on real held-out records and are not differentially private: do not release "
    "this page with the synthetic table."
)


@pytest.fixture(scope="module")
def report() -> Page:
    return page()


@pytest.fixture(scope="module")
def untrained() -> Metrics:
    """Figures without a training table, which are quick to have."""
    return evaluate(SYNTHETIC, TEST, schema_of(), privacy=PRIVACY)


# ---- what it says


def test_a_model_that_loses_to_the_baseline_is_said_to_lose_in_the_first_lines():
    text = page(shuffled_label(SYNTHETIC)).text
    assert 0 < text.index("The model loses to the baseline") < 250


def test_the_first_paragraph_compares_with_real_data_and_with_the_baseline(report):
    first = report.text[: report.text.index("Not for release")]
    assert "when it learns from the real training rows" in first
    assert "when it learns from the baseline's rows" in first
    assert "epsilon of 3" in first


def test_the_banner_says_that_the_page_is_not_private(report):
    assert NOT_FOR_RELEASE in report.text[:2000]


def test_every_section_with_figures_on_real_rows_says_so(report):
    sections = re.findall(r"<section>(.*?)</section>", report.html, flags=re.DOTALL)
    with_figures = [section for section in sections if "<figure>" in section or "At a glance" in section]
    assert len(with_figures) == 4
    assert all("Not differentially private" in section for section in with_figures)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", report.html, flags=re.DOTALL)
    assert all("Not differentially private" in caption for caption in captions)


def test_the_privacy_statement_names_budget_unit_both_accountants_and_every_mechanism(report):
    section = report.text[report.text.index("Privacy statement") :]
    for words in ("epsilon 3", "delta 1 \u00d7 10⁻⁵", "Unit one row", "(RDP) 2.99", "(PLD) 2.74", "label histogram"):
        assert words in section
    assert "Bounds in the schema are public." in section


def test_a_mechanism_in_blocks_is_one_row_with_its_steps_added_up(report):
    assert report.text.count("critic") == 1
    assert "1,250" in report.text


def test_a_model_without_noise_is_said_not_to_be_private():
    text = page(train=None, privacy={"epsilon": "inf", "delta": None, "private": False, "mechanisms": []}).text
    assert "The model itself is not private. It was trained without noise" in text[:2500]
    assert "There is no privacy guarantee" in text
    assert "may be released" not in text


def test_a_model_with_seeded_noise_is_said_not_to_be_private():
    text = page(train=None, privacy={"private": False}).text
    assert "The model itself is not private. Its noise is not secret" in text[:2500]
    assert "may be released" not in text


def test_a_private_model_is_not_called_anything_else(report):
    assert "The model itself is not private" not in report.text


def test_without_a_training_table_the_page_says_what_is_missing_and_why():
    text = page(train=None).text
    assert "no training table was given" in text[:400]
    assert "no real training table was given (train)" in text


def test_without_a_label_the_page_has_no_section_on_prediction():
    text = page(schema=schema_of(label=None)).text
    assert "relations between columns" in text[:400]
    assert "Prediction:" not in text


def test_an_empty_synthetic_table_has_a_page():
    assert "100.0%" in page(SYNTHETIC.slice(0, 0)).text


def test_a_table_with_several_classes_has_a_page():
    label = {"name": "stage", "type": "categorical", "categories": ["low", "middle", "high"]}
    assert "a mean AUROC (each class against the rest)" in page(schema=schema_of(label), train=None).text


def test_warnings_stand_in_banners():
    text = page(test=TRAIN).text
    assert "Warning. 100% of the test rows" in text[:2500]


def test_the_privacy_card_is_shown_as_it_is(report):
    assert f"<pre>{CARD.strip()}</pre>".replace("'", "&#39;") in report.html


# ---- signals


SIGNAL: dict[str, Any] = {"name": "eeg", "columns": ["X1", "...", "X40"], "bounds": [-10, 10]}


def waves(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    values = np.sin(np.arange(40) * 0.4 + rng.uniform(0, 6, (rows, 1))) * 3 + rng.normal(0, 0.3, (rows, 40))
    return pa.table({"y": rng.integers(0, 2, rows), **{f"X{i + 1}": values[:, i] for i in range(40)}})


def test_signals_have_traces_of_synthetic_rows_and_only_a_range_of_real_ones():
    schema = Schema.from_dict(
        {"unit": None, "label": "y", "columns": [{"name": "y", "type": "binary"}], "signals": [SIGNAL]}
    )
    found = page(waves(60, 0), waves(60, 1), schema, train=None)
    assert "a single real trace would be a person's record" in found.text
    assert any("synthetic traces" in alt for _, alt in found.images)


# ---- what it is


def test_the_page_is_one_file_without_scripts_or_outside_resources(report):
    assert (
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; """
        """img-src data:">"""
    ) in report.html
    assert not report.tags & {"script", "link", "iframe", "object", "embed", "form", "base", "a"}
    assert not [name for _, name in report.attributes if name.startswith("on") or name in ("href", "style")]
    assert "://" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", report.html)
    assert "url(" not in report.html
    assert "@import" not in report.html


def test_every_image_has_words_for_those_who_do_not_see_it_and_both_backgrounds(report):
    assert len(report.images) == 4
    assert all(len(alt) > 40 for _, alt in report.images)
    assert report.html.count('(prefers-color-scheme: dark)" srcset') == 4


def test_images_are_well_formed_and_inert(report):
    for drawing in report.drawings():
        tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
        assert "script" not in tags
        assert "foreignObject" not in tags


def test_tables_have_headers(report):
    assert report.html.count("<table>") == report.html.count("<thead>")
    assert ("th", "scope") in report.attributes


HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{7*7}}",
    "</style><b>",
    "{% raw %}",
    "\u202eevil\u202c",
    "zero\u200bwidth",
    "bell\x07and\x1bescape",
    "$\\frac{1}{0}$",
    "&lt;i&gt;",
    "患者",
)


@pytest.fixture(scope="module")
def hostile() -> Page:
    categories = [f"{text} " + str(i) for i, text in enumerate(HOSTILE)]
    names = [f"{text}#{i}" for i, text in enumerate(HOSTILE)]
    schema = Schema.from_dict(
        {
            "unit": None,
            "label": HOSTILE[0],
            "columns": [
                {"name": HOSTILE[0], "type": "binary"},
                *({"name": name, "type": "numeric", "bounds": [0, 1]} for name in names),
                {"name": HOSTILE[1], "type": "categorical", "categories": categories},
            ],
            "signals": [{"name": HOSTILE[1], "columns": [f"s{i}" for i in range(4)], "bounds": [0, 1]}],
        }
    )

    def table(seed: int) -> pa.Table:
        rng = np.random.default_rng(seed)
        numbers = [*names, *(f"s{i}" for i in range(4))]
        return pa.table(
            {
                HOSTILE[0]: rng.integers(0, 2, 60),
                **{name: rng.random(60) for name in numbers},
                HOSTILE[1]: [categories[i] for i in rng.integers(0, len(categories), 60)],
            }
        )

    privacy = {
        "unit": HOSTILE[0],
        "notes": list(HOSTILE),
        "mechanisms": [{"mechanism": text, "event": text, "steps": 1, "description": text} for text in HOSTILE],
    }
    return page(table(0), table(1), schema, train=table(2), privacy=privacy, card="\n".join(HOSTILE))


def test_hostile_names_add_no_tag_and_no_attribute(hostile, report):
    assert hostile.tags - report.tags <= {"bdi"}
    assert hostile.attributes - report.attributes == set()


def test_hostile_names_are_shown_as_text(hostile):
    assert "<script>alert(1)</script>" in hostile.text
    assert "{{7*7}}" in hostile.text


def test_characters_that_hide_or_reorder_text_are_shown_by_their_codes(hostile):
    assert not set("\u202e\u202c\u200b\x07\x1b") & set(hostile.html)
    assert "zero\\u200bwidth" in hostile.html


def test_hostile_names_leave_images_well_formed_and_inert(hostile):
    for drawing in hostile.drawings():
        tags = {element.tag.rpartition("}")[2] for element in drawing.iter()}
        assert not tags & {"script", "foreignObject", "img", "image/svg+xml"}
        names = {name for element in drawing.iter() for name in element.attrib}
        assert not [name for name in names if name.startswith("on")]


# ---- what it leaves out


def test_no_cell_of_a_real_row_is_on_the_page():
    names = [{"name": "ward", "type": "categorical", "categories": ["north", "south"]}]
    schema = schema_of(columns=[*names, {"name": "bmi", "type": "numeric", "bounds": [10, 60]}])
    secret_number = 31.4159265

    def with_secrets(table: pa.Table) -> pa.Table:
        wards = ["SENTINEL", *["north"] * (table.num_rows - 1)]
        return with_column(table, "bmi", [secret_number] * table.num_rows).append_column("ward", pa.array(wards))

    found = page(with_secrets(SYNTHETIC), with_secrets(TEST), schema, train=with_secrets(TRAIN))
    drawings = " ".join("".join(drawing.itertext()) for drawing in found.drawings())
    for secret in ("SENTINEL", "31.4159", "31.42"):
        assert secret not in found.html
        assert secret not in drawings


# ---- where it goes


def test_the_file_is_for_its_owner_alone(tmp_path, untrained):
    path = write_report(tmp_path / "new" / "folder", untrained, SYNTHETIC, TEST, schema_of(), PRIVACY, CARD)
    assert path == tmp_path / "new" / "folder" / "report.html"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_folder_that_cannot_be_made_is_the_machines_error(tmp_path, untrained):
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError):
        write_report(tmp_path / "file" / "out", untrained, SYNTHETIC, TEST, schema_of(), PRIVACY, CARD)


def test_the_same_figures_give_the_same_page(untrained):
    first, second = (render(untrained, SYNTHETIC, TEST, schema_of(), PRIVACY, CARD) for _ in range(2))
    assert first == second
