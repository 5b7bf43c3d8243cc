"""Every registered op as torch's compilers see it: schema, mutations, autograd, fake kernel, dynamic shapes."""

import pytest
import torch
from torch.library import opcheck

from dpcgan_fast import ops
from dpcgan_fast.ops import FusedLayer, FusedNet, NoiseKey, UpdateControl, _reference
from tests.conftest import CPU_OPS

GEOMETRY = (4, 2, 1, 1, 2)  # kernel size, stride, padding, dilation, groups
BIAS_ROLES = (ops.BIAS_NONE, ops.BIAS_FROM_GRAD, ops.BIAS_FROM_INPUT)
NET = (
    FusedLayer("conv1d", 2, 20, 6, 9, 4, 2, bias=True),
    FusedLayer("group_norm", 6, 9, 6, 9, groups=2, number=1e-5),
    FusedLayer("silu", 6, 9, 6, 9),
    FusedLayer("conv_transpose1d", 6, 9, 4, 27, 3, 3, groups=2),
    FusedLayer("leaky_relu", 4, 27, 4, 27, number=0.2),
)


def double(*shape, device="cpu"):
    return torch.rand(shape, dtype=torch.float64, device=device)


def operands(rows, device):
    """x and g of a grouped convolution by GEOMETRY."""
    return torch.randn(rows, 4, 19, device=device), torch.randn(rows, 6, 9, device=device)


def units_of(rows, device):
    """Row order and offsets of two units, of which the second has only the last row; of none without rows."""
    offsets = [0, rows - 1, rows] if rows else [0]
    return torch.arange(rows, device=device), torch.tensor(offsets, device=device)


def conv_sq_norm(rows, device):
    for mode in ("direct", "gram"):
        for role in BIAS_ROLES:
            yield *operands(rows, device), *GEOMETRY, role, mode
        yield *operands(rows, device), *GEOMETRY, ops.BIAS_NONE, mode, *units_of(rows, device)


def conv_per_sample_grad(rows, device):
    for role in BIAS_ROLES:
        yield *operands(rows, device), *GEOMETRY, role


def conv_weighted_grad(rows, device):
    for role in BIAS_ROLES:
        yield *operands(rows, device), double(rows, device=device), *GEOMETRY, role


WINDOWS = ((3, 2), (2, 3), (1, 0), (1, 2), 2), ((1, 3, 3), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1)


def window_operands(rows, device):
    """Operands for each of the geometries."""
    yield torch.randn(rows, 4, 9, 8, device=device), torch.randn(rows, 6, 5, 2, device=device)
    yield double(rows, 2, 4, 5, 6, device=device), double(rows, 3, 4, 3, 4, device=device)


def window_per_sample_grad_(rows, device):
    outs = torch.empty(rows, 6, 3, 2, 2, device=device), double(rows, 3, 1, 3, 3, 2, device=device)
    for out, sides, geometry in zip(outs, window_operands(rows, device), WINDOWS, strict=True):
        yield out, double(rows, device=device), sides[0].new_empty(sides[1].shape[:2]), *sides, *geometry
        yield out, double(rows, device=device), None, *sides, *geometry


def windows_clipped_sum(rows, device):
    numbers = [[*(n for sizes in geometry[:-1] for n in sizes), geometry[-1], 1] for geometry in WINDOWS]
    others = double(rows, device=device).abs()
    for (x, g), geometry in zip(window_operands(rows, device), numbers, strict=True):
        yield [x], [g], geometry, others, 0.5, 2.0
        yield [x, x], [g, g], [*geometry, *geometry[:-1], 0], others, 0.5, 1.0


def group_norm_per_sample_grad(rows, device):
    x, g = torch.randn(2, rows, 6, 9, device=device)
    yield x, g, 3, 1e-5
    yield x.double(), g.double(), 6, 1e-5


def layer_norm_per_sample_grad(rows, device):
    x, g = torch.randn(2, rows, 5, 9, device=device)
    yield x, g, 1e-5
    yield x.double(), g.double(), 1e-5


