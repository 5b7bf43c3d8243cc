"""`dpcgan schema`, `dpcgan prepare` and `dpcgan train`."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from dpcgan_fast.cli.console import result, result_json, say
from dpcgan_fast.cli.options import DATA, Device, Json
from dpcgan_fast.cli.progress import TerminalProgress, WorkProgress
from dpcgan_fast.data.draft import draft_schema
from dpcgan_fast.data.preparing import is_prepared
from dpcgan_fast.data.preparing import prepare as make_store
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.files import write_whole
from dpcgan_fast.synthesis import DPCGAN, FitHooks
from dpcgan_fast.train.settings import CLUSTERS, PRESETS
from dpcgan_fast.train.stopping import stop_on_signals


def schema(
    data: Annotated[Path, typer.Argument(help=DATA)],
    out: Annotated[Path, typer.Option(help="Schema file to write.")],
) -> None:
    """Draft a schema file: names and types; bounds, lists and the unit are left for you to fill in.

    The draft reads the data, so it is outside the privacy claim, which begins with the schema that you fill in. No
    value of the data is copied into it.
    """
    draft = draft_schema(data)
    if out.exists():
        raise InputError("There is a file at the output path already", str(out), "Choose another name.")
    write_whole(out, json.dumps(draft, indent=1, ensure_ascii=False) + "\n")
    say("The draft was made by reading the data, outside the privacy claim; the claim begins with the filled schema.")
    say(
        'Fill in every null, with a public value or "private"; name the label, and in "unit" the column that '
        "identifies a person, whose entry then leaves the columns (or null if every row is a person)."
    )
    result(str(out))


def prepare(
    data: Annotated[Path, typer.Argument(help=DATA)],
    schema: Annotated[Path, typer.Option(help="Schema file; bounds and categories may still be open.")],
    out: Annotated[Path, typer.Option(help="Folder of the store to make.")],
) -> None:
    """Put a table that may be larger than memory into a store, on which `dpcgan train` then trains.

    Rows of a person may stand in any order and in any file. Ctrl-C stops; the same command goes on. The store holds the
    data themselves: protect it as you protect them.
    """
    wanted = Schema.from_json(schema)
    if is_prepared(data, wanted, out):
        say("The store is finished: made of the same files, by a schema that asks for the same. Nothing is left to do.")
        result(f"store: {out}")
        return
    with stop_on_signals() as stop, WorkProgress() as progress:
        dropped = make_store(data, wanted, out, progress, lambda: stop.requested)
    if dropped:
        say_dropped(dropped)
    result(f"store: {out}")


def train(
    data: Annotated[Path, typer.Argument(help=f"{DATA} Or a store that `dpcgan prepare` made.")],
    schema: Annotated[Path, typer.Option(help="Schema file; `dpcgan schema` drafts one.")],
    epsilon: Annotated[float, typer.Option(help="Privacy budget, > 0; inf trains the non-private baseline.")],
    delta: Annotated[float, typer.Option(help="In (0, 1), at most 1 / n_units. There is no default.")],
    out: Annotated[Path, typer.Option(help="Run folder to make.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}. auto fits any table.")] = "auto",
    steps: Annotated[
        int | None, typer.Option(help="Critic steps. [default: auto 400, rdpcgan 4000, none with --fit-steps]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Reproducible noise; marks the run NOT private.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped run in --out.")] = False,
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Expected batch in units, of both phases. [default: auto about 2 sqrt(n_units), rdpcgan 128 or 64]"
        ),
    ] = None,
    autoencoder_steps: Annotated[
        int | None, typer.Option(help="Autoencoder steps. [default: auto 600, rdpcgan 2000, none with --fit-steps]")
    ] = None,
    max_grad_norm: Annotated[float, typer.Option(help="Clipping norm of a unit's gradient.")] = 1.0,
    release_share: Annotated[
        float | None,
        typer.Option(
            help="Share of epsilon for class rates, bounds, quantiles, lists, and counts of codes and categories. "
            "[default: 0.1 to 0.25, less for more units; at least 0.15 with paid quantiles, 0.4 with codes or more "
            "than 64 categories]"
        ),
    ] = None,
    networks_only: Annotated[
        bool,
        typer.Option(
            "--networks-only",
            help="Spend all of epsilon on the networks and draw rows from them. Without it, preset auto draws rows "
            "from released statistics where the schema has codes and at most a label beside them, or no codes, no "
            "visits, no public list of more than 64 categories, and at most 64 columns beside signals and label; the "
            "data are not looked at for that.",
        ),
    ] = False,
    fit_steps: Annotated[
        int,
        typer.Option(
            help="Fit the networks to the released statistics, by so many steps of the critic and twice as many of the "
            "autoencoder, which cost nothing, and draw rows from them; private steps follow where --steps or "
            "--autoencoder-steps say how many. A thousand take a minute or two. 0 draws rows from the statistics."
        ),
    ] = 0,
    training_share: Annotated[
        float,
        typer.Option(
            help="What private steps have beside statistics, where there are both, of what epsilon allows a Gaussian "
            "release; at 0.04 the noise of statistics is 2 % greater for it."
        ),
    ] = 0.04,
    clusters: Annotated[
        str,
        typer.Option(
            help="How clusters are found where rows of codes are drawn from statistics: mixture, by noisy EM; "
            "autoencoder, by a private convolutional autoencoder, which takes longer."
        ),
    ] = CLUSTERS[0],
    paired_fakes: Annotated[
        bool, typer.Option("--paired-fakes", help="The paper's joint form: a fake inside each unit's loss.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a private generative model on a table, into a run folder.

    One noise multiplier serves autoencoder and critic; it is found so that everything together, what is released
    before training included, stays within epsilon and delta. Steps, batch sizes and budget shares stand on the card.
    With preset auto the rows of many tables are drawn from statistics and not from the networks (see --networks-only);
    steps and batch sizes then hardly change them. The card says which it was.
    """
    if seed is not None:
        say("WARNING: --seed makes the noise reproducible. This run is NOT private; ledger, card and report say so.")
    model = DPCGAN(
        Schema.from_json(schema), epsilon, delta, preset, device, steps, seed, autoencoder_batch=batch_size,
        critic_batch=batch_size, autoencoder_steps=autoencoder_steps, max_grad_norm=max_grad_norm,
        release_share=release_share, paired_fakes=paired_fakes, statistics=False if networks_only else None,
        clusters=clusters, fit_steps=fit_steps, training_share=training_share,
    )  # fmt: skip
    with stop_on_signals() as stop, TerminalProgress(model.draws_from_statistics) as progress:
        model.fit(data, out, resume=resume, hooks=FitHooks(progress, stop, say_dropped))
    for column in model.released_schema.codes_columns():
        if not column.vocabulary:
            say(f"WARNING: No code of {column.name} was frequent enough to be named privately: synthetic records have "
                "none. Give a public vocabulary.")  # fmt: skip
    for warning in model.privacy()["warnings"]:
        say(f"WARNING: {warning}")
    say(f"Synthetic rows are drawn from {model.privacy()['drawn_from']}.")
    summary = training_summary(model)
    if as_json:
        result_json(summary)
        return
    result(privacy_line(model.privacy()))
    result(f"run folder: {out}")
    result(f"privacy card: {model.folder / 'privacy_card.md'}")


