"""How preset `auto` stands to the baselines of equal epsilon, and what each of these gives on its own.

A baseline of more parts than another has what that one has, so that the table of all of them is the ablation of the
statistics that `auto` draws its rows from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpcgan_fast.baselines import INDEPENDENT
from dpcgan_fast.bench.paper.spreads import Known, figure_of, runs_of, spread_over
from dpcgan_fast.bench.paper.systems import AUTO, YARDSTICK
from dpcgan_fast.bench.paper.tables import CODES, FIVE_CLASSES, TABLES
from dpcgan_fast.bench.paper.targets import AUROC, EPSILONS, LARGE, QUANTILES, SIGNALS, Measure, measured
from dpcgan_fast.bench.table import table
from dpcgan_fast.evaluate.spread import Spread

_PAIRS = Measure("pairs of columns", ("pairs_tv_mean",))
_TOLD_APART = Measure("told apart", ("c2st",))
_ALONE = ("auroc", "cooccurrence_error")  # of a baseline
_EACH = "each"  # of a yardstick's figures: those of all baselines, by their names


@dataclass(frozen=True)
class Comparison:
    """How `auto` stands to the best baseline of equal epsilon on one table.

    best:     the baseline of the highest mean AUROC over its runs, "" where none was measured; yardstick: that mean
    at_least: whether the AUROC of `auto` is not less with disjoint intervals; None where one of them has no interval
    gain:     AUROC of `auto` less that of the baseline, over pairs of runs of the same seed and split
    better:   measures of structure by which it is better, with disjoint intervals; worse: likewise
    """

    auroc: Spread | None
    best: str
    yardstick: Spread | None
    at_least: bool | None
    gain: Spread | None
    better: tuple[str, ...]
    worse: tuple[str, ...]


def _paired(cells: Sequence[dict[str, Any]], data: str, epsilon: float, best: str) -> Spread | None:
    """By how much the AUROC of `auto` is above a baseline's: real rows of a split are as hard for both."""
    yardsticks = runs_of(cells, data, YARDSTICK, epsilon)
    others = {(run["seed"], run["split"]): figure_of(run, (_EACH, best, "auroc")) for run in yardsticks}
    pairs = [
        (run["seed"], figure_of(run, AUROC.path), others.get((run["seed"], run["split"])))
        for run in runs_of(cells, data, AUTO, epsilon)
    ]
    return spread_over([(seed, own - of) for seed, own, of in pairs if own is not None and of is not None])


def alone(cells: Sequence[dict[str, Any]], data: str, epsilon: float, score: str) -> dict[str, list[Known]]:
    """A score of every baseline in each run of the yardstick that has it, with the run's seed.

    score: "auroc", "ap", "accuracy" or "cooccurrence_error"
    """
    found: dict[str, list[Known]] = {}
    for run in runs_of(cells, data, YARDSTICK, epsilon):
        for name in run["figures"].get(_EACH, {}):
            value = figure_of(run, (_EACH, name, score))
            if value is not None:
                found.setdefault(name, []).append((run["seed"], value))
    return found


def compared(cells: Sequence[dict[str, Any]], data: str, epsilon: float) -> Comparison:
    """Looks at the AUROC; for better and worse, at pairs of columns, one two-sample test and the AUROC of five classes.

    The baseline is the one that is best in the mean over its runs. The best of each run, whose structure is compared,
    was chosen by the test rows: where these are few, its AUROC is the luckiest of several draws.
    The test is the first that both have of the large one of codes, that of signals, that by quantile bins, and the
    small one. Measures of a single run have no interval, and count as neither better nor worse.
    """

    def both(measure: Measure) -> tuple[Spread | None, Spread | None]:
        auto, other = (spread_over(measured(cells, data, system, epsilon, measure)) for system in (AUTO, YARDSTICK))
        return auto, other

    means = {name: one for name, values in alone(cells, data, epsilon, "auroc").items() if (one := spread_over(values))}
    best = max(means, key=lambda name: means[name].mean, default="")
    auto, yardstick = spread_over(measured(cells, data, AUTO, epsilon, AUROC)), means.get(best)
    gain = _gain(auto, yardstick, higher=True)
    tests = (measure for measure in (LARGE, SIGNALS, QUANTILES, _TOLD_APART) if None not in both(measure))
    structure = [_PAIRS, *([test] if (test := next(tests, None)) else [])]
    gains = {measure.name: _gain(*both(measure), measure.higher) for measure in structure}
    if data == FIVE_CLASSES:
        gains[AUROC.name] = gain
    return Comparison(
        auto, best, yardstick, None if gain is None else gain >= 0, _paired(cells, data, epsilon, best),
        tuple(name for name, one in gains.items() if one == 1), tuple(name for name, one in gains.items() if one == -1),
    )  # fmt: skip


