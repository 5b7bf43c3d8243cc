"""What the figures mean in words: against the baseline of the same epsilon, and against real data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dpcgan_fast.baselines import STATISTICS

Standing = Literal["loses", "level", "wins", "unknown"]

# One run and one split cannot tell apart AUROCs within 0.01; correlation errors repeat to within 0.005.
AUROC_MARGIN = 0.01
CORRELATION_MARGIN = 0.005
CODES_MARGIN = 0.1  # of the greater of two errors of codes
HEADLINE_LEARNER = "gb"
NEAR_CHANCE = 0.55


@dataclass(frozen=True)
class Verdict:
    """The first words of the report.

    standing:   how the model compares with the baseline; "unknown" if there is no baseline
    headline:   a sentence that says so, and one on the codes of each column of codes
    prediction: sentences on the scores of classifiers; empty without a label
    likeness:   sentences on distances from real rows
    """

    standing: Standing
    headline: str
    prediction: tuple[str, ...]
    likeness: tuple[str, ...]


def judge(values: Mapping[str, Any]) -> Verdict:
    """The verdict on the figures of `metrics.json`.

    With a label, gradient boosting's AUROC decides: it is the strongest of the three learners on most tables, and
    averaging in a learner that fails on real data too (a linear one on waveforms) would hide differences. Without a
    label, the correlation error decides.
    """
    tstr, baseline = values["tstr"], values["baseline"]
    if not baseline:
        standing: Standing = "unknown"
    elif tstr:
        lead = tstr[HEADLINE_LEARNER]["auroc"] - baseline[HEADLINE_LEARNER]["auroc"]
        standing = _standing(lead, _auroc_margin(values))
    else:
        standing = _standing(baseline["correlation_mae"] - values["correlation_mae"], CORRELATION_MARGIN)
    headline = _headline(standing, values)
    return Verdict(
        standing,
        " ".join([headline, *_codes_headlines(values)]),
        tuple(_prediction_sentences(values)) if tstr else (),
        tuple(_likeness_sentences(values)),
    )


def _standing(lead: float, margin: float) -> Standing:
    return "loses" if lead < -margin else "wins" if lead > margin else "level"


def _auroc_margin(values: Mapping[str, Any]) -> float:
    """What two scores on the same rows may differ by chance: about as much as one of them does, or more by the run."""
    return max(AUROC_MARGIN, values["uncertainty"] or 0.0)


def best_first(baselines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Baselines, best first: by gradient boosting's AUROC, without a label by the correlation error."""
    return sorted(
        baselines,
        key=lambda one: -one[HEADLINE_LEARNER]["auroc"] if one[HEADLINE_LEARNER] else one["correlation_mae"],
    )


def _headline(standing: Standing, values: Mapping[str, Any]) -> str:
    if standing == "unknown":
        return (
            "The model is compared neither with a baseline nor with real training data, because no training table was "
            "given."
        )
    goal = "as training data for a classifier" if values["tstr"] else "at keeping the relations between columns"
    epsilon = values["epsilon"]
    noise = "without noise" if epsilon == math.inf else f"with noise for the same epsilon of {epsilon:.3g}"
    rival = f"{values['baseline']['name']}, {noise} ({_compared_figures(values)})"
    if values.get("drawn_from", "").startswith(STATISTICS) and standing == "level":
        return f"The rows, drawn from statistics, are as good {goal} as those of the best baseline: {rival}."
    return {
        "loses": f"The model loses to the baseline {goal}: better rows come from {rival}.",
        "level": f"The model does not beat the baseline {goal}: rows as good come from {rival}.",
        "wins": f"The model beats the baseline {goal}: worse rows come from {rival}.",
    }[standing]


def _compared_figures(values: Mapping[str, Any]) -> str:
    """What the headline compares: the model's figure against the baseline's, and how uncertain the first is."""
    baseline = values["baseline"]
    if not values["tstr"]:
        return f"correlation error {values['correlation_mae']:.3f} against {baseline['correlation_mae']:.3f}"
    own, other = (source[HEADLINE_LEARNER]["auroc"] for source in (values["tstr"], baseline))
    by = f", ±{values['uncertainty']:.2f} by the size of the test table" if values["uncertainty"] else ""
    return f"AUROC {own:.3f} against {other:.3f}{by}"


