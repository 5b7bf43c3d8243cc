"""`dpcgan bench`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dpcgan_fast.bench import (
    EPSILONS,
    SIZES,
    STEPS,
    SYSTEMS,
    TABLES,
    WIDTHS,
    Grid,
    bench_paper,
    bench_sample,
    bench_scale,
    bench_step,
    bench_train,
    chosen_nets,
    describe,
    read_results,
    write_json,
    write_results,
)
from dpcgan_fast.cli.console import result, say
from dpcgan_fast.cli.options import Device, epsilons_of
from dpcgan_fast.errors import InputError
from dpcgan_fast.synthesis.fitting import pick_device

SUITES = ("step", "train", "sample", "scale", "paper")
_OF_SUITES = {  # parameter -> its option, and the suites that have a use for it
    "repeat": ("--repeat", ("step", "train")),
    "nets": ("--nets", ("step",)),
    "calls": ("--calls", ("step", "scale")),
    "compiled": ("--compile", ("step",)),
    "steps": ("--steps", ("train", "paper")),
    "sizes": ("--sizes", ("scale",)),
    "widths": ("--widths", ("scale",)),
    "work": ("--work", ("scale",)),
    "device": ("--device", ("step", "train", "sample", "scale")),
    "data": ("--data", ("paper",)),
    "systems": ("--systems", ("paper",)),
    "epsilons": ("--epsilons", ("paper",)),
    "seeds": ("--seeds", ("paper",)),
    "splits": ("--splits", ("paper",)),
    "jobs": ("--jobs", ("paper",)),
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


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",")))


def _earlier(out: Path) -> dict[str, Any]:
    try:
        return read_results(out)
    except (OSError, ValueError):
        raise InputError("The file is there and cannot be read", f"--out {out}", "Give another name.") from None


def _paper(grid: Grid, out: Path, machine: dict[str, Any], jobs: int) -> None:
    """Runs what is missing and writes the results after each cell; tables and figures at the end."""
    before = _earlier(out) if out.exists() else None

    def whole(results: dict[str, Any]) -> dict[str, Any]:
        return {"suite": "paper", "machine": machine, **results}

    write_results(whole(bench_paper(grid, before, lambda results: write_json(whole(results), out), say, jobs)), out)


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
        int | None,
        typer.Option(
            help="Steps of autoencoder and critic each (suite train), or of the critic of published and fully "
            f"connected networks (suite paper, by default {STEPS}).",
            min=1,
        ),
    ] = None,
    sizes: Annotated[
        str, typer.Option(help="Numbers of patients, rising: 1e5,1e6,1e7 is the whole range (suite scale).")
    ] = _numbers_text(SIZES),
    widths: Annotated[str, typer.Option(help="Numbers of codes, rising (suite scale).")] = _numbers_text(WIDTHS),
    work: Annotated[
        Path | None,
        typer.Option(help="Folder for files, removed at the end; else TMPDIR's. 1e7 takes 19 GB (suite scale)."),
    ] = None,
    data: Annotated[str, typer.Option(help="Tables to compare on (suite paper).")] = ",".join(TABLES),
    systems: Annotated[str, typer.Option(help="Systems to compare (suite paper).")] = ",".join(SYSTEMS),
    epsilons: Annotated[str, typer.Option(help="Privacy levels; inf is no privacy (suite paper).")] = ",".join(
        f"{epsilon:g}" for epsilon in EPSILONS
    ),
    seeds: Annotated[int, typer.Option(help="Runs of each system on a split (suite paper).", min=1)] = 1,
    splits: Annotated[int, typer.Option(help="Splits into training and test rows (suite paper).", min=1)] = 1,
    jobs: Annotated[
        int, typer.Option(help="Processes that runs are spread over, each with one thread (suite paper).", min=1)
    ] = 1,
) -> None:
    """Time private steps, whole trainings, sampling, or tables of any size; or compare what synthetic rows are worth.

    Suite step: private steps against plain ones, interleaved, as ratios. Our clipped sum is compared with torch.func's
    before anything is timed; contenders of Opacus run where it is installed; with --repeat, each run is a process of
    its own. Beside FILE.json it writes tables (.md), with the targets and the roofline of each op, and two figures
    (.svg). Suite train: SUPPORT2, and the epileptic seizure table where its file is here, private and not, with the
    seconds of each phase. Suite sample: rows a second to Parquet and CSV, of the same two tables. Suite scale: what the
    size of made-up tables of codes costs to prepare, train on and
    sample. Suite paper: the published system beside its rivals, its ablations and the best of our baselines, with the
    paper's measures, and beside its targets; it writes after each run, a table (.md) and figures (.svg) beside
    FILE.json at the end, and the same command goes on where it stopped.
    See bench/README.md.
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
    if suite == "paper":
        levels = epsilons_of(epsilons, "--epsilons", "1,10,inf")
        grid = Grid(_names(data), _names(systems), levels, seeds, splits, steps or STEPS)
        _paper(grid, out, describe(pick_device("cpu")), jobs)
        result(str(out))
        return
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
