"""Rows of the page's tables, as text."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpcgan_fast.evaluate.learners import LEARNER_NAMES
from dpcgan_fast.report.wording import NOT_KNOWN, number, percent, shown, significant

PAIRS_LISTED = 10
COLUMNS_LISTED = 250


@dataclass(frozen=True)
class GlanceRow:
    """One measure for the synthetic rows, for real training rows and for the baseline.

    cells: for synthetic rows, real training rows and the baseline
    best:  the value that perfect synthetic rows would have
    """

    measure: str
    explanation: str
    cells: tuple[str, ...]
    best: str


def glance_rows(values: Mapping[str, Any]) -> list[GlanceRow]:
    """The summary table. values: of `metrics.json`."""
    floor, baseline, copies = values["floor"] or {}, values["baseline"] or {}, values["copies"]
    rows = []
    if values["tstr"]:
        for score, name in (("auroc", "AUROC"), ("ap", "average precision")):
            cells = [(values[key] or {}).get("gb", {}).get(score) for key in ("tstr", "trtr", "baseline")]
            explanation = "gradient boosting that learned from these rows, tested on real ones"
            rows.append(GlanceRow(f"Prediction: {name}", explanation, tuple(map(number, cells)), "as real rows"))
    measures = (
        (
            "marginal_tv_mean",
            "Single columns: distance",
            "mean share of rows that would have to change their value",
            percent,
            0.0,
        ),
        (
            "correlation_mae",
            "Pairs of columns: correlation error",
            "mean absolute difference from real test rows",
            number,
            0.0,
        ),
        (
            "pairs_tv_mean",
            "Pairs of columns: distance",
            "mean share of rows that would have to move to another joint cell, each column in at most 5 groups",
            percent,
            0.0,
        ),
        (
            "triples_tv_mean",
            "Triples of columns: distance",
            "mean share of rows that would have to move to another joint cell, each column in at most 3 groups",
            percent,
            0.0,
        ),
        (
            "c2st",
            "All columns: told apart",
            "AUROC of a classifier that tells these rows from real test rows",
            number,
            0.5,
        ),
        (
            "c2st_binned",
            "All columns, binned: told apart",
            "the same, blind to how finely numbers are written",
            number,
            0.5,
        ),
    )
    for key, measure, explanation, written, best in measures:
        cells = [source.get(key) for source in (values, floor, baseline)]
        rows.append(GlanceRow(measure, explanation, tuple(map(written, cells)), written(best)))
    rows += _code_rows([source.get("codes", {}) for source in (values, floor, baseline)])
    if copies:
        explanation = "share of rows equal to a real training row in every cell; under real: the real test rows"
        shares = (*(percent(copies[key], 2) for key in ("synthetic", "test")), NOT_KNOWN)
        rows.append(GlanceRow("Copies of training rows", explanation, shares, "as real test rows"))
    return rows


def _code_rows(sources: list[Mapping[str, Any]]) -> list[GlanceRow]:
    """How far codes are off. sources: `codes` of synthetic, real training and baseline rows, by column each"""
    measures = (
        ("mae", "mean prevalence error", "share of rows with a code, against real test rows", significant, 0.0),
        ("max_abs", "largest prevalence error", "share of rows with a code, against real test rows", percent, 0.0),
        ("r", "correlation of prevalences", "over all codes of the vocabulary, with real test rows", number, 1.0),
        ("pairs_mae", "mean error of pairs", "share of rows with both of two frequent codes", significant, 0.0),
    )
    return [
        GlanceRow(
            f"Codes of {shown(name)}: {measure}",
            explanation,
            tuple(written(source.get(name, {}).get(key)) for source in sources),
            written(best),
        )
        for name in sources[0]
        for key, measure, explanation, written, best in measures
    ]


def score_rows(values: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Scores of every learner: (learner, [AUROC, AP] of synthetic, real and baseline rows)."""
    return [
        (
            name.capitalize(),
            [
                number((values[key] or {}).get(learner, {}).get(score))
                for key in ("tstr", "trtr", "baseline")
                for score in ("auroc", "ap")
            ],
        )
        for learner, name in LEARNER_NAMES.items()
    ]


@dataclass(frozen=True)
class Comparison:
    """Synthetic rows beside those of all baselines and real ones. rows: (name, cells), the model's first"""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