def _codes_headlines(values: Mapping[str, Any]) -> list[str]:
    """A sentence a column of codes: neither a label nor correlations say whether codes are as frequent as they are."""
    others = (values["baseline"] or {}).get("codes", {})
    ways = {"loses": "loses to the baseline", "level": "is level with the baseline", "wins": "beats the baseline"}
    sentences = []
    for name, other in others.items():
        own = values["codes"][name]
        said = [
            f"{ways[_standing_of_errors(own[key], other[key])]} in {what}"
            for key, what in (("mae", "how frequent they are"), ("pairs_mae", "how often two occur together"))
            if own[key] is not None
        ]
        if said:
            sentences.append(f"With the codes of {name} it {' and '.join(said)}.")
        else:
            sentences.append(f"The vocabulary of {name} is empty: synthetic records have no codes.")
    return sentences


def _standing_of_errors(own: float, other: float) -> Standing:
    return _standing(other - own, CODES_MARGIN * max(own, other))


def _prediction_sentences(values: Mapping[str, Any]) -> list[str]:
    tstr, trtr, baseline = values["tstr"], values["trtr"], values["baseline"]
    score, kind = tstr[HEADLINE_LEARNER]["auroc"], values["score_kind"]
    chance = ", which is close to a coin toss (0.5)" if score < NEAR_CHANCE else ""
    sentences = [
        f"A gradient boosting classifier that learned from the synthetic rows alone reaches {kind} of {score:.3f} on "
        f"real held-out rows{chance}."
    ]
    if trtr:
        real = trtr[HEADLINE_LEARNER]["auroc"]
        gap = round(real, 3) - round(score, 3)
        if abs(gap) <= _auroc_margin(values):
            cost = "no cost that this test table could show"
        else:
            cost = f"the synthetic rows cost {gap:.3f}" if gap > 0 else "the synthetic rows cost nothing here"
        sentences.append(f"It reaches {real:.3f} when it learns from the real training rows: {cost}.")
        if real < NEAR_CHANCE:
            sentences.append("The label can hardly be predicted even from real rows, so that these scores say little.")
    if baseline:
        other = baseline[HEADLINE_LEARNER]["auroc"]
        near = abs(score - other) <= _auroc_margin(values)
        close = ", a difference that one run cannot tell from chance" if near else ""
        sentences.append(f"It reaches {other:.3f} when it learns from the baseline's rows{close}.")
        worse = [
            name
            for name in ("rf", "lr")
            if tstr[name]["auroc"] < baseline[name]["auroc"] - _auroc_margin(values)
            and trtr[name]["auroc"] >= NEAR_CHANCE
        ]
        if worse:
            names = {"rf": "a random forest", "lr": "logistic regression"}
            sentences.append(f"With {' and with '.join(names[name] for name in worse)} the baseline does better.")
    if (values["uncertainty"] or 0) > AUROC_MARGIN:
        sentences.append(
            "The size of the test table alone makes such a figure uncertain by about "
            f"±{values['uncertainty']:.2f} (95%)."
        )
    return sentences


def _likeness_sentences(values: Mapping[str, Any]) -> list[str]:
    return [
        _against(
            "Averaged over the columns, {} of the rows would have to change their value for a column's distribution to "
            "match that of the real test rows",
            values,
            "marginal_tv_mean",
            lambda share: f"{share:.1%}",
        ),
        _against(
            "Correlations between columns are off by {} on average",
            values,
            "correlation_mae",
            lambda error: f"{error:.3f}",
        ),
        *(sentence for name in values["codes"] for sentence in _codes_sentences(name, values)),
    ]


def _codes_sentences(name: str, values: Mapping[str, Any]) -> list[str]:
    """On the codes of a column."""
    sources = [values, values["floor"], values["baseline"]]
    own, floor, baseline = (source and source["codes"][name] for source in sources)
    figures: dict[str, Any] = {**own, "floor": floor, "baseline": baseline}
    measures = (
        ("mae", f"Prevalences of the codes of {name} are off by {{}} on average"),
        ("pairs_mae", f"Shares of rows with both of two codes of {name} are off by {{}} on average"),
        (
            "cooccurrence_error",
            f"Which codes of {name} occur together has a relative error of {{}}, where independent codes have about 1",
        ),
    )
    return [_against(text, figures, key, "{:.2g}".format) for key, text in measures if own.get(key) is not None]


def _against(sentence: str, values: Mapping[str, Any], key: str, written: Callable[[float], str]) -> str:
    others = [
        f"{name} {written(source[key])}"
        for name, source in (("real training rows:", values["floor"]), ("baseline:", values["baseline"]))
        if source and source[key] is not None
    ]
    return sentence.format(written(values[key])) + (f" ({'; '.join(others)})" if others else "") + "."
