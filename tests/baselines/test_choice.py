"""Every baseline is a private mechanism at its epsilon, and draws rows of the schema whatever the noise."""

import math
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import baselines_for, choice
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.data.public_cells import cell_shares, modelled_columns, without_codes
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import account
from tests.baselines.replay import Replay, refuse_moves
from tests.baselines.stand_ins import no_races
from tests.baselines.tables import VOCABULARY, codes_schema, codes_table, signal_schema, signals
from tests.evaluate.tables import COLUMNS, LABEL, patients, schema_of, with_column

# name of the kind: a schema, tables for it, and the baselines that it has
KINDS: dict[str, tuple[Schema, Any, tuple[str, ...]]] = {
    "mixed": (schema_of(), patients, (choice.INDEPENDENT, choice.TREE)),
    "no label": (schema_of(label=None), patients, (choice.INDEPENDENT, choice.TREE)),
    "three classes": (
        schema_of({"name": "stage", "type": "categorical", "categories": ["low", "middle", "high"]}),
        patients, (choice.INDEPENDENT, choice.TREE),
    ),
    "label alone": (schema_of(columns=[]), patients, (choice.INDEPENDENT,)),
    "signal": (signal_schema(), signals, (choice.INDEPENDENT, choice.STRENGTH, choice.WAVES)),
    "signal and a column": (
        signal_schema(COLUMNS[:1]), signals, (choice.INDEPENDENT, choice.STRENGTH, choice.WAVES),
    ),
    "codes": (codes_schema(), codes_table, (choice.INDEPENDENT, choice.SIZED, choice.MIXED)),
    "codes alone": (codes_schema((), None), codes_table, (choice.INDEPENDENT, choice.SIZED, choice.MIXED)),
}  # fmt: skip
CASES = [pytest.param(kind, name, id=f"{kind}: {name}") for kind in KINDS for name in KINDS[kind][2]]


def baseline_of(kind: str, name: str, **more: Any) -> Any:
    schema = KINDS[kind][0].model_copy(update=more)
    return next(one for one in baselines_for(schema) if one.name == name)


@pytest.mark.parametrize("kind", KINDS)
def test_which_baselines_a_schema_has_follows_from_it_alone(kind):
    schema, _, names = KINDS[kind]
    assert tuple(one.name for one in baselines_for(schema)) == names


# ---- privacy


@pytest.mark.parametrize("epsilon", [1.0, 300.0])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_removing_a_unit_moves_no_release_by_more_than_its_sensitivity(monkeypatch, kind, name, epsilon):
    no_races(monkeypatch)
    refuse_moves(monkeypatch, KINDS[kind][1](60, 3), epsilon, partial(baseline_of, kind, name))


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_all_releases_together_cost_the_epsilon(kind, name):
    fitted = baseline_of(kind, name).fit(KINDS[kind][1](200, 0), 3.0, 1e-5)
    assert account(fitted.mechanisms, 1e-5).epsilon_pld == pytest.approx(3.0, abs=5e-3)


def test_a_seeded_release_is_marked_since_it_is_not_private():
    (baseline, *_), table = baselines_for(schema_of()), patients(50, 0)
    assert baseline.fit(table, 1.0, 1e-5, NoiseKey(seed=1)).seeded
    assert not baseline.fit(table, 1.0, 1e-5).seeded


def test_at_an_epsilon_of_1e_17_rows_are_still_drawn():
    for baseline in baselines_for(schema_of()):
        assert baseline.fit(patients(50, 0), 1e-17, 1e-5).sample(10, np.random.default_rng(0)).num_rows == 10


def test_mechanisms_name_the_unit():
    schema = schema_of(unit="person")
    table = patients(50, 0).append_column("person", pa.array(range(50)))
    for baseline in baselines_for(schema):
        assert {one.unit for one in baseline.fit(table, 1.0, 1e-5).mechanisms} == {"person"}


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_two_releases_of_the_same_table_have_different_noise(kind, name, monkeypatch):
    baseline, table, fits = baseline_of(kind, name), KINDS[kind][1](200, 0), []
    for _ in range(2):
        replay = Replay()
        # What is drawn could be equal by chance; what is released, many digits each, cannot.
        monkeypatch.setattr(Budget, "release", lambda *given, replay=replay: replay.first(*given))
        baseline.fit(table, 0.5, 1e-5)
        fits.append(replay.answers[0].values)
    assert not (fits[0] == fits[1]).any()


