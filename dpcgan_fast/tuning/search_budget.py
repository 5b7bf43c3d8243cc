"""The budget of a paid search: what each run may take from the data, so that the whole meets epsilon and delta."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import dp_accounting
from scipy.optimize import brentq

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy import Mechanism, rdp_epsilon
from dpcgan_fast.privacy.calibration import rounded_up
from dpcgan_fast.privacy.selection import RunCount, Selection
from dpcgan_fast.synthesis.privacy_statement import unit_name
from dpcgan_fast.synthesis.releases import planned_releases
from dpcgan_fast.train import TrainSettings
from dpcgan_fast.train.plan import BudgetPlan, make_plan
from dpcgan_fast.tuning.candidates import Candidates
from dpcgan_fast.tuning.scoring import check_label, score_mechanism

# What a score gets, as a share of 1 / noise_multiplier^2 of one Gaussian release at epsilon and delta of a run.
# Simulated, for runs at epsilon 1.5 and delta 1e-5: an AUROC of .8 among 5,000 people, 30 % positive, is off by .008.
SCORE_SHARE = 0.1
_RUN_SHARE = 0.5  # of epsilon, that runs are planned with before their noise is adjusted
_LEAST_NOISE, _MOST_NOISE = 1e-2, 1e6  # factors of adjustment
_TOLERANCE = 1e-4  # of the factor


@dataclass(frozen=True)
class SearchPlan:
    """A search whose whole is (epsilon, delta)-differentially private.

    selection: all of it, for the ledger
    settings:  of each candidate, with epsilon and delta of the whole
    plans:     of each candidate's training
    score:     what every run takes for its score
    """

    selection: Selection
    settings: tuple[TrainSettings, ...]
    plans: tuple[BudgetPlan, ...]
    score: Mechanism

    def run(self, candidate: int) -> tuple[Mechanism, ...]:
        """Everything that a run of this candidate takes from the data."""
        return (*self.plans[candidate].mechanisms, self.score)


def plan_search(schema: Schema, candidates: Candidates, epsilon: float, delta: float, count: RunCount) -> SearchPlan:
    """Plans all runs alike, training and score composed, and finds how much noise all of them need, by one common
    factor, for the selection to meet epsilon.

    The selection is accounted with the pointwise maximum of the candidates' Renyi divergences, so that neither which
    candidates there are nor how many changes the guarantee.

    Raises InputError for an epsilon that is not finite, lists read from the data, a schema without a label, candidates
    that do not fit, or an epsilon that no run meets; PrivacyError for a delta above 1 / n_units.
    """
    if not math.isfinite(epsilon):
        how = "Give a finite epsilon, or search on a public table by search_on_public (--public-data)."
        raise InputError("A search without privacy has nothing to pay for", f"epsilon {epsilon:g}", how)
    check_label(schema)
    if schema.as_records().has_private_lists():
        # Their thresholds fail with a probability delta, of which a selection over Renyi divergences knows nothing.
        how = "Write the lists into the schema, or search on a public table by search_on_public (--public-data)."
        raise InputError("A paid search needs public lists of categories and codes", "schema", how)
    candidates.check(schema, epsilon, delta)

    settings = [one.settings(schema, _RUN_SHARE * epsilon, delta, None) for one in candidates.each]
    records, unit = schema.as_records(), unit_name(schema)
    plans = [make_plan(own, planned_releases(records, own), unit) for own in settings]
    score_noise = float(dp_accounting.get_sigma_gaussian(_RUN_SHARE * epsilon, delta)) / math.sqrt(SCORE_SHARE)

    def at(factor: float) -> SearchPlan:
        inside = tuple(plan.inside_selection(factor) for plan in plans)
        score = score_mechanism(schema, rounded_up(factor * score_noise)).inside_selection()
        runs = tuple(dict.fromkeys((*plan.mechanisms, score) for plan in inside))
        own = tuple(replace(one, epsilon=epsilon) for one in settings)
        return SearchPlan(Selection(count, runs, len(plans), unit), own, inside, score)

    def spent(factor: float) -> float:
        return rdp_epsilon([at(factor).selection], delta)

    factor = _smallest(spent, epsilon, candidates.where)
    return at(factor)


def _smallest(spent: Callable[[float], float], epsilon: float, where: str) -> float:
    """The smallest factor, to `_TOLERANCE`, at which a falling function is at most epsilon."""
    if spent(_MOST_NOISE) > epsilon:
        how = "Give a greater epsilon, or a smaller mean number of runs."
        raise InputError("No run is private enough for the search to meet epsilon", where, how)
    upper = 1.0
    while spent(upper) > epsilon:
        upper *= 2
    lower = upper / 2
    while lower > _LEAST_NOISE and spent(lower) <= epsilon:
        upper, lower = lower, lower / 2
    if lower <= _LEAST_NOISE:
        return upper

    def excess(log_factor: float) -> float:
        return math.log(max(spent(math.exp(log_factor)) / epsilon, _TOLERANCE))  # at a large delta it may be 0

    found = float(brentq(excess, math.log(lower), math.log(upper), xtol=_TOLERANCE))  # type: ignore[arg-type]
    factor = math.exp(found)
    while spent(factor) > epsilon:
        factor *= 1 + _TOLERANCE
    return factor
