"""The small table of the README: default rows, the best published system, and real rows."""

from dpcgan_fast.bench.paper import SYSTEMS, overview_markdown
from dpcgan_fast.bench.paper.overview import PUBLISHED
from tests.bench.test_paper_targets import cell


def test_the_best_published_system_stands_beside_default_and_real_rows():
    """Runs of other epsilons and of our own recipes are not looked at for it."""
    cells = [
        cell(auroc=0.75), cell(epsilon=10.0, auroc=0.875), cell(epsilon=10.0, seed=1, auroc=0.625),
        cell("dp-gan", epsilon=10.0, auroc=0.25), cell("dense", epsilon=10.0, auroc=0.375),
        cell("dp-gan", epsilon=1.0, auroc=0.99), cell("rdpcgan-recipe", epsilon=10.0, auroc=0.99),
        cell("real", epsilon=None, auroc=0.9375),
    ]  # fmt: skip
    lines = overview_markdown({"cells": cells}).splitlines()
    assert lines[0].startswith("| table | default, epsilon 1 | default, epsilon 10 |")
    (row,) = [line for line in lines if line.startswith("| cardio |")]
    _, first, second, third, published, real = row.strip("| ").split(" | ")
    assert (first, third, published, real) == ("0.750", "-", "0.375 (dense)", "0.938")
    assert second.startswith("0.750 ± ")
    assert not any(line.startswith("| support2 |") for line in lines), "which was not run"
    assert "of 78 met" in lines[-1]


def test_without_a_published_run_there_is_none_to_show():
    row = next(line for line in overview_markdown({"cells": [cell()]}).splitlines() if line.startswith("| cardio |"))
    assert row == "| cardio | 0.500 | - | - | - | - |"


def test_the_published_systems_are_systems_of_the_suite():
    assert set(PUBLISHED) < set(SYSTEMS)
