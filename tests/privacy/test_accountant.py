"""Epsilon of compositions, against reference values, published values, and the definition."""

import csv
import math
from pathlib import Path

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from dpcgan_fast.data.datasets import data_folder
from dpcgan_fast.errors import PrivacyError
from dpcgan_fast.privacy import Mechanism, account, rdp_epsilon, release_shares
from dpcgan_fast.privacy.accountant import (
    NEIGHBORING_RELATION,
    epsilon_alone,
    in_whole,
    pld_epsilon,
    refuse_beyond_line,
    refuse_overspending,
)
from dpcgan_fast.privacy.selection import RunCount, Selection


def poisson(sample_rate, noise, steps, delta=0.0):
    event = "gaussian" if sample_rate == 1 else "poisson_gaussian"
    return Mechanism("steps", event, sample_rate, noise, steps, 1.0, delta)


def reference_rows():
    """Values computed beforehand with dp-accounting 0.6.0; the file lies beside the shared data."""
    folder = data_folder()
    path = None if folder is None else folder.parent / "reference" / "accountant.csv"
    if path is None or not path.exists():
        return []
    rows = [row for row in csv.DictReader(path.open()) if row["kind"] == "computed" and row["quantity"] == "eps"]
    return [row for row in rows if row["accountant"] in ("RDP", "PLD") and row["q"] and float(row["T"]) > 0]


@pytest.mark.skipif(not reference_rows(), reason="the shared reference values are not beside this checkout")
@pytest.mark.parametrize(
    "row", reference_rows(), ids=lambda row: f"{row['accountant']}-{row['id']}-{row['detail'][:30]}"
)
def test_equals_the_reference_values(row):
    mechanisms = [poisson(float(row["q"]), float(row["sigma"]), int(float(row["T"])))]
    expected, delta = float(row["eps"]), float(row["delta"])
    if row["accountant"] == "RDP":
        got = rdp_epsilon(mechanisms, delta)
    else:
        interval = 1e-3 if ("0.001" in row["detail"] or "1e-3" in row["detail"]) else 1e-4
        got = pld_epsilon(mechanisms, delta, interval)
    assert got == pytest.approx(expected, rel=1e-6)


def test_what_is_kept_of_a_step_gives_bit_by_bit_what_a_fresh_composition_gives():
    parts = [(1.0, 4.0, 1), (0.02, 1.3, 70), (0.03, 1.3, 500), (0.02, 1.3, 30)]
    for turn in range(3):
        taken = [poisson(q, sigma, steps + turn) for q, sigma, steps in parts]
        accountant = RdpAccountant(neighboring_relation=NEIGHBORING_RELATION)
        for q, sigma, steps in ((0.02, 1.3, 100 + 2 * turn), (0.03, 1.3, 500 + turn)):
            accountant.compose(PoissonSampledDpEvent(q, GaussianDpEvent(sigma)), steps)
        accountant.compose(GaussianDpEvent(4.0), 1 + turn)
        assert rdp_epsilon(taken, 1e-5) == accountant.get_epsilon(1e-5)


@pytest.mark.parametrize(
    ("sample_rate", "noise", "steps", "rdp", "pld"),
    [
        (0.01, 1.1, 1000, 1.711770, 1.515370),
        (250 / 60000, 1.1, 3600, 1.265491, 1.118498),
        (1.0, 1.0, 1, 4.728507, 4.377178),
    ],
)
def test_equals_values_that_were_noted_down(sample_rate, noise, steps, rdp, pld):
    spent = account([poisson(sample_rate, noise, steps)], 1e-5)
    assert spent.epsilon_rdp == pytest.approx(rdp, rel=1e-5)
    assert spent.epsilon_pld == pytest.approx(pld, rel=1e-5)
    assert spent.epsilon == min(spent.epsilon_rdp, spent.epsilon_pld)


@pytest.mark.parametrize("noise", [0.7, 1.0, 4.0])
def test_one_gaussian_equals_the_analytic_formula(noise):
    """delta(eps) = Phi(1/2s - eps s) - e^eps Phi(-1/2s - eps s): Balle and Wang, arXiv 1805.06530, theorem 8."""
    epsilon = account([poisson(1.0, noise, 1)], 1e-5).epsilon
    delta = norm.cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise)
    assert delta == pytest.approx(1e-5, rel=2e-2)
    assert delta <= 1e-5, "an upper bound on epsilon spends at most delta"


