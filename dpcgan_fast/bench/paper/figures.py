"""The comparison as figures: utility against epsilon."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dpcgan_fast.bench.figures import as_svg
from dpcgan_fast.bench.paper.cells import REAL
from dpcgan_fast.bench.paper.spreads import order_of, runs_of, spread_of
from dpcgan_fast.bench.paper.systems import AUTO, SYSTEMS, YARDSTICK
from dpcgan_fast.evaluate.spread import Spread

_COLOURS = (
    "#a11d1d", "#d98a8a", "#7b2d8b", "#7a7a7a", "#b5b5b5", "#c46a1b", "#3b6ea5", "#9dbbdb", "#5b3fa5", "#b8a5e0",
    "#1d6b3f", "#12a594", "#7fb08f", "#1c2330",
)  # fmt: skip
_PANELS = {
    "AUROC on real rows, gradient boosting": ("tstr", "gb", "auroc"),
    "average precision": ("tstr", "gb", "ap"),
}
# The first that a table's cells have: by exact values nearly all synthetic numbers are told apart.
_TOLD_APART = {
    "c2st_quantiles": "told apart by 20 quantile bins (0.5: not at all)",
    "c2st_signals": "signals told apart (real rows: about 0.56)",
    "c2st": "told apart from real rows (0.5: not at all)",
}
_INK = "#1c2330"
_ASIDE = 0.05  # of the place of one system at an epsilon from that of the next
_LEAST_WORSE = 0.02  # of an axis


def paper_figure(cells: Sequence[dict[str, Any]], data: str) -> bytes:
    """A panel for each measure, a line for each system, with 95 % intervals where there are several runs; as SVG.

    Means that an axis leaves out are triangles at its end, and no axis is made longer for an interval (see `_limits`):
    one of two runs can be wider than all that a measure can be.
    """
    own = [cell for cell in cells if cell["data"] == data]
    epsilons = sorted({cell["epsilon"] for cell in own if cell["epsilon"] is not None}, key=order_of)
    test = next(name for name in _TOLD_APART if any(name in cell["figures"] for cell in own))
    shown = _PANELS | {_TOLD_APART[test]: (test,)}
    figure = Figure(figsize=(4.2 * len(shown) + 1.6, 3.8), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    beyond = [_draw(axes, own, data, epsilons, path) for axes, path in zip(panels, shown.values(), strict=True)]
    for axes, title in zip(panels, shown, strict=True):
        axes.set_xticks(range(len(epsilons)), [str(e) if e == "inf" else f"{e:g}" for e in epsilons])
        axes.set_xlim(-0.4, len(epsilons) - 0.6)
        axes.set_xlabel("epsilon")
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    if any(beyond):
        panels[-1].plot([], [], color=_INK, marker="v", markersize=5, linestyle="none", label="worse, off the axis")
    panels[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(data, fontsize=10)
    return as_svg(figure)


def _draw(axes: Axes, cells: Sequence[dict[str, Any]], data: str, epsilons: list[Any], path: tuple[str, ...]) -> bool:
    """A panel's lines, between its limits; whether it leaves a mean out."""
    colours = dict(zip(SYSTEMS, _COLOURS, strict=True))
    by_system: dict[str, dict[int, Spread]] = {}
    for system in SYSTEMS:
        found = (spread_of(runs_of(cells, data, system, epsilon), path) for epsilon in epsilons)
        if points := {place: one for place, one in enumerate(found) if one is not None}:
            by_system[system] = points
    real = spread_of(runs_of(cells, data, REAL, None), path)
    means = {system: [one.mean for one in points.values()] for system, points in by_system.items()}
    if real is not None:
        means[REAL] = [real.mean]
        axes.axhline(real.mean, color=_INK, linewidth=1, linestyle=":", label="real rows")
    if not means:
        return False
    rises = path[0] in _TOLD_APART
    low, high = _limits(means, rises)
    room = 0.08 * (high - low) + 0.001
    axes.set_ylim(low - room, high + room)
    end, marker = (high + room / 2, "^") if rises else (low - room / 2, "v")
    any_beyond = False
    for number, (system, points) in enumerate(by_system.items()):
        heavy, colour = system in (AUTO, YARDSTICK), colours[system]
        places = np.array([*points]) + _ASIDE * (number - (len(by_system) - 1) / 2)
        beyond = np.array([not low <= one.mean <= high for one in points.values()])
        halves = np.where(beyond, 0.0, [one.half or 0.0 for one in points.values()])
        axes.errorbar(
            places, means[system], halves, label=system, color=colour, marker="o", markersize=4, markevery=~beyond,
            linewidth=2 if heavy else 1.2, linestyle="--" if system == YARDSTICK else "-", capsize=2,
        )  # fmt: skip
        axes.plot(places[beyond], [end] * beyond.sum(), color=colour, marker=marker, markersize=5, linestyle="none")
        any_beyond |= bool(beyond.any())
    return any_beyond


def _limits(means: Mapping[str, Sequence[float]], rises: bool) -> tuple[float, float]:
    """Ends of an axis: what `auto`, the yardstick and the real rows reach, all that is better, and some that is worse.

    means: by system, the real rows among them
    rises: whether higher is worse

    Half of the range of those three beyond its worse end: systems that fail utterly would leave no room to tell them
    apart. Without `auto` and the yardstick, the axis shows all.
    """
    every = [mean for of_system in means.values() for mean in of_system]
    useful = [mean for system in (AUTO, YARDSTICK) for mean in means.get(system, ())]
    if not useful:
        return min(every), max(every)
    useful += means.get(REAL, ())
    low, high = min(useful), max(useful)
    worse = max(0.5 * (high - low), _LEAST_WORSE)
    if rises:
        return min(every), min(max(every), high + worse)
    return max(min(every), low - worse), max(every)
