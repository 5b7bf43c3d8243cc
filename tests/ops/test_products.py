"""What a GPU does by its library's products: per-sample gradients, Gram norms and weighted sums, here on the CPU."""

import math

import pytest
import torch

from dpcgan_fast.ops import ConvProblem, _reference, pick_gpu_norm_mode
from dpcgan_fast.ops._modes import NormProblem
from tests.cuda_emulation.cases import CONV_SHAPES, formed_layer, operands_of


@pytest.mark.parametrize("name", CONV_SHAPES)
def test_products_match_the_reference(name):
    shape = CONV_SHAPES[name]
    x, g = operands_of(shape)
    problem, factor = ConvProblem(*shape.geometry()), torch.rand(shape.rows, dtype=torch.float64)
    geometry = shape.geometry()
    close = lambda a, b, rtol=1e-9: torch.testing.assert_close(a, b, rtol=rtol, atol=1e-12)  # noqa: E731
    close(problem.gram_products(x, g), _reference.conv_sq_norm(x, g, *geometry, "gram"))
    for got, expected in zip(
        problem.weighted_products(x, g, factor), _reference.conv_weighted_grad(x, g, factor, *geometry), strict=True
    ):
        close(got, expected)
    for got, expected in zip(problem.library_grad(x, g), _reference.conv_per_sample_grad(x, g, *geometry), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_rows_of_factor_zero_are_not_read_whatever_they_hold():
    x, g = operands_of(CONV_SHAPES["second layer"])
    geometry, factor = CONV_SHAPES["second layer"].geometry(), torch.tensor([0.5, 0.0, 2.0], dtype=torch.float64)
    expected = _reference.conv_weighted_grad(x, g, factor, *geometry)
    x[1], g[1, 2, 3] = math.nan, math.inf
    for got, want in zip(ConvProblem(*geometry).weighted_products(x, g, factor), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert not ConvProblem(*geometry).gram_products(x, g).isfinite()[1]


@pytest.mark.parametrize("level", [1e4, 1e7, 1e12])
def test_a_gram_norm_is_not_below_the_gradient_where_terms_cancel(level):
    x, g, geometry = formed_layer("second layer", torch.float32)
    x = (x.double() - 1e4 + level).float()
    gradient = _reference.conv_per_sample_grad(x.double(), g.double(), *geometry)[0]
    assert (ConvProblem(*geometry).gram_products(x, g) >= gradient.flatten(1).square().sum(1) * (1 - 1e-12)).all()


@pytest.mark.parametrize(
    ("problem", "rows", "quick_doubles", "mode"),
    [
        (NormProblem(1, 178, 16, 44, 8, 4, 1), 1024.0, True, "materialise"),  # few weights
        (NormProblem(256, 20, 256, 10, 5, 2, 1), 1024.0, True, "gram"),  # few positions, many weights
        (NormProblem(256, 20, 256, 10, 5, 2, 1), 1024.0, False, "materialise"),
        (NormProblem(2048, 1, 2048, 1, 1, 1, 1), 8192.0, True, "gram"),  # a linear layer: 137 GB of gradients
        (NormProblem(2048, 1, 2048, 1, 1, 1, 1), 8192.0, False, "direct"),
    ],
)
def test_a_gpu_takes_what_moves_the_least(problem, rows, quick_doubles, mode):
    assert pick_gpu_norm_mode(problem, 1, rows, quick_doubles).mode == mode