def rows_sq_norm(rows, device):
    grads = list(operands(rows, device))
    yield (grads,)
    yield grads, *units_of(rows, device)


def rows_weighted_sum(rows, device):
    for grad in (*operands(rows, device), double(rows, device=device)):
        yield grad, double(rows, device=device)


def clip_factor(rows, device):
    yield double(rows, device=device), 0.5
    yield double(rows, device=device), 0.5, torch.tensor(1, device=device)


def step_clip_factor(rows, device):
    x, g = operands(rows, device)
    geometry = [*GEOMETRY, ops.BIAS_FROM_GRAD]
    yield [x, x], [g, g], [*geometry, 0, *geometry, 1], [x], 0.5
    yield [x], [g], [*geometry, 1], [], 0.5, *units_of(rows, device), torch.tensor(1, device=device)
    yield [], [], [], [x, g], 0.5


def step_weighted_sum_(rows, device):
    x, g = operands(rows, device)
    geometry = [*GEOMETRY, ops.BIAS_FROM_GRAD]
    weight, bias = torch.ops.dpcgan_fast.conv_weighted_grad(x, g, double(rows, device=device), *geometry)
    sums = [weight, weight + 1], [bias, bias + 1], [double(*x.shape[1:], device=device)]
    yield [x, x], [g, g], [*geometry, 0, *geometry, 1], [x], double(rows, device=device), *sums
    yield [], [], [], [g], double(rows, device=device), [], [], [double(*g.shape[1:], device=device)]


def fused(rows):
    """A net's output, and the arguments that its backward ops share; opcheck compares the whole workspace."""
    net = FusedNet(NET, 2, 20)
    net.release(torch.zeros(1 << 17))  # fresh memory may hold NaN
    parameters = [torch.rand(6, 2, 4), torch.rand(6), torch.rand(6), torch.rand(6), torch.rand(6, 2, 3)]
    x = torch.rand(rows, 2, 20)
    out, workspace = net.forward(x, parameters)
    program = (net._integers, net._numbers, net._lanes)
    return (x, parameters, *program, workspace), (torch.rand_like(out), *program, 2, 20), workspace


def fused_forward(rows, _device):
    yield fused(rows)[0]


def fused_sq_norm(rows, _device):
    _, shared, workspace = fused(rows)
    for measure, input_grad in ((True, True), (True, False), (False, False)):
        yield *shared, measure, input_grad, workspace


def fused_clipped_sum(rows, _device):
    _, (grad_out, *shared), workspace = fused(rows)
    for factor in (None, double(rows)):
        yield grad_out, factor, 0.5, *shared, workspace


def gaussian_noise_(rows, device):
    words, counter = NoiseKey(seed=0).take(100)
    yield [torch.zeros(rows, 5, device=device), torch.zeros(3, device=device)], 1.0, words, counter
    yield [double(rows, device=device)], 1.0, words, counter


def update_state(rows, device):
    parameters, first, second = ([torch.rand(rows, 3, device=device), torch.rand(7, device=device)] for _ in range(3))
    sums = [double(rows, 3, device=device), double(7, device=device)]
    return parameters, first, second, sums


def noisy_update_(rows, device):
    parameters, first, second, sums = update_state(rows, device)
    key = NoiseKey(seed=0).take(100)
    adam = ("adam", [0.1, 0.0, 0.9, 0.99, 1e-8, 0.1, 0.01])
    yield parameters, first, second, sums, sums, 0.5, *key, 2.0, 3.0, *adam
    yield parameters, [], second, sums, [], 0.5, *key, 2.0, 3.0, "rmsprop", [0.1, 0.0, 0.9, 1e-3], [0.1, 0.2]
    yield parameters, [], [], sums, [], 0.0, *key, 2.0, 3.0, "sgd", [0.1, 0.0, 0.0]


def fused_infer(rows, _device):
    yield fused(rows)[0][:-1]


