"""Means with intervals, and whether they rise."""

import pytest

from dpcgan_fast.evaluate.spread import Spread, first_fall


@pytest.mark.parametrize(
    ("means", "fall"),
    [
        ([], None),
        ([(0.5, 0.0)], None),
        ([(0.5, 0.01), (0.6, 0.01), (0.7, 0.01)], None),
        ([(0.5, 0.0), (0.5, 0.0)], None),
        ([(0.60, 0.02), (0.57, 0.02)], None),
        ([(0.60, 0.02), (0.55, 0.02)], (0, 1)),
        ([(0.60, 0.0), (0.55, 0.06)], None),
        ([(0.50, 0.01), (0.70, 0.01), (0.65, 0.05), (0.60, 0.01)], (1, 3)),
        ([(0.60, 0.03), (0.58, 0.0), (0.56, 0.0)], (0, 2)),
        ([(0.6, None), (0.5, None)], (0, 1)),
    ],
    ids=[
        "nothing", "one", "rising", "level", "falls within the intervals", "falls beyond them", "a wide later interval",
        "not to the next but to a later one", "small steps that add up", "single runs have no interval",
    ],
)  # fmt: skip
def test_means_rise_unless_one_lies_above_a_later_one_by_more_than_both_half_widths(means, fall):
    assert first_fall([Spread(*one) for one in means]) == fall
