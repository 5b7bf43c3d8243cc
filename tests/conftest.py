"""Shared fixtures: which back ends run, and the tolerances of a result by its dtype."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import pytest
import torch
from dp_accounting.rdp import rdp_privacy_accountant
from hypothesis import HealthCheck, settings

from dpcgan_fast import ops

# Relative tolerance of a result against its float64 reference.
RTOL = {torch.float32: 4e-6, torch.float64: 1e-10}

MORE_EXAMPLES = int(os.environ.get("DPCGAN_TEST_EXAMPLES", "1"))


def examples(count: int) -> int:
    """Random cases of a property test; the environment's DPCGAN_TEST_EXAMPLES multiplies them."""
    return count * MORE_EXAMPLES


settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("default")

SIMD_LEVELS = ("portable", "avx2", "avx512")
# Ops of the fused path, and of convolutions of images; a module on a GPU takes other paths.
CPU_OPS = {
    "window_per_sample_grad_", "windows_clipped_sum", "fused_forward", "fused_sq_norm",
    "fused_clipped_sum", "fused_infer", "fused_draw", "uniform_", "gather_rows",
}  # fmt: skip
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() and ops.has_cuda_kernels() else ("cpu",)


def available_simd_levels() -> list[str]:
    detected = ops.native_module().build_info()["simd_detected"]
    return list(SIMD_LEVELS[: SIMD_LEVELS.index(detected) + 1])


def pytest_report_header() -> list[str]:
    info = ops.native_module().build_info()
    return [
        f"dpcgan_fast: SIMD levels tested {', '.join(available_simd_levels())}; devices {', '.join(DEVICES)}; "
        f"CUDA kernels in the build: {info['cuda']} ({info['cuda_reason']}); torch {torch.__version__}; "
        f"{os.cpu_count()} cores"
    ]


@contextmanager
def at_simd_level(level: str) -> Iterator[None]:
    """Runs the block at a vector width, for tests that draw it; the one before is set again after it."""
    native = ops.native_module()
    before = native.simd_level()
    native.set_simd_level(level)
    try:
        yield
    finally:
        native.set_simd_level(before)


@pytest.fixture(params=available_simd_levels())
def simd_level(request):
    """Runs a test once at each vector width that this CPU offers."""
    with at_simd_level(request.param):
        yield request.param


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Runs a test on every device that has kernels."""
    return torch.device(request.param)


@pytest.fixture(autouse=True)
def fixed_torch_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def two_threads(request):
    """Kernels are run by two threads at least, also where each process of `make test` has one."""
    before = torch.get_num_threads()
    if {"ops", "engine", "adapters"} & set(request.path.parts):
        torch.set_num_threads(max(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def remembered_renyi_divergences():
    """Keeps dp-accounting's Renyi divergences of one step, which nearly all the time of a run of few steps goes to.

    They are a function of sample rate and noise, so that no result changes.
    """
    name = "_compute_rdp_poisson_subsampled_gaussian"
    compute = lru_cache(maxsize=None)(getattr(rdp_privacy_accountant, name))

    def remembered(q, noise_multiplier, orders):
        return compute(q, noise_multiplier, tuple(orders)).copy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rdp_privacy_accountant, name, remembered)
        yield