# ---- what is drawn


@pytest.mark.parametrize("epsilon", [0.01, 1.0, math.inf])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_drawn_rows_keep_the_schema_whatever_the_noise(kind, name, epsilon):
    schema, make, _ = KINDS[kind]
    drawn = baseline_of(kind, name).fit(make(100, 0), epsilon, 1e-5).sample(300, np.random.default_rng(0))
    assert drawn.column_names == list(schema.column_names())
    assert drawn.num_rows == 300
    for column in schema.codes_columns():
        assert {code for cell in drawn[column.name].to_pylist() for code in cell} <= set(VOCABULARY)
    for column in modelled_columns(without_codes(schema)):
        assert column.missing or drawn[column.name].null_count == 0
        if column.type == "numeric":
            assert isinstance(column.bounds, tuple)
            values = drawn[column.name].drop_null().to_numpy()
            assert ((values >= column.bounds[0]) & (values <= column.bounds[1])).all()
            assert not column.integer or drawn[column.name].type == pa.int64()
        else:
            assert set(drawn[column.name].drop_null().to_pylist()) <= {0, 1, *column.classes(), "__other__"}


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if "signal" not in case.values[0]])
def test_without_noise_every_column_is_distributed_as_in_the_training_table(kind, name):
    schema, make, _ = KINDS[kind]
    train = make(4000, 0)
    drawn = baseline_of(kind, name).fit(train, math.inf, None).sample(4000, np.random.default_rng(0))
    for column in modelled_columns(without_codes(schema)):
        assert np.abs(cell_shares(drawn, column) - cell_shares(train, column)).sum() / 2 < 0.05


def test_no_rows_are_drawn_if_none_are_wanted():
    for kind, (schema, make, _) in KINDS.items():
        for baseline in baselines_for(schema):
            assert baseline.fit(make(100, 0), 1.0, 1e-5).sample(0, np.random.default_rng(0)).num_rows == 0, kind


def test_public_label_rates_are_used_in_place_of_noisy_ones():
    schema = schema_of({**LABEL, "rates": [0.9, 0.1]})
    for baseline in baselines_for(schema):
        drawn = baseline.fit(patients(500, 0), 0.01, 1e-5).sample(4000, np.random.default_rng(0))
        assert drawn["died"].to_numpy().mean() == pytest.approx(0.1, abs=0.03)


def test_a_label_alone_has_its_rates():
    train = patients(2000, 0)
    (baseline,) = baselines_for(schema_of(columns=[]))
    drawn = baseline.fit(train, 3.0, 1e-5).sample(4000, np.random.default_rng(0))
    assert drawn["died"].to_numpy().mean() == pytest.approx(train["died"].to_numpy().mean(), abs=0.04)


# ---- rows


def test_rows_beyond_the_cap_and_rows_without_a_class_are_not_counted():
    schema = schema_of(unit="person", max_rows_per_unit=2)
    table = patients(5, 0).append_column("person", pa.array(["a", "a", "a", "a", "b"]))
    rows = Rows.of(with_column(table, "died", [None, 1, 0, 1, None]), schema)
    assert rows.weights.tolist() == [0, 0.5, 0.5, 0, 0]


def test_a_training_table_without_the_units_column_is_bad_input():
    for baseline in baselines_for(schema_of(unit="person")):
        with pytest.raises(InputError, match=r"\(the training table, column person\). Give a table with .* person\.$"):
            baseline.fit(patients(5, 0), 1.0, 1e-5)


def test_a_missing_id_is_looked_for_in_the_table_that_was_given():
    table = patients(3, 0).append_column("person", pa.array(["a", None, "b"]))
    (baseline, *_) = baselines_for(schema_of(unit="person"))
    for where, given in (("the training table", ()), ("people.csv", ("people.csv",))):
        for take in (baseline.release, baseline.paid):
            with pytest.raises(InputError, match=rf"\({where}, column person, row 2\)"):
                take(table, 1.0, NoiseKey(), *given)
