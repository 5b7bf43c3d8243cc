"""Statistics at other epsilons: with the noise that they would have there, fresh each time."""

import math

import dp_accounting
import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import FittedBaseline
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.privacy import noise_key
from dpcgan_fast.synthesis import DPCGAN, anew
from tests.synthesis.code_runs import quick_runs
from tests.synthesis.runs import model_of
from tests.tables import make_schema, make_table


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> DPCGAN:
    with quick_runs():
        return model_of().fit(make_table(), tmp_path_factory.mktemp("anew") / "run")


def test_at_the_runs_own_epsilon_the_noise_is_the_runs_own(model):
    (line,) = [m for m in model.privacy()["mechanisms"] if m["mechanism"] == "statistics"]
    assert model.statistics_anew().noise_multiplier(3.0) == line["noise_multiplier"]


def test_at_every_epsilon_they_have_the_same_share_of_what_it_allows(model):
    found = model.statistics_anew()
    shares = [
        (dp_accounting.get_sigma_gaussian(epsilon, 1e-4) / found.noise_multiplier(epsilon)) ** 2
        for epsilon in (0.1, 3.0, 40.0)
    ]
    assert shares == pytest.approx([shares[0]] * 3, rel=1e-6)
    assert 0.5 < shares[0] < 1


def test_each_draw_is_a_release_of_that_noise_with_a_fresh_secret_key(model, monkeypatch):
    keys, released = [], []
    real = anew.noise_key

    def key():
        keys.append(real())
        return keys[-1]

    def spy(table, schema, noise_multiplier, noise, where):
        released.append(noise_multiplier)
        return unaccounted(table, schema, noise_multiplier, noise, where)

    unaccounted = anew.unaccounted_statistics
    monkeypatch.setattr(anew, "noise_key", key)
    monkeypatch.setattr(anew, "unaccounted_statistics", spy)
    found = model.statistics_anew()
    first, second = (found.draw(make_table(), epsilon, 50) for epsilon in (1.0, 10.0))
    assert released == [found.noise_multiplier(1.0), found.noise_multiplier(10.0)]
    assert not any(key.seeded for key in keys)
    assert len({key.key_id for key in keys}) == 2
    assert first.schema == second.schema == model.arrow_schema
    assert first.num_rows == second.num_rows == 50


def test_nothing_of_the_run_changes(model):
    def files():
        return {path: path.read_bytes() for path in model.folder.rglob("*") if path.is_file()}

    before, rows = files(), model.sample(40, seed=1)
    model.statistics_anew().draw(make_table(), 10.0, 50)
    assert files() == before
    assert model.sample(40, seed=1).equals(rows)


def test_more_epsilon_gives_statistics_nearer_to_the_rows(model, monkeypatch):
    monkeypatch.setattr(anew, "noise_key", lambda: noise_key(seed=3))
    real = marginal_of_age(make_table())
    errors = [
        np.abs(marginal_of_age(model.statistics_anew().draw(make_table(), epsilon, 20_000)) - real).sum() / 2
        for epsilon in (0.05, 1.0, 1e4)
    ]
    assert errors[0] > 0.3 > errors[1] > 0.05 > errors[2]


def marginal_of_age(table):
    return np.histogram(np.asarray(table["age"]), np.linspace(0, 110, 21))[0] / table.num_rows


def test_rows_keep_to_the_constraints(tmp_path):
    columns = [{"name": name, "type": "numeric", "bounds": [0, 1]} for name in ("low", "high")]
    rule = {"kind": "less", "columns": ["low", "high"]}
    values = {"version": 1, "unit": None, "n_units": 400, "columns": columns, "constraints": [rule]}
    rng = np.random.default_rng(0)
    pairs = np.sort(rng.random((400, 2)), axis=1)
    table = pa.table({"low": pairs[:, 0], "high": pairs[:, 1]})
    with quick_runs():
        model = model_of(Schema.from_dict(values)).fit(table, tmp_path / "run")
    drawn = model.statistics_anew().draw(table, 5.0, 300)
    assert drawn.num_rows == 300
    assert (np.asarray(drawn["low"]) < np.asarray(drawn["high"])).all()


def test_an_opened_run_has_them_too(model):
    found, own = DPCGAN.load(model.folder).statistics_anew(), model.statistics_anew()
    assert isinstance(found.sampler.statistics, FittedBaseline)
    assert (found.epsilon, found.delta, found.own_noise_multiplier, found.units, found.run) == (
        own.epsilon, own.delta, own.own_noise_multiplier, own.units, own.run
    )  # fmt: skip


def test_a_run_tells_whether_its_own_noise_came_from_a_seed(model, tmp_path):
    with quick_runs():
        seeded = model_of(seed=1).fit(make_table(), tmp_path / "run")
    assert seeded.statistics_anew().seeded
    assert not model.statistics_anew().seeded


def test_the_number_of_units_is_the_public_one_or_else_the_paid_one(model, tmp_path):
    """Never that of the rows: it would tell of one more."""
    assert model.statistics_anew().units == make_schema().n_units
    with quick_runs():
        paid = model_of(make_schema(n_units=None)).fit(make_table(), tmp_path / "run")
    (said,) = [fact for fact in paid.privacy()["paid"] if fact.startswith("number of units")]
    assert said == f"number of units: {paid.statistics_anew().units:.1f}"


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"statistics": False}, "rows come from networks"), ({"epsilon": math.inf}, "no finite epsilon")],
    ids=["networks", "no privacy"],
)
def test_a_run_without_statistics_or_privacy_is_refused(tmp_path, changes, what):
    with quick_runs():
        model = model_of(make_schema(), **changes).fit(make_table(), tmp_path / "run")
    with pytest.raises(InputError, match=what):
        model.statistics_anew()
