"""`dpcgan tune`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from dpcgan_fast.cli.console import result, result_json, say
from dpcgan_fast.cli.options import DATA, Device, Json
from dpcgan_fast.cli.training import privacy_line, say_dropped, training_summary
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy.selection import DISTRIBUTIONS, LARGEST_MEAN, RunCount
from dpcgan_fast.synthesis import FitHooks
from dpcgan_fast.train.stopping import cleaned_up_on_signals, stop_on_signals
from dpcgan_fast.tuning import read_candidates, search_on_public, search_privately

_MEAN, _DISTRIBUTION = 10.0, "poisson"
_RARE = 1e-3


def tune(
    data: Annotated[Path, typer.Argument(help=f"{DATA} Or a store that `dpcgan prepare` made.")],
    schema: Annotated[Path, typer.Option(help="Schema file; it needs a label.")],
    epsilon: Annotated[float, typer.Option(help="Privacy budget of the search and the run together, > 0.")],
    delta: Annotated[float, typer.Option(help="In (0, 1), at most 1 / n_units. There is no default.")],
    candidates: Annotated[
        Path,
        typer.Option(
            help="JSON file: a list of objects with settings, by the names of this program's options for train "
            '(such as {"steps": 800, "networks_only": true}) or of `TrainSettings`.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    public_data: Annotated[
        Path | None,
        typer.Option(
            help="Search on this table in place of the data, and pay nothing for it. You vouch that it is public, and "
            "the card says so."
        ),
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(
            help=f"Distribution of the secret number of runs: {', '.join(DISTRIBUTIONS)}. [default: {_DISTRIBUTION}]"
        ),
    ] = None,
    mean_runs: Annotated[
        float | None, typer.Option(help=f"Its mean, from 1 to {LARGEST_MEAN:g}. [default: {_MEAN:g}]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Reproducible search and noise; marks the run NOT private.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Choose settings privately, and train with them into a run folder.

    The search is paid for: a secret number of runs, each with a candidate drawn at random, is trained and scored on the
    data, and the best one is kept. Epsilon and delta are those of the whole (Papernot and Steinke, arXiv 2110.03620),
    so that each run has more noise than `dpcgan train` adds, whichever candidates there are. All other runs are
    destroyed, and nothing is said of them. With --public-data every candidate is trained once on a public table, and
    the best one on the data with the whole budget. Ctrl-C gives the search up and removes all that it made.
    """
    if seed is not None:
        say("WARNING: --seed makes the noise reproducible. This run is NOT private; ledger, card and report say so.")
    wanted, known = Schema.from_json(schema), read_candidates(candidates)
    with cleaned_up_on_signals(), stop_on_signals() as stop:
        hooks = FitHooks(stop=stop, dropped=say_dropped)
        if public_data is not None:
            if runs is not None or mean_runs is not None:
                raise InputError(
                    "A search on public data trains each candidate once", "--runs, --mean-runs", "Leave it out."
                )
            model = search_on_public(
                data, public_data, wanted, epsilon, delta, known, out, device=device, seed=seed, hooks=hooks, say=say
            )
        else:
            count = _count(runs or _DISTRIBUTION, _MEAN if mean_runs is None else mean_runs)
            model = search_privately(
                data, wanted, epsilon, delta, known, out, count, device=device, seed=seed, hooks=hooks,
                accepted=lambda: _say_begun(count),
            )  # fmt: skip
    privacy = model.privacy()
    say(f"Settings that were chosen: {json.dumps(privacy['tuning']['settings'], sort_keys=True)}")
    say(f"Synthetic rows are drawn from {privacy['drawn_from']}.")
    if as_json:
        result_json(training_summary(model))
        return
    result(privacy_line(privacy))
    result(f"run folder: {out}")
    result(f"privacy card: {model.folder / 'privacy_card.md'}")


def _say_begun(count: RunCount) -> None:
    if count.none > _RARE:
        say(
            f"WARNING: one search in {1 / count.none:.3g} draws no run at all and spends its budget for nothing; a "
            "greater --mean-runs makes that rarer."
        )
    say(f"a secret number of trainings, {count.mean:g} on average; nothing is shown of them")


def _count(distribution: str, mean: float) -> RunCount:
    for name in DISTRIBUTIONS:
        if name == distribution:
            if not 1 <= mean <= LARGEST_MEAN:
                how = f"Give a number from 1 to {LARGEST_MEAN:g}."
                raise InputError("The mean number of runs is out of range", f"--mean-runs {mean:g}", how)
            return RunCount(name, mean)
    how = f"Choose one of {', '.join(DISTRIBUTIONS)}."
    raise InputError("There is no such distribution of the number of runs", f"--runs {distribution}", how)
