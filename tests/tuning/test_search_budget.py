"""The budget of a paid search: the whole meets epsilon and delta, whichever candidates there are."""

import math
from dataclasses import replace

import pytest

from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.privacy import account, rdp_epsilon
from dpcgan_fast.privacy.selection import RunCount, Selection
from dpcgan_fast.tuning.search_budget import SCORE_SHARE, plan_search
from tests.tables import make_schema, schema_values
from tests.tuning.searches import candidates_of


@pytest.mark.parametrize(
    ("distribution", "mean", "epsilon", "delta"),
    [
        ("logarithmic", 3.0, 3.0, 1e-4),
        ("logarithmic", 30.0, 0.5, 1e-6),
        ("geometric", 10.0, 1.0, 1e-5),
        ("poisson", 10.0, 10.0, 1e-4),
        ("poisson", 2.0, 0.2, 1e-5),
        ("geometric", 1.0, 50.0, 1e-4),
    ],
)
def test_the_whole_spends_at_most_epsilon_and_nearly_all_of_it(distribution, mean, epsilon, delta):
    plan = plan_search(make_schema(), candidates_of(), epsilon, delta, RunCount(distribution, mean))
    spent = account([plan.selection], delta).epsilon
    assert 0.998 * epsilon < spent <= epsilon


def test_every_candidate_is_inside_the_selection_that_is_accounted():
    changes = [{}, {"critic_lr": 0.1}, {"steps": 40, "batch_size": 100}, {"statistics": True, "networks_only": None}]
    candidates = candidates_of(*changes)
    plan = plan_search(make_schema(), candidates, 3.0, 1e-4, RunCount("poisson", 4.0))
    assert plan.selection.n_candidates == 4
    assert len(plan.selection.runs) == 3, "what two candidates take alike stands once"
    for place in range(4):
        assert plan.selection.holds(plan.run(place))
        assert plan.run(place)[-1] == plan.score
        alone = Selection(plan.selection.count, (plan.run(place),), 1)
        assert rdp_epsilon([alone], 1e-4) <= rdp_epsilon([plan.selection], 1e-4) <= 3.0


def test_one_candidate_and_many_of_the_kind_have_the_same_noise():
    count = RunCount("poisson", 4.0)
    one = plan_search(make_schema(), candidates_of(), 3.0, 1e-4, count)
    many = plan_search(
        make_schema(), candidates_of(*({"critic_lr": rate} for rate in (0.1, 0.2, 0.3))), 3.0, 1e-4, count
    )
    assert many.run(2) == one.run(0)
    assert account([many.selection], 1e-4) == account([one.selection], 1e-4)


def test_a_run_takes_less_than_the_whole_and_its_score_a_small_part_of_that():
    plan = plan_search(make_schema(), candidates_of(), 3.0, 1e-4, RunCount("poisson", 10.0))
    plain = [replace(m, event=m.event.removeprefix("selected_")) for m in plan.run(0)]
    assert 0.2 * 3.0 < account(plain, 1e-4).epsilon < 0.6 * 3.0
    squares = [m.steps / m.noise_multiplier**2 for m in plain]
    assert squares[-1] / sum(squares) == pytest.approx(SCORE_SHARE, rel=0.2)


@pytest.mark.parametrize("changes", [{}, {"statistics": True, "networks_only": None}])
def test_a_run_may_have_no_release_but_the_statistics_or_none_at_all(changes):
    columns = schema_values()["columns"]
    columns[4]["rates"] = [0.6, 0.4]
    plan = plan_search(make_schema(columns=columns), candidates_of(changes), 3.0, 1e-4, RunCount("poisson", 10.0))
    assert [m.mechanism for m in plan.run(0)] == [*["statistics"] * bool(changes), "autoencoder", "critic", "score"]
    assert 0.998 * 3.0 < account([plan.selection], 1e-4).epsilon <= 3.0


def test_settings_keep_the_claim_of_the_whole():
    plan = plan_search(make_schema(), candidates_of(), 3.0, 1e-4, RunCount("poisson", 10.0))
    assert (plan.settings[0].epsilon, plan.settings[0].delta) == (3.0, 1e-4)


@pytest.mark.parametrize(
    ("epsilon", "delta", "schema", "error", "what"),
    [
        (math.inf, 1e-4, {}, InputError, "nothing to pay for"),
        (0.0, 1e-4, {}, InputError, "epsilon must be greater than 0"),
        (3.0, 1e-2, {}, PrivacyError, "delta is greater than 1 / n_units"),
        (3.0, 1e-4, {"label": None}, InputError, "needs a label"),
        (0.001, 1e-4, {}, InputError, "No run is private enough"),
    ],
)
def test_what_cannot_be_paid_for_is_refused(epsilon, delta, schema, error, what):
    with pytest.raises(error, match=what):
        plan_search(make_schema(**schema), candidates_of(), epsilon, delta, RunCount("poisson", 10.0))


def test_lists_that_are_read_from_the_data_are_refused():
    """Their thresholds fail with a small probability, which no Renyi divergence bounds."""
    columns = schema_values()["columns"]
    columns[2] = {"name": "sex", "type": "categorical", "categories": "private"}
    with pytest.raises(InputError, match="needs public lists"):
        plan_search(make_schema(columns=columns), candidates_of(), 3.0, 1e-4, RunCount("poisson", 10.0))