def test_a_composition_costs_more_than_each_part_and_at_most_their_sum():
    parts = [poisson(1.0, 20.0, 1), poisson(0.02, 1.2, 300), poisson(0.05, 1.2, 800)]
    whole = account(parts, 1e-5).epsilon
    alone = [account([part], 1e-5).epsilon for part in parts]
    assert max(alone) < whole < sum(alone) + 1e-9


def test_blocks_of_one_mechanism_cost_what_the_whole_costs():
    blocks = [poisson(0.02, 1.2, 100), poisson(0.02, 1.2, 150), poisson(0.02, 1.2, 50)]
    assert account(blocks, 1e-5) == account([poisson(0.02, 1.2, 300)], 1e-5)


def test_the_delta_of_a_threshold_is_deducted():
    parts = [poisson(0.02, 1.2, 300)]
    with_threshold = [*parts, poisson(1.0, 1e6, 1, delta=9e-6)]
    assert account(with_threshold, 1e-5).epsilon == pytest.approx(account(parts, 1e-6).epsilon, rel=1e-3)
    assert account([poisson(1.0, 5.0, 1, delta=1e-5)], 1e-5).epsilon == math.inf, "nothing of delta is left"


@pytest.mark.parametrize("epsilon_of", [rdp_epsilon, pld_epsilon])
def test_a_threshold_adds_what_its_failure_takes_from_all_other_outputs(epsilon_of):
    """-log(1 - delta_t), on top of the delta that is deducted; it counts where delta is large."""
    added = epsilon_of([poisson(1.0, 5.0, 2, delta=0.1)], 0.3) - epsilon_of([poisson(1.0, 5.0, 2)], 0.1)
    assert added == pytest.approx(-2 * math.log(0.9), rel=1e-9)


def test_a_composition_beyond_the_claim_is_refused_and_one_that_meets_it_by_either_accountant_passes():
    parts = [poisson(0.02, 1.2, 300)]
    spent = account(parts, 1e-5)
    assert spent.epsilon_pld < spent.epsilon_rdp
    refuse_overspending(parts, spent.epsilon_rdp, 1e-5, "ledger.jsonl")
    refuse_overspending(parts, spent.epsilon_pld, 1e-5, "ledger.jsonl")
    refuse_overspending([poisson(0.02, 0.0, 300)], math.inf, 1e-5, "ledger.jsonl")
    with pytest.raises(PrivacyError, match=r"composes to epsilon .*, more than .* \(ledger.jsonl\)"):
        refuse_overspending(parts, 0.999 * spent.epsilon_pld, 1e-5, "ledger.jsonl")


@settings(max_examples=25)
@given(st.lists(st.floats(0.01, 1.0), min_size=1, max_size=6), st.floats(0.5, 20.0))
def test_releases_whose_shares_add_up_to_a_line_cost_what_the_line_costs(weights, noise):
    line = poisson(1.0, noise, 1)
    shares = [weight / sum(weights) for weight in weights]
    releases = [poisson(1.0, noise / math.sqrt(share), 1) for share in shares]
    assert release_shares(releases, line) == pytest.approx(shares)
    assert rdp_epsilon(releases, 1e-5) == pytest.approx(rdp_epsilon([line], 1e-5), rel=1e-9)
    refuse_beyond_line(releases, line, "config.json")
    with pytest.raises(PrivacyError, match=r"cost more than it says \(config.json\)"):
        refuse_beyond_line([*releases, poisson(1.0, 1000 * noise, 1)], line, "config.json")


def test_a_release_without_noise_is_beyond_any_line_and_what_is_no_gaussian_release_has_no_share():
    line = poisson(1.0, 2.0, 1)
    with pytest.raises(PrivacyError):
        refuse_beyond_line([poisson(1.0, 0.0, 1)], line, "config.json")
    refuse_beyond_line([poisson(1.0, 0.0, 1)], poisson(1.0, 0.0, 1), "config.json")
    for other in (poisson(0.1, 2.0, 1), poisson(1.0, 2.0, 1, delta=1e-6)):
        with pytest.raises(ValueError, match="Expected a Gaussian release"):
            release_shares([other], line)
    with pytest.raises(ValueError, match="Expected noise in the line"):
        release_shares([line], poisson(1.0, 0.0, 1))


@settings(max_examples=25)
@given(
    st.floats(0.001, 0.2), st.floats(0.6, 5.0), st.integers(1, 2000), st.sampled_from([1e-7, 1e-5, 1e-3]),
    st.floats(1.05, 2.0),
)  # fmt: skip
def test_epsilon_rises_with_rate_and_steps_and_falls_with_noise_and_delta(rate, noise, steps, delta, factor):
    epsilon = rdp_epsilon([poisson(rate, noise, steps)], delta)
    assert rdp_epsilon([poisson(rate * factor, noise, steps)], delta) >= epsilon
    assert rdp_epsilon([poisson(rate, noise, steps * 2)], delta) >= epsilon
    assert rdp_epsilon([poisson(rate, noise * factor, steps)], delta) <= epsilon
    assert rdp_epsilon([poisson(rate, noise, steps)], min(0.5, delta * 10)) <= epsilon


