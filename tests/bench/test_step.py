"""Runs are merged, and judged by the worst of them; tables and figures show what is in the results."""

import importlib.util
import json
from pathlib import Path

import pytest

from dpcgan_fast.bench import chosen_nets, read_results, targets_markdown, write_results
from dpcgan_fast.bench.contenders import OURS
from dpcgan_fast.bench.nets import bench_nets
from dpcgan_fast.bench.step import merge_runs
from dpcgan_fast.bench.targets import TARGETS, all_met, judge
from dpcgan_fast.errors import InputError
from tests.bench.results import SEED, described, step_results, step_run


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_every_net_has_a_target(device):
    assert [net.name for net in bench_nets(device)] == list(TARGETS[device])
    assert all(target.ambitious < target.must for target in TARGETS[device].values())


@pytest.mark.parametrize(
    ("value", "standing"),
    [(0.5, "ambitious"), (0.6, "ambitious"), (0.61, "must"), (0.8, "must"), (0.81, "missed")],
)
def test_a_figure_is_judged_by_the_most_that_is_allowed(value, standing):
    assert judge(value, must=0.8, ambitious=0.6).standing == standing


@pytest.mark.parametrize(("value", "standing"), [(5.1, "must"), (5.0, "must"), (4.99, "missed")])
def test_a_figure_is_judged_by_the_least_that_is_allowed(value, standing):
    assert judge(value, must=5.0, least=True).standing == standing


def test_a_figure_that_is_not_a_number_misses_its_target():
    assert judge(float("nan"), must=1.0).standing == "missed"


def test_the_worst_run_is_judged():
    row = merge_runs([step_run(ours) for ours in (1.0, 2.3, 2.5)], described())
    assert row["ratio_to_plain"][OURS] == {"median": 2.3 / 4, "lowest": 0.25, "highest": 2.5 / 4}
    plain = row["verdicts"]["plain"]
    assert (plain["value"], plain["standing"]) == (2.5 / 4, "missed")  # must is 0.60
    assert merge_runs([step_run(2.3)], described())["verdicts"]["plain"]["standing"] == "must"
    assert row["verdicts"]["opacus"]["value"] == 16 / 2.5
    assert row["verdicts"]["opacus"]["standing"] == "must"
    assert [run["ratio_to_own_plain"] for run in row["runs"]] == [1.0, 2.3, 2.5]


@pytest.mark.parametrize(("path", "must"), [("fused", 1.15), ("layerwise", 1.5), ("mixed", 1.5)])
def test_memory_is_held_to_the_limit_of_the_path(path, must):
    verdict = merge_runs([step_run(1.0)], described(path))["verdicts"]["memory"]
    assert (verdict["value"], verdict["must"]) == (1.3, must)


def test_the_limit_against_our_own_plain_step_depends_on_the_plain_steps_time():
    run = step_run(1.0)
    assert merge_runs([run], described())["verdicts"]["own"]["must"] == 1.2
    run["milliseconds"]["plain step (eager)"]["median"] = 5.1
    assert merge_runs([run], described())["verdicts"]["own"]["must"] == 1.1


def test_targets_met_are_counted():
    rows = step_results(1.0)["results"]  # plain, own and Opacus are met; memory of 1.3 is not
    assert all_met(rows) == (3, 4)


@pytest.mark.parametrize(
    ("wanted", "places"), [("", list(range(8))), ("0, 2", [0, 2]), ("SEED", [0, 1, 2, 3]), ("mimic", [7])]
)
def test_nets_are_chosen_by_place_or_name(wanted, places):
    assert chosen_nets(wanted) == places


@pytest.mark.parametrize("wanted", ["8", "0,9", "nothing", "0,seed"])
def test_nets_that_are_not_there_are_refused(wanted):
    with pytest.raises(InputError, match="no such net"):
        chosen_nets(wanted)


def test_the_table_has_target_and_result_side_by_side():
    cells = targets_markdown(step_results(1.0, 2.3, 2.5)).splitlines()[2].split(" | ")
    assert cells[0] == f"| {SEED}"
    assert cells[3:7] == ["**0.57 (0.25 to 0.62)**", "0.60", "0.25", "✗ missed"]
    assert cells[7] == "2.50 (≤ 1.20) ✗"
    assert cells[8] == "1.30 (≤ 1.15) ✗"
    assert cells[9] == "6.40 (≥ 5.00) ✓ |"


def test_the_column_of_jax_privacy_is_there_when_its_file_is(tmp_path):
    results = step_results(1.0)
    write_results(results, tmp_path / "s.json")
    assert "jax-privacy" not in (tmp_path / "s.md").read_text()
    jax = {"results": [{"net": SEED, "ratio_to_torch_plain": 12.5}]}
    (tmp_path / "jax_privacy.json").write_text(json.dumps(jax))
    write_results(results, tmp_path / "s.json")
    text = (tmp_path / "s.md").read_text()
    assert "| dpcgan_fast | Opacus hooks | jax-privacy |" in text
    assert "| **0.25** | 4.00 | 12.50 |" in text
    assert read_results(tmp_path / "s.json") == results
    for name in ("s.svg", "s_roofline.svg"):
        assert (tmp_path / name).read_text().lstrip().startswith("<?xml")


def test_readme_and_docs_show_the_committed_results():
    """`python bench/render.py` writes them there."""
    spec = importlib.util.spec_from_file_location("render", Path(__file__).parents[2] / "bench" / "render.py")
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    pages = render.tables_of_pages()
    assert {page.name for page in pages} == {"README.md", "utility.md", "engine.md"}
    for page, tables in pages.items():
        text = page.read_text(encoding="utf-8")
        for name, content in tables.items():
            assert f"<!-- bench:{name} -->\n{content}<!-- /bench:{name} -->" in text, (page.name, name)
