"""The first words: a model that loses to the baseline is said to lose."""

import math
from typing import Any

import pytest

from dpcgan_fast.evaluate.verdict import judge


def scores(gb: float, rf: float = 0.8, lr: float = 0.8) -> dict[str, dict[str, float]]:
    return {name: {"auroc": auroc, "ap": 0.5} for name, auroc in (("gb", gb), ("rf", rf), ("lr", lr))}


def figures(model: float, baseline: float | None, real: float = 0.9, **more: Any) -> dict[str, Any]:
    distances = {"marginal_tv_mean": 0.05, "correlation_mae": 0.04}
    return {
        "epsilon": 3.0,
        "tstr": scores(model),
        "trtr": None if baseline is None else scores(real),
        "baseline": None if baseline is None else {"name": "a tree of columns", **scores(baseline), **distances},
        "floor": None if baseline is None else {"marginal_tv_mean": 0.02, "correlation_mae": 0.01},
        "score_kind": "an AUROC",
        "uncertainty": None,
        "codes": {},
        **distances,
        **more,
    }


def test_a_model_below_the_baseline_loses_and_the_headline_says_so():
    verdict = judge(figures(model=0.70, baseline=0.79))
    assert verdict.standing == "loses"
    assert "loses to the baseline" in verdict.headline
    rival = "better rows come from a tree of columns, with noise for the same epsilon of 3 (AUROC 0.700 against 0.790)."
    assert rival in verdict.headline


def test_no_one_wins_by_less_than_a_test_table_of_its_size_can_tell():
    for model in (0.70, 0.88):
        verdict = judge(figures(model, baseline=0.79, uncertainty=0.13))
        assert verdict.standing == "level"
        assert f"(AUROC {model:.3f} against 0.790, ±0.13 by the size of the test table)" in verdict.headline
    assert judge(figures(0.65, baseline=0.79, uncertainty=0.13)).standing == "loses"


@pytest.mark.parametrize("model", [0.785, 0.79, 0.799])
def test_a_model_within_the_margin_does_not_beat_the_baseline(model):
    verdict = judge(figures(model=model, baseline=0.79))
    assert verdict.standing == "level"
    assert "does not beat the baseline" in verdict.headline
    assert "cannot tell from chance" in " ".join(verdict.prediction)


def test_a_model_above_the_baseline_beats_it():
    verdict = judge(figures(model=0.85, baseline=0.79))
    assert verdict.standing == "wins"
    assert "beats the baseline" in verdict.headline


def test_real_and_baseline_figures_stand_beside_the_models():
    verdict = judge(figures(model=0.85, baseline=0.79, real=0.9))
    words = " ".join(verdict.prediction)
    for figure in ("0.850", "0.900", "0.790", "cost 0.050"):
        assert figure in words
    assert verdict.likeness[0].endswith("(real training rows: 2.0%; baseline: 5.0%).")


@pytest.mark.parametrize(
    ("real", "said"),
    [
        (0.84, "no cost that this test table could show"),
        (0.88, "no cost that this test table could show"),
        (0.80, "the synthetic rows cost nothing here"),
        (0.90, "the synthetic rows cost 0.050"),
    ],
)
def test_a_cost_within_the_interval_is_none_that_the_test_table_could_show(real, said):
    assert f"real training rows: {said}." in verdict_words(figures(0.85, 0.79, real, uncertainty=0.04))


def test_a_learner_with_which_the_baseline_does_better_is_named():
    values = figures(model=0.85, baseline=0.79)
    values["tstr"] = scores(0.85, rf=0.7, lr=0.8)
    assert "With a random forest the baseline does better." in verdict_words(values)


def test_a_learner_that_fails_on_real_rows_too_is_not_held_against_the_model():
    values = figures(model=0.85, baseline=0.79)
    values["tstr"], values["trtr"] = scores(0.85, lr=0.4), scores(0.9, lr=0.52)
    assert "logistic" not in verdict_words(values)


