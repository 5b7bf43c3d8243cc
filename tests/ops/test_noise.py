"""Secure Gaussian noise: its law, its grid, and that no part of a stream is used twice."""

import copy
import math
import os
import pickle
import threading
import time

import numpy as np
import pytest
import torch
from scipy import stats

from dpcgan_fast import ops
from dpcgan_fast.ops import NoiseKey, _reference

kernels = torch.ops.dpcgan_fast
DRAWS = 1_000_000
NOISE_STD_BAND = (0.99568, 1.00432)  # accepts the right scale but for one run in 10^9, at 10^6 draws


def draws(std=1.0, size=DRAWS, seed=0, dtype=torch.float64, device="cpu"):
    values = torch.zeros(size, dtype=dtype, device=device)
    ops.gaussian_noise_([values], std, NoiseKey(seed))
    return values.cpu()


def test_chacha20_gives_the_published_key_stream():
    """RFC 8439, appendix A.1, test vectors 1 and 2 (all-zero key and nonce, block counters 0 and 1)."""
    native = ops.native_module()
    zero = native.chacha20_keystream(bytes(32), 0, 0)
    one = native.chacha20_keystream(bytes(32), 0, 1)
    assert zero.hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    assert one.hex().startswith("9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed")


def test_the_key_stream_equals_the_reference_also_past_32_bit_counters():
    key = np.arange(8, dtype=np.uint32) * 0x9E3779B9
    for nonce, counter in ((0, 0), (7, 2**32 - 1), (2**40 + 3, 2**33 + 5)):
        got = ops.native_module().chacha20_keystream(key.tobytes(), nonce, counter)
        assert got == _reference.chacha20_block(key, nonce, counter).tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [1.0, 1.1, 3.7e-5, 2.0**10])
@pytest.mark.parametrize("counter", [11, 2**32 - 7, 2**33 - 20])  # the latter wrap round within the first tensors
@pytest.mark.usefixtures("simd_level")
def test_noise_equals_the_reference(device, dtype, std, counter):
    key = torch.arange(8, dtype=torch.int32)
    shapes = [(3, 5), (), (0,), (257,)]
    start = [torch.randn(shape, dtype=dtype) for shape in shapes]
    got, expected = [t.clone().to(device) for t in start], [t.clone() for t in start]
    kernels.gaussian_noise_(got, std, key, counter)
    _reference.gaussian_noise_(expected, std, key, counter)
    grid = 2.0 ** (math.floor(math.log2(std)) - 20)
    for a, b in zip(got, expected, strict=True):
        # The last bits of log and cos may move a value across a grid boundary, by one grid step at most.
        torch.testing.assert_close(a.cpu(), b, rtol=2e-7 if dtype == torch.float32 else 0, atol=1.001 * grid)


def test_the_standard_deviation_is_the_nominal_one(device):
    ratio = float(draws(1.1, device=device).std()) / 1.1
    assert NOISE_STD_BAND[0] < ratio < NOISE_STD_BAND[1]


@pytest.mark.parametrize("wrong", [0.98, 1.02])
def test_that_band_would_catch_noise_two_percent_off(wrong):
    ratio = wrong * float(draws(1.1).std()) / 1.1
    assert not NOISE_STD_BAND[0] < ratio < NOISE_STD_BAND[1]


def test_the_law_is_normal_and_successive_draws_are_uncorrelated():
    values = draws().numpy()
    assert stats.kstest(values, "norm").pvalue > 1e-9
    assert stats.kstest(1.02 * values, "norm").pvalue < 1e-9, "the test must see a scale that is 2 % off"
    signs = (values > 0).sum()
    assert abs(signs - DRAWS / 2) < 6.1 * math.sqrt(DRAWS / 4)
    for lag in (1, 2, 3, 7, 8, 16, 64):
        assert abs(np.corrcoef(values[:-lag], values[lag:])[0, 1]) < 6.1 / math.sqrt(DRAWS)
    squares = values**2
    assert abs(np.corrcoef(squares[:-1], squares[1:])[0, 1]) < 6.1 / math.sqrt(DRAWS), "pairs share a radius"


def test_tails_reach_beyond_what_24_or_32_bit_uniforms_allow():
    """The largest |z| is sqrt(2 b ln 2) for b-bit uniforms: 5.77 for 24 bits, 6.66 for 32 and 8.57 for 53."""
    tail_mass = 2 * stats.norm.sf(4.9)
    values = torch.cat([draws(seed=seed) for seed in range(8)])
    beyond = int((values.abs() > 4.9).sum())
    assert stats.binomtest(beyond, len(values), tail_mass).pvalue > 1e-6
    smallest = math.sqrt(-2 * math.log(2.0**-53))
    assert smallest > 8.5


@pytest.mark.parametrize("std", [0.3, 1.0, 6.5])
def test_released_values_lie_on_the_public_grid(std):
    values = torch.randn(10_000, dtype=torch.float64)
    ops.gaussian_noise_([values], std, NoiseKey(1))
    grid = 2.0 ** (math.floor(math.log2(std)) - 20)
    assert torch.equal(values / grid, torch.round(values / grid))
    assert len(values.unique()) > 9_900


