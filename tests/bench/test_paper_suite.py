"""Suite paper: cells are run once, files of other settings are refused, and what is shown is what was measured."""

import json
import math
import os
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import t

from dpcgan_fast.bench import write_results
from dpcgan_fast.bench.paper import SYSTEMS, Grid, bench_paper, cells, figures, paper_figure, paper_markdown
from dpcgan_fast.bench.paper.protocol import Judges
from dpcgan_fast.bench.paper.systems import Synthetic
from dpcgan_fast.bench.paper.tables import PaperTable
from dpcgan_fast.cli import run
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError, MachineError
from dpcgan_fast.evaluate.spread import spread
from dpcgan_fast.privacy import Mechanism
from tests.bench.results import MACHINE

SCORES = {learner: {"auroc": 0.8, "ap": 0.6} for learner in ("gb", "rf", "lr")}


def small_table(name="small", split=0) -> PaperTable:
    rng = np.random.default_rng(split)
    label = rng.integers(0, 2, 120)
    table = pa.table({"x": np.clip(rng.random(120) + 0.3 * label, 0, 1), "y": label})
    columns = [{"name": "x", "type": "numeric", "bounds": [0, 1]}, {"name": "y", "type": "binary"}]
    schema = Schema.from_dict({"unit": None, "n_units": 120, "label": "y", "columns": columns})
    return PaperTable(name, table, table, schema)


@pytest.fixture
def fits(monkeypatch):
    """One small table and one system that gives its rows back; what was fitted is noted."""
    fitted = []

    def fit(task):
        fitted.append((task.epsilon, task.seed))
        noise = 0.0 if math.isinf(task.epsilon) else 40.0
        mechanism = Mechanism("rows", "gaussian", 1.0, noise, 1, 1.0)
        return Synthetic({"": task.table.train}, task.table.schema, {"": [mechanism]})

    def table(name, split):
        if name == "cardio":
            raise InputError("The data set's file is not here", name, "Get it.")
        return small_table(name, split)

    monkeypatch.setattr(cells, "paper_table", table)
    monkeypatch.setitem(SYSTEMS, "auto", replace(SYSTEMS["auto"], fit=fit))
    cells._judges.cache_clear()
    yield fitted
    cells._judges.cache_clear()


GRID = Grid(("cervical",), ("auto",), (1.0, math.inf), seeds=2)


def silent(_text):
    pass


def test_each_cell_is_run_once_and_kept_at_once(fits):
    kept = []
    results = bench_paper(GRID, None, lambda found: kept.append(len(found["cells"])), silent)
    assert kept == [1, 2, 3, 4, 5], "the real rows, and two seeds at two epsilons"
    assert fits == [(1.0, 0), (math.inf, 0), (1.0, 1), (math.inf, 1)]
    assert json.loads(json.dumps(results, allow_nan=False))["cells"][1]["epsilon"] == 1.0


def test_a_run_goes_on_where_it_stopped_and_grows_by_asking_for_more(fits):
    class StopError(Exception):
        pass

    kept = {}

    def keep(found):
        kept["json"] = json.dumps({"suite": "paper", **found})
        if len(found["cells"]) == 3:
            raise StopError

    with pytest.raises(StopError):
        bench_paper(GRID, None, keep, silent)
    before = json.loads(kept["json"])
    results = bench_paper(GRID, before, lambda _: None, silent)
    assert fits == [(1.0, 0), (math.inf, 0), (1.0, 1), (math.inf, 1)], "none of them twice"
    assert len(results["cells"]) == 5
    fits.clear()
    more = bench_paper(replace(GRID, seeds=3), {"suite": "paper", **results}, lambda _: None, silent)
    assert fits == [(1.0, 2), (math.inf, 2)]
    assert more["cells"][:5] == results["cells"]


def test_runs_spread_over_workers_are_those_of_one(fits, monkeypatch):
    """Here the workers are threads, so that they see the small table."""
    monkeypatch.setattr(cells, "_workers", ThreadPoolExecutor)
    grid, kept = replace(GRID, epsilons=(1.0,)), []
    results = bench_paper(grid, None, lambda found: kept.append(len(found["cells"])), silent, jobs=2)
    assert kept == [1, 2, 3]
    assert sorted(fits) == [(1.0, 0), (1.0, 1)]
    alone = bench_paper(grid, None, lambda _: None, silent)

    def figures(found):
        return {(one["system"], one["epsilon"], one["seed"]): one["figures"] for one in found["cells"]}

    assert figures(results) == figures(alone)
    fits.clear()
    again = bench_paper(replace(grid, seeds=3), {"suite": "paper", **results}, lambda _: None, silent, jobs=2)
    assert fits == [(1.0, 2)], "and what is there is not repeated"
    assert again["cells"][:3] == results["cells"]


