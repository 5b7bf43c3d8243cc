"""`dpcgan bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dpcgan_fast.bench import bench_sample, bench_step, bench_train, chosen_nets, describe, write_results
from dpcgan_fast.cli.console import result, say
from dpcgan_fast.cli.training import Device
from dpcgan_fast.errors import InputError
from dpcgan_fast.synthesis.fitting import pick_device

SUITES = ("step", "train", "sample")
_OF_SUITES = {  # parameter -> its option, and the suites that have a use for it
    "repeat": ("--repeat", ("step", "train")),
    "nets": ("--nets", ("step",)),
    "calls": ("--calls", ("step",)),
    "compiled": ("--compile", ("step",)),
    "steps": ("--steps", ("train",)),
}


def bench(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="JSON file to write: every timing, with the machine's description.")],
    suite: Annotated[str, typer.Option(help=f"One of {', '.join(SUITES)}.")] = "step",
    device: Device = "cpu",
    repeat: Annotated[
        int, typer.Option(help="Separate runs, of which the spread is shown (suites step and train).", min=1)
    ] = 1,
    nets: Annotated[
        str, typer.Option(help="Nets to time, by their places from 0 on (0,2) or a part of their names (suite step).")
    ] = "",
    calls: Annotated[int, typer.Option(help="Timed calls of each contender in a run (suite step).", min=1)] = 15,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also time torch.compile's plain step, which compiles for minutes.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Steps of autoencoder and critic each (suite train).", min=1)
    ] = None,
) -> None:
    """Time private steps against plain ones (interleaved, as ratios), whole trainings, or sampling.

    Suite step: our clipped sum is compared with torch.func's before anything is timed; contenders of Opacus run where
    it is installed; with --repeat, each run is a process of its own. Beside FILE.json it writes tables (.md), with the
    targets and the roofline of each op, and two figures (.svg). Suite train: SUPPORT2, and the epileptic seizure table
    where its file is here, private and not, with the seconds of each phase. See bench/README.md.
    """
    if suite not in SUITES:
        raise InputError("There is no such suite", f"--suite {suite}", f"Choose one of {', '.join(SUITES)}.")
    for parameter, (option, suites) in _OF_SUITES.items():
        source = context.get_parameter_source(parameter)
        if suite not in suites and source is not None and source.name == "COMMANDLINE":
            how = f"Leave it out, or choose --suite {' or '.join(suites)}."
            raise InputError(f"Suite {suite} has no use for it", option, how)
    if out.suffix != ".json" or not out.parent.is_dir():
        how = "Use a name that ends in .json, in a folder that exists."
        raise InputError("The results cannot be written there", f"--out {out}", how)
    target = pick_device(device)
    results: dict[str, Any] = {"suite": suite, "machine": describe(target)}
    if suite == "step":
        results |= bench_step(target, chosen_nets(nets), calls, repeat, compiled, say)
    elif suite == "train":
        results["results"] = bench_train(device, repeat, steps, say)
    else:
        results["results"] = bench_sample(device, say)
    write_results(results, out)
    result(str(out))