def _gain(auto: Spread | None, other: Spread | None, higher: bool) -> int | None:
    """1 if the first is better with disjoint intervals, -1 if worse, 0 if these touch; None without intervals."""
    if auto is None or other is None or auto.half is None or other.half is None:
        return None
    apart = abs(auto.mean - other.mean) > auto.half + other.half
    return 0 if not apart else 1 if (auto.mean > other.mean) == higher else -1


def _of_best(cells: Sequence[dict[str, Any]]) -> str:
    rows = []
    for data in TABLES:
        for epsilon in EPSILONS:
            one = compared(cells, data, epsilon)
            if one.auroc is None or one.yardstick is None:
                rows.append([data, f"{epsilon:g}", "-", "-", "-", "not measured", "-", "-", "-"])
                continue
            less = "no intervals" if one.at_least is None else "no" if one.at_least else "yes"
            gain = "-" if one.gain is None else one.gain.text(4)
            rows.append([
                data, f"{epsilon:g}", one.auroc.text(3), one.yardstick.text(3), one.best, less, gain,
                ", ".join(one.better) or "-", ", ".join(one.worse) or "-",
            ])  # fmt: skip
    head = ["table", "epsilon", "AUROC of auto", "of the baseline", "which is", "less with disjoint intervals",
            "by pairs of runs", "better by", "worse by"]  # fmt: skip
    return table(head, rows)


def _of_each(cells: Sequence[dict[str, Any]]) -> str:
    """AUROC of every baseline; of codes, their error of co-occurrence after it."""
    rows = []
    for data in TABLES:
        aurocs, errors = ([alone(cells, data, epsilon, score) for epsilon in EPSILONS] for score in _ALONE)
        for name in dict.fromkeys(name for own in aurocs for name in own):
            texts = [
                " / ".join(_text(scores.get(name, [])) for scores in ((auroc, error) if data == CODES else (auroc,)))
                for auroc, error in zip(aurocs, errors, strict=True)
            ]
            runs = " / ".join(str(len(auroc.get(name, []))) for auroc in aurocs)
            rows.append([data, name, *texts, runs])
    return table(["table", "baseline", *(f"epsilon {epsilon:g}" for epsilon in EPSILONS), "runs"], rows)


def _text(values: Sequence[Known]) -> str:
    found = spread_over(values)
    return "-" if found is None else found.text(3)


def yardsticks_markdown(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Paragraphs and tables: `auto` beside the best baseline of equal epsilon, and each baseline on its own."""
    return [
        "`auto` beside the best baseline of equal epsilon, the one of the highest mean AUROC: whether the AUROC of "
        "gradient boosting is less with disjoint 95 % intervals, and by how much it is more in pairs of runs of one "
        "seed and split, in whose differences it cancels how hard a split is; better, or worse, by what differs "
        "with disjoint intervals from the rows of `yardstick`, of the distance of pairs of columns and one two-sample "
        "test, and with five classes the AUROC. Where `auto` draws rows from the very statistic that is the best "
        "baseline, they differ by noise, and by the little of the budget that networks keep.\n",
        _of_best(cells),
        "Each baseline on its own, with the whole epsilon: AUROC of gradient boosting; of codes, also the error of "
        f"co-occurrence. `{INDEPENDENT}` know of columns and classes alone; the others have more parts, so that what a "
        "part earns can be read here.\n",
        _of_each(cells),
    ]