def test_no_noise_costs_infinity_and_no_steps_cost_nothing():
    assert account([poisson(0.01, 0.0, 1)], 1e-5).epsilon == math.inf
    assert account([], 1e-5).epsilon == pytest.approx(0.0, abs=1e-9)
    assert account([poisson(0.01, 0.0, 0)], 1e-5).epsilon == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_bad_delta_is_refused(delta):
    with pytest.raises(ValueError, match="Expected delta"):
        account([poisson(0.01, 1.0, 1)], delta)


@pytest.mark.parametrize(
    "change",
    [
        dict(sample_rate=0.0), dict(sample_rate=1.1), dict(sample_rate=math.nan), dict(noise_multiplier=-1.0),
        dict(noise_multiplier=math.inf), dict(steps=-1), dict(delta=1.0), dict(event="laplace"),
        dict(event="gaussian", sample_rate=0.5), dict(max_grad_norm=0.0), dict(max_grad_norm=-1.0),
        dict(max_grad_norm=math.nan), dict(max_grad_norm=math.inf),
    ],
)  # fmt: skip
def test_a_mechanism_out_of_range_is_refused(change):
    good = dict(
        mechanism="m", event="poisson_gaussian", sample_rate=0.1, noise_multiplier=1.0, steps=1, max_grad_norm=1.0
    )
    Mechanism(**good)
    with pytest.raises(ValueError, match="Expected"):
        Mechanism(**{**good, **change})


@pytest.mark.parametrize(
    "part",
    [poisson(1, 56.9, 1), poisson(1, 1.43, 1), poisson(1, 0.1, 1), poisson(0.0176, 19.7, 600, 1e-9),
     poisson(0.0176, 3.95, 600), poisson(0.0176, 0.86, 600), poisson(0.0176, 0.5, 600)],
)  # fmt: skip
def test_what_a_part_costs_alone_is_hardly_more_than_its_account_and_no_more_than_the_whole(part):
    exact, whole = account([part], 1e-5), account([part, poisson(1, 50.0, 1)], 1e-5)
    alone = epsilon_alone(part, whole)
    assert exact.epsilon <= alone <= 1.01 * exact.epsilon
    assert epsilon_alone(part, exact) == exact.epsilon


def test_a_part_without_noise_costs_infinity_and_one_of_a_selection_has_no_cost_of_its_own():
    nothing = account([poisson(1, 0.0, 1)], 1e-5)
    assert epsilon_alone(poisson(1, 0.0, 1), nothing) == math.inf
    assert epsilon_alone(poisson(1, 0.0, 0), nothing) == 0
    inside = poisson(0.1, 4.0, 10).inside_selection()
    selection = Selection(RunCount("geometric", 3.0), ((inside,),), 1)
    spent = account([selection], 1e-5)
    assert epsilon_alone(inside, spent) is None
    assert epsilon_alone(selection, spent) == spent.epsilon


def test_blocks_of_a_mechanism_are_one_charge_and_those_of_another_noise_are_not():
    blocks = [poisson(0.1, 4.0, 10), poisson(1, 4.0, 1), poisson(0.1, 4.0, 5), poisson(0.1, 4.5, 5)]
    assert in_whole(blocks) == [poisson(0.1, 4.0, 15), poisson(1, 4.0, 1), poisson(0.1, 4.5, 5)]


def test_opacus_agrees_where_it_can():
    """Opacus' RDP accountant on the same composition; its orders differ a little from dp-accounting's."""
    accountants = pytest.importorskip("opacus.accountants", reason="Opacus comes with the dev extra")
    theirs = accountants.RDPAccountant()
    theirs.history = [(1.2, 0.02, 300), (1.2, 0.05, 800)]
    ours = rdp_epsilon([poisson(0.02, 1.2, 300), poisson(0.05, 1.2, 800)], 1e-5)
    assert ours == pytest.approx(theirs.get_epsilon(delta=1e-5), rel=1e-3)


def test_the_shared_reference_is_where_the_project_expects_it():
    folder = data_folder()
    if folder is None:
        pytest.skip("no shared data beside this checkout")
    assert Path(folder).is_dir()
