"""Private selection: its bound against the paper's formulas and against exact divergences, and its number of runs."""

import math

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm

from dpcgan_fast.privacy import Mechanism, account, rdp_epsilon
from dpcgan_fast.privacy.accountant import pld_epsilon
from dpcgan_fast.privacy.selection import DISTRIBUTIONS, RunCount, Selection

ORDERS = np.array(rdp_privacy_accountant.DEFAULT_RDP_ORDERS)
DELTA = 1e-5


def gaussian(noise, name="statistics", steps=1):
    return Mechanism(name, "gaussian", 1.0, noise, steps, 1.0).inside_selection()


def selection(count, *noises):
    return Selection(count, tuple((gaussian(noise),) for noise in noises), len(noises))


def epsilon_of(divergences, delta):
    """From Renyi divergences at `ORDERS`: Canonne, Kamath and Steinke, arXiv 2004.00010, proposition 12."""
    return np.min(divergences + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1))


def gamma_of(count):
    if count.distribution == "geometric":
        return 1 / count.mean
    return brentq(lambda g: (1 / g - 1) / math.log(1 / g) - count.mean, 1e-12, 1 - 1e-12, xtol=1e-15)


def papers_bound(count, one_run):
    """Theorems 2 and 6 of arXiv 2110.03620 in float64; `one_run` are Renyi divergences of one run at `ORDERS`."""
    more = math.log(count.mean) / (ORDERS - 1)
    if count.distribution == "poisson":
        found = []
        for order, divergence, rest in zip(ORDERS, one_run, more, strict=True):
            hat = math.log(1 + 1 / (order - 1))
            logs = (ORDERS - 1) * (one_run - hat + np.log1p(-1 / ORDERS)) - np.log(ORDERS)
            by_kl = 0.5 * np.log1p(-np.exp(-one_run))  # delta at any epsilon: Bretagnolle and Huber
            found.append(divergence + count.mean * math.exp(min(logs.min(), by_kl.min())) + rest)
        return np.array(found)
    shape = {"logarithmic": 0, "geometric": 1}[count.distribution]
    constant = (1 + shape) * np.min((1 - 1 / ORDERS) * one_run + math.log(1 / gamma_of(count)) / ORDERS)
    bound = one_run + constant + more
    return np.minimum.accumulate(bound[::-1])[::-1]  # a divergence of a lower order is no greater


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("noise", "mean"), [(0.7, 2.0), (2.4, 10.0), (8.0, 10.0), (20.0, 100.0)])
def test_equals_the_formula_of_the_paper(distribution, noise, mean):
    count = RunCount(distribution, mean)
    expected = epsilon_of(papers_bound(count, ORDERS / (2 * noise**2)), DELTA)
    assert rdp_epsilon([selection(count, noise)], DELTA) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_candidates_that_differ_are_accounted_with_the_pointwise_maximum_of_their_divergences(distribution):
    """Curves that cross: subsampled steps diverge more at high orders, one release more at low ones."""
    count = RunCount(distribution, 5.0)
    steps = Mechanism("critic", "poisson_gaussian", 0.1, 1.0, 20, 1.0).inside_selection()
    both = Selection(count, ((gaussian(1.5),), (steps,)), 2)
    accountant = rdp_privacy_accountant.RdpAccountant()
    accountant.compose(
        rdp_privacy_accountant.dp_event.PoissonSampledDpEvent(
            0.1, rdp_privacy_accountant.dp_event.GaussianDpEvent(1.0)
        ),
        20,
    )
    of_steps, of_release = accountant.rdp, ORDERS / (2 * 1.5**2)
    assert (of_steps > of_release).any()
    assert (of_steps < of_release).any()
    expected = epsilon_of(papers_bound(count, np.maximum(of_steps, of_release)), DELTA)
    assert rdp_epsilon([both], DELTA) == pytest.approx(expected, rel=1e-8)
    for run in both.runs:
        assert rdp_epsilon([Selection(count, (run,), 1)], DELTA) < expected


