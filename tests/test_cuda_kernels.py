"""The CUDA kernels, executed on the CPU: against the references, for every order of threads, and under sanitizers."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpcgan_fast import ops
from dpcgan_fast.engine import GraphedStep, PrivateStep, RunAgain
from dpcgan_fast.ops import _reference
from tests.conftest import CPU_OPS
from tests.cuda_emulation import build, cases
from tests.engine.nets import NETS, clipped_sum_by_microbatches, row_losses

ROOT = Path(__file__).parents[1]
# Order of threads and blocks, and a limit on the blocks of a grid: kernels stride over their grid, so that none may
# change a bit of the result.
ORDERS = [(0, 0), (1, 1), (2, 2), (3, 0), (4, 7), (5, 0)]
# A thread order shows a missing barrier only by luck; this many orders leave none.
PLANTED_ORDERS = 10


@pytest.fixture(scope="session")
def compiler():
    if build.compiler() is None:
        pytest.skip("no C++ compiler: g++ is not on the path, and CXX does not name one")


@pytest.fixture(scope="session")
def cuda(compiler, tmp_path_factory) -> build.EmulatedCuda:  # noqa: ARG001
    """The emulated kernels, built once a session."""
    return build.EmulatedCuda(build.build(tmp_path_factory.mktemp("cuda_emulation")))


@pytest.fixture(scope="session")
def sanitized(compiler, tmp_path_factory):  # noqa: ARG001
    """Runs `tests.cuda_emulation.sanitized` on libraries built with the address and undefined-behaviour sanitizers."""
    folder = build.build(tmp_path_factory.mktemp("cuda_sanitized"), sanitize=True)
    runtime = subprocess.run(
        [build.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "LD_PRELOAD": runtime,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0",  # Python frees little at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.cuda_emulation.sanitized", str(folder)]
    return lambda what: subprocess.run(
        [*command, what], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def poisoned_memory():
    """Fills tensors that torch does not initialise with NaN, so that a kernel that leaves or reads a gap is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", cases.OPS)
@pytest.mark.usefixtures("poisoned_memory")
def test_kernels_match_the_reference_in_every_thread_order(cuda, op, dtype):
    cuda.launches()
    for call in cases.calls(op, dtype):
        expected = cases.run(_reference, call)
        first = None
        for seed, max_blocks in ORDERS:
            cuda.configure(seed, max_blocks)
            got = cases.run(cuda.ops, call)
            if first is None:
                cases.assert_close(call, got, expected)
                first = got
            for a, b in zip(first, got, strict=True):
                assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)), f"{call.label} depends on the order"
    assert cuda.launches() > 0


@pytest.mark.parametrize("op", cases.TAKES_BFLOAT16)
@pytest.mark.usefixtures("poisoned_memory")
def test_bfloat16_is_read_as_the_number_that_it_is_and_nothing_is_rounded_to_it(cuda, op):
    cuda.configure(seed=11)
    for call in cases.bfloat16_calls(op):
        got = cases.run(cuda.ops, call)
        cases.assert_close(call, got, cases.run(_reference, call))
        if not op.endswith("_"):  # else what was given is among it
            assert all(tensor.dtype != torch.bfloat16 for tensor in got)


@pytest.mark.usefixtures("cuda")
def test_every_registered_op_has_a_cuda_kernel_and_cases():
    names = [name.split("::") for name in torch._C._dispatch_get_all_op_names()]
    registered = {name for namespace, name in names if namespace == "dpcgan_fast_emulated"}
    assert registered - CPU_OPS == set(cases.OPS)
    for op in cases.OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dpcgan_fast_emulated::{op}", "CPU"), op


