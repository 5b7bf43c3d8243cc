"""The budget plan covers every mechanism and stays within the budget."""

import math

import pytest

from dpcgan_fast.privacy import account
from dpcgan_fast.synthesis.releases import planned_releases
from dpcgan_fast.train.plan import make_plan
from dpcgan_fast.train.settings import PRESETS, default_settings
from tests.tables import make_schema, schema_values


def plan_of(schema, epsilon=3.0, preset="auto", delta=1e-5, **changes):
    settings = default_settings(preset, epsilon, delta, schema.n_units, **changes)
    return settings, make_plan(settings, planned_releases(schema, delta), "row")


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("epsilon", [0.5, 3.0])
def test_the_composition_of_all_mechanisms_meets_the_budget(preset, epsilon):
    """With the defaults: releases, autoencoder and critic together, by the accountant."""
    _, plan = plan_of(make_schema(n_units=7000), epsilon, preset)
    names = [m.mechanism for m in plan.mechanisms]
    assert names == ["label histogram", "autoencoder", "critic"]
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
    assert set(releases) == {"bounds, coarse", "bounds, fine", "categories: sex", "label histogram", "unit count"}
    assert releases["bounds, coarse"].max_grad_norm == math.sqrt(2), "two columns, one joint release"
    assert releases["categories: sex"].delta > 0
    assert account(plan.mechanisms, 1e-5).epsilon <= 3.0


def test_public_rates_and_size_need_no_release():
    columns = schema_values()["columns"]
    columns[4]["rates"] = [0.8, 0.2]
    _, plan = plan_of(make_schema(columns=columns))
    assert plan.releases == ()
    _, plan = plan_of(make_schema(label=None))
    assert plan.releases == ()


def test_infinite_epsilon_has_neither_noise_nor_clipping():
    settings, plan = plan_of(make_schema(), math.inf)
    assert plan.noise_multiplier == plan.release_noise_multiplier == 0.0
    assert plan.critic.max_grad_norm == math.inf
    assert not settings.private


def test_the_plan_does_not_depend_on_the_data():
    """It takes the schema and the settings alone; there is no table among its arguments."""
    import inspect

    assert set(inspect.signature(make_plan).parameters) == {"settings", "releases", "unit"}
    assert set(inspect.signature(planned_releases).parameters) == {"schema", "delta"}