class Chosen:
    """The best of K scores from N(mean, noise^2), K from a distribution: its density is exact.

    If G is the generating function of K, the best score has the distribution function G(F), and the density G'(F) f.
    """

    def __init__(self, count, noise, mean):
        self.count, self.noise, self.mean = count, noise, mean

    def log_density(self, score):
        below = norm.cdf(score, self.mean, self.noise)
        gamma = None if self.count.distribution == "poisson" else gamma_of(self.count)
        if self.count.distribution == "poisson":
            slope = math.log(self.count.mean) + self.count.mean * (below - 1)
        elif self.count.distribution == "geometric":
            slope = math.log(gamma) - 2 * math.log1p(-(1 - gamma) * below)
        else:
            slope = math.log((1 - gamma) / math.log(1 / gamma)) - math.log1p(-(1 - gamma) * below)
        return slope + norm.logpdf(score, self.mean, self.noise)

    @property
    def none(self):
        """Probability that there is no run."""
        return math.exp(-self.count.mean) if self.count.distribution == "poisson" else 0.0


def renyi(one, other, order):
    def integrand(score):
        return math.exp(order * one.log_density(score) + (1 - order) * other.log_density(score))

    reach = 12 * one.noise + order
    whole = quad(integrand, -reach, reach, limit=400, points=[-1, 0, 1, order])[0] + one.none
    return math.log(whole) / (order - 1)


def delta_at(one, other, epsilon):
    """Exact delta: the integral of what one density has beyond e^epsilon times the other."""

    def integrand(score):
        return max(0.0, math.exp(one.log_density(score)) - math.exp(epsilon + other.log_density(score)))

    reach = 14 * one.noise
    return quad(integrand, -reach, reach, limit=1000, points=list(np.linspace(-reach, reach, 60)))[0]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("noise", "mean"), [(1.0, 3.0), (2.0, 10.0)])
def test_bounds_the_exact_divergence_of_choosing_the_best_of_gaussian_scores(distribution, noise, mean):
    count = RunCount(distribution, mean)
    with_unit, without = Chosen(count, noise, 1.0), Chosen(count, noise, 0.0)
    assert quad(lambda s: math.exp(with_unit.log_density(s)), -30, 30, points=[0, 1])[0] + with_unit.none == (
        pytest.approx(1.0, abs=1e-8)
    )
    bound = papers_bound(count, ORDERS / (2 * noise**2))
    for order in (1.5, 2.0, 4.0, 8.0):
        at = float(bound[np.argmin(abs(ORDERS - order))])
        for pair in ((with_unit, without), (without, with_unit)):
            assert renyi(*pair, order) <= at


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_epsilon_of_the_chosen_run_alone_would_be_wrong_and_that_of_the_selection_is_right(distribution):
    count, noise = RunCount(distribution, 10.0), 2.0
    pairs = [(Chosen(count, noise, a), Chosen(count, noise, b)) for a, b in ((1.0, 0.0), (0.0, 1.0))]
    alone = account([Mechanism("score", "gaussian", 1.0, noise, 1, 1.0)], DELTA).epsilon
    assert max(delta_at(*pair, alone) for pair in pairs) > 2 * DELTA
    whole = account([selection(count, noise)], DELTA).epsilon
    assert max(delta_at(*pair, whole) for pair in pairs) <= DELTA


def test_a_mechanism_inside_a_selection_has_no_epsilon_of_its_own():
    for epsilon_of_it in (rdp_epsilon, pld_epsilon, account):
        with pytest.raises(ValueError, match="the selection in place of the mechanisms inside it"):
            epsilon_of_it([gaussian(2.0)], DELTA)


def test_whoever_takes_a_selection_for_a_mechanism_finds_no_privacy():
    whole = selection(RunCount("geometric", 4.0), 3.0)
    names = ("mechanism", "sample_rate", "noise_multiplier", "steps", "max_grad_norm", "delta", "unit")
    taken = Mechanism(event="gaussian", **{name: getattr(whole, name) for name in names})
    assert account([taken], DELTA).epsilon == math.inf


def test_a_selection_is_accounted_by_renyi_divergences_alone():
    spent = account([selection(RunCount("logarithmic", 4.0), 3.0)], DELTA)
    assert spent.epsilon_pld == math.inf
    assert spent.epsilon == spent.epsilon_rdp
    assert spent.accountant == "RDP"
    assert account([selection(RunCount("logarithmic", 4.0), 0.0)], DELTA).epsilon == math.inf


def test_a_selection_composes_with_other_mechanisms():
    whole, other = selection(RunCount("logarithmic", 4.0), 3.0), Mechanism("m", "gaussian", 1.0, 4.0, 1, 1.0)
    together = papers_bound(whole.count, ORDERS / (2 * 3.0**2)) + ORDERS / (2 * 4.0**2)
    assert rdp_epsilon([whole, other], DELTA) == pytest.approx(epsilon_of(together, DELTA), rel=1e-8)