class TestPrivateStepOnTheGpuPath:
    """The engine as it runs on a GPU, on CPU tensors: its ops are the emulated kernels."""

    @pytest.fixture(autouse=True)
    def gpu_path(self, cuda, monkeypatch):
        monkeypatch.setattr(torch.ops, "dpcgan_fast", cuda.ops)
        monkeypatch.setattr(ops, "gpu_ops", lambda _device: True)
        cuda.configure(seed=7)
        cuda.launches()

    @staticmethod
    def step(module, **options):
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
        return PrivateStep(module, optimizer, 0.3, 0.0, 8.0, fused=False, **options)

    @pytest.mark.parametrize("name", NETS)
    @pytest.mark.parametrize("units", [None, torch.tensor([3, 1, 3, 3, 0])])
    @pytest.mark.parametrize("mode", ["auto", "gram", "direct"])
    def test_it_sums_what_microbatches_of_one_unit_give(self, cuda, name, units, mode):
        make, shape = NETS[name]
        module, x = make(), torch.rand(5, *shape)
        expected = clipped_sum_by_microbatches(module, x, 0.3, units)
        before = [p.detach().clone() for p in module.parameters()]
        step = self.step(module, norm_mode=mode)
        step.backward(row_losses(step(x)), units)
        step.step()
        assert step.last.update.startswith("one pass")
        assert cuda.launches() > 0
        for old, new, total in zip(before, module.parameters(), expected.values(), strict=True):
            torch.testing.assert_close(8.0 * (old - new.detach()), total.float(), rtol=1e-4, atol=2e-5)

    def test_a_captured_step_is_the_plain_one(self):
        make, shape = NETS["conv critic"]
        captured, plain = make(), make()
        plain.load_state_dict(captured.state_dict())
        step, other = self.step(captured), self.step(plain)
        whole = GraphedStep(step, 4, capture=RunAgain())
        real = whole.backward_of(lambda x: row_losses(step(x)), (torch.rand(2, *shape),))
        for x in (torch.rand(3, *shape), torch.rand(4, *shape)):
            real(x)
            whole.step()
            other.backward(row_losses(other(x)))
            other.step()
        for a, b in zip(captured.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("mode", ["direct", "gram", "materialise"])
    def test_a_module_in_bfloat16_is_summed_from_the_values_that_its_norms_are_of(self, mode, monkeypatch):
        module = torch.nn.Sequential(
            torch.nn.Conv1d(1, 4, 5, 2), torch.nn.GroupNorm(2, 4), torch.nn.LeakyReLU(0.2), torch.nn.Conv1d(4, 1, 9)
        ).bfloat16()
        x = (10 * torch.rand(3, 1, 21)).bfloat16()
        types, sums = [], []
        original = ops.step_clip_factor

        def seen(layers, *arguments):
            types.extend(layer.x.dtype for layer in layers)
            return original(layers, *arguments)

        monkeypatch.setattr(ops, "step_clip_factor", seen)
        for gpu in (True, False):  # the other way widens to float32 before its ops
            monkeypatch.setattr(ops, "gpu_ops", lambda _device, gpu=gpu: gpu)
            for rows in (x, x[:1]):
                step = self.step(module, norm_mode=mode)
                step.backward(row_losses(step(rows)).float())
                sums.append(torch.cat([step._private_sum[p].flatten() for p in module.parameters()]))
        assert set(types) == (set() if mode == "materialise" else {torch.bfloat16})
        torch.testing.assert_close(sums[0], sums[2], rtol=1e-5, atol=1e-7)
        assert 0.29 < float(sums[1].norm()) <= 0.3

    def test_a_backward_that_fails_on_the_way_adds_nothing(self, monkeypatch):
        # Products of a GPU's library take memory of their own, layer by layer, and the same rows may be given again.
        monkeypatch.setattr(
            ops, "pick_gpu_norm_mode", lambda *_, **__: ops.NormChoice("gram", "as where doubles are quick")
        )
        module, x = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 1)), torch.rand(1, 4) + 5
        step, original, calls = self.step(module), ops.ConvProblem.weighted_products, []

        def failing(problem, *arguments):
            calls.append(problem)
            if len(calls) == 2:
                raise MemoryError
            return original(problem, *arguments)

        monkeypatch.setattr(ops.ConvProblem, "weighted_products", failing)
        with pytest.raises(MemoryError):
            step.backward(1e3 * row_losses(step(x)))
        step.backward(1e3 * row_losses(step(x)))
        total = torch.cat([own.flatten() for own in step._private_sum.values()])
        assert len(calls) == 4
        assert 0.29 < float(total.norm()) <= 0.3

    def test_norms_and_factors_of_all_layers_take_one_launch(self, cuda, monkeypatch):
        make, shape = NETS["conv critic"]
        step = self.step(make())
        losses = row_losses(step(torch.rand(3, *shape)))
        launches = []
        original = ops.step_clip_factor

        def counted(*arguments):
            cuda.launches()
            factor = original(*arguments)
            launches.append(cuda.launches())
            return factor

        monkeypatch.setattr(ops, "step_clip_factor", counted)
        step.backward(losses)
        assert launches == [1]


