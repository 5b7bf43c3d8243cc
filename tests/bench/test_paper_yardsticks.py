"""`auto` beside the baselines of equal epsilon, and each of these on its own."""

import pytest

from dpcgan_fast.bench.paper.systems import AUTO, YARDSTICK
from dpcgan_fast.bench.paper.tables import CODES, FIVE_CLASSES
from dpcgan_fast.bench.paper.yardsticks import compared, yardsticks_markdown

ONE, OTHER = "one baseline", "another baseline"


def runs(system, *aurocs, data="cardio", each=None, **figures) -> list[dict]:
    """Runs of seeds 0, 1, ...; each: AUROC of a yardstick's baselines, by name, run by run, by default of one"""
    cells = []
    for seed, auroc in enumerate(aurocs):
        found = {"tstr": {"gb": {"auroc": auroc, "ap": 0.5}}, **{name: own[seed] for name, own in figures.items()}}
        if system == YARDSTICK:
            found["each"] = {name: {"auroc": own[seed]} for name, own in (each or {ONE: aurocs}).items()}
        cells.append({"data": data, "system": system, "epsilon": 1.0, "seed": seed, "split": 0, "figures": found})
    return cells


@pytest.mark.parametrize(
    ("auto", "yardstick", "at_least"),
    [
        ((0.80, 0.81), (0.70, 0.71), True),
        ((0.70, 0.80), (0.75, 0.85), True),  # not disjoint
        ((0.700, 0.701), (0.800, 0.801), False),
        ((0.9,), (0.8, 0.81), None),  # a single run has no interval
    ],
)
def test_at_least_as_good_is_not_less_with_disjoint_intervals(auto, yardstick, at_least):
    assert compared([*runs(AUTO, *auto), *runs(YARDSTICK, *yardstick)], "cardio", 1.0).at_least is at_least


def test_the_best_baseline_is_that_of_the_highest_mean_and_not_the_luckiest_of_each_run():
    each = {ONE: (0.6, 0.8, 0.7), OTHER: (0.8, 0.6, 0.76)}
    found = compared([*runs(AUTO, 0.7, 0.7, 0.7), *runs(YARDSTICK, 0.8, 0.8, 0.76, each=each)], "cardio", 1.0)
    assert found.best == OTHER
    assert found.yardstick is not None
    assert found.yardstick.mean == pytest.approx(0.72)
    assert found.at_least


def test_pairs_of_runs_take_out_how_hard_a_split_is():
    """Their means are the same, and their intervals wide, but in each pair `auto` is 0.01 better."""
    auto, yardstick = runs(AUTO, 0.71, 0.91), runs(YARDSTICK, 0.70, 0.90)
    for cell in (auto[1], yardstick[1]):
        cell.update(seed=0, split=1)
    found = compared([*auto, *yardstick], "cardio", 1.0)
    assert found.at_least
    assert found.gain is not None
    assert found.gain.mean == pytest.approx(0.01)
    assert found.gain.half == pytest.approx(0.0, abs=1e-9)
    alone = compared([*auto, yardstick[0]], "cardio", 1.0).gain
    assert alone is not None
    assert alone.half is None, "a run without its pair does not count"


def test_without_a_baseline_nothing_is_compared():
    found = compared(runs(AUTO, 0.7, 0.7), "cardio", 1.0)
    assert (found.best, found.yardstick, found.at_least, found.gain) == ("", None, None, None)


def test_structure_is_better_or_worse_where_intervals_are_disjoint():
    auto = runs(AUTO, 0.8, 0.8, pairs_tv_mean=(0.01, 0.011), c2st_quantiles=(0.9, 0.91), c2st=(0.5, 0.51))
    yardstick = runs(YARDSTICK, 0.8, 0.8, pairs_tv_mean=(0.05, 0.051), c2st_quantiles=(0.6, 0.61), c2st=(0.9, 0.91))
    found = compared([*auto, *yardstick], "cardio", 1.0)
    assert found.better == ("pairs of columns",)
    assert found.worse == ("told apart by 20 quantile bins",), "which goes before the exact values"
    assert compared([*auto, *auto], "cardio", 1.0).better == ()


def test_the_auroc_of_five_classes_counts_as_structure():
    cells = [*runs(AUTO, 0.80, 0.81, data=FIVE_CLASSES), *runs(YARDSTICK, 0.60, 0.61, data=FIVE_CLASSES)]
    assert compared(cells, FIVE_CLASSES, 1.0).better == ("AUROC",)
    two = [{**one, "data": "epileptic"} for one in cells]
    assert compared(two, "epileptic", 1.0).better == ()


def test_auto_is_shown_beside_the_best_baseline_and_each_on_its_own():
    each = {ONE: (0.25, 0.25), OTHER: (0.5, 0.5)}
    text = "\n".join(yardsticks_markdown([*runs(AUTO, 0.9, 0.9), *runs(YARDSTICK, 0.5, 0.5, each=each)]))
    assert f"| cardio | 1 | 0.900 ± 0.000 | 0.500 ± 0.000 | {OTHER} | no | 0.4000 ± 0.0000 | - | - |" in text
    assert "| support2 | 1 | - | - | - | not measured | - | - | - |" in text
    assert f"| cardio | {ONE} | 0.250 ± 0.000 | - | - | 2 / 0 / 0 |" in text
    assert f"| cardio | {OTHER} | 0.500 ± 0.000 | - | - | 2 / 0 / 0 |" in text


def test_baselines_of_codes_have_their_error_of_co_occurrence_beside_the_auroc():
    cells = runs(YARDSTICK, 0.75, data=CODES)
    cells[0]["figures"]["each"][ONE]["cooccurrence_error"] = 0.125
    assert f"| {CODES} | {ONE} | 0.750 / 0.125 | - / - | - / - | 1 / 0 / 0 |" in "\n".join(yardsticks_markdown(cells))