def test_scores_near_chance_are_said_to_be():
    assert "close to a coin toss" in verdict_words(figures(model=0.52, baseline=0.79))
    assert "can hardly be predicted even from real rows" in verdict_words(figures(0.52, 0.51, real=0.53))


def test_a_small_test_table_is_said_to_be_uncertain():
    assert "uncertain by about ±0.12" in verdict_words(figures(0.8, 0.7, uncertainty=0.12))
    assert "uncertain" not in verdict_words(figures(0.8, 0.7, uncertainty=0.004))


def test_without_a_training_table_nothing_is_compared():
    verdict = judge(figures(model=0.85, baseline=None))
    assert verdict.standing == "unknown"
    assert "no training table was given" in verdict.headline


@pytest.mark.parametrize(("error", "standing"), [(0.02, "wins"), (0.04, "level"), (0.09, "loses")])
def test_without_a_label_the_correlation_error_decides(error, standing):
    values = figures(model=0.85, baseline=0.79, correlation_mae=error)
    values["tstr"] = values["trtr"] = None
    verdict = judge(values)
    assert verdict.standing == standing
    assert "relations between columns" in verdict.headline
    assert verdict.prediction == ()


def with_codes(own: tuple[float, float | None], other: tuple[float, float | None] | None) -> dict[str, Any]:
    """Figures of a table with a column of codes. own, other: mean errors of prevalences and of pairs."""
    values = figures(model=0.85, baseline=None if other is None else 0.79)
    of = [
        {"dx": dict(zip(("mae", "pairs_mae"), pair or (0.1, 0.1), strict=True))} for pair in (own, other, (0.01, 0.01))
    ]
    values["codes"] = of[0]
    for key, codes in (("baseline", of[1]), ("floor", of[2])):
        if values[key] is not None:
            values[key]["codes"] = codes
    return values


@pytest.mark.parametrize(
    ("own", "other", "said"),
    [
        ((0.3, 0.1), (0.1, 0.3), "loses to the baseline in how frequent they are and beats the baseline in how often"),
        ((0.1, 0.3), (0.3, 0.1), "beats the baseline in how frequent they are and loses to the baseline in how often"),
        ((0.1, 0.1), (0.105, 0.095), "is level with the baseline in how frequent they are and is level with"),
        ((0.3, None), (0.1, None), "it loses to the baseline in how frequent they are."),
    ],
)
def test_a_model_whose_codes_lose_to_the_baseline_is_said_to_lose_in_the_headline(own, other, said):
    """Whatever the label says, of which a model may know more than of codes."""
    verdict = judge(with_codes(own, other))
    assert verdict.standing == "wins"
    assert said in verdict.headline


def test_errors_of_codes_stand_beside_the_baselines():
    likeness = " ".join(judge(with_codes((0.3, 0.2), (0.1, 0.4))).likeness)
    assert "codes of dx are off by 0.3 on average (real training rows: 0.01; baseline: 0.1)." in likeness
    assert "both of two codes of dx are off by 0.2 on average (real training rows: 0.01; baseline: 0.4)." in likeness


def test_the_error_of_what_occurs_together_stands_beside_that_of_independent_codes():
    values = with_codes((0.3, 0.2), (0.1, 0.4))
    for source, error in ((values, 0.4), (values["baseline"], 1.02), (values["floor"], None)):
        source["codes"]["dx"]["cooccurrence_error"] = error
    said = "a relative error of 0.4, where independent codes have about 1 (baseline: 1)."
    assert said in " ".join(judge(values).likeness)


def test_without_a_baseline_codes_are_not_compared():
    verdict = judge(with_codes((0.3, None), None))
    assert "codes of" not in verdict.headline
    assert verdict.likeness[2:] == ("Prevalences of the codes of dx are off by 0.3 on average.",)


def test_a_baseline_without_noise_is_called_so():
    assert "without noise" in judge(figures(0.7, 0.79, epsilon=math.inf)).headline


def verdict_words(values: dict[str, Any]) -> str:
    return " ".join(judge(values).prediction)
