"""Scales by pieces: places keep the order of numbers, come back as them, and leave room for what many rows have."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.data.knots import numbers_at, places_of
from tests.conftest import examples

numbers = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))


@settings(max_examples=examples(300))
@given(inner=st.lists(numbers, max_size=12), values=st.lists(numbers, min_size=1, max_size=20))
def test_places_keep_the_order_and_come_back_as_the_numbers(inner, values):
    knots = np.array([-1e6, *sorted(inner), 1e6])
    values = np.sort(values)
    places = places_of(values, knots)
    assert ((places >= 0) & (places <= 1)).all()
    assert (np.diff(places) >= 0).all()
    assert (np.diff(places)[np.diff(values) > 0] > 0).all()
    np.testing.assert_allclose(numbers_at(places, knots), values, atol=1e-6)


@settings(max_examples=examples(300))
@given(inner=st.lists(numbers, max_size=12), places=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_any_place_is_read_as_a_number_between_the_outer_knots(inner, places):
    knots = np.array([-1e6, *sorted(inner), 1e6])
    found = numbers_at(np.sort(places), knots)
    assert (np.diff(found) >= 0).all()
    assert ((found >= -1e6) & (found <= 1e6)).all()


def test_knots_are_evenly_spaced_in_place():
    knots = np.array([0.0, 1.0, 10.0, 100.0, 1000.0])
    np.testing.assert_allclose(places_of(knots, knots), [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(places_of(np.array([0.5, 55.0]), knots), [0.125, 0.625])


@pytest.mark.parametrize(("knots", "value", "room"), [
    ([0, 0, 0, 3, 9], 0, (0.0, 0.5)), ([0, 2, 2, 2, 9], 2, (0.25, 0.75)), ([0, 1, 9, 9, 9], 9, (0.5, 1.0)),
])  # fmt: skip
def test_equal_knots_are_one_number_with_all_the_room_between_them(knots, value, room):
    knots = np.array(knots, float)
    assert places_of(np.array([float(value)]), knots) == np.mean(room)
    assert (numbers_at(np.linspace(*room, 9), knots) == value).all()


def test_two_knots_are_a_linear_scale():
    values = np.linspace(-3, 7, 11)
    np.testing.assert_allclose(places_of(values, np.array([-3.0, 7.0])), (values + 3) / 10)


def test_what_is_no_number_has_no_place():
    assert np.isnan(places_of(np.array([np.nan]), np.array([0.0, 1.0, 1.0]))).all()
