"""The search that is paid for: many private runs on the data, of which the best-scored one is released."""

import hashlib
import json
import math
import random
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dpcgan_fast.data.reading import TableSource
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy import Ledger, Mechanism, noise_key
from dpcgan_fast.privacy.selection import RunCount
from dpcgan_fast.synthesis import DPCGAN, FitHooks, checks, fitting
from dpcgan_fast.synthesis.choice import Choice
from dpcgan_fast.synthesis.run_folder import RunFolder
from dpcgan_fast.tuning.candidates import Candidate, Candidates
from dpcgan_fast.tuning.scoring import WORST, judge_of, noisy_score
from dpcgan_fast.tuning.search_budget import SearchPlan, plan_search
from dpcgan_fast.tuning.workplace import check_stop, destroy, publish, workplace

PRIVATE_SEARCH = "private selection"


def search_privately(
    source: TableSource, schema: Schema, epsilon: float, delta: float, candidates: Candidates, out: str | Path,
    count: RunCount, *, device: str = "auto", seed: int | None = None, hooks: FitHooks | None = None,
    accepted: Callable[[], None] | None = None,
) -> DPCGAN:  # fmt: skip
    """Trains a random number of runs, each with a candidate drawn uniformly, and moves the best-scored one to `out`.

    count: distribution of the number of runs, which is secret: nothing is told of a search while it goes on
    seed:  makes the search reproducible, and not private
    accepted: called once, when nothing is left that could be refused and before anything is trained

    Formal guarantee: the run in `out`, which candidate it has included, is (epsilon, delta)-differentially private for
    adding or removing one unit, if no seed was given. The runs are independent, each satisfies the Renyi divergences
    that the ledger states for it (training and score, one after the other), and nothing but the best one leaves the
    search; the bound is that of Papernot and Steinke, arXiv 2110.03620, theorems 2 and 6. How long the search takes is
    not covered.

    Raises what `plan_search` and `DPCGAN.fit` raise; StoppedError after a signal, when all is removed and nothing was
    released; PrivacyError if the number of runs is 0, which Poisson allows.
    """
    target = fitting.pick_device(device)
    hooks = hooks if hooks is not None else FitHooks()
    with workplace(out) as work:
        plan = plan_search(schema, candidates, epsilon, delta, count)
        randomness = secrets.SystemRandom() if seed is None else random.Random(seed)
        raw = fitting.read_raw(source, schema, hooks)
        checks.check_table(raw, schema, plan.settings)
        if accepted is not None:
            accepted()
        quiet = FitHooks(stop=hooks.stop)
        best, best_score = None, -math.inf
        for number in range(count.draw(randomness.random())):
            check_stop(hooks.stop, out)
            pick = randomness.randrange(len(candidates.each))
            settings = replace(plan.settings[pick], seed=_seed_of(seed, f"run {number}"))
            choice = _choice(plan, candidates.each[pick], pick)
            run = work / secrets.token_hex(8)
            fitting.start(source, schema, settings, run, target, quiet, lambda _: None, choice=choice)
            score = _scored(run, raw, plan.score, device, _seed_of(seed, f"score {number}"))
            if score > best_score:
                run, best, best_score = best, run, score
            if run is not None:
                destroy(run)
        check_stop(hooks.stop, out)
        if best is None:
            raise PrivacyError(
                "The number of runs was drawn as 0, so that there is none to release; the budget counts as spent",
                f"runs {count.distribution}, mean {count.mean:g}",
                "Search anew; what both spend adds up. A greater mean, or another distribution, makes this rarer.",
            )
        publish(best, out)
    return DPCGAN.load(out, device)


def _scored(run: Path, raw: checks.RawTable, mechanism: Mechanism, device: str, seed: int | None) -> float:
    """The run's noisy score, which stands in its ledger before the noise is drawn; `WORST` if the run cannot be loaded.

    An error would tell of a run that is to be destroyed, and lose all others with it. If no run can be loaded, the one
    that is released says why.
    """
    try:
        model = DPCGAN.load(run, device)
    except InputError:
        return WORST
    judge = judge_of(model, seed)
    key = noise_key(seed)  # not that of the run: no key gives the same noise twice
    with Ledger(RunFolder.open(run).ledger) as ledger:
        seq = ledger.reserve(mechanism, key.key_id)
        score = noisy_score(judge, raw, model.released_schema, mechanism, key)
        ledger.close(seq, 1)
    return score


def _seed_of(seed: int | None, purpose: str) -> int | None:
    """A seed of its own for each purpose, in 56 bits; None without a seed."""
    if seed is None:
        return None
    return int.from_bytes(hashlib.sha256(f"{seed} {purpose}".encode()).digest()[:7], "big")


def _choice(plan: SearchPlan, candidate: Candidate, pick: int) -> Choice:
    count, number = plan.selection.count, plan.selection.n_candidates
    facts = {
        "search": PRIVATE_SEARCH,
        "runs_distribution": count.distribution,
        "runs_mean": count.mean,
        "candidates": number,
        "settings": candidate.given(),
    }
    sentences = (
        f"By a private selection, which is paid for: of a secret number of runs, drawn from a {count.distribution} "
        f"distribution of mean {count.mean:g}, each took one of {number} candidates at random, trained and scored "
        "itself; this is the run that scored best, and all others were destroyed.",
        "A score is the area under the ROC curve, on the real rows, of a classifier that learned from the run's "
        "synthetic rows, made of noisy counts.",
        "The claim is for the selection as a whole (Papernot and Steinke, arXiv 2110.03620). All runs had so much "
        "noise that it holds whichever candidate each of them drew.",
        f"Settings of the candidate: {json.dumps(candidate.given(), sort_keys=True)}",
        "How long the search took tells how many runs there were; that is not covered.",
    )
    assumption = "The schema, the candidates and the distribution of the number of runs were chosen without the data."
    return Choice(plan.selection, facts, sentences, assumption, plan.plans[pick], plan.run(pick))
