"""The comparison beside its targets: whether each is met.

Targets are those of the project, for means over 5 noise seeds and 3 splits; AUROC, average precision and accuracy are
those of gradient boosting, trained on synthetic and tested on real rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dpcgan_fast.baselines import INDEPENDENT
from dpcgan_fast.bench.paper.cells import REAL
from dpcgan_fast.bench.paper.spreads import Known, figure_of, known, runs_of, spread_of, spread_over
from dpcgan_fast.bench.paper.systems import AUTO, AUTO_MORE, CODES_AE, TIMES, YARDSTICK
from dpcgan_fast.bench.paper.tables import CODES, FIVE_CLASSES
from dpcgan_fast.bench.table import table
from dpcgan_fast.evaluate.spread import Spread

EPSILONS = (1.0, 10.0, 100.0)
SPLITS = 3  # that a target is for
ADVERSARIAL = ("rdpcgan-no-ae", "rdpcgan-recipe", "conv-no-ae")  # purely: nothing but class rates beside the critic
Standing = Literal["met", "missed", "not measured"]


@dataclass(frozen=True)
class Measure:
    """A figure of a cell.

    path:    where it stands in the cell
    higher:  whether more is better
    over:    where in the cell of the yardstick of the same epsilon, seed and split the figure stands that it is a share
             of; none for the figure itself
    """

    name: str
    path: tuple[str, ...]
    higher: bool = False
    over: tuple[str, ...] = ()


AUROC = Measure("AUROC", ("tstr", "gb", "auroc"), higher=True)
AP = Measure("average precision", ("tstr", "gb", "ap"), higher=True)
ACCURACY = Measure("accuracy", ("tstr", "gb", "accuracy"), higher=True)
SIGNALS = Measure("signals told apart", ("c2st_signals",))
CORRELATIONS = Measure("correlations: error", ("correlation_mae",))
QUANTILES = Measure("told apart by 20 quantile bins", ("c2st_quantiles",))
COOCCURRENCE = Measure(
    "co-occurrence error / independent codes'",
    ("cooccurrence_error",),
    over=("each", INDEPENDENT, "cooccurrence_error"),
)
PREDICTION = Measure("prediction / real", ("dimension_prediction", "ratio"), higher=True)
OUTCOME = Measure("outcome from all codes: AUROC short of real", ("outcome_gap",))
VIOLATED = Measure("violated implications", ("violated_implications",))
LARGE = Measure("told apart, large test", ("c2st_large",))


@dataclass(frozen=True)
class Target:
    """limits: by epsilon, the least that will do where higher is better, else the most"""

    data: str
    system: str
    measure: Measure
    limits: Mapping[float, float]


def _target(data: str, system: str, measure: Measure, *limits: float) -> Target:
    return Target(data, system, measure, dict(zip(EPSILONS, limits, strict=True)))


def _of_rows(data: str, measure: Measure, *limits: float) -> tuple[Target, Target]:
    """Of what classifiers learn, which more rows can change: for as many rows as there are training rows, and more."""
    return _target(data, AUTO, measure, *limits), _target(data, AUTO_MORE, measure, *limits)


TARGETS = (
    *_of_rows("epileptic", AUROC, 0.993, 0.994, 0.995),
    *_of_rows("epileptic", AP, 0.975, 0.979, 0.981),
    *_of_rows(FIVE_CLASSES, ACCURACY, 0.61, 0.63, 0.64),
    *_of_rows(FIVE_CLASSES, AUROC, 0.87, 0.885, 0.89),
    _target(FIVE_CLASSES, AUTO, SIGNALS, 0.78, 0.70, 0.64),
    *(
        target
        for system in ADVERSARIAL
        for target in (
            _target("epileptic", system, AUROC, 0.90, 0.96, 0.975),
            _target("epileptic", system, AP, 0.70, 0.84, 0.90),
        )
    ),
    *_of_rows("cardio", AUROC, 0.792, 0.797, 0.799),
    *_of_rows("cardio", AP, 0.770, 0.776, 0.779),
    *_of_rows("support2", AUROC, 0.800, 0.808, 0.813),
    *_of_rows("support2", AP, 0.575, 0.595, 0.610),
    _target("cardio", AUTO, CORRELATIONS, 0.040, 0.030, 0.025),
    _target("cardio", AUTO, QUANTILES, 0.78, 0.70, 0.62),
    _target("support2", AUTO, CORRELATIONS, 0.045, 0.038, 0.032),
    _target("support2", AUTO, QUANTILES, 0.90, 0.80, 0.72),
    _target(CODES, AUTO, COOCCURRENCE, 0.37, 0.28, 0.26),
    _target(CODES, AUTO, PREDICTION, 0.33, 0.80, 0.91),
    _target(CODES, AUTO, OUTCOME, 0.024, 0.010, 0.004),
    _target(CODES, AUTO, VIOLATED, 0.35, 0.13, 0.08),
    _target(CODES, AUTO, LARGE, 0.80, 0.64, 0.60),
    _target(CODES, CODES_AE, COOCCURRENCE, 0.38, 0.30, 0.28),
    _target(CODES, CODES_AE, PREDICTION, 0.27, 0.75, 0.87),
)


@dataclass(frozen=True)
class Verdict:
    """A target at one epsilon.

    found: over so many runs, on so many splits; by: how far the mean is from the limit, for worse if missed
    """

    standing: Standing
    limit: float
    found: Spread | None = None
    runs: int = 0
    splits: int = 0
    by: float = 0.0

    @property
    def narrow(self) -> bool:
        """Whether it is missed by less than half its interval."""
        return self.standing == "missed" and self.found is not None and self.by < (self.found.half or 0.0)


def measured(
    cells: Sequence[dict[str, Any]], data: str, system: str, epsilon: float | None, measure: Measure
) -> list[Known]:
    """A measure of every run that has it; a share, of every run with a yardstick of the same seed and split."""
    runs = runs_of(cells, data, system, epsilon)
    if not measure.over:
        return known(runs, measure.path)
    whole = {
        (run["seed"], run["split"]): figure_of(run, measure.over) for run in runs_of(cells, data, YARDSTICK, epsilon)
    }
    pairs = [(run["seed"], figure_of(run, measure.path), whole.get((run["seed"], run["split"]))) for run in runs]
    return [(seed, value / of) for seed, value, of in pairs if value is not None and of]


def verdict(target: Target, cells: Sequence[dict[str, Any]], epsilon: float) -> Verdict:
    """Whether the mean over the runs that there are meets the target."""
    limit = target.limits[epsilon]
    values = measured(cells, target.data, target.system, epsilon, target.measure)
    found = spread_over(values)
    if found is None:
        return Verdict("not measured", limit)
    beyond = found.mean - limit if target.measure.higher else limit - found.mean
    runs = runs_of(cells, target.data, target.system, epsilon)
    splits = len({run["split"] for run in runs if figure_of(run, target.measure.path) is not None})
    return Verdict("met" if beyond >= 0 else "missed", limit, found, len(values), splits, abs(beyond))


def _said(one: Verdict, higher: bool) -> str:
    limit = f"({'≥' if higher else '≤'} {one.limit:.3f})"
    if one.found is None:
        return f"not measured {limit}"
    by = f"by {one.by:.3f}" if one.by >= 0.0005 else "by less than 0.001"
    where = f" on {one.splits} of {SPLITS} splits" if one.splits < SPLITS else ""
    return f"{one.found.text(3)} {limit} {'✓ met' if one.standing == 'met' else f'✗ missed {by}'}{where}"


def _real(cells: Sequence[dict[str, Any]], target: Target) -> str:
    found = None if target.measure.over else spread_of(runs_of(cells, target.data, REAL, None), target.measure.path)
    return "-" if found is None else found.text(3)


def _counts(verdicts: Sequence[Verdict]) -> str:
    standings = [one.standing for one in verdicts]
    met, missed, left = (standings.count(standing) for standing in ("met", "missed", "not measured"))
    narrow = sum(one.narrow for one in verdicts)
    return f"{met} of {len(verdicts)} met, {missed} missed, {narrow} of them by less than their ±, {left} not measured"


def _of_targets(cells: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """Numbers of targets by standing, in words, and the table."""
    rows: list[list[str]] = []
    of_systems: dict[str, list[Verdict]] = {}
    for target in TARGETS:
        verdicts = [verdict(target, cells, epsilon) for epsilon in EPSILONS]
        of_systems.setdefault(target.system, []).extend(verdicts)
        said = [_said(one, target.measure.higher) for one in verdicts]
        runs = " / ".join(str(one.runs) for one in verdicts)
        rows.append([target.data, target.system, target.measure.name, *said, _real(cells, target), runs])
    with_more = of_systems.pop(AUTO_MORE)
    met = {name: sum(one.standing == "met" for one in own) for name, own in of_systems.items()}
    by_system = ", ".join(f"`{name}` {met[name]} of {len(own)}" for name, own in of_systems.items())
    as_many = [one for own in of_systems.values() for one in own]
    sentence = (
        f"With as many rows as there are training rows: {_counts(as_many)} (met by {by_system}). "
        f"With {TIMES} times as many, `{AUTO_MORE}`, of those for what classifiers learn: {_counts(with_more)}."
    )
    heads = [f"epsilon {epsilon:g}" for epsilon in EPSILONS]
    runs_at = f"runs at {' / '.join(f'{epsilon:g}' for epsilon in EPSILONS)}"
    return sentence, table(["table", "rows of", "measure", *heads, "real rows", runs_at], rows)


def targets_markdown(cells: Sequence[dict[str, Any]]) -> list[str]:
    """A paragraph and a table: each target beside what was measured."""
    sentence, of_targets = _of_targets(cells)
    return [
        f"{sentence} A target is for the mean over 5 noise seeds and 3 splits, 15 runs; it is met if the mean over the "
        "runs that there are meets it. All purely adversarial systems stand beside the target for them: "
        f"`{ADVERSARIAL[0]}` has the published networks and settings, `{ADVERSARIAL[1]}` these networks by our recipe, "
        f"`{ADVERSARIAL[2]}` those of preset `auto` by the same recipe. "
        f"Of what classifiers learn from rows of `auto`, `{AUTO_MORE}` shows what {TIMES} times as many are worth. "
        f"`{CODES_AE}` is `auto` with clusters of codes by a convolutional autoencoder. Independent codes are the "
        f"baseline `{INDEPENDENT}` in the yardstick's run of the same epsilon, seed and split.\n",
        of_targets,
    ]


def standings_sentence(cells: Sequence[dict[str, Any]]) -> str:
    """How many targets are met, in words."""
    return _of_targets(cells)[0]


def headline_markdown(results: dict[str, Any]) -> str:
    """How many targets are met, and the table of all of them, for the page on utility."""
    sentence, of_targets = _of_targets(results["cells"])
    return f"{sentence}\n\n{of_targets}"
