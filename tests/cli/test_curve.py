"""`dpcgan evaluate --curve`: what it writes and prints, how it goes on, and what it refuses."""

import json
import re
import shutil

import pyarrow.csv
import pytest

from dpcgan_fast import DPCGAN
from dpcgan_fast.cli import run, using
from dpcgan_fast.synthesis.anew import StatisticsAnew
from tests.synthesis.code_runs import quick_runs
from tests.synthesis.runs import model_of
from tests.tables import make_table

CURVE = ["--curve", "--curve-epsilons", "1,9", "--curve-releases", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with tables and two runs: one draws rows from statistics, the other from networks."""
    folder = tmp_path_factory.mktemp("curve")
    for name, table in (("train", make_table()), ("test", make_table(200, seed=1))):
        pyarrow.csv.write_csv(table, folder / f"{name}.csv")
    with quick_runs():
        model_of().fit(make_table(), folder / "run")
        model_of(statistics=False).fit(make_table(), folder / "networks")
    return folder


def evaluated(place, out, *options, name="run", train=True) -> int:
    given = ["evaluate", place / name, "--real", place / "test.csv", "--out", out, *options]
    return run([str(a) for a in [*given, *(["--train", place / "train.csv"] if train else [])]])


def curve_of(out):
    return json.loads((out / "metrics.json").read_text())["curve"]


@pytest.fixture
def draws(monkeypatch):
    """The epsilons of all releases; the fourth is stopped by Ctrl-C."""
    made: list[float] = []
    real = StatisticsAnew.draw

    def draw(self, table, epsilon, rows):
        made.append(epsilon)
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(self, table, epsilon, rows)

    monkeypatch.setattr(StatisticsAnew, "draw", draw)
    return made


@pytest.fixture
def _other_figures_once(monkeypatch):
    """What is evaluated beside the curve is computed in the first call alone."""
    real, kept = using.evaluate_tables, []

    def once(*arguments, **named):
        kept.extend([real(*arguments, **named)] if not kept else [])
        return kept[0]

    monkeypatch.setattr(using, "evaluate_tables", once)


@pytest.mark.usefixtures("_other_figures_once")
def test_a_stopped_curve_goes_on_and_ends_in_metrics_page_and_sentences(place, tmp_path, capsys, draws):
    out = tmp_path / "e"
    assert evaluated(place, out, *CURVE) == 4
    assert [len(point["runs"]) for point in curve_of(out)["points"]] == [2, 1]
    before = curve_of(out)["points"][0]
    capsys.readouterr()
    assert evaluated(place, out, *CURVE) == 0
    assert draws == [1.0, 9.0, 1.0, 9.0, 9.0]
    curve = curve_of(out)
    assert [len(point["runs"]) for point in curve["points"]] == [2, 2]
    assert curve["points"][0] == before
    assert curve["own_epsilon"] == 3.0
    assert curve["private"] is False
    printed = capsys.readouterr().out
    assert all(sentence in printed for sentence in curve["sentences"])
    assert "Publishing the curve reveals more than the run" in printed
    assert "not differentially private" in printed
    page = (out / "report.html").read_text()
    assert "Means with intervals against epsilon" in page
    assert curve["key"] not in page
    assert (out / "curve.secret").stat().st_mode & 0o777 == 0o600


def test_there_is_no_curve_unless_it_is_asked_for(place, tmp_path):
    assert evaluated(place, tmp_path / "e", train=False) == 0
    assert curve_of(tmp_path / "e") is None


@pytest.mark.parametrize(
    ("options", "more", "what"),
    [
        (["--curve"], {"name": "networks"}, "rows come from networks"),
        (["--curve"], {"train": False}, "made from the training rows"),
        (["--curve-epsilons", "1,3"], {}, "no use without a curve"),
        (["--curve-releases", "3"], {}, "no use without a curve"),
        (["--curve", "--curve-epsilons", "1"], {}, "make no curve"),
        (["--curve", "--curve-epsilons", "1,many"], {}, "Give positive numbers, such as 0.5,1,3,10."),
        (["--curve", "--curve-releases", "1"], {}, "at least two releases"),
    ],
    ids=[
        "networks",
        "no training table",
        "epsilons alone",
        "releases alone",
        "one epsilon",
        "no numbers",
        "one release",
    ],
)
def test_what_makes_no_curve_is_refused_before_anything_is_read(place, tmp_path, capsys, options, more, what):
    assert evaluated(place, tmp_path / "e", *options, **more) == 2
    assert what in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("inside", ["", "evaluation"])
def test_figures_in_the_run_folder_are_warned_of_and_not_saved_with_the_run(place, tmp_path, capsys, inside):
    """It is handed on as what is private."""
    own = shutil.copytree(place / "run", tmp_path / "run")
    before = sorted(path.relative_to(own) for path in own.rglob("*"))
    assert evaluated(place, own / inside, name=own) == 0
    assert "in the run's folder" in capsys.readouterr().err
    DPCGAN.load(own).save(tmp_path / "saved")
    assert sorted(path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*")) == before


def test_the_help_names_the_options_and_what_the_curve_reveals(capsys):
    assert run(["evaluate", "--help"]) == 0
    helped = " ".join(re.sub(r"[^\w\s.,-]", " ", capsys.readouterr().out).split())
    for words in ("--curve ", "--curve-epsilons", "--curve-releases", "reveals more than the run"):
        assert words in helped