def lattice_statistic(normals: np.ndarray, bits: int) -> float:
    """Share of Box-Muller pairs whose squared radius is that of a `bits`-bit uniform, among the far ones."""
    radius_sq = normals[0::2] ** 2 + normals[1::2] ** 2
    scaled = np.exp(-radius_sq / 2) * 2.0**bits
    far = scaled[scaled < 2.0 ** (bits - 12)]
    return float(np.mean(np.abs(far - np.round(far)) < 0.01))


def test_the_lattice_of_radii_cannot_be_seen_and_would_be_with_24_bit_uniforms():
    """What breaks privacy outright: an observer who recognises the lattice knows whether a record was added."""
    rng = np.random.default_rng(0)
    u = (rng.integers(1, 2**24, 500_000)) * 2.0**-24
    angle = 2 * math.pi * rng.random(500_000)
    coarse = np.empty(1_000_000)
    coarse[0::2], coarse[1::2] = np.sqrt(-2 * np.log(u)) * np.cos(angle), np.sqrt(-2 * np.log(u)) * np.sin(angle)
    assert lattice_statistic(coarse, 24) > 0.9
    for bits in (24, 32):
        assert lattice_statistic(draws().numpy(), bits) < 0.1


def test_two_calls_never_repeat_and_the_key_advances_past_every_tensor():
    key = NoiseKey()
    first, second = torch.zeros(1000), torch.zeros(1000)
    ops.gaussian_noise_([first], 1.0, key)
    position = key.position
    ops.gaussian_noise_([second, torch.zeros(3)], 1.0, key)
    assert position == 125
    assert key.position == 125 + 125 + 1
    assert not torch.equal(first, second)
    assert len(torch.cat([first, second]).unique()) > 1990


def test_threads_that_share_a_key_never_get_the_same_blocks():
    class SlowCount(int):
        """Lets other threads run in the middle of an addition."""

        def __add__(self, other):
            time.sleep(0.02)
            return int(self) + int(other)

        __radd__ = __add__

    key, taken = NoiseKey(), []
    threads = [threading.Thread(target=lambda: taken.append(key.take(SlowCount(3))[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 3, 6, 9]
    assert key.position == 12


def test_two_keys_without_a_seed_differ_and_two_with_one_seed_agree():
    assert not torch.equal(draws(seed=None, size=64), draws(seed=None, size=64))
    assert torch.equal(draws(seed=5, size=64), draws(seed=5, size=64))
    assert not torch.equal(draws(seed=5, size=64), draws(seed=6, size=64))


def test_noise_does_not_depend_on_the_number_of_threads_or_on_how_tensors_are_split_at_block_boundaries():
    whole = draws(size=80_000)
    torch.set_num_threads(1)
    alone = draws(size=80_000)
    torch.set_num_threads(2)
    parts = [torch.zeros(8_000, dtype=torch.float64) for _ in range(10)]
    ops.gaussian_noise_(parts, 1.0, NoiseKey(0))
    assert torch.equal(whole, alone)
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("seed", [None, 3])
def test_a_key_cannot_be_copied_or_pickled(seed):
    key = NoiseKey(seed)
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="would draw the same noise again"):
            attempt(key)


def test_a_secret_key_is_useless_after_a_fork_and_never_shows_itself():
    key = NoiseKey()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ops.gaussian_noise_([torch.zeros(1)], 1.0, key)
            os.write(writing, b"drew noise")
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert b"before a fork" in os.read(reading, 1000)
    assert key.take(0)[0].numpy().tobytes().hex() not in repr(key)
    assert not NoiseKey().seeded


def test_a_secret_stream_cannot_be_continued_but_a_seeded_one_can():
    with pytest.raises(ValueError, match="a secret stream is never continued"):
        NoiseKey(position=4)
    values = draws(seed=9, size=64)
    rest = torch.zeros(32, dtype=torch.float64)
    ops.gaussian_noise_([rest], 1.0, NoiseKey(9, position=4))
    assert torch.equal(rest, values[32:])


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_a_bad_std_is_refused(std):
    with pytest.raises(ValueError, match="Expected a finite std >= 0"):
        ops.gaussian_noise_([torch.zeros(3)], std, NoiseKey(0))


def test_std_zero_adds_nothing_and_takes_nothing_from_the_key():
    key, values = NoiseKey(0), torch.tensor([0.1, 0.2])
    ops.gaussian_noise_([values], 0.0, key)
    assert values.tolist() == pytest.approx([0.1, 0.2])
    assert key.position == 0


def test_tensors_that_do_not_fit_are_refused():
    for tensor, message in (
        (torch.zeros(4, 4).t()[:2], "contiguous"),
        (torch.zeros(3, dtype=torch.int64), "dtype float32 or float64"),
        (torch.zeros(3, requires_grad=True), "without requires_grad"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.gaussian_noise_([tensor], 1.0, NoiseKey(0))
