"""Utility against epsilon: the statistics of a run, released anew at several epsilons, and how good rows they make.

Rows are judged on real held-out rows, so that a curve, like all of evaluation, is not differentially private.
"""

import contextlib
import hashlib
import hmac
import json
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dp_accounting
import pyarrow as pa
import sklearn

import dpcgan_fast
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate.sides import Comparison
from dpcgan_fast.evaluate.spread import Spread, first_fall, spread
from dpcgan_fast.evaluate.two_sample import c2st
from dpcgan_fast.evaluate.utility import TRAINING_ROWS, check_test_table, predictions
from dpcgan_fast.files import write_whole
from dpcgan_fast.synthesis.anew import StatisticsAnew

RELEASES = 5  # at each epsilon, unless more or fewer are asked for
FACTORS = (0.1, 0.3, 1.0, 3.0, 10.0)  # of the run's own epsilon
_LEARNER = "gb"
# Of gradient boosting on the test rows; the last also tells the rows from them. By what is better: more, or less.
_BETTER = {"auroc": 1, "ap": 1, "c2st_binned": -1}
_SAID = (
    ("auroc", "The AUROC of gradient boosting", "rises"),
    ("c2st_binned", "The AUROC of telling rows from real ones (numbers in bins)", "falls"),
)
# That no mean falls beyond the intervals says nothing where these could hide a fall of that size: those of two releases
# are 9 standard deviations to each side (of three 2.5).
_FEWEST, _HIDDEN = 3, 0.2
_SECRET_BYTES = 32

Scores = dict[str, float | None]


@dataclass(frozen=True)
class CurveGrid:
    """What is asked for.

    epsilons: at least two, rising, finite
    releases: at each of them, at least two, since one has no interval

    Raises InputError if they are not.
    """

    epsilons: tuple[float, ...]
    releases: int = RELEASES

    def __post_init__(self) -> None:
        given = self.epsilons
        if len(given) < 2 or list(given) != sorted(set(given)) or not (given[0] > 0 and math.isfinite(given[-1])):
            asked = ",".join(f"{epsilon:g}" for epsilon in given)
            how = "Give at least two numbers above 0, rising, such as 0.5,1,3,10."
            raise InputError("These epsilons make no curve", f"curve, epsilons {asked}", how)
        if self.releases < 2:
            where = f"curve, releases {self.releases}"
            raise InputError("An interval takes at least two releases", where, "Give 2 or more.")

    @classmethod
    def around(cls, epsilon: float, releases: int = RELEASES) -> "CurveGrid":
        """From a tenth of an epsilon to ten times as much."""
        return cls(tuple(float(f"{factor * epsilon:.6g}") for factor in FACTORS), releases)