def fused_draw(rows, _device):
    given = fused(rows)[0][:-1]
    cells, length = torch.ops.dpcgan_fast.fused_infer(*given).shape[1:]
    blocks = length - 2
    prior, classes = torch.randn(3, blocks, cells), torch.randint(0, 3, (rows,))
    yield *given, prior, classes, torch.rand(rows, blocks), torch.full((blocks,), cells - 1)


def uniform_(rows, _device):
    yield torch.zeros(rows, 7), torch.arange(8, dtype=torch.int32)


def gather_rows(rows, device):
    starts, positions = torch.tensor([0, 2, 2, 5], device=device), torch.tensor([6, 0, 1, 2, 3], device=device).int()
    drawn = torch.randint(0, 3, (rows,), device=device)
    for columns, first_code in ((4, 1), (0, 0)):
        out = torch.zeros(rows, 7 + columns, device=device)
        yield out, drawn, torch.randn(3, columns, device=device), starts, positions, first_code


def noisy_update_armed_(rows, device):
    parameters, first, second, sums = update_state(rows, device)
    idle, armed = UpdateControl(torch.device(device)), UpdateControl(torch.device(device))
    armed.arm(NoiseKey(seed=0), 100, 2.0, 3.0, [0.1, 0.0, 0.9, 0.99, 1e-8, 0.1, 0.01])
    for control in (idle, armed):
        yield parameters, first, second, sums, sums, 0.5, control.tensor, "adam"


CASES = {
    case.__name__: case
    for case in (
        conv_sq_norm, conv_per_sample_grad, conv_weighted_grad, window_per_sample_grad_, windows_clipped_sum,
        group_norm_per_sample_grad, layer_norm_per_sample_grad, rows_sq_norm, rows_weighted_sum,
        clip_factor, step_clip_factor, step_weighted_sum_, fused_forward, fused_sq_norm, fused_clipped_sum, fused_infer,
        fused_draw, uniform_, gather_rows, gaussian_noise_, noisy_update_, noisy_update_armed_,
    )
}  # fmt: skip
MUTATING = {
    "window_per_sample_grad_", "fused_forward", "uniform_", "gather_rows", "gaussian_noise_", "noisy_update_",
    "noisy_update_armed_", "step_weighted_sum_",
}  # fmt: skip


GPU_OPS = {"step_clip_factor", "step_weighted_sum_"}


def registered_ops():
    names = (schema.name for schema in torch._C._jit_get_all_schemas())
    return {name.split("::")[1] for name in names if name.startswith("dpcgan_fast::")}


def test_every_registered_op_has_a_case():
    assert set(CASES) == registered_ops()


def test_schemas_mark_what_is_mutated_and_nothing_else():
    marked = {name for name in registered_ops() if getattr(torch.ops.dpcgan_fast, name).default._schema.is_mutable}
    assert marked == MUTATING


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("name", CASES)
def test_opcheck(device, name, rows):
    if device.type != "cpu" and name in CPU_OPS:
        pytest.skip("the op is the CPU's alone")
    with torch.library._scoped_library("dpcgan_fast", "IMPL") as library:
        if name in GPU_OPS and device.type == "cpu":
            # It has no CPU kernel: there, its schema and fake kernel are held against its reference.
            library.impl(name, getattr(_reference, name), "CPU")
        for arguments in CASES[name](rows, device):
            opcheck(getattr(torch.ops.dpcgan_fast, name).default, arguments)


@pytest.mark.parametrize("name", sorted(set(CASES) - MUTATING - GPU_OPS))
def test_a_backward_through_an_op_is_refused_by_name(name):
    arguments = [
        a.requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in next(CASES[name](3, "cpu"))
    ]
    if name == "rows_sq_norm":
        arguments[0] = [grad.requires_grad_() for grad in arguments[0]]
    result = getattr(torch.ops.dpcgan_fast, name)(*arguments)
    with pytest.raises(RuntimeError, match=f"derivative for dpcgan_fast::{name} is not implemented"):
        (result if torch.is_tensor(result) else result[0]).sum().backward()
