"""The audit of a run: everything that its ledger charges is done again, on canaries and made-up rows.

Its data are not needed. Releases are made by their own code with the run's schema and noise, from a small table of the
run's synthetic rows, with one more person or without: a trial for each canary. Private steps are taken on all canaries
together, with the run's sample rate, noise and number of steps. A canary's score is what all of it says together.
Statistics are those of as many people as the table has. Where these are few for the noise, histograms and counts of
codes have the whole budget: pairs of columns and what follows from them, clusters and pairs of codes are not released.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from dpcgan_fast.auditing.canaries import Fused, Turn, Units, drawn_canaries, step_scores
from dpcgan_fast.auditing.made_up import BASE_ROWS, MadeUpTables
from dpcgan_fast.auditing.transcript import release_score
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import Mechanism, account, noise_key
from dpcgan_fast.privacy.accountant import in_whole
from dpcgan_fast.privacy.audit import Audit, audit_scores
from dpcgan_fast.privacy.ledger import LedgerLine, read_ledger, seeded, selection_of, taken_by_run
from dpcgan_fast.privacy.mechanism import SELECTED
from dpcgan_fast.privacy.releases import noisy_release
from dpcgan_fast.synthesis.api import DPCGAN
from dpcgan_fast.synthesis.releases import make_releases
from dpcgan_fast.synthesis.run_folder import RunFolder
from dpcgan_fast.synthesis.statistics import OF_STATISTICS, STATISTICS, paid_statistics
from dpcgan_fast.train.plan import BudgetPlan

RELEASES = "releases before training"
_WHERE = "audit"

_Release = Callable[[pa.Table, np.ndarray | None, NoiseKey], object]
_Score = Callable[[np.ndarray, Turn], np.ndarray]


@dataclass(frozen=True)
class _Part:
    """Mechanisms that are done again together.

    turns: trials or steps
    score: which canaries there are, and what is told of each turn -> their log likelihood ratios
    """

    mechanisms: list[Mechanism]
    turns: int
    score: _Score


@dataclass(frozen=True)
class RunAudit:
    """What an audit of a run found.

    whole:    of everything together, against the epsilon that the run claims
    parts:    of what the ledger charges, by name, each against its own epsilon at the run's delta
    seeded:   whether the run's own noise came from a seed, so that its claim protects nobody
    selected: whether a private selection chose the run; what the claim pays for its other runs is not done again
    """

    whole: Audit
    parts: dict[str, Audit]
    seeded: bool
    selected: bool


def audit_run(
    path: str | Path, canaries: int, progress: Callable[[int, int], None] = lambda *_: None, rows: int = BASE_ROWS
) -> RunAudit:
    """Lower bounds on epsilon of a run's mechanisms, by doing each again.

    path:     run folder, of a finished run
    canaries: people, each of whom is in the data with probability 1/2
    progress: told how many trials and steps are done, and how many there are
    rows:     of the made-up table beside a canary
    Raises InputError if there is no such run, or if it is unfinished or claims no epsilon; PrivacyError if its ledger
    is broken, charges nothing, or lacks a release that the run's plan has.
    """
    model, folder = DPCGAN.load(path, "cpu"), RunFolder.open(path)
    settings = model.settings
    if not settings.private:
        raise InputError("The run claims no epsilon, so nothing can be refuted", str(path), "Audit a private run.")
    lines, _ = read_ledger(folder.ledger)
    charged = _taken(lines)
    if not charged:
        raise PrivacyError("The ledger charges nothing", str(folder.ledger), "Restore the run from a copy.")
    plan = BudgetPlan.from_dict(folder.read_config().get("plan"), str(folder.config))
    free = {release.mechanism for release in plan.releases} - set(charged)
    if free:
        where = f"{folder.ledger}: {', '.join(sorted(free))}"
        raise PrivacyError("The ledger does not charge what the run's plan releases", where, "Release nothing of it.")
    included, delta = drawn_canaries(canaries), settings.delta
    audited = _parts(model, plan, charged, canaries, MadeUpTables.drawn(model, canaries, rows, _WHERE))
    turns, total = count(1), sum(part.turns for part in audited.values())
    parts, scores = {}, np.zeros(canaries)
    for name, part in audited.items():
        own = part.score(included, lambda: progress(next(turns), total))
        scores += own
        parts[name] = audit_scores(own, included, account(part.mechanisms, delta).epsilon, delta)
    whole = audit_scores(scores, included, settings.epsilon, delta)
    return RunAudit(whole, parts, seeded(lines), selection_of(lines) is not None)


def _taken(lines: list[LedgerLine]) -> dict[str, Mechanism]:
    """What the run took, by name, with all of its steps; as it would be accounted without a private selection."""
    whole = in_whole([replace(taken, event=taken.event.removeprefix(SELECTED)) for taken in taken_by_run(lines)])
    return {one.mechanism: one for one in whole if isinstance(one, Mechanism) and one.steps > 0}


def _parts(
    model: DPCGAN, plan: BudgetPlan, charged: dict[str, Mechanism], canaries: int, tables: MadeUpTables
) -> dict[str, _Part]:
    schema = model.schema.as_records()
    planned = {release.mechanism for release in plan.releases} - set(OF_STATISTICS)
    facts = [mechanism for name, mechanism in charged.items() if name in planned]
    parts: dict[str, _Part] = {}

    def with_trials(release: _Release) -> _Score:
        return partial(_release_scores, tables, release)

    if facts:
        parts[RELEASES] = _Part(facts, canaries, with_trials(
            lambda table, ids, key: make_releases(table, ids, schema, plan, _NoLedger(), key, _WHERE)
        ))  # fmt: skip
    for name, mechanism in charged.items():
        if name in planned:
            continue
        if name == STATISTICS:
            complete, noise = model.released_schema.as_records(), mechanism.noise_multiplier
            score = with_trials(
                lambda table, _, key: paid_statistics(table, complete, noise, key, _WHERE)  # noqa: B023
            )
            parts[name] = _Part([mechanism], canaries, score)
        elif mechanism.event == "gaussian":
            parts[name] = _Part([mechanism], 1, partial(_one_release, mechanism))
        else:
            parts[name] = _Part([mechanism], mechanism.steps, partial(_steps, mechanism, tables.unit is None))
    return parts


class _NoLedger:
    """Of releases of made-up rows nothing is charged."""

    def reserve(self, mechanism: Mechanism, key_id: str) -> int:  # noqa: ARG002
        return 0

    def close(self, seq: int, steps_done: int) -> None:
        pass


def _release_scores(tables: MadeUpTables, release: _Release, included: np.ndarray, turn: Turn) -> np.ndarray:
    """A trial for each canary: what is released with it or without it."""
    scores = np.zeros(len(included))
    for canary, there in enumerate(included):
        pair = {choice: tables.of(canary, choice) for choice in (False, True)}
        scores[canary] = release_score(lambda choice, key: release(*pair[choice], key), bool(there))  # noqa: B023
        turn()
    return scores


def _one_release(mechanism: Mechanism, included: np.ndarray, turn: Turn) -> np.ndarray:
    """A release of its own kind, such as a score of the settings: each canary moves an entry by the sensitivity."""
    reach, noise = mechanism.max_grad_norm, mechanism.noise_multiplier
    made = noisy_release(mechanism.mechanism, included * reach, reach, noise, noise_key(), mechanism.unit)
    turn()
    return (2 * made.values / reach - 1) / (2 * noise**2)


def _steps(mechanism: Mechanism, rows_are_units: bool, included: np.ndarray, turn: Turn) -> np.ndarray:
    """Private steps in the form that training takes them: fused where every row is a unit."""
    form = (Fused if rows_are_units else Units)(mechanism, len(included), torch.device("cpu"))
    return step_scores(mechanism, form, included, turn)