def test_workers_are_processes_of_their_own_with_one_thread_each(tmp_path):
    """They run cells, and what is wrong there is told here."""
    missing = cells.Cell("cervical", "no such system", 1.0, 0, 0)
    with cells._workers(1) as workers:
        assert workers.submit(os.getpid).result() != os.getpid()
        assert workers.submit(torch.get_num_threads).result() == 1
        assert workers.submit(cells.Cell.to_dict, missing).result() == missing.to_dict()
        with pytest.raises(InputError, match="There is no such table"):
            workers.submit(cells.run_cell, replace(missing, data="nowhere"), 1, tmp_path).result()


@pytest.mark.usefixtures("fits")
@pytest.mark.parametrize(("failed", "seen"), [(RuntimeError, RuntimeError), (BrokenExecutor, MachineError)])
def test_a_run_that_fails_ends_the_work_of_the_others(monkeypatch, failed, seen):
    def fail(task):
        raise failed(task.seed)

    monkeypatch.setattr(cells, "_workers", ThreadPoolExecutor)
    monkeypatch.setitem(SYSTEMS, "auto", replace(SYSTEMS["auto"], fit=fail))
    with pytest.raises(seen):
        bench_paper(GRID, None, lambda _: None, silent, jobs=2)


def mechanisms_of(results):
    """What each cell took, as a reader of the file finds it."""
    names = [f"{cell['data']}, {cell['system']}, epsilon {float(cell['epsilon'] or 0):g}" for cell in results["cells"]]
    shared = [results["mechanisms"].get(name) for name in names]  # none of the real rows
    return [cell["figures"].get("mechanisms", own) for cell, own in zip(results["cells"], shared, strict=True)]


@pytest.mark.usefixtures("fits")
def test_mechanisms_are_kept_once_and_a_cell_that_took_others_keeps_its_own(monkeypatch):
    def fit(task):
        mechanism = Mechanism("rows", "gaussian", 1.0, 40.0 + 2 * (task.seed == 1), 1, 1.0)
        return Synthetic({"": task.table.train}, task.table.schema, {"": [mechanism]})

    monkeypatch.setitem(SYSTEMS, "auto", replace(SYSTEMS["auto"], fit=fit))
    results = bench_paper(replace(GRID, epsilons=(1.0, 10.0), seeds=3), None, lambda _: None, silent)
    own = [cell["seed"] for cell in results["cells"] if "mechanisms" in cell["figures"]]
    assert own == [1, 1]
    assert list(results["mechanisms"]) == ["cervical, auto, epsilon 1", "cervical, auto, epsilon 10"]
    _, *taken = mechanisms_of(results)
    assert [one["noise_multiplier"] for (one,) in taken] == [40, 40, 42, 42, 40, 40]


@pytest.mark.usefixtures("fits")
def test_a_file_of_an_earlier_version_is_read_and_converted_as_it_is_continued(tmp_path):
    results = {"suite": "paper", **bench_paper(GRID, None, lambda _: None, silent)}
    cells_before = [
        cell if taken is None else {**cell, "figures": {**cell["figures"], "mechanisms": taken}}
        for cell, taken in zip(results["cells"], mechanisms_of(results), strict=True)
    ]
    earlier = {**results, "cells": cells_before, "machine": MACHINE}
    del earlier["mechanisms"]
    write_results(earlier, tmp_path / "earlier.json")
    read = json.loads((tmp_path / "earlier.json").read_text())
    assert sum("mechanisms" in cell["figures"] for cell in read["cells"]) == 4
    more = bench_paper(replace(GRID, seeds=3), read, lambda _: None, silent)
    assert more["cells"][:5] == results["cells"]
    assert more["mechanisms"] == results["mechanisms"]
    assert mechanisms_of(more)[:5] == mechanisms_of(results)
    assert not any("mechanisms" in cell["figures"] for cell in more["cells"])
    assert paper_markdown({**more, "machine": MACHINE})


@pytest.mark.usefixtures("fits")
def test_a_file_of_other_settings_is_refused():
    results = {"suite": "paper", **bench_paper(replace(GRID, seeds=1), None, lambda _: None, silent)}
    with pytest.raises(InputError, match="steps"):
        bench_paper(replace(GRID, steps=7), results, lambda _: None, silent)
    with pytest.raises(InputError, match="another run"):
        bench_paper(GRID, {**results, "suite": "train"}, lambda _: None, silent)


@pytest.mark.usefixtures("fits")
def test_a_table_that_is_not_here_is_left_out_and_named():
    said = []
    results = bench_paper(Grid(("cardio", "cervical"), ("auto",), (1.0,)), None, lambda _: None, said.append)
    assert {cell["data"] for cell in results["cells"]} == {"cervical"}
    assert "not here" in results["left_out"]["cardio"]
    assert any("left out: cardio" in line for line in said)
    assert "left out: cardio" in paper_markdown({**results, "machine": MACHINE})


