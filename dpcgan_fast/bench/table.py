"""The step benchmark as Markdown: targets and results side by side, other libraries, and the roofline."""

from collections.abc import Sequence
from typing import Any

from dpcgan_fast.bench.contenders import (
    COMPILED,
    GHOST,
    OPACUS,
    OURS,
    OURS_EAGER,
    PLAIN,
    PLAIN_GRAPH,
    VMAP,
)
from dpcgan_fast.bench.targets import all_met

SHOWN = (OURS, OURS_EAGER, PLAIN_GRAPH, OPACUS, GHOST, VMAP, COMPILED)
JAX = "jax-privacy"
_MARKS = {"missed": "✗ missed", "must": "✓ must", "ambitious": "✓ ambitious"}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines) + "\n"


def spread_text(figures: dict[str, float], digits: int) -> str:
    """Median, with lowest and highest where they differ."""
    if figures["lowest"] == figures["highest"]:
        return f"{figures['median']:.{digits}f}"
    return f"{figures['median']:.{digits}f} ({figures['lowest']:.{digits}f} to {figures['highest']:.{digits}f})"


def machine_text(machine: dict[str, Any]) -> str:
    """The machine in a few words."""
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    return f"{where}, torch {machine['torch']}"


def shown(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Contenders that were timed and stand in tables and figures."""
    return [name for name in SHOWN if name in rows[0]["ratio_to_plain"]]


def jax_ratios(jax: dict[str, Any] | None) -> dict[str, float]:
    """By net, jax-privacy's step over PyTorch's plain step of the same process."""
    return {} if jax is None else {row["net"]: row["ratio_to_torch_plain"] for row in jax["results"]}


def _limited(verdict: dict[str, Any] | None) -> str:
    if verdict is None:
        return "-"
    mark = "✗" if verdict["standing"] == "missed" else "✓"
    return f"{verdict['value']:.2f} ({'≥' if verdict['least'] else '≤'} {verdict['must']:.2f}) {mark}"


def targets_markdown(results: dict[str, Any]) -> str:
    """Each net's result beside its targets; what is judged is the worst of all runs."""
    head = [
        "net", "path", "plain, ms", "private / plain", "must", "ambitious", "target", "private / own non-private",
        "memory: private / plain", "Opacus hooks / ours",
    ]  # fmt: skip
    lines = []
    for row in results["results"]:
        verdicts = row["verdicts"]
        plain = verdicts["plain"]
        cells = [f"{plain['must']:.2f}", f"{plain['ambitious']:.2f}", _MARKS[plain["standing"]]]
        ratio = f"**{spread_text(row['ratio_to_plain'][OURS], 2)}**"
        others = [_limited(verdicts.get(name)) for name in ("own", "memory", "opacus")]
        lines.append([row["net"], row["path"], f"{row['plain_milliseconds']:.2f}", ratio, *cells, *others])
    return table(head, lines)


def others_markdown(results: dict[str, Any], jax: dict[str, Any] | None = None) -> str:
    """Ratios to the plain step of every contender; jax-privacy's come from a process of its own."""
    rows, by_jax = results["results"], jax_ratios(jax)
    names = shown(rows)
    lines = []
    for row in rows:
        ratios = [f"{row['ratio_to_plain'][name]['median']:.2f}" for name in names]
        ratios[0] = f"**{ratios[0]}**"
        if jax is not None:
            ratios.append(f"{by_jax[row['net']]:.2f}" if row["net"] in by_jax else "-")
        lines.append([row["net"], f"{row['parameters']:,}", *ratios])
    return table(["net", "parameters", *names, *([] if jax is None else [JAX])], lines)


def roofline_markdown(results: dict[str, Any]) -> str:
    """Each op's time, work and rates; the last column is the least time that the peaks allow over the time taken."""
    head = ["net", "op", "calls", "ms", "GFLOP", "MB", "GFLOP/s", "GB/s", "of the roof"]
    lines = []
    for row in results["results"]:
        for i, line in enumerate(row["roofline"]):
            figures = [("gflop", 3), ("megabytes", 1), ("gflop_per_s", 1), ("gb_per_s", 1)]
            cells = ["-" if line[name] is None else f"{line[name]:.{digits}f}" for name, digits in figures]
            share = "-" if line["of_roof"] is None else f"{line['of_roof']:.0%}"
            first = row["net"] if i == 0 else ""
            lines.append([first, line["op"], str(line["calls"]), f"{line['milliseconds']:.3f}", *cells, share])
    return table(head, lines)


def step_markdown(results: dict[str, Any], jax: dict[str, Any] | None = None) -> str:
    """All three tables, with what is needed to read them."""
    rows, machine, peaks = results["results"], results["machine"], results["peaks"]
    met, targets = all_met(rows)
    runs = rows[0]["runs"]
    calls = runs[0]["milliseconds"][PLAIN]["calls"]
    parts = [
        "# A private step\n",
        f"Made by `dpcgan bench --suite step`: {len(runs)} run(s) of {calls} interleaved calls of each contender. "
        f"Noise and Adam are included. {machine_text(machine)}.\n",
        "## Results beside their targets\n",
        f"{met} of {targets} targets met. Times are medians, as multiples of PyTorch's plain eager step of the same "
        "net: the median of the runs, and the lowest and highest; a target is met if the worst run meets it.\n",
        targets_markdown(results),
        "## Beside other libraries\n",
        "Multiples of PyTorch's plain eager step, median of the runs.\n",
        others_markdown(results, jax),
        "## Roofline\n",
        f"Peaks of this machine: {peaks['gflop_per_s']:.0f} GFLOP/s (float32 matrix product), {peaks['gb_per_s']:.1f} "
        "GB/s (c = a + s b beyond the caches). GFLOP and MB are what an op must do, from shapes: layer norms, "
        "activations and noise cost time and count no FLOPs. The roof is the least time that the peaks allow; above "
        "100 % the data stayed in a cache. These times are of runs of their own, in which every op is timed.\n",
        roofline_markdown(results),
    ]
    return "\n".join(parts)