def test_gram_repeats_a_cancelling_unit_by_the_direct_kernel(cuda):
    # The plain Gram sum of these is wrong from the eighth digit on, even in float64.
    calls = [call for call in cases.calls("conv_sq_norm", torch.float64) if call.label == "cancelling, gram"]
    for call in calls:
        x, g, kernel, stride = call.args[:4]
        positions = g.shape[2]
        taps = x.unfold(2, kernel, stride)[:, :, :positions].permute(0, 2, 1, 3).flatten(2)  # (B, T, C k)
        gram = ((taps @ taps.mT + 1) * (g.mT @ g)).sum((1, 2))
        rows = _reference.conv_sq_norm(x, g, *call.args[2:9], None, None)
        assert ((gram - rows).abs() > 1e-9 * rows).any()
        exact = replace(call, rtol=1e-10)
        cases.assert_close(exact, cases.run(cuda.ops, exact), cases.run(_reference, exact))


@pytest.mark.parametrize("name", cases.FORMED)
def test_what_is_added_up_is_what_was_measured(cuda, name):
    # Sums that cancel are where float32 is furthest from the gradient: the norm of the one and the sum of the other
    # would let a row move the sum by more than max_grad_norm.
    for dtype in (torch.float32, torch.bfloat16):
        x, g, geometry = cases.formed_layer(name, dtype)
        measured, added = cases.norms_of_single_rows(cuda.ops, x, g, geometry)
        torch.testing.assert_close(added, measured, rtol=1e-12, atol=0)
        exact = _reference.conv_sq_norm(x, g, *geometry, "direct")
        if dtype == torch.float32:
            off = (measured - exact).abs() / exact
            assert off.max() > 1e-8, "the case must be one where float32 and the gradient itself differ"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("gram", [0, 1])
def test_rows_of_a_unit_that_cancel_wipe_out_no_other_unit(cuda, dtype, gram):
    # Of unit 0 the two rows are huge and cancel: taken for zero, they would leave nothing of what was summed before.
    x = torch.tensor([[[1.0]], [[1e13]], [[0.5]], [[1e13]]], dtype=dtype)
    g = torch.tensor([[[1.0]], [[1e12]], [[1.0]], [[-1e12]]], dtype=dtype)
    order, offsets = torch.tensor([1, 3, 0, 2]), torch.tensor([0, 2, 3, 4])
    numbers = [1, 1, 0, 1, 1, _reference.BIAS_NONE, gram]
    _, factor = cuda.ops.step_clip_factor([x], [g], numbers, [], 1.0, order, offsets, None)
    total = torch.zeros(1, dtype=torch.float64)
    rows = torch.stack([factor[1], factor[0], factor[2], factor[0]])
    cuda.ops.step_weighted_sum_([x], [g], numbers, [], rows, [total], [total[:0]], [])
    assert abs(total.item() - (factor[1] + 0.5 * factor[2]).item()) < 1e-6


def test_a_gradient_that_is_only_rounding_does_not_pass_for_zero(cuda):
    # Summed from left to right g gives 0, in another order 2^-53; it is taken to be 2^-16 of the sizes, 2 in all.
    x, g = torch.ones(1, 1, 3, dtype=torch.float64), torch.tensor([[[1.0, 2.0**-53, -1.0]]], dtype=torch.float64)
    for mode in ("direct", "gram"):
        sq_norm = cuda.ops.conv_sq_norm(x, g, 1, 1, 0, 1, 1, _reference.BIAS_NONE, mode)
        assert sq_norm.item() == pytest.approx(2.0**-30)


@pytest.mark.parametrize(("order", "offsets", "outside"), cases.UNIT_INDICES)
def test_unit_indices_outside_the_batch_give_nan(cuda, order, offsets, outside):
    for norms in cuda.unchecked_norms(order, offsets):
        assert tuple(np.isnan(norms)) == outside


