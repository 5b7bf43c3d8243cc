"""The step benchmark as a Markdown table and a figure."""

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from dpcgan_fast.bench.step import COMPILED, GHOST, OPACUS, OURS, PLAIN, VMAP

_COLUMNS = (OURS, OPACUS, GHOST, VMAP, COMPILED)
_COLOURS = {OURS: "#1d6b3f", OPACUS: "#a11d1d", GHOST: "#c46a1b", VMAP: "#3b6ea5", COMPILED: "#7a7a7a"}


def _shown(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [name for name in _COLUMNS if name in rows[0]["ratio_to_plain"]]


def step_markdown(results: dict[str, Any]) -> str:
    """Ratios to the plain step, with the plain step's milliseconds, and tensor memory."""
    rows, machine = results["results"], results["machine"]
    names = _shown(rows)
    head = ["net", "parameters", "plain, ms", *names, "ours / own non-private", "memory: ours / plain"]
    calls = rows[0]["milliseconds"][PLAIN]["calls"]
    lines = [
        f"Private step as a multiple of PyTorch's plain eager step, medians of {calls} interleaved calls; noise and "
        f"Adam included. {machine['processor']}, {machine['threads']} threads, torch {machine['torch']}.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for row in rows:
        peaks = row["peak_tensor_bytes"]
        cells = [
            row["net"],
            f"{row['parameters']:,}",
            f"{row['milliseconds'][PLAIN]['median']:.2f}",
            *(f"**{row['ratio_to_plain'][n]:.2f}**" if n == OURS else f"{row['ratio_to_plain'][n]:.2f}" for n in names),
            f"{row['ratio_to_own_plain']:.2f}",
            f"{peaks[OURS] / peaks[PLAIN]:.2f}" if peaks else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def step_figure(results: dict[str, Any]) -> bytes:
    """Bars of the ratios, on a logarithmic axis, as an SVG file."""
    rows = results["results"]
    names = _shown(rows)
    figure = Figure(figsize=(9, 0.62 * len(rows) + 1.3), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        places = [row + (i - (len(names) - 1) / 2) * height for row in range(len(rows))]
        ratios = [row["ratio_to_plain"][name] for row in rows]
        bars = axes.barh(places, ratios, height, label=name, color=_COLOURS[name])
        axes.bar_label(bars, [f"{ratio:.2f}" for ratio in ratios], padding=2, fontsize=6.5)
    axes.axvline(1.0, color="#1c2330", linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(rows)), [row["net"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("time of a step / PyTorch's plain eager step (dashed: equal; further left is faster)")
    axes.legend(fontsize=7, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "dpcgan_fast", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
