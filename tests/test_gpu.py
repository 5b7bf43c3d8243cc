"""On a real GPU: what `test_cuda_kernels.py` shows under emulation, and what only a GPU has: graphs, its rounding."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dpcgan_fast import ops
from dpcgan_fast.auditing import audit_engine
from dpcgan_fast.engine import GraphedStep, PrivateStep
from dpcgan_fast.ops import NoiseKey, _reference
from tests.conftest import DEVICES
from tests.cuda_emulation import cases
from tests.engine.nets import NETS, clipped_sum_by_microbatches, row_losses

pytestmark = pytest.mark.skipif("cuda" not in DEVICES, reason="needs a GPU, and a build with CUDA kernels")

CLIP, EXPECTED = 0.3, 8.0


@pytest.fixture(autouse=True)
def float32_products():
    """No TF32, which keeps 10 bits of a float32: the references are of the numbers themselves."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_gpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cuda()
    return [on_gpu(entry) for entry in value] if isinstance(value, list) else value


def on_cpu(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.cpu() for tensor in tensors]


def run_on_gpu(call: cases.Call) -> list[Tensor]:
    # The key of the noise stays on the CPU: it travels as a kernel's argument.
    keyed = call.op in ("gaussian_noise_", "noisy_update_")
    args = tuple(arg if keyed and isinstance(arg, Tensor) else on_gpu(arg) for arg in call.args)
    return on_cpu(cases.run(torch.ops.dpcgan_fast, replace(call, args=args)))


def assert_matches(call: cases.Call, got: list[Tensor]) -> None:
    expected = cases.run(_reference, call)
    # The GPU's logarithm, sine and cosine may differ from the C library's in the last bit of a double, which a float32
    # shows where a sum lies half-way between two of them.
    call = replace(call, rtol=1e-7) if call.op == "gaussian_noise_" else call
    cases.assert_close(call, got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("op", cases.OPS)
def test_kernels_match_the_reference_and_repeat_bit_by_bit(op, dtype):
    for call in cases.calls(op, dtype):
        got = run_on_gpu(call)
        assert_matches(call, got)
        for a, b in zip(got, run_on_gpu(call), strict=True):
            assert torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)), f"{call.label} differs from run to run"


@pytest.mark.parametrize("op", cases.TAKES_BFLOAT16)
def test_kernels_read_bfloat16(op):
    for call in cases.bfloat16_calls(op):
        assert_matches(call, run_on_gpu(call))


@pytest.mark.parametrize("name", cases.FORMED)
def test_what_is_added_up_is_what_was_measured(name):
    for dtype in (torch.float32, torch.bfloat16):
        x, g, geometry = cases.formed_layer(name, dtype)
        measured, added = cases.norms_of_single_rows(torch.ops.dpcgan_fast, x.cuda(), g.cuda(), geometry)
        torch.testing.assert_close(added, measured, rtol=1e-12, atol=0)


def private_step(module, **options):
    return PrivateStep(module, torch.optim.SGD(module.parameters(), lr=1.0), CLIP, 0.0, EXPECTED, **options)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("units", [None, torch.tensor([3, 1, 3, 3, 0])])
@pytest.mark.parametrize("mode", ["auto", "gram", "direct"])
def test_a_step_sums_what_microbatches_of_one_unit_give(name, units, mode):
    make, shape = NETS[name]
    module, x = make(), torch.rand(5, *shape)
    expected = clipped_sum_by_microbatches(module, x, CLIP, units)
    module.cuda()
    before = [p.detach().clone() for p in module.parameters()]
    step = private_step(module, norm_mode=mode)
    step.backward(row_losses(step(x.cuda())), None if units is None else units.cuda())
    step.step()
    for old, new, total in zip(before, module.parameters(), expected.values(), strict=True):
        torch.testing.assert_close((EXPECTED * (old - new.detach())).cpu(), total.float(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ["conv critic", "autoencoder", "residual", "sequence"])
def test_a_graph_takes_the_steps_of_the_call_by_call_path(name):
    make, shape = NETS[name]
    captured, plain = make().cuda(), make().cuda()
    plain.load_state_dict(captured.state_dict())
    step, other = private_step(captured), private_step(plain)
    graphed = GraphedStep(step, 4)
    real = graphed.backward_of(lambda x: row_losses(step(x)), (torch.rand(2, *shape),))
    for rows in (3, 4, 0, 9):  # fewer than a replay, all of it, none, and several replays
        x = torch.rand(rows, *shape, device="cuda")
        real(x)
        graphed.step()
        if rows:
            other.backward(row_losses(other(x)))
        other.step()
    for a, b in zip(captured.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_each_replay_draws_fresh_noise_of_the_right_size():
    module = torch.nn.Linear(100, 50).cuda()
    step = PrivateStep(module, torch.optim.SGD(module.parameters(), lr=1.0), 1.0, 2.0, 4.0)
    graphed = GraphedStep(step, 4)
    moved = []
    for _ in range(20):
        before = module.weight.detach().clone()
        graphed.step()
        moved.append((module.weight.detach() - before).flatten().double())
    noise = torch.stack(moved)
    correlation = torch.corrcoef(noise) - torch.eye(20, device="cuda")
    assert correlation.abs().max() < 6 / 5000**0.5  # 5000 normals a step, of 190 pairs of steps
    assert abs(float(noise.std()) / 0.5 - 1) < 6 / (2 * noise.numel()) ** 0.5


def test_a_key_gives_the_noise_of_the_cpu():
    on_the_cpu, there = torch.zeros(100_003, dtype=torch.float64), torch.zeros(100_003, dtype=torch.float64).cuda()
    for tensor in (on_the_cpu, there):
        ops.gaussian_noise_([tensor], 1.5, NoiseKey(seed=7))
    torch.testing.assert_close(there.cpu(), on_the_cpu, rtol=0, atol=1e-14)


def test_an_audit_refutes_no_way_of_taking_steps_and_comes_near():
    for name, (_, audit) in audit_engine(4.0, 1e-5, 4000, torch.device("cuda")).items():
        assert not audit.refuted, name
        assert audit.lower_gaussian > 0.4 * 4.0, name
