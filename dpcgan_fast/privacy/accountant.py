"""Epsilon of a composition of mechanisms, by dp-accounting: Renyi DP and privacy loss distributions.

Both are upper bounds; the smaller one is reported and both are shown. Central-limit and Gaussian-DP approximations,
which can under-report, are not used. A private selection has a bound by Renyi DP alone, and none by a privacy loss
distribution, so that whatever holds one is accounted by Renyi DP.
"""

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import dp_accounting
import numpy as np
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from dpcgan_fast.errors import PrivacyError
from dpcgan_fast.privacy.mechanism import Mechanism, release_shares
from dpcgan_fast.privacy.selection import Selection

FINE_INTERVAL, COARSE_INTERVAL = 1e-4, 1e-3
_ROUNDING = 1e-9  # relative: the deltas of the thresholds are summed in another order
_WIDE_INTERVAL = 1e-2
_KEPT = 1024  # answers: a calibration takes about 30, and whoever fits model after model has many of them
_GRIDS_ALONE = ((1.0, FINE_INTERVAL), (10.0, COARSE_INTERVAL))  # up to which epsilon, for a single line of a ledger
_COARSE_ABOVE_EPSILON = 60.0  # the loss distribution is then so wide that the fine grid takes over some seconds

NEIGHBORING_RELATION = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE

_LEAST_DIVERGENCE = 1e-10  # of a run: below, dp-accounting's logarithms of what is nearly 1 lose their digits
_Event = tuple[float, float, int]  # sample rate, noise multiplier, steps
Charge = Mechanism | Selection


@dataclass(frozen=True)
class PrivacySpent:
    """Epsilon at delta, by each accountant, and the smaller of the two.

    epsilon_pld:  inf where there is a private selection, of which it has no bound
    pld_interval: spacing of the privacy loss grid
    """

    epsilon_rdp: float
    epsilon_pld: float
    delta: float
    pld_interval: float

    @property
    def epsilon(self) -> float:
        """The smaller of the two upper bounds."""
        return min(self.epsilon_rdp, self.epsilon_pld)

    @property
    def accountant(self) -> str:
        """Name of the accountant that `epsilon` comes from."""
        return "RDP" if self.epsilon_rdp <= self.epsilon_pld else "PLD"


@contextlib.contextmanager
def _without_convergence_warnings() -> Iterator[None]:
    """dp-accounting drops Renyi orders whose series does not converge, which only loosens the bound, and warns."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _events(mechanisms: Iterable[Mechanism]) -> tuple[_Event, ...]:
    """The distinct events with their steps, in one order whatever the order of the mechanisms."""
    events: Counter[tuple[float, float]] = Counter()
    for mechanism in mechanisms:
        if mechanism.steps > 0:
            events[mechanism.sample_rate, mechanism.noise_multiplier] += mechanism.steps
    return tuple(sorted((*event, steps) for event, steps in events.items()))


def _parted(charges: Iterable[Charge]) -> tuple[list[Mechanism], list[Selection]]:
    """Mechanisms and selections.

    Raises ValueError for a mechanism inside a selection: what one run cost is not what its selection costs.
    """
    charges = list(charges)
    mechanisms = [charge for charge in charges if isinstance(charge, Mechanism)]
    if any(mechanism.selected for mechanism in mechanisms):
        raise ValueError("Expected the selection in place of the mechanisms inside it, which have no epsilon alone.")
    return mechanisms, [charge for charge in charges if isinstance(charge, Selection)]


def _dp_event(sample_rate: float, noise_multiplier: float) -> dp_accounting.DpEvent:
    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    return gaussian if sample_rate == 1 else dp_accounting.PoissonSampledDpEvent(sample_rate, gaussian)


def _thresholds(mechanisms: list[Mechanism], delta: float) -> tuple[float, float]:
    """What is left of delta after the thresholds, and what they add to epsilon.

    With probability delta_t at most, a threshold lets through what one unit alone holds. Given that it does not, an
    output is up to 1 / (1 - delta_t) times as likely as the Gaussian alone makes it.
    """
    if not 0 < delta < 1:
        raise ValueError(f"Expected delta={delta} in (0, 1).")
    rest = delta - sum(mechanism.delta * mechanism.steps for mechanism in mechanisms)
    return rest, -sum(math.log1p(-mechanism.delta) * mechanism.steps for mechanism in mechanisms)


def rdp_epsilon(charges: Iterable[Charge], delta: float) -> float:
    """Epsilon by Renyi DP with dp-accounting's default orders; cheap enough for a progress bar."""
    mechanisms, selections = _parted(charges)
    rest, added = _thresholds(mechanisms, delta)
    events = _events(mechanisms)
    if rest <= 0 or any(noise == 0 for _, noise, _ in events):
        return math.inf
    accountant = RdpAccountant(neighboring_relation=NEIGHBORING_RELATION)
    accountant._rdp = _renyi_of(events)  # as `compose` does, every time anew
    for selection in selections:
        accountant._rdp += _renyi_of_selection(selection)
    with _without_convergence_warnings():
        return float(accountant.get_epsilon(rest)) + added


