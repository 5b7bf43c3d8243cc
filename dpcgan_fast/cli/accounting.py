"""`dpcgan account`: epsilon of a run's ledger, or of a mechanism given by its numbers."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dpcgan_fast.cli.console import result, result_json
from dpcgan_fast.cli.options import Json
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy import Mechanism, PrivacySpent, calibrate_noise_multiplier
from dpcgan_fast.privacy import account as compose
from dpcgan_fast.privacy.accountant import Charge, epsilon_alone, in_whole
from dpcgan_fast.privacy.card import NO_SUM
from dpcgan_fast.privacy.ledger import charged, read_ledger, seeded, taken_by_run
from dpcgan_fast.privacy.selection import SELECTION_EVENT
from dpcgan_fast.synthesis.privacy_statement import composed_releases, number
from dpcgan_fast.synthesis.run_folder import RunFolder
from dpcgan_fast.synthesis.statistics import STATISTICS
from dpcgan_fast.train.settings import TrainSettings


def account(
    run: Annotated[Path | None, typer.Argument(help="Run folder: composes everything in its ledger.")] = None,
    sample_rate: Annotated[float | None, typer.Option(help="Poisson sample rate q in (0, 1].")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Noise standard deviation over max_grad_norm.")] = None,
    steps: Annotated[int | None, typer.Option(help="Number of steps.")] = None,
    delta: Annotated[float | None, typer.Option(help="In (0, 1).")] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Target, in place of --noise-multiplier: solves for the noise multiplier.")
    ] = None,
    expect_head: Annotated[
        str | None,
        typer.Option(help="Hash of the ledger's last line as noted before: exit 3 if it is not in the ledger."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Epsilon by Renyi DP and by privacy loss distributions (dp-accounting), and the smaller of the two."""
    numbers = {"--sample-rate": sample_rate, "--steps": steps, "--delta": delta}
    if run is not None:
        if any(value is not None for value in (*numbers.values(), noise_multiplier, epsilon)):
            raise InputError("A run has its own numbers", f"account {run}", "Give a run folder or numbers, not both.")
        values = _account_run(run, expect_head)
    else:
        if expect_head is not None:
            raise InputError("There is no ledger to look into", "--expect-head", "Give the run folder, too.")
        missing = [name for name, value in numbers.items() if value is None]
        if missing:
            raise InputError("Numbers are missing", ", ".join(missing), "Give a run folder, or all of the numbers.")
        if (noise_multiplier is None) == (epsilon is None):
            how = "The one is computed from the other."
            raise InputError("Give either a noise multiplier or a target", "--noise-multiplier, --epsilon", how)
        assert sample_rate is not None and steps is not None and delta is not None  # noqa: PT018
        values = _account_numbers(sample_rate, noise_multiplier, steps, delta, epsilon)
    if as_json:
        result_json(values)
        return
    for line in _lines(values):
        result(line)


def _account_numbers(
    sample_rate: float, noise_multiplier: float | None, steps: int, delta: float, epsilon: float | None
) -> dict[str, Any]:
    def mechanisms(noise: float) -> list[Mechanism]:
        event = "gaussian" if sample_rate == 1 else "poisson_gaussian"
        return [Mechanism("steps", event, sample_rate, noise, steps, 1.0)]

    try:
        if noise_multiplier is None:
            assert epsilon is not None
            noise_multiplier = calibrate_noise_multiplier(mechanisms, epsilon, delta)
        spent = compose(mechanisms(noise_multiplier), delta)
    except ValueError as error:
        raise InputError(str(error).rstrip("."), "account", "See `dpcgan account --help`.") from None
    return {
        **_spent_values(spent),
        "noise_multiplier": noise_multiplier,
        "sample_rate": sample_rate,
        "steps": steps,
    }


def _account_run(run: Path, expect_head: str | None) -> dict[str, Any]:
    folder = RunFolder.open(run)
    config = folder.read_config()
    settings = TrainSettings.from_dict(config["settings"])
    lines, torn = read_ledger(folder.ledger)
    heads = [line.hash for line in lines]
    if expect_head is not None and expect_head not in heads:
        raise PrivacyError(
            "The ledger does not hold the line that was expected: it was rolled back, or is another run's",
            str(folder.ledger),
            "Restore the newest copy of the run.",
        )
    mechanisms = charged(lines)
    spent = compose(mechanisms, settings.delta)
    return {
        **_spent_values(spent),
        "mechanisms": [m.to_dict() for m in mechanisms],
        "alone": [{**m.to_dict(), "epsilon": _alone(m, spent)} for m in in_whole(mechanisms)],
        "statistics": composed_releases(config.get("released", {}), taken_by_run(lines), str(folder.config)),
        "planned_epsilon": number(settings.epsilon),
        "seeded": settings.seed is not None or seeded(lines),
        "ledger_head": heads[-1] if heads else None,
        "torn_line": torn,
    }


def _alone(charge: Charge, spent: PrivacySpent) -> float | str | None:
    epsilon = epsilon_alone(charge, spent)
    return None if epsilon is None else number(epsilon)


def _spent_values(spent: PrivacySpent) -> dict[str, Any]:
    return {
        "epsilon_rdp": number(spent.epsilon_rdp),
        "epsilon_pld": number(spent.epsilon_pld),
        "epsilon": number(spent.epsilon),
        "delta": spent.delta,
        "accountant": spent.accountant,
        "pld_interval": spent.pld_interval,
    }


def _lines(values: dict[str, Any]) -> list[str]:
    lines = [
        f"epsilon {values['epsilon']} at delta {values['delta']:g} (by {values['accountant']}, the smaller one)",
        f"  by Renyi DP                     {values['epsilon_rdp']}",
        f"  by privacy loss distributions   {values['epsilon_pld']} (grid {values['pld_interval']:g})"
        + (", which have no bound of a private selection" if _is_selection(values) else ""),
    ]
    if "noise_multiplier" in values:
        lines.append(
            f"noise multiplier {values['noise_multiplier']:g}, sample rate {values['sample_rate']:g}, "
            f"{values['steps']} steps"
        )
    each, parts = values.get("alone", []), values.get("statistics", [])
    for m in each:
        if m["event"] == SELECTION_EVENT:
            lines.append(
                f"  {m['mechanism']} among {m['candidates']} candidates: the best of a secret number of runs "
                f"({m['runs_distribution']}, mean {m['runs_mean']:g}); of each run all that it may take is accounted"
            )
            continue
        rate = "" if m["event"] == "gaussian" else f", sample rate {m['sample_rate']:.6g}"
        lines.append(
            f"  {m['mechanism']}: {m['steps']} x Gaussian, noise multiplier {m['noise_multiplier']:g}{rate}; alone "
            f"epsilon {float(m['epsilon']):g}"
        )
        if parts and m["mechanism"] == STATISTICS:
            whole = sum(part["share"] for part in parts)
            lines.append(
                f"    {len(parts)} Gaussian releases, listed in the privacy card, take {whole:.4%} of this line"
            )
    if each and not _is_selection(values):
        lines.append(f"  {NO_SUM}")
    if values.get("seeded"):
        lines.append("NOT private: the noise of this run came from a seed")
    return lines


def _is_selection(values: dict[str, Any]) -> bool:
    return any(m["event"] == SELECTION_EVENT for m in values.get("mechanisms", []))
