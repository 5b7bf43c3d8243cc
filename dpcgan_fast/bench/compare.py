"""The train benchmark as Markdown, alone and two results side by side, such as before and after a change."""

from typing import Any

from dpcgan_fast.bench.table import machine_text, spread_text, table
from dpcgan_fast.errors import InputError


def _by_training(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    if results.get("suite") != "train":
        raise InputError("These are not results of the train benchmark", "suite", "Give files of `--suite train`.")
    return {(row["data"], str(row["epsilon"])): row for row in results["results"]}


def train_markdown(results: dict[str, Any]) -> str:
    """Seconds, steps a second, and the seconds of each phase, a training a row."""
    rows = list(_by_training(results).values())
    phases = list(dict.fromkeys(phase for row in rows for phase in row["phases"]))
    head = ["data", "epsilon", "private steps", "seconds", "steps / s", *(f"{phase}, s" for phase in phases)]
    lines = []
    for row in rows:
        spreads = [spread_text(row["seconds"], 1), spread_text(row["steps_per_second"], 1)]
        shares = [f"{row['phases'].get(phase, 0.0):.2f}" for phase in phases]
        lines.append([row["data"], str(row["epsilon"]), str(row["steps"]), *spreads, *shares])
    machine = machine_text(results["machine"])
    note = f"Whole `fit` of a table in memory, median of {len(rows[0]['runs'])} (lowest to highest). {machine}.\n\n"
    return note + table(head, lines)


def compare_markdown(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Both results and how many times quicker the second is, for the trainings that both have.

    Raises InputError if they are no results of the train benchmark, have no training in common, or not its steps.
    """
    old, new = _by_training(before), _by_training(after)
    common = [key for key in old if key in new]
    if not common:
        raise InputError("The two results have no training in common", "compare", "Give results of the same data.")
    lines, phases = [], []
    for key in common:
        a, b = old[key], new[key]
        if a["steps"] != b["steps"]:
            steps = f"Their steps differ: {a['steps']} and {b['steps']}"
            raise InputError(steps, key[0], "Run both with the same --steps.")
        seconds = [spread_text(a["seconds"], 1), spread_text(b["seconds"], 1)]
        speeds = [f"{a['steps_per_second']['median']:.1f}", f"{b['steps_per_second']['median']:.1f}"]
        gain = f"{a['seconds']['median'] / b['seconds']['median']:.2f}"
        gain_steps = f"{b['steps_per_second']['median'] / a['steps_per_second']['median']:.2f}"
        lines.append([*key, *seconds, f"**{gain}**", *speeds, f"**{gain_steps}**"])
        for phase in dict.fromkeys([*a["phases"], *b["phases"]]):
            times = [f"{row['phases'][phase]:.2f}" if phase in row["phases"] else "-" for row in (a, b)]
            phases.append([*key, phase, *times])
    head = ["data", "epsilon", "s before", "s after", "quicker", "steps / s before", "steps / s after", "quicker"]
    notes = f"Before: {machine_text(before['machine'])}. After: {machine_text(after['machine'])}.\n\n"
    by_phase = table(["data", "epsilon", "phase", "s before", "s after"], phases)
    return notes + table(head, lines) + "\nWhere the time goes:\n\n" + by_phase
