"""The scale benchmark as Markdown."""

from typing import Any

from dpcgan_fast.bench.table import machine_text, table
from dpcgan_fast.bench.targets import all_met

_UNITS = (
    ("megabytes_per_second", "MB/s"), ("events_per_second", "events/s"), ("records_per_second", "records/s"),
    ("seconds", "s"),
)  # fmt: skip
_GIB = 1 << 30


def _figures(row: dict[str, Any]) -> str:
    """A row's figures in a few words."""
    parts = [f"{row[name]:,.1f} {unit}" for name, unit in _UNITS if name in row]
    if "peak_bytes" in row:
        peak, own = row["peak_bytes"] / _GIB, row["peak_anonymous_bytes"] / _GIB
        parts.append(f"peak {peak:.2f} GiB ({own:.2f} without mapped files)")
    parts += [f"{name}: {timing['median']:.1f} ms" for name, timing in row.get("milliseconds", {}).items()]
    if "parts" in row:
        parts.append(f"stopped after {row['stopped_after']} of {row['parts']} parts")
    return ", ".join(parts)


def _targets(row: dict[str, Any]) -> str:
    lines = []
    for name, verdict in row["verdicts"].items():
        mark = "✗" if verdict["standing"] == "missed" else "✓"
        bound = "≥" if verdict["least"] else "≤"
        lines.append(f"{name}: {verdict['value']:.2f} ({bound} {verdict['must']:g}) {mark}")
    return "<br>".join(lines) or "-"


def scale_markdown(results: dict[str, Any]) -> str:
    """A row for each measurement, with its targets."""
    met, targets = all_met(results["results"])
    lines = [
        [" ".join([row["measure"], row.get("format", "")]).strip(), f"{row['patients']:,}", f"{row['codes']:,}",
         _figures(row), _targets(row)]
        for row in results["results"]
    ]  # fmt: skip
    note = f"Made by `dpcgan bench --suite scale`. {met} of {targets} targets met. {machine_text(results['machine'])}."
    return f"# Scale\n\n{note}\n\n" + table(["measurement", "patients", "codes", "figures", "targets"], lines)
