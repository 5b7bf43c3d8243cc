"""Signals from their strengths and waves: what is released comes back in what is drawn."""

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.fft import dct

from dpcgan_fast.baselines import baselines_for, choice, statistics_for
from dpcgan_fast.baselines import signals as signals_part
from dpcgan_fast.baselines.histograms import shares_of
from dpcgan_fast.data.schema import Schema
from dpcgan_fast.privacy import noise_key
from tests.baselines.replay import cauchy, refuse_moves
from tests.baselines.stand_ins import asked_of_budget
from tests.baselines.tables import LENGTH, signal_schema, signals


def drawn_at(epsilon: float, train: pa.Table, name: str, schema: Schema | None = None) -> pa.Table:
    baseline = next(one for one in baselines_for(schema or signal_schema()) if one.name == name)
    return baseline.fit(train, epsilon, 1e-5).sample(3000, np.random.default_rng(0))


def values(table: pa.Table, died: int) -> np.ndarray:
    rows = np.array([table[f"X{i}"].to_numpy() for i in range(LENGTH)]).T
    return rows[table["died"].to_numpy() == died]


def log_strength(rows: np.ndarray) -> np.ndarray:
    return np.log(np.sqrt((rows**2).mean(axis=1)))


def spectrum(rows: np.ndarray) -> np.ndarray:
    waves = np.asarray(dct(rows, axis=1, norm="ortho"))
    return ((waves / np.linalg.norm(waves, axis=1, keepdims=True)) ** 2).mean(axis=0)


@pytest.mark.parametrize("name", [choice.STRENGTH, choice.WAVES])
@pytest.mark.parametrize("epsilon", [3.0, math.inf])
def test_each_class_is_as_strong_as_its_rows(epsilon, name):
    train = signals(4000, 0)
    drawn = drawn_at(epsilon, train, name)
    for died in (0, 1):
        real, own = log_strength(values(train, died)), log_strength(values(drawn, died))
        assert own.mean() == pytest.approx(real.mean(), abs=0.15)
    assert drawn["died"].to_numpy().mean() == pytest.approx(0.3, abs=0.04)


@pytest.mark.parametrize("epsilon", [3.0, math.inf])
def test_each_class_has_the_waves_of_its_rows(epsilon):
    train = signals(4000, 0)
    drawn, white = (drawn_at(epsilon, train, name) for name in (choice.WAVES, choice.STRENGTH))
    for died in (0, 1):
        real, own, flat = (spectrum(values(table, died)) for table in (train, drawn, white))
        assert np.abs(own - real).sum() / 2 < 0.4  # neighbouring waves share what they have
        assert np.abs(flat - real).sum() / 2 > 0.6
        assert abs(own.argmax() - real.argmax()) <= 1


def test_a_shape_that_all_rows_have_is_kept():
    train = signals(4000, 0, mean=60.0)
    drawn = drawn_at(10.0, train, choice.WAVES)
    real, own = (values(table, 0).mean(axis=0) for table in (train, drawn))
    assert own.argmax() == pytest.approx(real.argmax(), abs=1)
    assert np.corrcoef(own, real)[0, 1] > 0.9


def test_means_count_sooner_where_rows_have_a_shape_in_common():
    means = np.zeros((2, LENGTH))
    means[:, 3] = 3.0  # standard deviations of the noise
    means[0, 0] = 60.0
    found = signals_part._clear(means, 1.0, np.array([100.0, 100.0]))
    assert found[:, 3].tolist() == [3.0, 0.0]
    assert found[0, 0] == 60.0
    assert np.array_equal(signals_part._clear(means, 0.0, np.array([100.0, 100.0])), means)