def comparison(values: Mapping[str, Any]) -> Comparison | None:
    """The table of the baselines; None if there are not several."""
    if len(values["baselines"] or []) < 2:
        return None
    columns: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = []
    if values["tstr"]:
        columns += [("AUROC \u2191", _score("auroc")), ("Average precision \u2191", _score("ap"))]
    columns += [
        (heading, _figure(key, written))
        for heading, key, written in (
            ("Single columns \u2193", "marginal_tv_mean", percent),
            ("Pairs \u2193", "pairs_tv_mean", percent),
            ("Triples \u2193", "triples_tv_mean", percent),
            ("Correlations \u2193", "correlation_mae", number),
            ("Told apart \u2193", "c2st", number),
            ("Binned, told apart \u2193", "c2st_binned", number),
        )
    ]
    for name in values["codes"]:
        columns += [
            (f"Codes of {shown(name)} \u2193", _code_figure(name, "mae")),
            (f"Pairs of {shown(name)} \u2193", _code_figure(name, "pairs_mae")),
        ]
    sources = [
        ("The model", {**values, **(values["tstr"] or {})}),
        *((one["name"].capitalize(), one) for one in values["baselines"]),
        ("Real training rows", {**values["floor"], **(values["trtr"] or {})}),
    ]
    rows = tuple((name, tuple(written(source) for _, written in columns)) for name, source in sources)
    return Comparison(tuple(heading for heading, _ in columns), rows)


def _score(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda source: number((source.get("gb") or {}).get(key))


def _figure(key: str, written: Callable[[Any], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda source: written(source.get(key))


def _code_figure(name: str, key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda source: significant(source.get("codes", {}).get(name, {}).get(key))


def column_rows(values: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Distances of the columns, largest first: (column, [synthetic, real, baseline])."""
    sources = [values, values["floor"] or {}, values["baseline"] or {}]
    ranked = sorted(values["marginal_tv"], key=lambda name: -values["marginal_tv"][name])
    return [
        (shown(name), [percent(source.get("marginal_tv", {}).get(name)) for source in sources])
        for name in ranked[:COLUMNS_LISTED]
    ]


def pair_rows(real: np.ndarray, drawn: np.ndarray, names: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """The pairs whose correlation is furthest off: (feature, feature, real, synthetic).

    real, drawn: (features, features) correlations
    """
    first, second = np.triu_indices(len(names), k=1)
    worst = np.argsort(-np.abs(real - drawn)[first, second], kind="stable")[:PAIRS_LISTED]
    return [
        (shown(names[i]), shown(names[j]), number(real[i, j], 2), number(drawn[i, j], 2))
        for i, j in zip(first[worst], second[worst], strict=True)
    ]


def privacy_facts(privacy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The privacy statement in figures: (name, value)."""
    facts = [
        ("epsilon", significant(privacy["epsilon"])),
        ("delta", significant(privacy.get("delta"))),
        ("Unit", _unit(privacy.get("unit"))),
        ("Neighbouring data sets", "with and without one unit"),
        ("epsilon by Rényi accountant (RDP)", significant(privacy.get("epsilon_rdp"))),
        ("epsilon by privacy loss distributions (PLD)", significant(privacy.get("epsilon_pld"))),
    ]
    accountant = privacy.get("accountant")
    return [*facts, ("Accountant of the claim", shown(accountant, limit=200))] if accountant else facts


def mechanism_rows(privacy: Mapping[str, Any]) -> list[list[str]]:
    """One row a mechanism: name, event, sampling rate, noise multiplier, steps, clip norm, delta spent, description.

    A mechanism that the statement lists block by block is one row, with its steps added up.
    """
    keys = ("mechanism", "event", "sample_rate", "noise_multiplier", "max_grad_norm", "delta", "description")
    steps: dict[tuple[Any, ...], int] = {}
    for mechanism in privacy.get("mechanisms", ()):
        key = tuple(mechanism.get(name) for name in keys)
        steps[key] = steps.get(key, 0) + int(mechanism.get("steps") or 0)
    return [
        [
            *(shown(text or NOT_KNOWN).replace("_", " ") for text in (name, event)),
            *map(significant, (rate, noise, taken, clip, delta)),
            shown(description or "", limit=300),
        ]
        for (name, event, rate, noise, clip, delta, description), taken in steps.items()
    ]


def meaning_of(privacy: Mapping[str, Any]) -> str:
    """What (epsilon, delta) promises, in plain words."""
    epsilon, delta = float(privacy["epsilon"]), privacy.get("delta")
    if epsilon == math.inf:
        return "There is no privacy guarantee: nothing bounds what the synthetic rows reveal about a person."
    factor = f"{math.exp(epsilon):.3g}" if epsilon < 9 else "more than 8,000"
    return (
        "Whether or not one unit's rows were among the training data changes the probability of any outcome (any set "
        "of synthetic rows, any conclusion drawn from them) by at most a factor of "
        f"{factor} (e to the power of epsilon), but for a remainder of probability delta, {significant(delta)}."
    )


def _unit(unit: object) -> str:
    return "one row" if unit in (None, "row") else shown(unit, limit=200)
