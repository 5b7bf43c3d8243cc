"""Builds `report.html`: one file without scripts, links or outside resources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.evaluate.features import target
from dpcgan_fast.evaluate.fidelity import correlations
from dpcgan_fast.evaluate.metrics import Metrics
from dpcgan_fast.evaluate.sides import Comparison
from dpcgan_fast.files import PRIVATE_FOLDER, machine_error, write_whole
from dpcgan_fast.report import details, figures, tables
from dpcgan_fast.report.curve import curve_picture, curve_rows
from dpcgan_fast.report.wording import count, not_private_reasons, shown, shown_lines

WARNING = "WARNING: "
NOTE_LIMIT = 600
NOT_FOR_RELEASE = (
    "These evaluation figures are computed on real held-out records and are not differentially private: do not release "
    "this page with the synthetic table."
)
STANDINGS = {"loses": "Below the baseline", "level": "Level with the baseline", "wins": "Above the baseline"}


def write_report(
    out_dir: str | Path,
    metrics: Metrics,
    synthetic: pa.Table,
    test: pa.Table,
    schema: Schema,
    privacy: Mapping[str, Any],
    privacy_card_markdown: str,
) -> Path:
    """Writes `report.html` into a folder, readable by its owner alone, and returns its path.

    metrics:               of `evaluate` on the same tables
    privacy:               the model's statement: epsilon (or "inf"), delta, epsilon_rdp, epsilon_pld, unit, mechanisms,
                           accountant, notes, private
    privacy_card_markdown: shown as it is

    No cell of a real row is on the page: figures show shares of rows, quantiles and correlations.
    Raises MachineError if the machine cannot write.
    """
    folder = Path(out_dir)
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise machine_error(error, folder) from error
    path = folder / "report.html"
    write_whole(path, render(metrics, synthetic, test, schema, privacy, privacy_card_markdown), private=True)
    return path


def render(
    metrics: Metrics,
    synthetic: pa.Table,
    test: pa.Table,
    schema: Schema,
    privacy: Mapping[str, Any],
    privacy_card_markdown: str,
) -> str:
    """The page's HTML; see `write_report`."""
    values = metrics.to_dict()
    notes = [shown(note, limit=NOTE_LIMIT) for note in values["notes"]]
    environment = Environment(
        loader=PackageLoader("dpcgan_fast", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        values=values,
        not_for_release=NOT_FOR_RELEASE,
        subject=_subject(values, schema),
        standing=STANDINGS.get(values["verdict"]["standing"], "Not compared"),
        not_private=not_private_reasons(privacy),
        warnings=[_sentence(note.removeprefix(WARNING)) for note in notes if note.startswith(WARNING)],
        notes=[note for note in notes if not note.startswith(WARNING)],
        glance=tables.glance_rows(values),
        scores=tables.score_rows(values) if values["tstr"] else [],
        comparison=tables.comparison(values),
        columns=tables.column_rows(values),
        subgroups=details.subgroup_rows(values),
        told_apart=details.told_apart_rows(values),
        curve=curve_picture(values),
        curve_rows=curve_rows(values),
        code_measures=details.code_measures(values),
        spectrum_measures=details.spectrum_measures(values),
        rules=details.rule_rows(values),
        disclosure=details.disclosure_rows(values),
        meaning=tables.meaning_of(privacy),
        privacy_facts=tables.privacy_facts(privacy),
        mechanisms=tables.mechanism_rows(privacy),
        assumptions=[shown(note, limit=NOTE_LIMIT) for note in privacy.get("notes", ())],
        privacy_card=shown_lines(privacy_card_markdown),
        **_pictures(values, synthetic, test, schema),
    )


def _pictures(values: dict[str, Any], synthetic: pa.Table, test: pa.Table, schema: Schema) -> dict[str, Any]:
    comparison = Comparison.with_real(test, schema)
    test, schema = comparison.real.wide, comparison.wide
    synthetic = comparison.side(synthetic, "the synthetic table", synthetic=True).wide
    real, names = correlations(test, schema)
    drawn, _ = correlations(synthetic, schema)
    has_rows = synthetic.num_rows > 0
    return {
        "utility": figures.utility_bars(values, _positive_rate(test, schema)) if values["tstr"] else None,
        "distances": figures.distance_bars(values),
        "overlays": figures.marginal_overlays(values, synthetic, test, schema) if has_rows else None,
        "correlation": figures.correlation_matrices(real, drawn, names) if len(names) > 1 else None,
        "pairs": tables.pair_rows(real, drawn, names),
        "signals": [
            figures.signal_traces(signal, synthetic, test) for signal in schema.signals[: figures.SIGNALS_SHOWN]
        ],
        "spectra": [
            figures.signal_spectra(signal, synthetic, test, schema)
            for signal in schema.signals[: figures.SIGNALS_SHOWN]
            if values["spectra"][signal.name]["spectrum_db"] is not None
        ],
    }


def _positive_rate(test: pa.Table, schema: Schema) -> float | None:
    truth = target(test, schema)
    if truth is None or len(truth.names) > 1:
        return None
    return float(np.mean(truth.is_class(0)[truth.known]))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _subject(values: Mapping[str, Any], schema: Schema) -> str:
    label = f" with the label {shown(schema.label)}" if schema.label else ""
    rows, visits = values["rows"], schema.visits
    whom, with_visits = ("rows", "") if visits is None else ("people", f" with up to {visits.n_slots} visits")
    return (
        f"{count(rows['synthetic'])} synthetic {whom}{with_visits} of {len(schema.column_names()):,} columns{label}, "
        f"judged on {count(rows['test'])} real held-out {whom}"
    )
