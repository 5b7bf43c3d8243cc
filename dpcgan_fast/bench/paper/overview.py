"""The comparison in one small table, for who has a minute: default rows, the published systems, and real rows."""

from typing import Any

from dpcgan_fast.bench.paper.cells import REAL
from dpcgan_fast.bench.paper.spreads import runs_of, spread_of
from dpcgan_fast.bench.paper.systems import AUTO
from dpcgan_fast.bench.paper.tables import TABLES
from dpcgan_fast.bench.paper.targets import AUROC, EPSILONS, standings_sentence
from dpcgan_fast.bench.table import table

PUBLISHED = ("rdpcgan", "rdpcgan-no-ae", "dense", "dp-gan", "pate-gan")  # by their papers' networks and settings
_BESIDE = 10.0  # the epsilon at which the best of them is shown


def overview_markdown(results: dict[str, Any]) -> str:
    """AUROC of gradient boosting on real held-out rows, by what it learned from, and how many targets are met.

    results: of the suite; tables that were not run are left out
    """
    cells = results["cells"]
    rows = []
    for data in TABLES:
        found = [spread_of(runs_of(cells, data, AUTO, epsilon), AUROC.path) for epsilon in EPSILONS]
        real = spread_of(runs_of(cells, data, REAL, None), AUROC.path)
        if any(found):
            rows.append([data, *("-" if one is None else one.text(3) for one in found), _published(cells, data),
                         "-" if real is None else real.text(3)])  # fmt: skip
    heads = [f"default, epsilon {epsilon:g}" for epsilon in EPSILONS]
    head = ["table", *heads, f"best published system, epsilon {_BESIDE:g}", "real rows"]
    return f"{table(head, rows)}\n**Targets.** {standings_sentence(cells)}\n"


def _published(cells: list[dict[str, Any]], data: str) -> str:
    """The published system of the highest mean, chosen in its favour by the very rows that judge it."""
    found = {name: spread_of(runs_of(cells, data, name, _BESIDE), AUROC.path) for name in PUBLISHED}
    known = {name: one for name, one in found.items() if one is not None}
    if not known:
        return "-"
    best = max(known, key=lambda name: known[name].mean)
    return f"{known[best].text(3)} ({best})"