@pytest.mark.parametrize("jobs", [1, 2])
def test_where_no_table_is_here_the_error_names_all_and_says_how_to_get_them(fits, monkeypatch, jobs):
    def table(name, _split):
        raise InputError("The data set's file is not here", name, f"Get {name.split('-')[0]}.")

    monkeypatch.setattr(cells, "paper_table", table)
    monkeypatch.setattr(cells, "_workers", ThreadPoolExecutor)
    grid, kept = replace(GRID, data=("epileptic", "epileptic-5", "cardio"), splits=2), []
    with pytest.raises(InputError) as error:
        bench_paper(grid, None, kept.append, silent, jobs)
    assert error.value.where == "--data epileptic,epileptic-5,cardio"
    assert error.value.how == "Get epileptic. Get cardio."
    assert not kept
    assert not fits


@pytest.mark.usefixtures("fits")
def test_a_system_that_spent_more_than_epsilon_fails(monkeypatch):
    def spend(task):
        mechanism = Mechanism("rows", "gaussian", 1.0, 0.5, 1, 1.0)
        return Synthetic({"": task.table.train}, task.table.schema, {"": [mechanism]})

    monkeypatch.setitem(SYSTEMS, "auto", replace(SYSTEMS["auto"], fit=spend))
    with pytest.raises(AssertionError, match="more than 1"):
        bench_paper(GRID, None, lambda _: None, silent)


def test_the_best_yardstick_is_the_one_whose_rows_teach_most():
    table = small_table()
    noise = table.train.set_column(1, "y", [pa.array(np.random.default_rng(9).integers(0, 2, 120))])
    mechanism = {name: [Mechanism("rows", "gaussian", 1.0, 40.0, 1, 1.0)] for name in ("worse", "better")}
    drawn = Synthetic({"worse": noise, "better": table.train}, table.schema, mechanism)
    assert cells.judged(Judges(table), drawn, 1.0)["drawn_from"] == "better"


# ---- what is shown