def test_one_candidate_and_many_cost_the_same():
    count, run = RunCount("logarithmic", 6.0), (gaussian(2.0),)
    costs = {rdp_epsilon([Selection(count, (run,), number)], DELTA) for number in (1, 2, 50)}
    assert len(costs) == 1


def test_one_run_for_certain_costs_hardly_more_than_the_run():
    """The bound has a term of the lowest order, which is not quite 1."""
    alone = rdp_epsilon([Mechanism("m", "gaussian", 1.0, 2.0, 1, 1.0)], DELTA)
    for distribution in ("logarithmic", "geometric"):
        assert alone <= rdp_epsilon([selection(RunCount(distribution, 1.0), 2.0)], DELTA) <= 1.02 * alone
        assert RunCount(distribution, 1.0).draw(1 - 2**-53) == 1


class TestNumberOfRuns:
    @pytest.mark.parametrize("distribution", DISTRIBUTIONS)
    @pytest.mark.parametrize("mean", [1.5, 10.0, 60.0])
    def test_is_drawn_from_the_distribution_that_is_accounted(self, distribution, mean):
        """Of evenly spaced numbers in [0, 1), as many give each k as its probability says."""
        count, cells = RunCount(distribution, mean), 20_000
        drawn = np.array([count.draw((cell + 0.5) / cells) for cell in range(cells)])
        assert (np.diff(drawn) >= 0).all()
        for runs in range(12):
            if distribution == "poisson":
                share = math.exp(-mean) * mean**runs / math.factorial(runs)
            elif runs == 0:
                share = 0.0
            elif distribution == "geometric":
                share = (1 / mean) * (1 - 1 / mean) ** (runs - 1)
            else:
                gamma = gamma_of(count)
                share = (1 - gamma) ** runs / (runs * math.log(1 / gamma))
            assert share == count.none or runs > 0
            assert (drawn == runs).mean() == pytest.approx(share, abs=1.01 / cells)

    @pytest.mark.parametrize("mean", [1.001, 2.0, 10.0, 500.0])
    def test_of_the_logarithmic_one_neither_mean_nor_gamma_is_beyond_what_is_accounted(self, mean):
        from dpcgan_fast.privacy import selection as module

        gamma = module._logarithmic_gamma(mean)
        assert (1 / gamma - 1) / math.log(1 / gamma) <= mean * (1 + 1e-12)
        assert gamma >= rdp_privacy_accountant._gamma_truncated_negative_binomial(0, mean)

    @pytest.mark.parametrize("distribution", DISTRIBUTIONS)
    def test_ends_for_every_uniform_number(self, distribution):
        for mean in (1.0, 2.0, 500.0):
            least, most = (RunCount(distribution, mean).draw(uniform) for uniform in (0.0, 1 - 2**-53))
            assert 0 <= least <= most < 1_000_000

    @pytest.mark.parametrize(("distribution", "mean"), [("binomial", 3.0), ("geometric", 0.5), ("poisson", math.nan)])
    def test_others_are_refused(self, distribution, mean):
        with pytest.raises(ValueError, match="Expected"):
            RunCount(distribution, mean)


class TestValues:
    def test_are_read_back_as_they_were_written(self):
        whole = Selection(RunCount("poisson", 3.0), ((gaussian(2.0), gaussian(3.0, "score")),), 4, "patient")
        assert Selection.from_dict(whole.to_dict()) == whole

    @pytest.mark.parametrize(
        "change", [{"noise_multiplier": 3.0}, {"steps": 0}, {"runs": []}, {"candidates": 0}, {"runs_mean": 0.1}]
    )
    def test_that_are_none_of_a_selection_are_refused(self, change):
        with pytest.raises(ValueError, match="Expected"):
            Selection.from_dict({**selection(RunCount("poisson", 3.0), 2.0).to_dict(), **change})

    def test_a_threshold_has_no_place_inside(self):
        listed = Mechanism("categories", "gaussian", 1.0, 2.0, 1, 1.0, delta=1e-7).inside_selection()
        with pytest.raises(ValueError, match="no threshold inside a selection"):
            Selection(RunCount("poisson", 3.0), ((listed,),), 1)

    def test_a_mechanism_that_is_not_marked_has_no_place_inside(self):
        with pytest.raises(ValueError, match="a mechanism inside a selection"):
            Selection(RunCount("poisson", 3.0), ((Mechanism("m", "gaussian", 1.0, 2.0, 1, 1.0),),), 1)