def curve_in(path: Path) -> Any:
    """The curve of an earlier metrics file, as it stands there; None if there is none to be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))["curve"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def curve_secret(path: Path) -> bytes:
    """What marks the tables of curves in a folder, from a file of its owner alone that is made where there is none.

    Raises MachineError if it cannot be written.
    """
    with contextlib.suppress(OSError):
        found = path.read_bytes()
        if len(found) == _SECRET_BYTES:
            return found
    made = secrets.token_bytes(_SECRET_BYTES)
    write_whole(path, made, private=True)
    return made


def utility_curve(
    anew: StatisticsAnew, train: pa.Table, test: pa.Table, schema: Schema, grid: CurveGrid, secret: bytes,
    before: Any = None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """The curve as JSON values: at once what was there before, then again after each release; the last one is whole.

    train, test: real rows, the former with the unit's column if the schema has one
    schema:      the run's own, with released values in place of "private" ones
    secret:      see `curve_secret`; without it nobody can tell of a curve whether it was made from some tables
    before:      an earlier curve: what it has of the same run, tables and versions is kept and not made again, if the
                 secret is the same

    A curve is {"private": False, "delta", "own_epsilon", "rows", "points", "gets_worse", "sentences", "spent", "key"}.
    points: by rising epsilon {"epsilon", "noise_multiplier", "runs", "auroc", "ap", "c2st_binned"}; runs are scores of
            single releases, the others {"mean", "half"} of them; null without a label, or with too few rows
    gets_worse: by score, the epsilons of the first mean that is better than one at a greater epsilon, beyond both
            half-widths together; null where there is none
    spent:  epsilon that all releases of the curve together cost the training rows, at the same delta
    rows:   of each draw, from the public or paid number of units: how many rows there are would tell of one more
    key:    what points can be kept for

    Raises InputError if a table does not fit the schema, or the test table is empty or has one class.
    """
    comparison = Comparison.with_real(test, schema)
    real = comparison.real.wide
    check_test_table(real, comparison.wide)
    rows = max(1, min(round(anew.units), TRAINING_ROWS))
    key = _key(anew, train, test, rows, secret)
    runs = _kept(before, key)
    for epsilon in grid.epsilons:
        runs.setdefault(epsilon, [])
    yield _curve(anew, rows, key, runs)
    for release in range(grid.releases):
        for epsilon in grid.epsilons:
            if len(runs[epsilon]) > release:
                continue
            drawn = comparison.side(anew.draw(train, epsilon, rows), "synthetic rows", synthetic=True)
            runs[epsilon].append(_scores(drawn.wide, real, comparison.wide))
            yield _curve(anew, rows, key, runs)


def _scores(drawn: pa.Table, test: pa.Table, schema: Schema) -> Scores:
    predicted = predictions(drawn, test, schema, (_LEARNER,))
    learned: Mapping[str, float | None] = {} if predicted is None else predicted.scores()[_LEARNER]
    found = {**learned, "c2st_binned": c2st(drawn, test, schema, binned=True)}
    return {name: found.get(name) for name in _BETTER}


def _key(anew: StatisticsAnew, train: pa.Table, test: pa.Table, rows: int, secret: bytes) -> str:
    """Differs wherever a release or a score would be of another kind.

    A plain hash would tell whoever knows all rows but one whether that one is there.
    """
    about = f"{anew.run} {rows} {dpcgan_fast.__version__} {sklearn.__version__}"
    hashed = hmac.new(secret, about.encode(), hashlib.sha256)
    for table in (train, test):
        hashed.update(table.schema.serialize())
        for batch in table.to_batches():
            hashed.update(batch.serialize())
    return hashed.hexdigest()


def _kept(before: Any, key: str) -> dict[float, list[Scores]]:
    """Scores of an earlier curve by epsilon; none if it is of something else, or no curve."""
    try:
        if before["key"] != key:
            return {}
        return {
            float(point["epsilon"]): [
                {name: None if run[name] is None else float(run[name]) for name in _BETTER} for run in point["runs"]
            ]
            for point in before["points"]
        }
    except (KeyError, TypeError, ValueError):
        return {}


def _curve(anew: StatisticsAnew, rows: int, key: str, runs: Mapping[float, Sequence[Scores]]) -> dict[str, Any]:
    epsilons = sorted(runs)
    means = {name: [_mean(runs[epsilon], name) for epsilon in epsilons] for name in _BETTER}
    points = [
        {
            "epsilon": epsilon,
            "noise_multiplier": anew.noise_multiplier(epsilon),
            "runs": list(runs[epsilon]),
            **{name: _values(found[place]) for name, found in means.items()},
        }
        for place, epsilon in enumerate(epsilons)
    ]
    falls = {name: _fall(epsilons, found, _BETTER[name]) for name, found in means.items()}
    spent = _spent(points, anew.delta)
    return {
        "private": False,
        "delta": anew.delta,
        "own_epsilon": anew.epsilon,
        "rows": rows,
        "points": points,
        "gets_worse": falls,
        "sentences": [
            *(
                _said(what, way, points, means[name], falls[name], _BETTER[name])
                for name, what, way in _SAID
                if all(means[name])
            ),
            _revealed(anew, spent, sum(map(len, runs.values()))),
        ],
        "spent": spent,
        "key": key,
    }


def _mean(runs: Sequence[Scores], name: str) -> Spread | None:
    return spread([score for run in runs if (score := run[name]) is not None])


def _values(mean: Spread | None) -> dict[str, float | None] | None:
    return None if mean is None else asdict(mean)


def _fall(epsilons: Sequence[float], means: Sequence[Spread | None], better: int) -> list[float] | None:
    measured = [(epsilon, mean) for epsilon, mean in zip(epsilons, means, strict=True) if mean is not None]
    found = first_fall([Spread(better * mean.mean, mean.half) for _, mean in measured])
    return None if found is None else [measured[place][0] for place in found]


def _spent(points: Sequence[Mapping[str, Any]], delta: float) -> float:
    """Gaussian releases compose to one whose 1 / noise_multiplier^2 is the sum of theirs: no approximation.

    Source: Dong, Roth and Su, arXiv 1905.02383, corollary 3.3; epsilon of one release: arXiv 1805.06530, theorem 8.
    """
    whole = sum(len(point["runs"]) / point["noise_multiplier"] ** 2 for point in points)
    return float(dp_accounting.get_epsilon_gaussian(1 / math.sqrt(whole), delta)) if whole else 0.0


def _said(
    what: str, way: str, points: Sequence[Mapping[str, Any]], means: Sequence[Spread | None], fall: list[float] | None,
    better: int,
) -> str:  # fmt: skip
    first, last = (f"{mean.text(3)} at epsilon {points[i]['epsilon']:g}" for i in (0, -1) if (mean := means[i]))
    beyond = "by more than both half-widths together"
    if fall is not None:
        lower, upper = fall
        falls = f"the mean at {lower:g} is better than that at {upper:g}"
        how = f"it does not {way.removesuffix('s')} throughout: {falls} {beyond}"
    elif _cannot_tell(points, means, better):
        how = "there are too few releases to tell whether it gets worse as epsilon grows"
    else:
        # Means may go the other way by less than their intervals: "rises" would contradict the numbers beside it.
        how = "it gets no worse as epsilon grows, within its intervals: no mean is better than one at a greater epsilon"
        how = f"{how} {beyond}"
    return f"{what} goes from {first} to {last}; {how}."


def _cannot_tell(points: Sequence[Mapping[str, Any]], means: Sequence[Spread | None], better: int) -> bool:
    """Whether there are too few releases for it to mean anything that no mean falls. better: 1, or -1 where less is"""
    if min(len(point["runs"]) for point in points) < _FEWEST:
        return True
    ends = [(better * one.mean - (one.half or 0.0), better * one.mean + (one.half or 0.0)) for one in means if one]
    falls = (highest - lowest for i, (_, highest) in enumerate(ends) for lowest, _ in ends[i + 1 :])
    return max(falls, default=0.0) > _HIDDEN


def _revealed(anew: StatisticsAnew, spent: float, releases: int) -> str:
    if anew.seeded:
        beside = "beside a run that is not private: its noise follows from its seed"
    else:
        beside = f"on top of the run's {anew.epsilon:g}"
    return (
        f"Publishing the curve reveals more than the run: its {releases} releases cost the training rows an epsilon of "
        f"{spent:.3g} at delta {anew.delta:g} {beside}, and no ledger has them. Nothing "
        "protects the test rows, on which its figures are computed, nor the training rows in what is shown of these "
        "themselves beside it."
    )
