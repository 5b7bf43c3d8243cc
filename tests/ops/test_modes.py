"""The cost model that picks a norm mode."""

import pytest

from dpcgan_fast.ops import near_norm_modes, pick_norm_mode
from dpcgan_fast.ops._modes import NormProblem


def problem(c, o, k, s, length, dilation=1):
    return NormProblem(c, length, o, (length - dilation * (k - 1) - 1) // s + 1, k, s, dilation)


@pytest.mark.parametrize(
    ("layer", "mode"),
    [
        (problem(1, 16, 8, 4, 180), "materialise"),  # first layer: 128 weights under 800 activations
        (problem(16, 32, 8, 4, 46), "gram"),  # few positions, many weights
        (problem(32, 64, 8, 4, 12), "gram"),
        (problem(16, 32, 8, 4, 2500), "materialise"),  # long record: the gradient is small beside the activations
        (problem(128, 128, 8, 4, 1000), "materialise"),  # many positions: the gradient is again the smaller one
        (problem(64, 64, 9, 1, 208, dilation=2), "direct"),  # no polyphase fold, and more weights than activations
        (problem(64, 128, 1, 1, 1), "gram"),  # Linear: |g|^2 |x|^2
    ],
)
def test_the_cheapest_mode_by_the_flop_table(layer, mode):
    choice = pick_norm_mode(layer)
    assert choice.mode == mode
    assert "a sample" in choice.reason


def test_a_mode_that_is_asked_for_is_taken():
    for mode in ("direct", "gram", "materialise"):
        assert pick_norm_mode(problem(1, 16, 8, 4, 180), mode).mode == mode


def test_a_dilated_kernel_has_no_polyphase_fold_and_costs_more_by_gram():
    plain, dilated = problem(64, 64, 9, 1, 200), problem(64, 64, 9, 1, 208, dilation=2)
    assert pick_norm_mode(plain).mode == "gram"
    assert pick_norm_mode(dilated).mode == "direct"


@pytest.mark.parametrize(
    ("layer", "modes"),
    [
        (problem(64, 128, 1, 1, 1), {"gram"}),  # Linear: nothing comes near
        (problem(32, 64, 8, 4, 12), {"gram"}),  # two positions
        (problem(1, 16, 8, 4, 180), {"materialise"}),  # keeping 128 gradients is a fraction of any norm
        (problem(16, 32, 8, 4, 124), {"materialise", "gram", "direct"}),  # 30 positions: all about equal
        (problem(16, 32, 8, 4, 84), {"gram"}),  # 20 positions: gradients are twice the activations, direct is dear
        (problem(64, 64, 9, 1, 208, dilation=2), {"direct", "gram", "materialise"}),
    ],
)
def test_modes_are_near_whose_cost_is_within_three_times_that_of_the_picked_one(layer, modes):
    near = near_norm_modes(layer)
    assert near[0] == pick_norm_mode(layer).mode
    assert set(near) == modes
    assert len(near) == len(modes)


def test_gradients_much_larger_than_the_activations_are_not_kept_however_quick_that_is():
    small, large = problem(64, 64, 9, 1, 208, dilation=2), problem(64, 64, 9, 1, 140, dilation=2)
    assert "materialise" in near_norm_modes(small)
    assert "materialise" not in near_norm_modes(large)
