"""Rows of the tables that look closer: classifiers' tests, codes, spectra, groups, rules, and disclosure, as text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpcgan_fast.evaluate.learners import LEARNER_NAMES
from dpcgan_fast.report.tables import Comparison, GlanceRow
from dpcgan_fast.report.wording import NOT_KNOWN, count, number, percent, shown

GROUPS_LISTED = 40
RULES_LISTED = 100


@dataclass(frozen=True)
class Measures:
    """A table of measures about one thing. title: its name; comparison: of all baselines, None if there is just one"""

    title: str
    rows: tuple[GlanceRow, ...]
    comparison: Comparison | None = None


def _sources(values: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    """A figure of synthetic, real training and baseline rows; empty where there is none."""
    return [(source or {}).get(key) or {} for source in (values, values["floor"], values["baseline"])]


def told_apart_rows(values: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """AUROC of each classifier that tells rows from real test rows: (classifier, [synthetic, real, baseline])."""
    if values["c2st_by"] is None:
        return []
    sources = _sources(values, "c2st_by")
    return [
        (name.capitalize(), [number(source.get(learner)) for source in sources])
        for learner, name in LEARNER_NAMES.items()
    ]


# Of what occurs together: key, name in a narrow table, name, what it means, how it is written, and the best there is.
_CODE_MEASURES = (
    ("cooccurrence_error", "Co-occurrence \u2193", "Pairs of codes: co-occurrence error", "relative error of the "
     "covariances of pairs of the 300 most frequent codes; independent codes have about 1; lower is better", number,
     "0.000"),
    ("cooccurrence_r", "Correlation \u2191", "Pairs of codes: correlation", "whether the pairs that occur together "
     "most in real rows do so here: Pearson correlation of the pairs' correlations; higher is better", number, "1.000"),
    ("prediction_ap", "Predicted \u2191", "Codes predicted from the others", "mean average precision, on real test "
     "rows, of predicting up to 50 codes of middle frequency by regressions that learned from these rows; guesses have "
     "{chance}; higher is better", number, "as real rows"),
    ("rare_recall", "Rare kept \u2191", "Rare codes kept", "share of the codes of 0.02% to 0.5% of the real test rows "
     "whose prevalence is right within a factor of 3; higher is better", percent, "100.0%"),
    ("implications_broken", "Broken \u2193", "Implications broken", "how often a code lacks another that comes with it "
     "in at least 99% of the real test rows; lower is better", percent, "as real rows"),
    ("sizes_ks", "Numbers \u2193", "Number of codes: distance", "largest difference of the shares of records with at "
     "most so many codes; lower is better", percent, "0.0%"),
)  # fmt: skip


def code_measures(values: Mapping[str, Any]) -> list[Measures]:
    """What occurs together, by column of codes."""
    by_source = _sources(values, "codes")
    found = []
    for name in values["codes"]:
        sources = [source.get(name, {}) for source in by_source]
        chance = number(sources[0].get("prediction_chance"))
        rows = tuple(
            GlanceRow(
                measure, meaning.format(chance=chance), tuple(written(source.get(key)) for source in sources), best
            )
            for key, _, measure, meaning, written, best in _CODE_MEASURES
        )
        found.append(Measures(shown(name), rows, _code_comparison(values, name)))
    return found


def _code_comparison(values: Mapping[str, Any], name: str) -> Comparison | None:
    """The same of all baselines; None if there are not several."""
    baselines = values["baselines"] or []
    if len(baselines) < 2:
        return None
    sources = [("The model", values), *((one["name"].capitalize(), one) for one in baselines)]
    sources.append(("Real training rows", values["floor"]))
    rows = tuple(
        (title, tuple(written(source["codes"][name].get(key)) for key, _, _, _, written, _ in _CODE_MEASURES))
        for title, source in sources
    )
    return Comparison(tuple(heading for _, heading, *_ in _CODE_MEASURES), rows)


def spectrum_measures(values: Mapping[str, Any]) -> list[Measures]:
    """How far spectra are off, by signal; a row for each class where there are several."""
    by_source = _sources(values, "spectra")
    found = []
    for name, own in values["spectra"].items():
        sources = [source.get(name, {}) for source in by_source]
        rows = [
            GlanceRow(
                "Spectrum: error in dB",
                "mean difference of the mean log power, over frequencies and classes; 3 dB are a factor of 2; lower is "
                "better",
                tuple(number(source.get("spectrum_db"), 2) for source in sources),
                "0.00",
            ),
            GlanceRow(
                "Autocorrelation: error",
                "mean difference over lags and classes, of values between -1 and 1; lower is better",
                tuple(number(source.get("autocorrelation_mae")) for source in sources),
                "0.000",
            ),
        ]
        if len(own["spectrum_db_by"]) > 1:
            rows += [
                GlanceRow(
                    f"Spectrum of class {shown(label)}: error in dB",
                    "lower is better",
                    tuple(number(source.get("spectrum_db_by", {}).get(label), 2) for source in sources),
                    "0.00",
                )
                for label in own["spectrum_db_by"]
            ]
        found.append(Measures(shown(name), tuple(rows)))
    return found


def subgroup_rows(values: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """AUROC within groups: (group, [rows, of the positive class, synthetic, real training, 95 % interval's half])."""
    return [
        (
            f"{shown(group['column'])} = {shown(group['group'])}",
            [
                count(group["rows"]), count(group["positives"]), number(group["tstr"]), number(group["trtr"]),
                NOT_KNOWN if group["uncertainty"] is None else f"±{group['uncertainty']:.3f}",
            ],
        )
        for group in (values["subgroups"] or [])[:GROUPS_LISTED]
    ]  # fmt: skip


def rule_rows(values: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """How many rows break each constraint: (rule, [synthetic, real training, real test, test rows it concerns])."""
    return [
        (
            shown(rule["rule"], limit=120),
            [
                *(percent((rule[name] or {}).get("broken"), 2) for name in ("synthetic", "train", "test")),
                percent((rule["test"] or {}).get("concerned")),
            ],
        )
        for rule in values["rules"][:RULES_LISTED]
    ]


@dataclass(frozen=True)
class TestRow:
    """A test of disclosure. interval: of 95 %; chance: what rows that owe nothing to a single person have"""

    measure: str
    explanation: str
    figure: str
    interval: str
    chance: str


def disclosure_rows(values: Mapping[str, Any]) -> list[TestRow]:
    """The tests of disclosure; empty where they were not made."""
    tested = values["disclosure"]
    if tested is None:
        return []
    nearer, auroc = tested["nearer_interval"], tested["membership_interval"]
    return [
        TestRow(
            "Nearer to training rows",
            f"share of {count(tested['synthetic_rows'])} synthetic rows whose nearest of {count(tested['rows'])} "
            "training and as many held-out rows is a training row; not above 50% is better",
            percent(tested["nearer_to_train"]),
            f"{percent(nearer[0])} to {percent(nearer[1])}",
            "50.0%",
        ),
        TestRow(
            "Membership inferred",
            "AUROC of telling training rows from held-out rows by how near the closest synthetic row is; not above 0.5 "
            "is better",
            number(tested["membership_auroc"]),
            f"{number(auroc[0])} to {number(auroc[1])}",
            "0.500",
        ),
        TestRow(
            "Distance from the nearest training row",
            "median over the synthetic rows; by chance as far as the nearest held-out row",
            number(tested["distance_to_train"]),
            NOT_KNOWN,
            number(tested["distance_to_test"]),
        ),
    ]
