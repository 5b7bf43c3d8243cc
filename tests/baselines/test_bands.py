"""Bands of waves: what differs from row to row and goes together in real rows does so in drawn ones."""

import numpy as np
import pyarrow as pa
import pytest

from dpcgan_fast.baselines import arrays_of, restored, statistics_for
from dpcgan_fast.baselines.bands import Bands, Strong, band_edges, even_waves, levels_of, release_bands
from dpcgan_fast.baselines.budget import Budget
from dpcgan_fast.baselines.rows import Rows
from dpcgan_fast.ops import NoiseKey
from dpcgan_fast.privacy import noise_key
from tests.baselines.stand_ins import asked_of_budget
from tests.baselines.tables import LENGTH, signal_schema, signals

EDGES = band_edges(LENGTH)
BANDS = len(EDGES) - 1


def rows_of(classes: np.ndarray) -> Rows:
    return Rows(pa.table({"place": np.arange(len(classes))}), classes, np.ones(len(classes)), 2)


def places(block: Rows) -> np.ndarray:
    return block.table["place"].to_numpy()


def unit_waves(count: int, seed: int) -> np.ndarray:
    """Rows of length 1 whose slow bands go with each other, and whose waves 8 and 9 are always alike."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(count, 1))
    levels = np.where(np.arange(BANDS) < 3, common, -common) - 0.3 * np.arange(BANDS)
    waves = rng.normal(size=(count, LENGTH))
    waves[:, 9] = waves[:, 8]
    waves = even_waves(waves, EDGES) * np.repeat(np.exp(levels / 2), np.diff(EDGES), axis=1)
    return waves / np.linalg.norm(waves, axis=1, keepdims=True)


def released(waves: np.ndarray, noise: float = 0.0, bins: np.ndarray | None = None) -> Bands:
    """Half of the rows are of either class."""
    classes = np.arange(len(waves)) % 2
    bins = np.zeros(len(waves), np.int64) if bins is None else bins
    strong = Strong(np.stack([np.bincount(bins[classes == label], minlength=4) for label in (0, 1)]), bins)
    budget = Budget(noise, noise_key(0))
    return release_bands(rows_of(classes), LENGTH, lambda block: waves[places(block)], strong, budget, 1.0)


def test_bands_of_178_samples():
    assert band_edges(178).tolist() == [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 178]


@pytest.mark.parametrize("length", [*range(1, 70), 187, 256, 5000])
def test_every_wave_is_in_one_band(length):
    edges = band_edges(length)
    assert edges[0] == 0
    assert edges[-1] == length
    assert (np.diff(edges) > 0).all()


@pytest.mark.parametrize("size", [0.0, 1e-320, 1e-160, 1e-8, 1e-7, 1.0, 1e6, 1e150])
def test_no_row_is_longer_than_the_guarantee_says(size):
    for waves in (np.full((1, LENGTH), size), size * np.eye(LENGTH), size * unit_waves(50, 0)):
        even, levels = even_waves(waves, EDGES), levels_of(waves, EDGES)
        assert np.isfinite(levels).all()
        for edge in EDGES[1:]:
            assert np.linalg.norm(even[:, :edge], axis=1).max() <= np.sqrt(edge) * (1 + 1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-320, 1e-7, 1.0, 1e150])
def test_the_oddest_row_adds_no_more_than_a_unit_may(monkeypatch, size):
    asked = asked_of_budget(monkeypatch)
    for row in (np.full(LENGTH, size), np.where(np.arange(LENGTH) == 5, size, 0.0), size * unit_waves(1, 0)[0]):
        asked.clear()
        released(row[None], 1e-9)
        assert [name for name, _ in asked] == [
            "levels of bands", "levels of bands and their products", "pairs of waves",
        ]  # fmt: skip
        assert max(norm for _, norm in asked) <= 1 + 1e-9


@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_levels_and_pairs_of_waves_come_back(noise):
    real = unit_waves(4000, 0)
    bands = released(real, noise)
    classes = np.arange(4000) % 2
    own = bands.draw(classes, np.zeros(4000, np.int64), np.random.default_rng(0))
    levels, drawn = levels_of(real, EDGES), levels_of(own, EDGES)
    assert drawn.mean(0) == pytest.approx(levels.mean(0), abs=0.2)
    assert np.corrcoef(drawn.T) == pytest.approx(np.corrcoef(levels.T), abs=0.2)
    assert np.corrcoef(own[:, 8], own[:, 9])[0, 1] > 0.85
    assert abs(np.corrcoef(own[:, 8], own[:, 10])[0, 1]) < 0.15


def test_groups_of_strength_have_levels_of_their_own_where_the_noise_lets_them():
    slow, quick = unit_waves(3000, 0), unit_waves(3000, 1)[:, ::-1]
    waves, bins = np.concatenate([slow, quick]), np.repeat([0, 1, 2, 3], 1500)
    clear, noisy = released(waves, 0.1, bins), released(waves, 50.0, bins)
    assert clear.spread.shape[1] > 1
    assert noisy.spread.shape[1] == 1
    for name, own in (("slow", 0), ("quick", 3)):
        drawn = clear.draw(np.zeros(1000, np.int64), np.full(1000, own), np.random.default_rng(0))
        middle = levels_of(slow if name == "slow" else quick, EDGES).mean(0)
        assert levels_of(drawn, EDGES).mean(0) == pytest.approx(
            middle, abs=0.8
        )  # rows far from the rest count as nearer


@pytest.mark.parametrize("knots", [2, 4])
def test_a_bin_lies_between_two_knots_by_the_rank_of_its_rows(knots):
    counts = np.array([[10.0, 30.0, 0.0, 60.0], [0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 0.0, 0.0]])
    between = Strong(counts, np.zeros(0, np.int64)).between(knots)
    assert between.sum(axis=2) == pytest.approx(np.ones((3, 4)))
    assert (between >= 0).all()  # so that no row's weights are longer than 1
    assert between[0] @ np.arange(knots) / (knots - 1) == pytest.approx([0.05, 0.25, 0.4, 0.7])


def test_levels_rise_with_strength_also_where_there_is_one_group_of_it():
    waves, bins = unit_waves(4000, 0), np.repeat([0, 1, 2, 3], 1000)
    strengths = bins - 1.5
    waves = waves * np.repeat(np.exp(np.outer(strengths, np.linspace(-0.5, 0.5, BANDS))), np.diff(EDGES), axis=1)
    waves /= np.linalg.norm(waves, axis=1, keepdims=True)
    bands = released(waves, 15.0, bins)
    assert bands.spread.shape[1] == 1
    slopes = np.polyfit(strengths, levels_of(waves, EDGES), 1)[0]
    assert np.ptp(slopes) > 0.8
    for label in (0, 1):
        found = np.polyfit([-1.5, -0.5, 0.5, 1.5], bands.levels[label], 1)[0]
        assert found == pytest.approx(slopes, abs=0.5)  # rows far from the rest count as nearer
        assert np.corrcoef(found, slopes)[0, 1] > 0.9
    flat = released(waves, 1000.0, bins).levels
    assert np.ptp(flat, axis=1).max() < 1e-9  # nothing is said of strengths where noise is all


def test_the_more_noise_there_is_the_fewer_waves_are_looked_at_in_pairs():
    waves = unit_waves(2000, 0)
    paired = [released(waves, noise).pairs.shape[1] for noise in (0.0, 5.0, 20.0, 1000.0)]
    assert paired[0] == LENGTH
    assert sorted(paired, reverse=True) == paired
    assert len(set(paired)) > 2
    assert paired[-1] == 0
    budget = Budget(1000.0, NoiseKey())
    strong = Strong(np.ones((2, 1)), np.zeros(1, int))
    release_bands(rows_of(np.zeros(1, np.int64)), LENGTH, lambda _: waves[:1], strong, budget, 1.0)
    assert len(budget.mechanisms) == 2


@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_no_rows_at_all_give_rows_that_are_not_empty(noise):
    bands = released(np.empty((0, LENGTH)), noise, np.empty(0, np.int64))
    drawn = bands.draw(np.array([0, 1] * 20), np.zeros(40, np.int64), np.random.default_rng(0))
    assert np.isfinite(drawn).all()
    assert (np.linalg.norm(drawn, axis=1) > 0).all()


@pytest.mark.parametrize("epsilon", [1.0, 100.0])
def test_what_was_kept_draws_the_same_rows_and_nothing_else_is_taken(epsilon):
    statistics = statistics_for(signal_schema())
    fitted = statistics.fit(signals(2000, 0), epsilon, 1e-5, noise_key(1))
    arrays = arrays_of(fitted)
    again = restored(statistics, arrays, fitted.seeded)
    assert again.sample(100, np.random.default_rng(3)).equals(fitted.sample(100, np.random.default_rng(3)))
    for name in ("0.groups", "0.levels", "0.spread", "0.mean", "0.shares"):
        with pytest.raises(ValueError, match="Expected"):
            restored(statistics, {**arrays, name: arrays[name][..., :-1]}, fitted.seeded)
        with pytest.raises(KeyError):
            restored(statistics, {other: values for other, values in arrays.items() if other != name}, fitted.seeded)
