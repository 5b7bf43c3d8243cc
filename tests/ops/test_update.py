"""Noise and update in one pass: the reference in float64, and the noise bit for bit."""

import pytest
import torch
from torch.library import opcheck

from dpcgan_fast.ops import NoiseKey, _reference, gaussian_noise_, noisy_update_

RULES = {
    "sgd": (0, 0, [0.1, 0.01, 0.0]),
    "sgd with momentum": (1, 0, [0.1, 0.01, 0.9]),
    "adam": (1, 1, [0.1, 0.01, 0.9, 0.99, 1e-3, 0.1, 0.01]),
    "rmsprop": (0, 1, [0.1, 0.01, 0.9, 1e-3]),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("std", [0.0, 0.5])
@pytest.mark.parametrize("public", [True, False])
@pytest.mark.usefixtures("simd_level")
def test_equals_the_reference(rule, std, public):
    sizes, (moments, seconds, settings) = (1, 9, 130), RULES[rule]
    sums = [torch.randn(n, dtype=torch.float64) for n in sizes]
    state = [[torch.rand(n) for n in sizes] for _ in range(1 + moments + seconds)]
    results = []
    for kernel in (torch.ops.dpcgan_fast.noisy_update_, _reference.noisy_update_):
        given, *rest = [[value.clone() for value in values] for values in state]
        first, second = rest[:moments], rest[moments:]
        key, counter = NoiseKey(seed=3).take(20)
        kernel(
            given, *(first or [[]]), *(second or [[]]), sums, sums if public else [], std, key, counter, 2.0, 3.0,
            rule.split()[0], settings,
        )  # fmt: skip
        results.append(torch.cat([value for values in (given, *rest) for value in values]))
    torch.testing.assert_close(*results, rtol=2e-5, atol=1e-6)


def test_noisy_update_opcheck():
    given, moments = [torch.rand(5, 3), torch.rand(7)], [torch.rand(5, 3), torch.rand(7)]
    sums = [torch.rand(5, 3, dtype=torch.float64), torch.rand(7, dtype=torch.float64)]
    key, counter = NoiseKey(seed=0).take(3)
    settings = [0.1, 0.0, 0.9, 0.99, 1e-8, 0.1, 0.01]
    seconds = [m.square() for m in moments]
    arguments = (given, moments, seconds, sums, sums, 0.5, key, counter, 2.0, 3.0, "adam", settings)
    opcheck(torch.ops.dpcgan_fast.noisy_update_.default, arguments)


@pytest.mark.usefixtures("simd_level")
def test_noise_of_the_update_is_that_of_gaussian_noise_bit_for_bit():
    sizes = (1, 7, 8, 2047, 2048, 5000)
    given = [torch.zeros(n) for n in sizes]
    sums = [torch.rand(n, dtype=torch.float64) for n in sizes]
    expected = [s.clone() for s in sums]
    gaussian_noise_(expected, 3.0, NoiseKey(seed=5))
    noisy_update_(given, [], [], sums, [], 3.0, NoiseKey(seed=5), 4.0, 1.0, "sgd", [1.0, 0.0, 0.0])
    for moved, noisy in zip(given, expected, strict=True):
        assert torch.equal(moved, -(noisy / 4.0).float())
