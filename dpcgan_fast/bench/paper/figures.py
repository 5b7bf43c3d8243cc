"""The comparison as figures: utility against epsilon."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from dpcgan_fast.bench.figures import as_svg
from dpcgan_fast.bench.paper.cells import REAL
from dpcgan_fast.bench.paper.spreads import order_of, runs_of, spread_of
from dpcgan_fast.bench.paper.systems import AUTO, SYSTEMS, YARDSTICK

_COLOURS = (
    "#a11d1d", "#d98a8a", "#7b2d8b", "#7a7a7a", "#b5b5b5", "#c46a1b", "#3b6ea5", "#9dbbdb", "#1d6b3f", "#12a594",
    "#7fb08f", "#1c2330",
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


def paper_figure(cells: Sequence[dict[str, Any]], data: str) -> bytes:
    """A panel for each measure, a line for each system, with 95 % intervals where there are several runs; as SVG.

    Axes are as high as the means: an interval of two runs can be wider than all that a measure can be.
    """
    own = [cell for cell in cells if cell["data"] == data]
    epsilons = sorted({cell["epsilon"] for cell in own if cell["epsilon"] is not None}, key=order_of)
    test = next(name for name in _TOLD_APART if any(name in cell["figures"] for cell in own))
    shown = _PANELS | {_TOLD_APART[test]: (test,)}
    figure = Figure(figsize=(4.2 * len(shown) + 1.6, 3.8), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    for axes, (title, path) in zip(panels, shown.items(), strict=True):
        means: list[float] = []
        for number, (system, colour) in enumerate(zip(SYSTEMS, _COLOURS, strict=True)):
            points = [
                (place + 0.03 * (number - len(SYSTEMS) / 2), found)
                for place, epsilon in enumerate(epsilons)
                if (found := spread_of(runs_of(own, data, system, epsilon), path)) is not None
            ]
            if points:
                places, found = zip(*points, strict=True)
                heavy = system in (AUTO, YARDSTICK)
                means += [one.mean for one in found]
                axes.errorbar(
                    places, [one.mean for one in found], [one.half or 0.0 for one in found], label=system,
                    color=colour, marker="o", markersize=4, linewidth=2 if heavy else 1.2,
                    linestyle="--" if system == YARDSTICK else "-", capsize=2,
                )  # fmt: skip
        real = spread_of(runs_of(own, data, REAL, None), path)
        if real is not None:
            means.append(real.mean)
            axes.axhline(real.mean, color="#1c2330", linewidth=1, linestyle=":", label="real rows")
        axes.set_xticks(range(len(epsilons)), [str(e) if e == "inf" else f"{e:g}" for e in epsilons])
        if means:
            room = 0.05 * (max(means) - min(means)) + 0.01
            axes.set_ylim(min(means) - room, max(means) + room)
        axes.set_xlim(-0.4, len(epsilons) - 0.6)
        axes.set_xlabel("epsilon")
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    figure.suptitle(data, fontsize=10)
    return as_svg(figure)
