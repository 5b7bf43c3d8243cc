"""Utility against epsilon on the page: a picture, and its figures."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from dpcgan_fast.evaluate.spread import Spread
from dpcgan_fast.report.plotting import Picture, Theme, picture, plain_axes
from dpcgan_fast.report.wording import NOT_KNOWN, significant

_WIDTH, _HEIGHT = 8.6, 3.3  # inches; the page scales it
_BEYOND = 0.02  # of what an AUROC can be: a wide interval by Student's t goes further, which would look like a mistake
_PANELS = (  # score, title, and the direction in which it is better
    ("auroc", "AUROC of gradient boosting, higher is better"),
    ("c2st_binned", "Told apart from real rows, lower is better"),
)


def curve_picture(values: Mapping[str, Any]) -> Picture | None:
    """Means with 95 % intervals against epsilon, the run's own epsilon marked; None without a curve or anything in it.

    values: of `metrics.json`
    """
    curve = values["curve"]
    if curve is None:
        return None
    panels = [(name, title, found) for name, title in _PANELS if len(found := _spreads(curve, name)) > 1]
    if not panels:
        return None
    real = {"auroc": (values["trtr"] or {}).get("gb", {}).get("auroc"), "c2st_binned": values["floor"]["c2st_binned"]}

    def draw(theme: Theme) -> Figure:
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (name, title, found) in zip(grid, panels, strict=True):
            epsilons = [epsilon for epsilon, _ in found]
            axes.set_xscale("log")
            axes.axvline(curve["own_epsilon"], color=theme.ink, linewidth=0.9, linestyle=(0, (4, 3)), label="the run")
            if real[name] is not None:
                axes.axhline(real[name], color=theme.real, linewidth=1.4, linestyle=":", label="real training rows")
            axes.errorbar(
                epsilons, [mean.mean for _, mean in found], [mean.half or 0.0 for _, mean in found],
                color=theme.synthetic, marker="o", markersize=4.5, linewidth=1.6, capsize=3, label="synthetic rows",
            )  # fmt: skip
            axes.set_xticks(epsilons, [f"{epsilon:g}" for epsilon in epsilons])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlabel("epsilon")
            axes.set_title(title, loc="left")
            bottom, top = axes.get_ylim()
            axes.set_ylim(max(bottom, -_BEYOND), min(top, 1 + _BEYOND))
            plain_axes(axes, grid="y")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return figure

    words = [
        f"{title}: " + ", ".join(f"{mean.text(3)} at epsilon {epsilon:g}" for epsilon, mean in found)
        for _, title, found in panels
    ]
    return picture(draw, "Means with intervals against epsilon. " + "; ".join(words) + ".")


def curve_rows(values: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """By epsilon: [releases, AUROC, average precision, told apart]."""
    if values["curve"] is None:
        return []
    return [
        (
            significant(point["epsilon"]),
            [str(len(point["runs"])), *(_text(point[name]) for name in ("auroc", "ap", "c2st_binned"))],
        )
        for point in values["curve"]["points"]
    ]


def _spreads(curve: Mapping[str, Any], name: str) -> list[tuple[float, Spread]]:
    return [(point["epsilon"], Spread(**point[name])) for point in curve["points"] if point[name] is not None]


def _text(found: Mapping[str, Any] | None) -> str:
    return NOT_KNOWN if found is None else Spread(**found).text(3)
