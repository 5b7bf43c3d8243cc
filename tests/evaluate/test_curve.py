"""Utility against epsilon: what a curve holds, what it costs, and what of an earlier one is kept."""

import itertools
import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.errors import InputError
from dpcgan_fast.evaluate import CurveGrid, curve, curve_in, curve_secret, utility_curve
from dpcgan_fast.privacy import Mechanism, account
from dpcgan_fast.synthesis.anew import StatisticsAnew
from tests.evaluate.tables import patients, schema_of, shuffled_label
from tests.synthesis.code_runs import VOCABULARY, code_schema

TRAIN, TEST = patients(300, 1), patients(400, 2)
GRID = CurveGrid((0.5, 2.0, 8.0), 2)
OWN, UNITS, SECRET = 2.0, 320, b"of a folder"


@dataclass(frozen=True)
class Draws(StatisticsAnew):
    """Other real rows in the place of drawn ones, with the label torn off below `from_epsilon`, or else from it on."""

    from_epsilon: float = 1.0
    upwards: bool = True
    made: Any = None

    def draw(self, table, epsilon, rows):  # noqa: ARG002
        self.made.append(epsilon)
        drawn = patients(rows, 100 + len(self.made))
        return drawn if (epsilon >= self.from_epsilon) == self.upwards else shuffled_label(drawn, len(self.made))


def draws(**changes: Any) -> Draws:
    sampler: Any = None
    return replace(Draws(sampler, OWN, 1e-5, 2.2, UNITS, "a run", seeded=False, made=[]), **changes)


@pytest.fixture
def unscored(monkeypatch):
    """Scores that cost nothing, where a test looks at what is made and kept alone: 0.001, 0.002 and so on."""
    numbers = itertools.count(1)
    monkeypatch.setattr(
        curve, "_scores", lambda *_: {**dict.fromkeys(("auroc", "ap", "c2st_binned"), next(numbers) / 1000)}
    )


def whole(anew, before=None, grid=GRID, train=TRAIN, test=TEST, schema=None, secret=SECRET) -> dict[str, Any]:
    """The last of the curves, as it comes out of a file."""
    *_, last = utility_curve(anew, train, test, schema or schema_of(), grid, secret, before)
    return json.loads(json.dumps(last))


def test_a_point_has_the_scores_of_its_releases_their_means_and_intervals():
    found = whole(draws(), grid=CurveGrid((0.5, 2.0), 3))
    assert [point["epsilon"] for point in found["points"]] == [0.5, 2.0]
    assert found["private"] is False
    assert found["rows"] == UNITS
    for point in found["points"]:
        aurocs = [run["auroc"] for run in point["runs"]]
        assert len(aurocs) == 3
        assert point["auroc"]["mean"] == pytest.approx(np.mean(aurocs))
        assert point["auroc"]["half"] == pytest.approx(4.302653 * np.std(aurocs, ddof=1) / math.sqrt(3), rel=1e-6)
    assert found["points"][0]["auroc"]["mean"] < 0.7 < found["points"][1]["auroc"]["mean"]


def test_the_sentence_says_whether_means_rise_within_their_intervals():
    rising = whole(draws(), grid=CurveGrid((0.5, 2.0), 4))
    assert rising["gets_worse"]["auroc"] is None
    assert "it gets no worse as epsilon grows, within its intervals" in rising["sentences"][0]
    falling = whole(draws(upwards=False), grid=CurveGrid((0.5, 2.0), 4))
    assert falling["gets_worse"]["auroc"] == [0.5, 2.0]
    assert "it does not rise throughout: the mean at 0.5 is better than that at 2" in falling["sentences"][0]


