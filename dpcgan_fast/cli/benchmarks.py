"""`dpcgan bench`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dpcgan_fast.bench import bench_sample, bench_step, bench_train, describe, step_figure, step_markdown
from dpcgan_fast.cli.console import result, say
from dpcgan_fast.cli.training import Device
from dpcgan_fast.errors import InputError
from dpcgan_fast.files import write_whole
from dpcgan_fast.synthesis.fitting import pick_device

SUITES = ("step", "train", "sample")


def bench(
    out: Annotated[Path, typer.Option(help="JSON file to write: every timing, with the machine's description.")],
    suite: Annotated[str, typer.Option(help=f"One of {', '.join(SUITES)}.")] = "step",
    device: Device = "cpu",
    calls: Annotated[int, typer.Option(help="Timed calls of each contender (suite step).", min=1)] = 15,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also time torch.compile's plain step, which compiles for minutes.")
    ] = False,
) -> None:
    """Time private steps against plain ones (interleaved, as ratios), training, or sampling.

    Suite step: our clipped sum is compared with torch.func's before anything is timed; contenders of Opacus run where
    it is installed. Beside FILE.json it writes a table (.md) and a figure (.svg).
    """
    if suite not in SUITES:
        raise InputError("There is no such suite", f"--suite {suite}", f"Choose one of {', '.join(SUITES)}.")
    if out.suffix != ".json" or not out.parent.is_dir():
        how = "Use a name that ends in .json, in a folder that exists."
        raise InputError("The results cannot be written there", f"--out {out}", how)
    target = pick_device(device)
    rows: list[dict[str, Any]]
    if suite == "step":
        rows = bench_step(target, calls, compiled, say)
    else:
        rows = (bench_train if suite == "train" else bench_sample)(device, say)
    results = {"suite": suite, "machine": describe(target), "results": rows}
    write_whole(out, json.dumps(results, indent=1) + "\n")
    if suite == "step":
        write_whole(out.with_suffix(".md"), step_markdown(results))
        write_whole(out.with_suffix(".svg"), step_figure(results))
    result(str(out))
