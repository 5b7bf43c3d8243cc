"""Draws of cells from a net's output: each falls where its uniform number does among the cumulated chances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast.ops import FusedLayer, FusedNet
from tests.conftest import at_simd_level, available_simd_levels, examples


def case(rows, cells, blocks, beyond=0, classes=3, scale=3.0):
    """Operands for blocks that have from one to all of the cells; of few digits, so that they add exactly."""
    last = torch.randint(0, cells, (blocks,))
    prior = (1024 * scale * torch.randn(classes, blocks, cells)).round() / 1024
    prior[:, torch.arange(cells) > last[:, None]] = -math.inf
    logits = (1024 * scale * torch.randn(rows, cells, blocks + beyond)).round() / 1024
    return logits, prior, torch.randint(0, classes, (rows,)), torch.rand(rows, blocks), last


def draw(logits, prior, classes, uniform, last):
    """Draws of a net whose output is its input."""
    cells, length = logits.shape[1:]
    net = FusedNet((FusedLayer("conv1d", cells, length, cells, length),), cells, length)
    return net.draw(logits, [torch.eye(cells).unsqueeze(2)], prior, classes, uniform, last)


@settings(max_examples=examples(60))
@given(
    rows=st.sampled_from([0, 1, 5, 40]),
    in_order=st.booleans(),
    cells=st.integers(1, 30),
    blocks=st.integers(1, 70),
    beyond=st.sampled_from([0, 6]),
    scale=st.sampled_from([0.1, 3.0, 60.0]),
    level=st.sampled_from(available_simd_levels()),
)
def test_cells_equal_those_of_float64_but_at_their_edges(rows, in_order, cells, blocks, beyond, scale, level):
    operands = case(rows, cells, blocks, beyond, scale=scale)
    if in_order:
        operands = (*operands[:2], operands[2].sort().values, *operands[3:])
    with at_simd_level(level):
        got = draw(*operands)
    logits, prior, classes, uniform, last = operands
    ends = (logits[:, :, :blocks].transpose(1, 2).double() + prior[classes].double()).softmax(2).cumsum(2)
    clear = ((ends - uniform[:, :, None]).abs() > 2e-6).all(2)
    expected = torch.minimum((ends[:, :, :-1] <= uniform[:, :, None]).sum(2), last)
    assert ((got == expected) | ~clear).all()
    assert ((got >= 0) & (got <= last)).all()


@pytest.mark.parametrize("level", available_simd_levels())
def test_the_largest_uniform_number_gives_a_cell_that_the_block_has(level):
    logits, prior, classes, uniform, last = case(200, 24, 33)
    uniform.fill_(1 - 2**-24)
    with at_simd_level(level):
        assert (draw(logits, prior, classes, uniform, last) <= last).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("level", available_simd_levels())
def test_logits_that_are_not_finite_give_nan_in_their_block_alone(level, bad):
    logits, prior, classes, uniform, last = case(3, 5, 20)
    logits[1, 0, 7] = bad
    with at_simd_level(level):
        cells = draw(logits, prior, classes, uniform, last)
    assert cells.isnan().nonzero().tolist() == [[1, 7]]


def test_strided_operands_are_read_as_they_are():
    logits, prior, classes, uniform, last = case(4, 6, 18)
    expected = draw(logits, prior, classes, uniform, last)
    turned = (side.transpose(1, 2).contiguous().transpose(1, 2) for side in (logits, prior))
    assert torch.equal(draw(*turned, classes, uniform, last), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(4, 5, 18)}, "expected logits"),
        ({0: torch.zeros(4, 6, 17)}, "expected logits"),
        ({0: torch.zeros(4, 6, 18, dtype=torch.float64)}, "expected float32"),
        ({1: torch.zeros(3, 18, 6, dtype=torch.float64)}, "expected float32"),
        ({2: torch.full((4,), 3)}, r"expected classes in \[0, 3\), got 3"),
        ({2: torch.zeros(4)}, "expected int64"),
        ({3: torch.zeros(4, 17)}, "expected logits"),
        ({4: torch.zeros(17, dtype=torch.int64)}, r"last_cells \(blocks,\)"),
    ],
)
def test_operands_that_do_not_fit_are_refused(change, message):
    operands = list(case(4, 6, 18))
    for place, value in change.items():
        operands[place] = value
    with pytest.raises(RuntimeError, match=message):
        draw(*operands)