@pytest.mark.parametrize(("releases", "apart", "told"), [(2, 0.001, False), (3, 0.001, True), (3, 0.1, False)])
def test_few_releases_or_wide_intervals_tell_nothing(monkeypatch, releases, apart, told):
    """Scores that differ by `apart` between releases, and do not get worse."""
    numbers = itertools.count()
    monkeypatch.setattr(
        curve, "_scores", lambda *_: dict.fromkeys(("auroc", "ap", "c2st_binned"), 0.5 + apart * (next(numbers) // 2))
    )
    found = whole(draws(), grid=CurveGrid((0.5, 2.0), releases))
    for sentence in found["sentences"][:2]:
        assert ("it gets no worse as epsilon grows, within its intervals" in sentence) is told
        assert ("there are too few releases to tell whether it gets worse" in sentence) is not told


def test_being_told_apart_is_better_when_it_falls():
    """Rows whose label is torn off are easier to tell from real ones."""
    rising, falling = (whole(draws(upwards=way), grid=CurveGrid((0.5, 2.0), 4)) for way in (True, False))
    assert rising["gets_worse"]["c2st_binned"] is None
    assert "it gets no worse as epsilon grows, within its intervals" in rising["sentences"][1]
    assert falling["points"][0]["c2st_binned"]["mean"] < falling["points"][1]["c2st_binned"]["mean"]


@pytest.mark.usefixtures("unscored")
def test_what_all_releases_cost_together_is_what_the_accountant_composes():
    anew = draws()
    found = whole(anew)
    made = [Mechanism("m", "gaussian", 1.0, anew.noise_multiplier(e), 2, 1.0) for e in GRID.epsilons]
    assert found["spent"] == pytest.approx(account(made, 1e-5).epsilon_pld, rel=1e-3)
    revealed = found["sentences"][-1]
    assert "Publishing the curve reveals more than the run: its 6 releases cost" in revealed
    assert f"an epsilon of {found['spent']:.3g} at delta 1e-05 on top of the run's 2" in revealed
    assert "Nothing protects the test rows" in revealed
    assert "nor the training rows in what is shown of these themselves" in revealed


@pytest.mark.usefixtures("unscored")
def test_the_epsilon_of_a_seeded_run_is_not_called_one_that_releases_come_on_top_of():
    revealed = whole(draws(seeded=True))["sentences"][-1]
    assert "beside a run that is not private: its noise follows from its seed" in revealed
    assert "on top of" not in revealed


def test_one_row_more_shows_in_nothing_but_what_is_drawn_and_a_key_that_tells_nobody_without_the_secret(monkeypatch):
    monkeypatch.setattr(curve, "_scores", lambda *_: dict.fromkeys(("auroc", "ap", "c2st_binned"), 0.5))
    without, with_one = (whole(draws(), train=table) for table in (TRAIN.slice(1), TRAIN))
    keys = {found.pop("key") for found in (without, with_one)}
    assert without == with_one
    keys |= {whole(draws(), train=TRAIN, secret=bytes([i]))["key"] for i in range(3)}
    assert len(keys) == 5


def test_the_secret_is_drawn_once_for_its_owner_alone(tmp_path):
    path, other = tmp_path / "curve.secret", tmp_path / "other"
    made = curve_secret(path)
    assert curve_secret(path) == made == path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert curve_secret(other) != made
    path.write_bytes(b"")
    assert len(curve_secret(path)) == len(made) == 32


@pytest.mark.usefixtures("unscored")
def test_releases_that_are_there_are_not_made_again():
    before = whole(draws())
    same, more = draws(), draws()
    assert whole(same, before) == before
    assert same.made == []
    added = whole(more, before, CurveGrid((2.0, 20.0), 3))
    assert sorted(more.made) == [2.0, 20.0, 20.0, 20.0]
    assert [len(point["runs"]) for point in added["points"]] == [2, 3, 2, 3], "what was not asked for again stays"
    assert added["points"][1]["runs"][:2] == before["points"][1]["runs"]
    assert added["spent"] > before["spent"]


@pytest.mark.usefixtures("unscored")
def test_a_curve_is_given_after_each_release_so_that_it_can_go_on():
    anew = draws()
    curves = utility_curve(anew, TRAIN, TEST, schema_of(), GRID, SECRET)
    stopped = [next(curves) for _ in range(4)][-1]
    assert anew.made == [0.5, 2.0, 8.0]
    rest = draws()
    ended = whole(rest, json.loads(json.dumps(stopped)))
    assert rest.made == [0.5, 2.0, 8.0]
    assert [len(point["runs"]) for point in ended["points"]] == [2, 2, 2]


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize(
    "other",
    [
        {"train": TRAIN.slice(1)}, {"train": shuffled_label(TRAIN)}, {"test": TEST.slice(1)}, {"anew": draws(run="b")},
        {"secret": b"of another folder"},
    ],
    ids=["fewer training rows", "other training rows", "other test rows", "another run", "another folder"],
)  # fmt: skip
def test_nothing_is_kept_of_another_run_table_or_folder(other):
    before = whole(draws())
    anew = other.get("anew", draws())
    anew.made.clear()
    whole(anew, before, **{name: value for name, value in other.items() if name != "anew"})
    assert len(anew.made) == 6


@pytest.mark.usefixtures("unscored")
@pytest.mark.parametrize(
    "damage",
    [lambda _: {}, lambda found: [found], lambda found: {**found, "points": [{"epsilon": 1.0}]}],
    ids=["nothing in it", "a list", "a point without scores"],
)
def test_an_earlier_curve_that_cannot_be_read_is_left(damage):
    anew = draws()
    whole(anew, damage(whole(draws())))
    assert len(anew.made) == 6


def test_the_curve_of_a_file_that_is_not_there_or_damaged_is_none(tmp_path):
    path = tmp_path / "metrics.json"
    assert curve_in(path) is None
    for text, found in (("{", None), ("[]", None), ("{}", None), ('{"curve": {"rows": 3}}', {"rows": 3})):
        path.write_text(text)
        assert curve_in(path) == found


def test_without_a_label_there_is_what_tells_rows_apart_alone():
    found = whole(draws(), schema=schema_of(label=None))
    assert found["points"][0]["auroc"] is None
    assert found["points"][0]["c2st_binned"]["mean"] > 0
    assert found["gets_worse"]["auroc"] is None
    assert len(found["sentences"]) == 2


def test_codes_are_judged_as_evaluation_sees_them():
    rng = np.random.default_rng(0)
    lists = [[code for code in VOCABULARY if rng.random() < 0.4] for _ in range(200)]
    table = pa.table({"patient": np.arange(200), "died": rng.integers(0, 2, 200), "dx": lists})

    class Same(Draws):
        def draw(self, table, epsilon, rows):  # noqa: ARG002
            return table.select(["died", "dx"]).slice(0, rows)

    schema, sampler = code_schema(VOCABULARY, ("died", "dx")), None
    found = whole(Same(sampler, OWN, 1e-5, 2.2, 200, "run", False, made=[]), train=table, test=table, schema=schema)  # type: ignore[arg-type]
    assert found["points"][0]["auroc"]["mean"] > 0.7, "it learned from the very rows that it is tested on"
    assert found["points"][0]["c2st_binned"]["mean"] <= 0.5


@pytest.mark.parametrize(
    "epsilons", [(), (1.0,), (1.0, 1.0), (2.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (1.0, math.inf)], ids=str
)
def test_epsilons_that_make_no_curve_are_refused(epsilons):
    with pytest.raises(InputError, match="These epsilons make no curve"):
        CurveGrid(epsilons)


def test_one_release_is_refused_and_the_default_lies_around_the_run():
    with pytest.raises(InputError, match="at least two releases"):
        CurveGrid((1.0, 2.0), 1)
    assert CurveGrid.around(3.0).epsilons == (0.3, 0.9, 3.0, 9.0, 30.0)