def test_bins_of_strength_that_do_not_stand_clear_of_the_noise_are_empty():
    noisy = np.array([[40.0, 10.0, 1.5, -1.0], [0.0, -1.0, 1.0, 0.5]])
    found = signals_part._clear_shares(noisy, 1.0, np.array([50.0, 1.0]))
    assert found[0, 2:].tolist() == [0.0, 0.0]
    assert found[0].sum() == pytest.approx(1.0)
    assert found[0, 0] / found[0, 1] == pytest.approx(39.5 / 9.5), "what is left keeps its proportions"
    assert np.array_equal(found[1], shares_of(noisy, np.array([50.0, 1.0]))[1]), "a class that never does keeps all"
    exact = np.array([[40.0, 10.0, 1.0, 0.0]])
    assert np.allclose(signals_part._clear_shares(exact, 0.0, np.array([51.0])), exact / 51)


@pytest.mark.parametrize("seed", range(3))
def test_next_to_no_row_is_of_a_strength_that_no_real_row_of_its_class_has(seed):
    """Where all rows are of another class, a few false ones would be all that classifiers learn there."""
    train = signals(4000, 0)
    fitted = next(one for one in baselines_for(signal_schema()) if one.name == choice.WAVES).fit(
        train, 3.0, 1e-5, noise_key(seed)
    )
    drawn = fitted.sample(20_000, np.random.default_rng(seed))
    for died in (0, 1):
        real, own = log_strength(values(train, died)), log_strength(values(drawn, died))
        away = (own < real.min() - 0.3) | (own > real.max() + 0.3)  # bins are a quarter wide
        assert away.mean() < 0.001


def test_rows_of_zeros_give_finite_values_within_the_bounds():
    flat = pa.table({**{f"X{i}": np.zeros(100) for i in range(LENGTH)}, "died": [0, 1] * 50})
    for bounds in ((-100, 100), (0, 1)):
        schema = signal_schema(bounds=bounds)
        for baseline in baselines_for(schema):
            drawn = baseline.fit(flat, math.inf, None).sample(50, np.random.default_rng(0))
            found = np.array([drawn[f"X{i}"].to_numpy() for i in range(LENGTH)])
            assert np.isfinite(found).all()
            assert found.min() >= bounds[0]
            assert found.max() <= bounds[1]


@pytest.mark.parametrize("bounds", [(-1, 1), (-100, 100), (-1e308, 1e308), (-1e-200, 1e-200), (0, 5e-324)])
@pytest.mark.parametrize("row", [1e-170, 3e-162, 1e-300, 1e-320, 1e-100, 0.0, 1.0, 1e308, math.inf, math.nan])
def test_the_weakest_and_the_strongest_rows_add_no_more_than_a_unit_may(monkeypatch, bounds, row):
    """Squares of weak rows are zero and those of strong ones infinite, by which no row is to be divided."""
    asked = asked_of_budget(monkeypatch)
    place = np.arange(LENGTH)
    for values in (np.where(place % 2, row, -row), np.full(LENGTH, row), np.where(place == 3, row, 0.0)):
        alone = pa.table({**{f"X{i}": [value] for i, value in enumerate(values)}, "died": [1]})
        for baseline in baselines_for(signal_schema(bounds=bounds)):
            asked.clear()
            baseline.fit(alone, 1.0, 1e-5)
            assert asked
            assert all(norm <= 1 + 1e-9 for _, norm in asked)


@pytest.mark.parametrize("spoil", [lambda values: values, cauchy], ids=["as released", "heavy tails"])
def test_removing_a_unit_moves_no_release_by_more_than_its_sensitivity(monkeypatch, spoil):
    """With pairs of waves, which there are at little noise, and whatever was released before."""
    names = refuse_moves(
        monkeypatch,
        signals(60, 0),
        300.0,
        lambda **more: statistics_for(signal_schema().model_copy(update=more)),
        spoil,
    )
    assert {"levels of bands", "levels of bands and their products", "pairs of waves"} <= set(names)


def test_whole_numbers_stay_whole():
    schema = signal_schema()
    schema = schema.model_copy(update={"signals": (schema.signals[0].model_copy(update={"integer": True}),)})
    for name in (choice.STRENGTH, choice.WAVES):
        assert drawn_at(3.0, signals(500, 0), name, schema).schema.field("X0").type == pa.int64()
