"""Noise and update in one pass: the reference in float64, and the noise bit for bit."""

import math

import pytest
import torch

from dpcgan_fast.ops import NoiseKey, UpdateControl, _reference, gaussian_noise_, noisy_update_, noisy_update_armed_

RULES = {
    "sgd": (0, 0, [0.1, 0.01, 0.0]),
    "sgd with momentum": (1, 0, [0.1, 0.01, 0.9]),
    "adam": (1, 1, [0.1, 0.01, 0.9, 0.99, 1e-3, 0.1, 0.01]),
    "rmsprop": (0, 1, [0.1, 0.01, 0.9, 1e-3]),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("std", [0.0, 0.5])
@pytest.mark.parametrize("public", [True, False])
@pytest.mark.parametrize("clamps", [[], [math.inf, 0.2, 0.3]])
@pytest.mark.usefixtures("simd_level")
def test_equals_the_reference(rule, std, public, clamps):
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
            rule.split()[0], settings, clamps,
        )  # fmt: skip
        assert all(value.abs().max() <= bound for value, bound in zip(given, clamps, strict=False))
        results.append(torch.cat([value for values in (given, *rest) for value in values]))
    torch.testing.assert_close(*results, rtol=2e-5, atol=1e-6)


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


def _moved_by(rule, update):
    """The state of two parameters after `update(parameters, first, second, sums, public, name, settings)`."""
    generator = torch.Generator().manual_seed(0)
    moments, seconds, settings = RULES[rule]
    lists = [[torch.rand(n, generator=generator) for n in (5, 70)] for _ in range(1 + moments + seconds)]
    sums = [torch.rand(n, dtype=torch.float64, generator=generator) for n in (5, 70)]
    first, second = lists[1 : 1 + moments], lists[1 + moments :]
    update(lists[0], *(first or [[]]), *(second or [[]]), sums, sums, rule.split()[0], settings)
    return torch.cat([value for values in lists for value in values])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("std", [0.0, 0.5])
@pytest.mark.parametrize("kernels", [torch.ops.dpcgan_fast, _reference], ids=["native", "reference"])
def test_an_armed_update_is_the_plain_one_for_the_same_key_and_happens_once(rule, std, kernels):
    control, key = UpdateControl(torch.device("cpu")), NoiseKey(seed=3)

    def armed_once(*arguments):
        *tensors, name, settings = arguments
        control.arm(key, 10, 2.0, 3.0, settings)
        for _ in range(3):
            kernels.noisy_update_armed_(*tensors, std, control.tensor, name)

    def plain(*arguments):
        *tensors, name, settings = arguments
        kernels.noisy_update_(*tensors, std, *NoiseKey(seed=3).take(10), 2.0, 3.0, name, settings)

    assert torch.equal(_moved_by(rule, armed_once), _moved_by(rule, plain))
    assert key.position == 10
    assert not control.tensor.any(), "the key must not stay in memory"


def test_an_update_that_was_never_armed_moves_nothing():
    given, sums = [torch.rand(9)], [torch.rand(9, dtype=torch.float64)]
    before = given[0].clone()
    noisy_update_armed_(given, [], [], sums, [], 1.0, UpdateControl(torch.device("cpu")), "sgd")
    assert torch.equal(given[0], before)


@pytest.mark.parametrize(
    ("clamps", "message"), [([1.0, 1.0], "1 clamps, one a parameter, got 2"), ([0.0], "clamps > 0, got 0")]
)
def test_clamps_that_do_not_fit_are_refused(clamps, message):
    given, sums = [torch.rand(9)], [torch.rand(9, dtype=torch.float64)]
    with pytest.raises(RuntimeError, match=message):
        noisy_update_(given, [], [], sums, [], 0.0, NoiseKey(seed=0), 1.0, 1.0, "sgd", [0.1, 0.0, 0.0], clamps)


def test_arming_reserves_the_blocks_before_the_update_and_never_gives_them_out_again():
    control, key = UpdateControl(torch.device("cpu")), NoiseKey(seed=0)
    control.arm(key, 7, 1.0, 1.0, [0.1, 0.0, 0.0])
    assert key.position == 7
    assert control.tensor.numpy().view(_reference.CONTROL)["counter"] == 0
    control.arm(key, 2, 1.0, 1.0, [0.1, 0.0, 0.0])
    assert control.tensor.numpy().view(_reference.CONTROL)["counter"] == 7


@pytest.mark.parametrize("divisors", [(0.0, 1.0), (1.0, -1.0), (float("nan"), 1.0)])
def test_arming_refuses_divisors_that_are_not_positive_and_takes_no_noise(divisors):
    key = NoiseKey(seed=0)
    with pytest.raises(ValueError, match="positive divisors"):
        UpdateControl(torch.device("cpu")).arm(key, 7, *divisors, [0.1, 0.0, 0.0])
    assert key.position == 0