def test_ops_reject_what_does_not_fit(cuda):
    x, g = torch.zeros(2, 3, 8), torch.zeros(2, 4, 6)
    with pytest.raises(RuntimeError, match="conv_sq_norm: expected mode direct or gram, got fast"):
        cuda.ops.conv_sq_norm(x, g, 3, 1, 0, 1, 1, 0, "fast")
    with pytest.raises(RuntimeError, match="expected x of dtype bfloat16, float32 or float64, got Half"):
        cuda.ops.conv_per_sample_grad(x.half(), g.half(), 3, 1, 0, 1, 1, 0)
    with pytest.raises(RuntimeError, match="step_clip_factor: expected one g and 7 numbers a layer for 1 layers"):
        cuda.ops.step_clip_factor([x], [g], [3, 1, 0, 1, 1, 0], [], 1.0)
    with pytest.raises(RuntimeError, match="step_clip_factor: expected at least one gradient"):
        cuda.ops.step_clip_factor([], [], [], [], 1.0, valid=torch.tensor(1))
    with pytest.raises(RuntimeError, match="step_clip_factor: expected valid to be one int64"):
        cuda.ops.step_clip_factor([], [], [], [x], 1.0, valid=torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="noisy_update_armed_: expected control to be"):
        cuda.ops.noisy_update_armed_([x], [], [], [x.double()], [], 0.0, torch.zeros(3), "sgd")
    with pytest.raises(RuntimeError, match="conv_per_sample_grad: expected x and g of one dtype"):
        cuda.ops.conv_per_sample_grad(x, g.double(), 3, 1, 0, 1, 1, 0)
    with pytest.raises(RuntimeError, match="conv_weighted_grad: expected factor"):
        cuda.ops.conv_weighted_grad(x, g, torch.ones(3), 3, 1, 0, 1, 1, 0)
    with pytest.raises(RuntimeError, match="rows_weighted_sum: expected factor"):
        cuda.ops.rows_weighted_sum(x, torch.ones(2))
    with pytest.raises(RuntimeError, match="gaussian_noise_: expected a finite std > 0, got 0"):
        cuda.ops.gaussian_noise_([x], 0.0, torch.zeros(8, dtype=torch.int32), 0)


# Without arguments it compiles all of csrc/cuda; the planted kernels show that the emulator runs what nvcc takes.
@pytest.mark.parametrize(
    ("arguments", "folder", "suffixes"),
    [([], "csrc/cuda", (".cu", ".cpp")), (["tests/cuda_emulation/planted.cu"], "tests/cuda_emulation", (".cu",))],
)
def test_kernels_and_wrappers_compile_for_the_device(arguments, folder, suffixes):
    command = [sys.executable, "csrc/check_cuda.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 2:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout
    compiled = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("ok")}
    assert compiled == {f"{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.suffix in suffixes}


# What the emulation catches. Each kernel of planted.cu runs with and without its fault.


def test_missing_barriers_are_caught(cuda):
    x = np.random.default_rng(0).random((20, 200), dtype=np.float32)
    expected = (x.astype(np.float64) ** 2).sum(1)
    wrong_rows = {False: 0, True: 0}
    wrong_reversals = {False: 0, True: 0}
    for seed in range(PLANTED_ORDERS):
        for fault in (False, True):
            cuda.configure(seed)
            out = np.zeros(20)
            assert cuda.library.planted_row_sq_norm(x.ctypes, 20, 200, out.ctypes, fault)
            wrong_rows[fault] += not np.allclose(out, expected, rtol=1e-12)
            values = np.arange(96.0)
            assert cuda.library.planted_reverse(values.ctypes, 5, fault)
            wrong_reversals[fault] += not np.array_equal(values, np.arange(96.0)[::-1])
    assert wrong_rows == {False: 0, True: PLANTED_ORDERS}
    assert wrong_reversals == {False: 0, True: PLANTED_ORDERS}


@pytest.mark.parametrize(("kernel", "arguments"), [("early_exit", (50,)), ("shuffle", ())])
def test_barriers_and_shuffles_that_not_all_reach_fail_the_launch(cuda, kernel, arguments):
    out = np.zeros(96)
    for seed in range(PLANTED_ORDERS):
        cuda.configure(seed)
        planted = getattr(cuda.library, f"planted_{kernel}")
        assert planted(out.ctypes, *arguments, False)
        assert not planted(out.ctypes, *arguments, True)
        assert planted(out.ctypes, *arguments, False), "the emulator must survive a failed launch"


def test_shared_memory_that_is_not_set_is_caught(cuda):
    buckets = np.random.default_rng(0).integers(0, 7, 300).astype(np.int32)
    counts = np.zeros(7, dtype=np.int32)
    for fault in (False, True):
        assert cuda.library.planted_histogram(buckets.ctypes, 300, counts.ctypes, 7, fault)
        assert np.array_equal(counts, np.bincount(buckets)) != fault


def test_all_cases_are_clean_under_sanitizers(sanitized):
    done = sanitized("cases")
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout == f"ran {sum(len(cases.calls(op, torch.float32)) for op in cases.OPS)} cases\n"


@pytest.mark.parametrize(
    ("fault", "report"),
    [("out_of_bounds", "heap-buffer-overflow"), ("shared_out_of_bounds", "global-buffer-overflow")],
)
def test_a_planted_write_out_of_bounds_is_reported(sanitized, fault, report):
    done = sanitized(fault)
    assert done.returncode != 0
    assert f"AddressSanitizer: {report}" in done.stderr
    assert "overrun_kernel" in done.stderr
