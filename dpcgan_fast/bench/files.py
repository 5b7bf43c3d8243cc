"""Results on disk: the JSON file with every timing, and the tables and figures beside it."""

import json
from pathlib import Path
from typing import Any

from dpcgan_fast.bench.compare import train_markdown
from dpcgan_fast.bench.figures import roofline_figure, step_figure
from dpcgan_fast.bench.paper import paper_figure, paper_markdown
from dpcgan_fast.bench.scale_table import scale_markdown
from dpcgan_fast.bench.table import step_markdown
from dpcgan_fast.files import write_whole

JAX_FILE = "jax_privacy.json"  # by bench/jax_privacy_step.py, which has an environment of its own


def read_results(path: Path) -> dict[str, Any]:
    """Results that `write_results` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def jax_results(folder: Path) -> dict[str, Any] | None:
    """The figures of jax-privacy in a folder, if they are there."""
    path = folder / JAX_FILE
    return read_results(path) if path.exists() else None


def write_json(results: dict[str, Any], out: Path) -> None:
    """Writes FILE.json alone. Raises MachineError if the machine cannot write."""
    write_whole(out, json.dumps(results, indent=1) + "\n")


def write_results(results: dict[str, Any], out: Path) -> None:
    """Writes FILE.json and what can be made of it. Raises MachineError if the machine cannot write.

    Suite step: FILE.md, FILE.svg and FILE_roofline.svg, with the column of jax-privacy if its file lies in the folder;
    suites train and scale: FILE.md; suite paper: FILE.md and FILE_DATA.svg for each table.
    """
    write_json(results, out)
    if results["suite"] == "step":
        jax = jax_results(out.parent) if results["machine"]["device"] == "cpu" else None  # where it was timed
        write_whole(out.with_suffix(".md"), step_markdown(results, jax))
        write_whole(out.with_suffix(".svg"), step_figure(results, jax))
        write_whole(out.with_name(f"{out.stem}_roofline.svg"), roofline_figure(results))
    if results["suite"] == "train":
        write_whole(out.with_suffix(".md"), train_markdown(results))
    if results["suite"] == "scale":
        write_whole(out.with_suffix(".md"), scale_markdown(results))
    if results["suite"] == "paper":
        write_whole(out.with_suffix(".md"), paper_markdown(results))
        for name in {cell["data"] for cell in results["cells"]}:
            write_whole(out.with_name(f"{out.stem}_{name}.svg"), paper_figure(results["cells"], name))
