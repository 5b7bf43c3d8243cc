"""Paid quantiles: their number is public, one unit moves the histograms by a bounded amount, and noise does no harm."""

import math

import numpy as np
import pytest

from dpcgan_fast.privacy.quantiles import PARTS, noisy_quantiles, quantile_grid
from dpcgan_fast.privacy.releases import histograms, unit_weights

BOUNDS = [(0.0, 50.0), (-1.0, 1.0), (0.0, 1.0), (0.2, 0.8), (-1.7e308, 1.7e308), (0.0, 5e-324), (1.0, 1.0 + 2**-52)]


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("whole", [False, True])
def test_a_grid_rises_from_bound_to_bound(bounds, whole):
    edges = quantile_grid(bounds, whole)
    assert (edges[0], edges[-1]) == bounds
    assert (np.diff(edges / 2) > 0).all() or bounds[1] < 1e-300
    assert len(edges) >= 2


def test_whole_numbers_have_cells_of_their_own_near_the_bounds():
    edges = quantile_grid((0.0, 90.0), True)
    assert (edges[1:-1] % 1 == 0.5).all()
    assert {0.5, 1.5, 2.5, 87.5, 88.5, 89.5} <= set(edges)


@pytest.mark.parametrize("columns", [1, 2, 10])
def test_one_unit_moves_the_histograms_by_at_most_the_square_root_of_the_columns(columns):
    """With three rows a unit, out of bounds and missing cells among them."""
    rng = np.random.default_rng(columns)
    units = np.repeat(np.arange(20), 3)
    values = [
        np.where(rng.random(60) < 0.1, np.nan, rng.normal(size=60) * 10 ** rng.integers(0, 6)) for _ in range(columns)
    ]
    edges = [quantile_grid((-3.0, 30.0), bool(i % 2)) for i in range(columns)]

    def released(kept):
        return histograms([v[kept] for v in values], [unit_weights(units)[kept]] * columns, edges)

    whole = released(np.ones(60, bool))
    moved = [np.linalg.norm(whole - released(units != unit)) for unit in range(20)]
    assert max(moved) <= math.sqrt(columns) * (1 + 1e-9)
    assert max(moved) > 0


@pytest.mark.parametrize("std", [0.0, 1.0, 1e3, 1e9])
@pytest.mark.parametrize("rows", [0, 1, 5000])
@pytest.mark.parametrize("bounds", BOUNDS)
def test_whatever_the_noise_there_are_as_many_quantiles_rising_between_the_bounds(std, rows, bounds):
    rng = np.random.default_rng(1)
    edges = quantile_grid(bounds, False)
    counts = (
        rng.multinomial(rows, np.full(len(edges) - 1, 1 / (len(edges) - 1))) + rng.normal(size=len(edges) - 1) * std
    )
    found = noisy_quantiles(counts, edges, std)
    assert len(found) == PARTS - 1
    assert all(a <= b for a, b in zip((bounds[0], *found), (*found, bounds[1]), strict=True))


@pytest.mark.parametrize(("std", "error"), [(0.0, 0.02), (20.0, 0.12)])
@pytest.mark.parametrize("mirrored", [False, True], ids=["small beside the upper bound", "near the upper bound"])
def test_quantiles_are_near_those_of_skewed_columns(std, error, mirrored):
    """Error in probability: how far the share of rows below each quantile is from what it should be."""
    rng = np.random.default_rng(2)
    values = np.minimum(rng.lognormal(0, 1, 8000), 50)
    values = 50 - values if mirrored else values
    edges = quantile_grid((0.0, 50.0), False)
    counts = histograms([values], [np.ones(8000)], [edges])
    found = noisy_quantiles(counts + rng.normal(size=len(counts)) * std, edges, std)
    below = np.searchsorted(np.sort(values), found) / 8000
    assert np.abs(below - np.arange(1, PARTS) / PARTS).max() < error


def test_noise_that_hides_everything_leaves_room_for_all_cells():
    """Else a few cells that the noise favours would take all of it, and other numbers could not be told apart."""
    rng = np.random.default_rng(3)
    edges = quantile_grid((0.0, 1.0), False)
    found = np.array([0.0, *noisy_quantiles(rng.normal(size=len(edges) - 1) * 1e4, edges, 1e4), 1.0])
    room = np.diff(np.interp(edges, found, np.linspace(0, 1, len(found))))
    assert room.min() > 0.001


def test_one_number_in_all_rows_has_nearly_all_the_room():
    edges = quantile_grid((0.0, 50.0), True)
    found = np.array(noisy_quantiles(histograms([np.full(1000, 3.0)], [np.ones(1000)], [edges]), edges, 0.0))
    assert (np.rint(found) == 3).mean() > 0.95


def test_bounds_as_wide_as_floats_can_be_have_finite_quantiles():
    bounds = (-1.7e308, 1.7e308)
    edges = quantile_grid(bounds, False)
    found = np.array(noisy_quantiles(np.eye(len(edges) - 1)[0] * 1e6, edges, 0.0))
    assert np.isfinite(found).all()
    assert ((found >= bounds[0]) & (found <= bounds[1])).all()