def say_dropped(names: tuple[str, ...]) -> None:
    """Says, once, which columns of the data are left out."""
    say(f"Columns that the schema does not name are left out: {', '.join(names)}")


def training_summary(model: DPCGAN) -> dict[str, Any]:
    """What `train --json` prints."""
    privacy = model.privacy()
    kept = (
        "private",
        "epsilon",
        "delta",
        "epsilon_spent",
        "epsilon_rdp",
        "epsilon_pld",
        "accountant",
        "mechanisms",
        "drawn_from",
        "tuning",
    )
    return {"run": str(model.folder), **{name: privacy[name] for name in kept}}


def privacy_line(privacy: dict[str, Any]) -> str:
    """The guarantee of a run in one line."""
    if not privacy["private"]:
        reason = "its noise came from a seed" if privacy["seeded"] else "epsilon is inf"
        return f"NOT private: {reason}"
    spent = float(privacy["epsilon_spent"])
    assert math.isfinite(spent)
    if privacy["epsilon_pld"] == "inf":
        return (
            f"private: epsilon {privacy['epsilon']:g} at delta {privacy['delta']:g}, the search for settings included; "
            f"the ledger adds up to {spent:.6f} by Renyi DP"
        )
    return (
        f"private: epsilon {privacy['epsilon']:g} at delta {privacy['delta']:g}; the ledger adds up to {spent:.6f}, "
        f"the smaller of two bounds (RDP {privacy['epsilon_rdp']:.6f}, PLD {privacy['epsilon_pld']:.6f})"
    )
