"""The step benchmark as figures."""

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from dpcgan_fast.bench.contenders import COMPILED, GHOST, OPACUS, OURS, OURS_EAGER, PLAIN_GRAPH, VMAP
from dpcgan_fast.bench.roofline import WHOLE
from dpcgan_fast.bench.table import JAX, jax_ratios, shown

_COLOURS = {
    OURS: "#1d6b3f", OPACUS: "#a11d1d", GHOST: "#c46a1b", VMAP: "#3b6ea5", COMPILED: "#7a7a7a", JAX: "#7b4ea3",
    OURS_EAGER: "#7fb795", PLAIN_GRAPH: "#b5b5b5",
}  # fmt: skip
_INK = "#1c2330"
_OP_COLOURS = ("#1d6b3f", "#3b6ea5", "#c46a1b", "#7b4ea3", "#a11d1d", "#7a7a7a", "#0f8b8d", "#8f6b00")
_LEAST_SHARE = 0.02  # of a step's time that an op must take to be drawn


def as_svg(figure: Figure) -> bytes:
    """An SVG file that is the same for the same figure."""
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dpcgan_fast", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def step_figure(results: dict[str, Any], jax: dict[str, Any] | None = None) -> bytes:
    """Bars of the ratios to the plain step, on a logarithmic axis, with each net's targets, as an SVG file."""
    rows = results["results"]
    by_name = {name: {r["net"]: r["ratio_to_plain"][name]["median"] for r in rows} for name in shown(rows)}
    if jax is not None:
        by_name[JAX] = jax_ratios(jax)
    figure = Figure(figsize=(9, 0.72 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    height = 0.84 / len(by_name)
    for i, (name, ratios) in enumerate(by_name.items()):
        places = [p + (i - (len(by_name) - 1) / 2) * height for p, row in enumerate(rows) if row["net"] in ratios]
        widths = [ratios[row["net"]] for row in rows if row["net"] in ratios]
        bars = axes.barh(places, widths, height, label=name, color=_COLOURS[name])
        labels = axes.bar_label(bars, [f"{width:.2f}" for width in widths], padding=2, fontsize=6.5, zorder=3)
        for label in labels:  # above the lines of the targets
            label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})
    for place, row in enumerate(rows):
        must = row["verdicts"]["plain"]["must"]
        label = "target of dpcgan_fast" if place == 0 else None
        axes.plot([must, must], [place - 0.46, place + 0.46], color=_INK, linewidth=1.4, linestyle=":", label=label)
    axes.axvline(1.0, color=_INK, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xlim(left=0.8 * min(0.25, *(ratio for ratios in by_name.values() for ratio in ratios.values())))
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xticks([0.25, 0.5, 1, 2, 5, 10], ["0.25", "0.5", "1", "2", "5", "10"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(rows)), [row["net"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time of a step / PyTorch's plain eager step (dashed: equal; further left is faster)")
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return as_svg(figure)


def roofline_figure(results: dict[str, Any]) -> bytes:
    """Each op of each net under the machine's roof: GFLOP/s over FLOPs a byte, both logarithmic, as an SVG file."""
    peak, stream = results["peaks"]["gflop_per_s"], results["peaks"]["gb_per_s"]
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    points: dict[str, list[tuple[float, float, int]]] = {}
    for number, row in enumerate(results["results"], 1):
        step = sum(line["milliseconds"] for line in row["roofline"] if line["op"] == WHOLE)
        for line in row["roofline"]:
            if line["gflop"] and line["megabytes"] and line["milliseconds"] >= _LEAST_SHARE * step:
                intensity = 1e3 * line["gflop"] / line["megabytes"]
                points.setdefault(line["op"], []).append((intensity, line["gflop_per_s"], number))
    reach = [x for of_op in points.values() for x, _, _ in of_op] or [peak / stream]
    x = np.geomspace(min(*reach, peak / stream) / 2, max(*reach, peak / stream) * 2, 200)
    axes.plot(x, np.minimum(peak, stream * x), color=_INK, linewidth=1.4)
    axes.annotate(f"{peak:.0f} GFLOP/s", (x[-1], peak), ha="right", va="bottom", fontsize=8)
    axes.annotate(f"{stream:.1f} GB/s", (x[0], stream * x[0]), xytext=(14, 0), textcoords="offset points", fontsize=8)
    for colour, (op, of_op) in zip(_OP_COLOURS, sorted(points.items()), strict=False):
        axes.scatter([p[0] for p in of_op], [p[1] for p in of_op], color=colour, label=op, s=28)
        for at, rate, number in of_op:
            axes.annotate(str(number), (at, rate), xytext=(4, 3), textcoords="offset points", fontsize=7, color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs that an op must do / bytes that it must move")
    axes.set_ylabel("GFLOP/s")
    names = [f"{number}  {row['net']}" for number, row in enumerate(results["results"], 1)]
    axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, title="op", title_fontsize=8)
    axes.text(1.02, 0.0, "\n".join(names), transform=axes.transAxes, fontsize=7, va="bottom")
    axes.spines[["top", "right"]].set_visible(False)
    return as_svg(figure)
