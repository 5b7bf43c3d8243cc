"""`dpcgan audit`: an empirical lower bound on epsilon, of a run or of the engine."""

from itertools import count
from pathlib import Path
from typing import Annotated, Any

import typer

from dpcgan_fast.auditing import audit_engine, audit_run
from dpcgan_fast.auditing.engine import TURNS
from dpcgan_fast.auditing.made_up import BASE_ROWS
from dpcgan_fast.cli.console import result, result_json
from dpcgan_fast.cli.options import Json
from dpcgan_fast.cli.progress import WorkProgress
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy.audit import SIGNIFICANCE, Audit
from dpcgan_fast.synthesis.fitting import pick_device
from dpcgan_fast.synthesis.privacy_statement import number

_OF_RUN, _OF_ENGINE = 2000, 10_000  # canaries
_FEWEST, _MOST = 100, 16_384  # more would take the fused form's layer off the fused path
_FEWEST_ROWS, _MOST_ROWS = 16, 1_000_000
_EPSILON, _DELTA = 1.0, 1e-5


def audit(
    run: Annotated[Path | None, typer.Argument(help="Folder of a finished run.")] = None,
    engine: Annotated[bool, typer.Option("--engine", help="Audit the engine of this installation instead.")] = False,
    canaries: Annotated[
        int | None,
        typer.Option(
            help=f"People who are there with probability 1/2, from {_FEWEST} to {_MOST}: bounds come closer with more. "
            f"[default: {_OF_RUN} for a run, {_OF_ENGINE} for the engine]"
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            help="Made-up rows beside a canary, of a run. Some statistics are only released of many people: with as "
            f"many as the run had all of them are, and each canary takes longer. [default: {BASE_ROWS}]"
        ),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help=f"Claim that the engine's noise is made for. [default: {_EPSILON:g}]")
    ] = None,
    delta: Annotated[float | None, typer.Option(help=f"Its delta, in (0, 1). [default: {_DELTA:g}]")] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu or cuda, for the engine's steps; a run's are taken on the CPU.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Lower bound on epsilon, by experiment: of a run, or of the engine.

    Canaries are put into the data or not, and guessed from what is released. Of a run, everything that its ledger
    charges is done again by this installation, without its data: releases by their own code, with the run's schema and
    noise and some of its synthetic rows, and private steps with its sample rate, noise and number of steps. Of the
    engine, private steps are taken in every way that it has. Whoever guesses knows all but the noise and the draws.

    Bounds below a claim do not prove it; the accountant does. A claim that is refuted, by what would have a
    probability below 1e-6 if it held, ends with exit code 3: something in the code, the build or the noise is broken.
    """
    if (run is None) == (not engine):
        raise InputError("Give a run folder or --engine, one of them", "audit", "See `dpcgan audit --help`.")
    if canaries is not None and not _FEWEST <= canaries <= _MOST:
        how = f"Give a number from {_FEWEST} to {_MOST}."
        raise InputError("This is no number of canaries for an audit", f"--canaries {canaries}", how)
    if rows is not None and not _FEWEST_ROWS <= rows <= _MOST_ROWS:
        how = f"Give a number from {_FEWEST_ROWS} to {_MOST_ROWS}."
        raise InputError("This is no number of rows for an audit", f"--rows {rows}", how)
    given = {"--epsilon": epsilon, "--delta": delta, "--device": device}
    if run is not None:
        if any(value is not None for value in given.values()):
            names = ", ".join(name for name, value in given.items() if value is not None)
            raise InputError("A run has its own numbers", names, "Leave them out; they are for --engine.")
        _show(_of_run(run, canaries or _OF_RUN, rows or BASE_ROWS), as_json, str(run))
    else:
        if rows is not None:
            raise InputError("The engine's steps have canaries alone", "--rows", "Leave it out; it is for a run.")
        numbers = _EPSILON if epsilon is None else epsilon, _DELTA if delta is None else delta
        _show(_of_engine(*numbers, canaries or _OF_ENGINE, device or "auto"), as_json, "--engine")


def _of_run(run: Path, canaries: int, rows: int) -> dict[str, Any]:
    with WorkProgress() as progress:

        def turned(done: int, total: int) -> None:
            if done == 1:
                progress.start("canaries", total, 0)
            progress.advance(done)

        found = audit_run(run, canaries, turned, rows)
    return {
        **_values(found.whole),
        "parts": {name: _values(part) for name, part in found.parts.items()},
        "seeded": found.seeded,
        "selected": found.selected,
    }


def _of_engine(epsilon: float, delta: float, canaries: int, device: str) -> dict[str, Any]:
    on = pick_device(device)
    with WorkProgress() as progress:
        turns = count(1)

        def turned() -> None:
            done = next(turns)
            if done == 1:  # not before: bad input would be told of after this
                progress.start("steps", TURNS, 0)
            progress.advance(done)

        try:
            found = audit_engine(epsilon, delta, canaries, on, turned)
        except ValueError as error:
            raise InputError(str(error).rstrip("."), "audit --engine", "See `dpcgan audit --help`.") from None
    parts = {name: {**_values(one), "path": path} for name, (path, one) in found.items()}
    return {"parts": parts, "device": on.type, "refuted": any(part["refuted"] for part in parts.values())}


def _values(audit: Audit) -> dict[str, Any]:
    return {
        "canaries": audit.canaries,
        "right_guesses": audit.right,
        "claimed_epsilon": number(audit.epsilon),
        "delta": audit.delta,
        "epsilon_lower_bound": number(audit.lower),
        "epsilon_lower_bound_gaussian": number(audit.lower_gaussian),
        "confidence": 1 - SIGNIFICANCE,
        "refuted": audit.refuted,
    }


def _show(values: dict[str, Any], as_json: bool, where: str) -> None:
    """Prints what was found. Raises PrivacyError if a claim is refuted."""
    if as_json:
        result_json(values)
    else:
        for line in _lines(values):
            result(line)
    refuted = [name for name, part in values["parts"].items() if part["refuted"]]
    if values["refuted"] or refuted:
        of = ", ".join(refuted) or "everything together"
        how = "Release nothing more from it; repeat the audit, then report this with the output of `dpcgan doctor`."
        raise PrivacyError(f"The claim is refuted: canaries are told apart too well ({of})", where, how)


def _lines(values: dict[str, Any]) -> list[str]:
    rows = {"everything together": values} if "claimed_epsilon" in values else {}
    rows |= {f"  {name}" if rows else name: part for name, part in values["parts"].items()}
    width = max(len(name) for name in rows)
    some = next(iter(rows.values()))
    lines = [
        f"{some['canaries']} canaries, each in the data with probability 1/2; lower bounds on epsilon at delta "
        f"{some['delta']:g} and {some['confidence']:.0%} confidence",
        f"{'':{width}}  {'claimed':>8}  {'at least':>8}  {'surely':>8}  guessed right",
    ]
    for name, part in rows.items():
        path = f"  ({part['path']})" if "path" in part else ""
        lines.append(
            f"{name:{width}}  {part['claimed_epsilon']:8.3f}  {part['epsilon_lower_bound_gaussian']:8.3f}  "
            f"{part['epsilon_lower_bound']:8.3f}  {part['right_guesses'] / part['canaries']:.1%}{path}"
        )
    lines.append(
        "at least: if canaries are told apart no better than by a Gaussian mechanism, as by all that a ledger holds"
    )
    lines.append(
        "surely: whatever the mechanism is; this stays well below epsilon, and comes nearer with more canaries"
    )
    if values.get("selected"):
        lines.append("The claim also pays for the other runs of a private selection; these are not done again.")
    if values.get("seeded"):
        lines.append("NOT private: the noise of this run came from a seed, and whoever knows it can subtract it")
    return lines
