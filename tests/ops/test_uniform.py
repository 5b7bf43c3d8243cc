"""Uniform numbers from a ChaCha20 stream of their own."""

import pytest
import torch

from dpcgan_fast import ops
from tests.conftest import at_simd_level, available_simd_levels


def drawn(*shape, seed=1):
    return ops.uniform(*shape, randomness=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("level", available_simd_levels())
@pytest.mark.parametrize("shape", [(0, 3), (1,), (3, 5), (256,), (2, 300)])
def test_numbers_are_those_of_the_reference_at_each_vector_width(monkeypatch, level, shape):
    with at_simd_level(level):
        got = drawn(*shape)
    monkeypatch.setenv("DPCGAN_BACKEND", "reference")
    assert torch.equal(got, drawn(*shape))
    assert got.shape == shape


def test_numbers_are_spread_evenly_and_independent_of_their_neighbours():
    numbers = drawn(1 << 20)
    assert 0 <= float(numbers.min()) < 1e-5
    assert 1 - 1e-5 < float(numbers.max()) < 1
    counts = torch.histc(numbers, 64, 0, 1)
    expected = len(numbers) / 64
    assert float(((counts - expected) ** 2 / expected).sum()) < 63 + 5 * (2 * 63) ** 0.5  # chi squared
    centred = numbers - 0.5
    for lag in (1, 16, 256):
        assert abs(float((centred[lag:] * centred[:-lag]).mean())) < 5 / 12 / len(numbers) ** 0.5


def test_each_draw_goes_on_in_the_generators_sequence():
    generator = torch.Generator().manual_seed(1)
    first, second = (ops.uniform(40, randomness=generator) for _ in range(2))
    assert torch.equal(first, drawn(40))
    assert not torch.equal(first, second)
    assert not torch.equal(first, drawn(40, seed=2))


@pytest.mark.parametrize(
    ("out", "key", "message"),
    [
        (torch.empty(4, dtype=torch.float64), torch.zeros(8, dtype=torch.int32), "contiguous float32"),
        (torch.empty(4, 4).t()[:2], torch.zeros(8, dtype=torch.int32), "contiguous float32"),
        (torch.empty(4), torch.zeros(7, dtype=torch.int32), "expected key"),
    ],
)
def test_operands_that_do_not_fit_are_refused(out, key, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dpcgan_fast.uniform_(out, key)
