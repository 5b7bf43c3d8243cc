"""What a run says about its privacy beyond the figures."""

import math

import pytest

from dpcgan_fast.data.schema import Schema
from dpcgan_fast.privacy import PrivacySpent
from dpcgan_fast.synthesis.privacy_statement import statement
from dpcgan_fast.synthesis.releases import ReleasedFacts, planned_releases
from dpcgan_fast.train.plan import make_plan
from dpcgan_fast.train.settings import default_settings
from tests.tables import make_schema


@pytest.mark.parametrize(("noisy_count", "warned"), [(1999.0, False), (2001.0, True)])
def test_a_delta_above_one_over_the_estimated_number_of_units_is_a_warning_on_the_card(noisy_count, warned):
    """Without a public number of units it cannot be refused before the count is paid for."""
    schema = make_schema(n_units=None)
    settings = default_settings("auto", 3.0, 5e-4, None)
    plan = make_plan(settings, planned_releases(schema, settings), "row")
    spent = PrivacySpent(3.0, 2.9, settings.delta, 1e-4)
    said = statement(settings, schema, plan, ReleasedFacts(n_units=noisy_count), [], spent, "")
    assert ("**Warning:** delta 0.0005 is greater than 1 over the estimated number of units" in said["card"]) is warned
    assert any("estimated number of units" in note for note in said["notes"]) is warned


@pytest.mark.parametrize("networks", [False, True])
def test_few_units_beside_the_noise_are_a_warning(networks):
    schema = make_schema(n_units=None)
    settings = default_settings("auto", 3.0, 1e-4, None, **({"statistics": False} if networks else {}))
    plan = make_plan(settings, planned_releases(schema, settings), "row")
    spent = PrivacySpent(3.0, 2.9, settings.delta, 1e-4)
    for units, warned in ((4.2, True), (2000.0, False)):
        said = statement(settings, schema, plan, ReleasedFacts(n_units=units), [], spent, "")
        assert (f"**Warning:** the number of units, {units:.1f}, is less than 20 times" in said["card"]) is warned
        assert any("little but noise" in warning for warning in said["warnings"]) is warned


def test_without_noise_or_with_enough_public_units_nobody_is_warned():
    for epsilon, units, warned in ((3.0, 5, True), (3.0, 400, False), (math.inf, 5, False)):
        schema = make_schema(n_units=units)
        settings = default_settings("auto", epsilon, 1e-4, units, autoencoder_batch=2, critic_batch=2)
        plan = make_plan(settings, planned_releases(schema, settings), "row")
        said = statement(settings, schema, plan, ReleasedFacts(), [], PrivacySpent(3.0, 2.9, 1e-4, 1e-4), "")
        assert bool(said["warnings"]) is warned


def test_public_quantiles_are_among_the_public_facts():
    """The claim rests on them, as on bounds."""
    column = {"name": "x", "type": "numeric", "bounds": [0, 50], "scale": "rank", "quantiles": [0.5, 1, 2]}
    schema = Schema.from_dict({"unit": None, "n_units": 2000, "columns": [column]})
    settings = default_settings("auto", 3.0, 1e-5, 2000)
    plan = make_plan(settings, planned_releases(schema, settings), "row")
    said = statement(settings, schema, plan, ReleasedFacts(), [], PrivacySpent(3.0, 2.9, 1e-5, 1e-4), "")
    assert "quantiles of 1 columns" in said["public"]
