"""The budget plan covers every mechanism and stays within the budget."""

import json
import math
from dataclasses import replace

import pytest

from dpcgan_fast.errors import InputError, PrivacyError
from dpcgan_fast.models import is_conditional
from dpcgan_fast.privacy import Mechanism, account, calibrate_noise_multiplier
from dpcgan_fast.synthesis.releases import planned_releases
from dpcgan_fast.train.plan import BudgetPlan, make_plan
from dpcgan_fast.train.settings import PRESETS, default_settings
from tests.tables import make_schema, schema_values


def plan_of(schema, epsilon=3.0, preset="auto", delta=1e-5, **changes):
    settings = default_settings(preset, epsilon, delta, schema.n_units, **changes)
    return settings, make_plan(settings, planned_releases(schema, settings), "row")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_the_composition_of_all_mechanisms_meets_the_budget(preset, epsilon):
    """With the defaults: releases, autoencoder and critic together, by the accountant."""
    _, plan = plan_of(make_schema(n_units=7000), epsilon, preset)
    names = [m.mechanism for m in plan.mechanisms]
    releases = ["label histogram", "statistics"] if is_conditional(preset) else []
    assert names == [*releases, "autoencoder", "critic"], "nets that are not conditional have no use for class rates"
    spent = account(plan.mechanisms, 1e-5).epsilon
    assert 0.999 * epsilon <= spent <= epsilon
    for left_out in names:
        assert account([m for m in plan.mechanisms if m.mechanism != left_out], 1e-5).epsilon < spent


def test_one_noise_multiplier_serves_autoencoder_and_critic():
    _, plan = plan_of(make_schema())
    assert plan.autoencoder.noise_multiplier == plan.critic.noise_multiplier == plan.noise_multiplier
    assert plan.noise_multiplier > 0.3, "the published defaults, 5e-5 and 5e-4, guarantee nothing"


def test_every_private_fact_of_the_schema_is_a_release():
    columns = schema_values()["columns"]
    columns[0]["bounds"] = "private"
    columns[1]["bounds"] = "private"
    columns[2] = {"name": "sex", "type": "categorical", "categories": "private"}
    schema = make_schema(columns=columns, n_units=None)
    _, plan = plan_of(schema)
    releases = {m.mechanism: m for m in plan.releases}
    own = {"bounds, coarse", "bounds, fine", "categories: sex", "label histogram", "unit count"}
    assert set(releases) == {*own, "statistics"}
    assert len({releases[name].noise_multiplier for name in own}) == 1
    assert releases["bounds, coarse"].max_grad_norm == math.sqrt(2), "two columns, one joint release"
    assert releases["categories: sex"].delta > 0
    assert account(plan.mechanisms, 1e-5).epsilon <= 3.0


def test_public_rates_and_size_need_no_release():
    columns = schema_values()["columns"]
    columns[4]["rates"] = [0.8, 0.2]
    for schema in (make_schema(columns=columns), make_schema(label=None)):
        assert [m.mechanism for m in plan_of(schema)[1].releases] == ["statistics"]
        assert plan_of(schema, statistics=False)[1].releases == ()


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 10.0, 100.0])
def test_statistics_get_nearly_all_and_training_what_is_left(epsilon):
    """They have the noise that a single release of the whole epsilon would have, but for a few per cent."""
    _, plan = plan_of(make_schema(n_units=7000), epsilon)
    whole = calibrate_noise_multiplier(lambda sigma: [Mechanism("m", "gaussian", 1.0, sigma, 1, 1.0)], epsilon, 1e-5)
    assert 1 < plan.mechanism("statistics").noise_multiplier / whole < 1.08
    alone = [plan.autoencoder, plan.critic]
    assert 0.1 * epsilon < account(alone, 1e-5).epsilon < 0.35 * epsilon
    spent = account(plan.mechanisms, 1e-5).epsilon
    assert 0.998 * epsilon <= spent <= epsilon


def test_releases_that_leave_statistics_next_to_nothing_are_refused():
    """The error names the option, and the setting of Python and of candidates."""
    with pytest.raises(InputError, match=r"too little of epsilon \(release_share .*, training_share .*smaller shares"):
        plan_of(make_schema(), release_share=0.97)


def test_infinite_epsilon_has_neither_noise_nor_clipping():
    settings, plan = plan_of(make_schema(), math.inf)
    assert plan.noise_multiplier == plan.release_noise_multiplier == 0.0
    assert plan.critic.max_grad_norm == math.inf
    assert not settings.private


def test_the_plan_does_not_depend_on_the_data():
    """It takes the schema and the settings alone; there is no table among its arguments."""
    import inspect

    assert set(inspect.signature(make_plan).parameters) == {"settings", "releases", "unit"}
    assert set(inspect.signature(planned_releases).parameters) == {"schema", "settings"}


@pytest.mark.parametrize("epsilon", [3.0, math.inf])
def test_a_plan_comes_back_from_json_as_it_was(epsilon):
    _, plan = plan_of(make_schema(n_units=None), epsilon)
    assert BudgetPlan.from_dict(json.loads(json.dumps(plan.to_dict())), "config.json") == plan


@pytest.mark.parametrize("values", [None, [], {}, {"mechanisms": []}, {"mechanisms": [{}, {}]}])
def test_what_is_no_plan_is_refused(values):
    with pytest.raises(PrivacyError, match="The plan of the run cannot be read"):
        BudgetPlan.from_dict(values, "config.json")


def test_a_plan_without_its_critic_is_refused():
    values = plan_of(make_schema())[1].to_dict()
    del values["mechanisms"][-1]
    with pytest.raises(PrivacyError, match="The plan of the run cannot be read"):
        BudgetPlan.from_dict(values, "config.json")


def test_what_was_reserved_must_be_part_of_the_plan():
    _, plan = plan_of(make_schema())
    critic = plan.critic
    plan.refuse_other([*plan.releases, critic.with_steps(10), critic.with_steps(critic.steps - 10)], "ledger.jsonl")
    for reserved in (
        [critic.with_steps(critic.steps + 1)],
        [critic.with_steps(10), critic],
        [*plan.releases, *plan.releases],
        [replace(critic, noise_multiplier=2 * critic.noise_multiplier, steps=1)],
        [replace(critic, sample_rate=critic.sample_rate / 2)],
        [replace(critic, max_grad_norm=0.5)],
        [Mechanism("another", "gaussian", 1.0, 1.0, 0, 1.0)],
    ):
        with pytest.raises(PrivacyError, match=r"does not fit the plan of the run: .* \(ledger.jsonl\)"):
            plan.refuse_other(reserved, "ledger.jsonl")
