"""`dpcgan bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dpcgan_fast.bench import (
    SIZES,
    WIDTHS,
    bench_sample,
    bench_scale,
    bench_step,
    bench_train,
    chosen_nets,
    describe,
    write_results,
)
from dpcgan_fast.cli.console import result, say
from dpcgan_fast.cli.training import Device
from dpcgan_fast.errors import InputError
from dpcgan_fast.synthesis.fitting import pick_device

SUITES = ("step", "train", "sample", "scale")
_OF_SUITES = {  # parameter -> its option, and the suites that have a use for it
    "repeat": ("--repeat", ("step", "train")),
    "nets": ("--nets", ("step",)),
    "calls": ("--calls", ("step", "scale")),
    "compiled": ("--compile", ("step",)),
    "steps": ("--steps", ("train",)),
    "sizes": ("--sizes", ("scale",)),
    "widths": ("--widths", ("scale",)),
    "work": ("--work", ("scale",)),
}


def _numbers_text(numbers: tuple[int, ...]) -> str:
    return ",".join(f"{number:.0e}".replace("e+0", "e") for number in numbers)


def _numbers(text: str, option: str, most: int) -> list[int]:
    """Rising whole numbers that are parted by commas, such as 1e5,2e6."""
    try:
        numbers = [int(float(part)) for part in text.split(",")]
    except (ValueError, OverflowError):
        numbers = []
    if not numbers or numbers != sorted(set(numbers)) or numbers[0] < 100 or numbers[-1] > most:
        how = f"Give rising numbers from 100 to {most:,}, such as 1e3,1e4."
        raise InputError("These are no sizes of tables", f"{option} {text}", how)
    return numbers


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
    calls: Annotated[
        int, typer.Option(help="Timed calls of each contender in a run (suites step and scale).", min=1)
    ] = 15,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also time torch.compile's plain step, which compiles for minutes.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(help="Steps of autoencoder and critic each (suite train).", min=1)
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Numbers of patients, rising: 1e5,1e6,1e7 is the whole range (suite scale).")
    ] = _numbers_text(SIZES),
    widths: Annotated[str, typer.Option(help="Numbers of codes, rising (suite scale).")] = _numbers_text(WIDTHS),
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for files that are removed at the end; else TMPDIR's. 1e7 takes 4 GB (suite scale)."),
    ] = None,
) -> None:
    """Time private steps against plain ones (interleaved, as ratios), whole trainings, sampling, or tables of any size.

    Suite step: our clipped sum is compared with torch.func's before anything is timed; contenders of Opacus run where
    it is installed; with --repeat, each run is a process of its own. Beside FILE.json it writes tables (.md), with the
    targets and the roofline of each op, and two figures (.svg). Suite train: SUPPORT2, and the epileptic seizure table
    where its file is here, private and not, with the seconds of each phase. Suite sample: rows a second to Parquet and
    CSV, of the same two tables. Suite scale: what the size of made-up tables of codes costs to prepare, train on and
    sample. See bench/README.md.
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
        results |= bench_step(target, chosen_nets(nets, target.type), calls, repeat, compiled, say)
    elif suite == "train":
        results["results"] = bench_train(device, repeat, steps, say)
    elif suite == "scale":
        patients, codes = _numbers(sizes, "--sizes", 90_000_000), _numbers(widths, "--widths", 100_000)
        if work is not None and not work.is_dir():
            raise InputError("The folder does not exist", f"--work {work}", "Make it first.")
        results["results"] = bench_scale(patients, codes, calls, target, work, say)
    else:
        results["results"] = bench_sample(device, say)
    write_results(results, out)
    result(str(out))