def test_an_interval_is_that_of_student():
    assert spread([]) is None
    assert spread([0.7]).text(3) == "0.700"
    found = spread([0.7, 0.8, 0.9])
    assert found.mean == pytest.approx(0.8)
    assert found.half == pytest.approx(t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    assert found.text(2) == "0.80 ± 0.25"


def cell(system, epsilon, auroc, seed=0, data="cardio", **figures):
    scores = {**SCORES, "gb": {"auroc": auroc, "ap": 0.5}}
    found = {
        "drawn_from": "", "tstr": scores, "sts": None, "dimension_probability": {"r": None, "mae": 0.1},
        "dimension_prediction": {"ap": 0.5, "real_ap": 1.0, "ratio": 0.5}, "mmd": 0.25, "ks": 0.125, "c2st": 0.75,
        **figures,
    }  # fmt: skip
    seconds = {"fit": 60.0, "judge": 60.0, "processor": 60.0}
    return {"data": data, "system": system, "epsilon": epsilon, "seed": seed, "split": 0, "figures": found,
            "seconds": seconds}  # fmt: skip


def some_results() -> dict:
    found = [
        cell("auto", 1.0, 0.70), cell("auto", 1.0, 0.80, seed=1), cell("auto", "inf", 0.90),
        cell("yardstick", 1.0, 0.60, drawn_from="a tree of columns"), cell("real", None, 0.95),
        cell("rdpcgan", 1.0, 0.5, data="codes", tstr=None, cooccurrence_error=0.875, rare_recall=0.5, sizes_ks=0.25,
             violated_implications=None),
    ]  # fmt: skip
    return {"suite": "paper", "machine": MACHINE, "settings": Grid().settings(), "cells": found, "left_out": {}}


def test_the_table_shows_means_with_intervals_and_the_real_rows_last():
    text = paper_markdown(some_results())
    half = t.ppf(0.975, 1) * np.std([0.7, 0.8], ddof=1) / math.sqrt(2)
    assert f"| 1 | auto | 0.750 ± {half:.3f} / 0.500 ± 0.000 |" in text
    assert "| 1 | yardstick: a tree of columns | 0.600 / 0.500 | 0.800 / 0.600 |" in text
    assert text.index("| inf | auto | 0.900") < text.index("| - | real | 0.950")
    assert "6 runs, 12 minutes, 6 of processors" in text
    of_codes = text[text.index("## codes") :]
    assert "| 1 | rdpcgan | - | - | - | - | - | 1 |" in of_codes
    assert "| 0.875 | - | 0.500 | 0.250 |" in of_codes
    assert "co-occurrence" not in text[text.index("## cardio") : text.index("## codes")]


def test_a_short_suite_is_told_in_seconds():
    results = some_results()
    results["cells"] = results["cells"][:1]
    results["cells"][0]["seconds"] = {"fit": 3.4, "judge": 116.4, "processor": 97.0}
    assert "1 runs, 120 seconds, 97 of processors." in paper_markdown(results)
    results["cells"][0]["seconds"]["fit"] = 3.6
    assert "1 runs, 2 minutes, 2 of processors." in paper_markdown(results)


def test_a_figure_is_the_same_for_the_same_results():
    found = some_results()["cells"]
    figure = paper_figure(found, "cardio")
    assert figure == paper_figure(found, "cardio")
    assert figure.lstrip().startswith(b"<?xml")
    assert figure != paper_figure(found[1:], "cardio")


def test_systems_that_fail_utterly_are_triangles_at_the_end_of_an_axis(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "as_svg", lambda figure: drawn.append(figure) or b"")
    found = [
        cell("auto", 1.0, 0.80), cell("yardstick", 1.0, 0.81), cell("real", None, 0.84), cell("conv", 1.0, 0.79),
        cell("dense", 1.0, 0.50), cell("dp-gan", 1.0, 0.55), cell("pate-gan", 1.0, 0.90),
    ]  # fmt: skip
    paper_figure(found, "cardio")
    auroc = drawn[0].axes[0]
    low, high = auroc.get_ylim()
    assert 0.76 < low < 0.78, "half of the range from auto to the real rows, and room for triangles"
    assert 0.90 < high < 0.92, "whatever is better is shown"
    triangles = [line for line in auroc.lines if line.get_marker() == "v"]
    assert sum(len(line.get_xdata()) for line in triangles) == 2
    assert all(low < y < 0.78 for line in triangles for y in line.get_ydata())
    assert "worse, off the axis" in [text.get_text() for text in drawn[0].axes[-1].get_legend().get_texts()]

    paper_figure([one for one in found if one["system"] not in ("auto", "yardstick")], "cardio")
    assert drawn[1].axes[0].get_ylim()[0] < 0.5, "without them nothing says what is worth telling apart"
    paper_figure(found[:4], "cardio")
    assert drawn[2].axes[0].get_ylim()[0] > 0.78, "no axis is longer than its means"


def test_what_is_told_apart_is_worse_at_the_upper_end(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "as_svg", lambda figure: drawn.append(figure) or b"")
    shares = {"auto": 0.6, "conv": 0.55, "dense": 1.0}
    paper_figure([cell(system, 1.0, 0.8, c2st=share) for system, share in shares.items()], "cardio")
    axes = drawn[0].axes[-1]
    assert axes.get_ylim()[1] < 0.65
    assert sum(len(line.get_xdata()) for line in axes.lines if line.get_marker() == "^") == 1


def test_results_are_written_with_a_table_and_a_figure_for_each_data_set(tmp_path):
    write_results(some_results(), tmp_path / "p.json")
    assert {path.name for path in tmp_path.iterdir()} == {"p.json", "p.md", "p_cardio.svg", "p_codes.svg"}


# ---- the command


@pytest.mark.usefixtures("fits")
def test_the_command_writes_goes_on_and_refuses_another_file(tmp_path, capsys):
    out = tmp_path / "p.json"
    command = ["bench", "--suite", "paper", "--data", "cervical", "--systems", "auto", "--out", str(out)]
    assert run([*command, "--epsilons", "1"]) == 0
    assert run([*command, "--epsilons", "1,inf"]) == 0
    assert [cell["epsilon"] for cell in json.loads(out.read_text())["cells"]] == [None, 1.0, "inf"]
    assert "| inf | auto |" in out.with_suffix(".md").read_text()
    capsys.readouterr()
    assert run([*command, "--epsilons", "1", "--steps", "5"]) == 2
    assert "steps" in capsys.readouterr().err
    before = out.read_text()
    assert run([*command, "--data", "cardio"]) == 2
    assert "--data cardio). Get it." in capsys.readouterr().err
    assert out.read_text() == before
    out.write_text("{")
    assert run([*command, "--epsilons", "1"]) == 2
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "nothing"], "--data nothing"),
        (["--systems", "auto,nothing"], "--systems nothing"),
        (["--epsilons", "1,0"], "--epsilons 1,0"),
        (["--epsilons", "one"], "--epsilons one"),
        (["--nets", "1"], "--nets"),
        (["--device", "cpu"], "--device"),
        (["--repeat", "2"], "--repeat"),
        (["--jobs", "0"], "--jobs"),
    ],
)
def test_the_command_refuses_what_it_has_no_use_for(tmp_path, capsys, options, said):
    assert run(["bench", "--suite", "paper", "--out", str(tmp_path / "p.json"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()