def _renyi_of(events: tuple[_Event, ...]) -> np.ndarray:
    """Renyi divergence of a composition at dp-accounting's default orders; infinite without noise."""
    total = np.zeros_like(RdpAccountant().orders)
    with _without_convergence_warnings():
        for sample_rate, noise, steps in events:
            total += steps * _renyi_of_one_step(sample_rate, noise) if noise > 0 else np.inf
    return total


class _OneRun(dp_accounting.DpEvent):
    """One run of a selection."""


class _SelectionAccountant(RdpAccountant):
    """dp-accounting's accountant, told the Renyi divergences of one run at its default orders."""

    def __init__(self, one_run: np.ndarray):
        super().__init__(neighboring_relation=NEIGHBORING_RELATION)
        self._one_run = one_run

    def _maybe_compose(
        self, event: dp_accounting.DpEvent, count: int, do_compose: bool
    ) -> RdpAccountant.CompositionErrorDetails | None:
        if not isinstance(event, _OneRun):
            return super()._maybe_compose(event, count, do_compose)
        if do_compose:
            self._rdp = self._rdp + count * self._one_run
        return None


@lru_cache(maxsize=16)
def _renyi_of_selection(selection: Selection) -> np.ndarray:
    """Renyi divergence of a private selection at dp-accounting's default orders.

    A run picks its candidate without the data, so that it diverges at each order by no more than the worst candidate
    does (quasi-convexity); the bound of a selection is then that of runs with the pointwise maximum of the curves.
    Source: Papernot and Steinke, arXiv 2110.03620, theorem 2 (truncated negative binomial: logarithmic and geometric)
    and theorem 6 (Poisson), as dp-accounting has them.
    """
    worst = np.max([_renyi_of(_events(run)) for run in selection.runs], axis=0)
    worst = np.maximum(worst, _LEAST_DIVERGENCE)
    accountant = _SelectionAccountant(worst)
    with _without_convergence_warnings():
        accountant.compose(RepeatAndSelectDpEvent(_OneRun(), selection.count.mean, selection.count.shape))
    return accountant.rdp


@lru_cache(maxsize=_KEPT)
def _renyi_of_one_step(sample_rate: float, noise_multiplier: float) -> np.ndarray:
    """Renyi divergence of one step at dp-accounting's default orders; kept, since it takes tens of milliseconds and a
    run asks for its epsilon again and again with nothing changed but the number of steps."""
    accountant = RdpAccountant(neighboring_relation=NEIGHBORING_RELATION)
    accountant.compose(_dp_event(sample_rate, noise_multiplier))
    accountant._rdp.flags.writeable = False
    return accountant._rdp


def pld_epsilon(charges: Iterable[Charge], delta: float, interval: float = FINE_INTERVAL) -> float:
    """Epsilon by privacy loss distributions on a grid of the given spacing, rounded pessimistically.

    Infinite with a private selection, whose bound is one of Renyi divergences.
    """
    mechanisms, selections = _parted(charges)
    rest, added = _thresholds(mechanisms, delta)
    events = _events(mechanisms)
    if rest <= 0 or selections or any(noise == 0 for _, noise, _ in events):
        return math.inf
    return _pld_epsilon(events, rest, interval) + added


