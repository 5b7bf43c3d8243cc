"""A row made so that every rounding of a single-precision sum points one way still adds no more than the bound."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.engine.steps import Sum

WIDTH = 256


def aligned_terms(up: int, down: int) -> np.ndarray:
    """Terms near 1, then near -1, of which each is rounded upwards as a float32 sum takes it in.

    After the first sum, each term is chosen among its neighbours within half a unit in the last place of the sum.
    """
    total, terms = np.float32(0), []
    for sign in [1] * up + [-1] * down:
        half = float(np.spacing(np.float32(abs(float(total) + sign)))) / 2
        nudges = (half + 2**-23, half - 2**-23, half - 2**-22, -half + 2**-23, -half - 2**-23, 0.0)
        exact = [float(total) + sign * float(np.float32(1 + nudge)) for nudge in nudges]
        best = max(range(len(exact)), key=lambda i: float(np.float32(exact[i])) - exact[i])
        terms.append(exact[best] - float(total))
        total = np.float32(exact[best])
    return np.array(terms)


def test_those_terms_are_what_single_precision_cannot_sum():
    terms = aligned_terms(33, 31)
    single = np.float32(0)
    for term in terms:
        single = np.float32(float(single) + term)
    assert float(single) / math.fsum(terms) - 1 > 1e-5


@pytest.mark.parametrize(("up", "down"), [(33, 31), (72, 0), (72, 68)])
@pytest.mark.parametrize("options", [{}, {"fused": False}, {"norm_mode": "direct"}, {"norm_mode": "gram"}], ids=str)
@pytest.mark.usefixtures("simd_level")
def test_no_row_adds_more_than_the_bound(up, down, options):
    terms = aligned_terms(up, down)
    module = nn.Sequential(nn.Conv1d(WIDTH, WIDTH, 1, bias=False))
    x, weights = (torch.tensor(part, dtype=torch.float32).expand(1, WIDTH, -1) for part in (abs(terms), np.sign(terms)))
    bound = 0.5 * abs(math.fsum(terms)) * WIDTH
    total = Sum(module, bound, **options)
    total.step.backward((total.step(x.contiguous()) * weights).sum((1, 2)))
    assert 0.99 * bound < float(total.take().norm()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("mode", ["auto", "direct", "gram", "materialise"])
@pytest.mark.usefixtures("simd_level")
def test_nor_does_a_row_of_an_image(kind, mode):
    terms = aligned_terms(33, 31)
    module = nn.Sequential(kind(WIDTH, WIDTH, 1, bias=False))
    x, weights = (
        torch.tensor(part, dtype=torch.float32).view(-1, 8).expand(1, WIDTH, -1, -1)
        for part in (abs(terms), np.sign(terms))
    )
    bound = 0.5 * abs(math.fsum(terms)) * WIDTH
    total = Sum(module, bound, norm_mode=mode)
    total.step.backward((total.step(x.contiguous()) * weights).sum((1, 2, 3)))
    assert float(total.take().norm()) <= bound * (1 + 1e-6)
