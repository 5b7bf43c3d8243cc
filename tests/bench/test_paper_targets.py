"""Targets of the comparison: met, missed and not measured."""

import pytest

from dpcgan_fast.baselines import INDEPENDENT
from dpcgan_fast.bench.paper import targets
from dpcgan_fast.bench.paper.systems import AUTO, AUTO_MORE, CODES_AE, SYSTEMS, YARDSTICK
from dpcgan_fast.bench.paper.tables import CODES, TABLES
from dpcgan_fast.bench.paper.targets import (
    AUROC,
    COOCCURRENCE,
    EPSILONS,
    OUTCOME,
    TARGETS,
    Target,
    targets_markdown,
    verdict,
)


def cell(system=AUTO, data="cardio", epsilon=1.0, seed=0, auroc=0.5, split=0, **figures) -> dict:
    found = {"tstr": {"gb": {"auroc": auroc, "ap": 0.5}}, **figures}
    return {"data": data, "system": system, "epsilon": epsilon, "seed": seed, "split": split, "figures": found}


LEAST = Target("cardio", AUTO, AUROC, {1.0: 0.75})
MOST = Target(CODES, AUTO, OUTCOME, {1.0: 0.25})


@pytest.mark.parametrize(
    ("found", "standing", "by"),
    [((0.5, 1.0), "met", 0.0), ((0.75, 1.0), "met", 0.125), ((0.5, 0.75), "missed", 0.125), ((), "not measured", 0.0)],
)
def test_where_higher_is_better_the_mean_must_reach_the_target(found, standing, by):
    one = verdict(LEAST, [cell(seed=seed, auroc=auroc) for seed, auroc in enumerate(found)], 1.0)
    assert (one.standing, one.by, one.runs) == (standing, by, len(found))


@pytest.mark.parametrize(("gap", "standing", "by"), [(0.25, "met", 0.0), (0.125, "met", 0.125), (0.5, "missed", 0.25)])
def test_where_lower_is_better_the_mean_must_not_go_beyond_the_target(gap, standing, by):
    one = verdict(MOST, [cell(data=CODES, outcome_gap=gap)], 1.0)
    assert (one.standing, one.by) == (standing, by)


def test_other_tables_systems_and_epsilons_do_not_count():
    others = [cell(data="support2"), cell(YARDSTICK), cell(epsilon=10.0), cell("real", epsilon=None)]
    assert verdict(LEAST, others, 1.0).standing == "not measured"
    assert verdict(MOST, [cell(data=CODES)], 1.0).standing == "not measured", "nor a run without the figure"


def test_a_share_is_that_of_independent_codes_of_the_same_run():
    target = Target(CODES, AUTO, COOCCURRENCE, {1.0: 0.5})

    def runs(system, *errors, **more):
        return [cell(system, CODES, seed=seed, **{**more, "cooccurrence_error": e}) for seed, e in enumerate(errors)]

    def yardstick(seed, error):
        return cell(
            YARDSTICK, CODES, seed=seed, cooccurrence_error=9.0, each={INDEPENDENT: {"cooccurrence_error": error}}
        )

    cells = [*runs(AUTO, 0.25, 0.25), yardstick(0, 1.0), yardstick(1, 0.5)]
    one = verdict(target, cells, 1.0)
    assert one.found is not None
    assert one.found.mean == pytest.approx((0.25 + 0.5) / 2)
    assert verdict(target, cells[:3], 1.0).runs == 1, "a run whose yardstick is missing does not count"
    assert verdict(target, cells[:2], 1.0).standing == "not measured"


def test_targets_are_of_known_tables_and_systems():
    assert {target.data for target in TARGETS} <= set(TABLES)
    assert {target.system for target in TARGETS} <= set(SYSTEMS)
    assert all(set(target.limits) == set(EPSILONS) for target in TARGETS)
    for target in TARGETS:  # more epsilon, no easier target
        limits = [target.limits[epsilon] for epsilon in EPSILONS]
        assert limits == sorted(limits, reverse=not target.measure.higher)


# ---- what is shown


def test_every_target_is_shown_with_how_it_stands():
    cells = [
        *(cell(auroc=0.9, split=split) for split in range(3)), cell(epsilon=10.0, auroc=0.7),
        cell(epsilon=100.0, auroc=0.7989, split=1), cell("real", epsilon=None, auroc=0.95),
    ]  # fmt: skip
    text = "\n".join(targets_markdown(cells))
    assert (
        "| cardio | auto | AUROC | 0.900 ± 0.000 (≥ 0.792) ✓ met "
        "| 0.700 (≥ 0.797) ✗ missed by 0.097 on 1 of 3 splits "
        "| 0.799 (≥ 0.799) ✗ missed by less than 0.001 on 1 of 3 splits | 0.950 | 3 / 1 / 1 |" in text
    )
    assert f"| {CODES} | {CODES_AE} | prediction / real | not measured (≥ 0.270)" in text
    n_rows = [verdict(t, cells, e).standing for t in TARGETS for e in EPSILONS if t.system != AUTO_MORE]
    met, missed, left = (n_rows.count(standing) for standing in ("met", "missed", "not measured"))
    assert left == len(n_rows) - 6, "two measures at each epsilon"
    said = f": {met} of {len(n_rows)} met, {missed} missed, 0 of them by less than their ±, {left} not measured"
    assert f"{said} (met by `{AUTO}` {met} of 54, " in text


def test_a_target_that_is_missed_by_less_than_its_interval_is_counted_as_such():
    cells = [cell(auroc=auroc, seed=seed) for seed, auroc in enumerate((0.7, 0.8))]
    assert verdict(LEAST, cells, 1.0).standing == "met"
    close = Target("cardio", AUTO, AUROC, {1.0: 0.76})
    assert verdict(close, cells, 1.0).narrow
    assert not verdict(LEAST, cells, 1.0).narrow, "it is met"
    assert not verdict(close, cells[:1], 1.0).narrow, "a single run has no interval"
    assert not verdict(Target("cardio", AUTO, AUROC, {1.0: 2.0}), cells, 1.0).narrow


def test_more_rows_do_not_count_among_the_targets_for_as_many_rows():
    """A target that more rows meet is still missed with as many as there are training rows."""
    cells = [cell(auroc=0.7), cell(AUTO_MORE, auroc=0.9)]
    sentence = targets_markdown(cells)[0]
    assert "training rows: 0 of 78 met, 2 missed, 0 of them by less than their ±, 76 not measured (met by" in sentence
    assert "learn: 1 of 24 met, 1 missed, 0 of them by less than their ±, 22 not measured." in sentence


def test_the_purely_adversarial_systems_are_named():
    text = "\n".join(targets_markdown([]))
    assert all(f"| epileptic | {system} |" in text for system in targets.ADVERSARIAL)