@lru_cache(maxsize=_KEPT)
def _pld_epsilon(events: tuple[_Event, ...], delta: float, interval: float) -> float:
    """Kept, since the same composition is asked for when it is planned, before its last block, and for the card."""
    accountant = PLDAccountant(neighboring_relation=NEIGHBORING_RELATION, value_discretization_interval=interval)
    for sample_rate, noise, steps in events:
        accountant.compose(_dp_event(sample_rate, noise), steps)
    return float(accountant.get_epsilon(delta))


def account(charges: Iterable[Charge], delta: float) -> PrivacySpent:
    """Epsilon of everything in `charges` together, under adding or removing one unit.

    delta: in (0, 1); what thresholds spend is deducted before the rest is composed, and -log(1 - it) added to epsilon

    Raises ValueError for a delta out of range, or for a mechanism inside a selection without the selection.
    """
    charges = list(charges)
    rdp = rdp_epsilon(charges, delta)
    if math.isinf(rdp):
        return PrivacySpent(math.inf, math.inf, delta, FINE_INTERVAL)
    interval = FINE_INTERVAL if rdp <= _COARSE_ABOVE_EPSILON else COARSE_INTERVAL
    return PrivacySpent(rdp, pld_epsilon(charges, delta, interval), delta, interval)


def in_whole(charges: Iterable[Charge]) -> list[Charge]:
    """Each charge once, with the steps of all its blocks, in the order in which they first come."""
    steps: Counter[Charge] = Counter()
    for charge in charges:
        steps[charge.with_steps(0) if isinstance(charge, Mechanism) else charge] += charge.steps
    return [charge.with_steps(n) if isinstance(charge, Mechanism) else charge for charge, n in steps.items()]


def epsilon_alone(charge: Charge, spent: PrivacySpent) -> float | None:
    """What one of several charges would cost at the same delta if nothing else were taken; an upper bound.

    spent: by all of them together, beyond which no part can be

    None for a mechanism inside a private selection, which has no epsilon of its own. The grid of privacy losses is the
    wider the greater epsilon is, so that a card of many lines takes tenths of a second.
    """
    if isinstance(charge, Mechanism) and charge.selected:
        return None
    rdp = rdp_epsilon([charge], spent.delta)
    interval = next((interval for most, interval in _GRIDS_ALONE if rdp <= most), _WIDE_INTERVAL)
    return min(rdp, pld_epsilon([charge], spent.delta, interval), spent.epsilon)


def refuse_overspending(charges: Iterable[Charge], epsilon: float, delta: float, where: str) -> None:
    """Raises PrivacyError if the charges compose to more than epsilon at delta.

    where: the ledger, for the error
    The smallest of all bounds counts; the slower ones are asked only where the quicker ones do not settle it.
    """
    charges = list(charges)
    limit = epsilon * (1 + _ROUNDING)
    if rdp_epsilon(charges, delta) <= limit or pld_epsilon(charges, delta, COARSE_INTERVAL) <= limit:
        return
    spent = account(charges, delta).epsilon
    if spent > limit:
        raise PrivacyError(
            f"What the ledger charges composes to epsilon {spent:.6g}, more than the {epsilon:g} that the run claims",
            where,
            "Nothing more may be taken from the data; the run has no guarantee of its claim.",
        )


def refuse_beyond_line(releases: Sequence[Mechanism], line: Mechanism, where: str) -> None:
    """Raises PrivacyError if several Gaussian releases cost more than the line of a ledger that stands for them.

    where: what the releases were read from, for the error
    """
    if line.noise_multiplier > 0 and sum(release_shares(releases, line)) > 1 + _ROUNDING:
        raise PrivacyError(
            f"The releases that the line {line.mechanism} stands for cost more than it says",
            where,
            "The run has no guarantee of its claim; train anew in a new folder.",
        )
