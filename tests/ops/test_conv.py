"""Per-sample gradient norms and clipped sums of Conv1d, ConvTranspose1d and Linear."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.ops import _reference
from tests.conftest import DEVICES, RTOL, at_simd_level, available_simd_levels

kernels = torch.ops.dpcgan_fast


@st.composite
def conv_cases(draw):
    """Operands and geometry of a random weight gradient, with the awkward sizes: 0 and 1 rows, groups, stride > k."""
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    channels, outputs = groups * draw(st.integers(1, 5)), groups * draw(st.integers(1, 6))
    kernel, stride = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    padding, dilation = draw(st.integers(0, 4)), draw(st.integers(1, 3))
    length = max(1, dilation * (kernel - 1) + 1 - 2 * padding) + draw(st.integers(0, 40))
    positions = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    rows = draw(st.sampled_from([0, 1, 2, 5, 19]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.randn(rows, channels, length, dtype=dtype, generator=generator)
    g = torch.randn(rows, outputs, positions, dtype=dtype, generator=generator)
    kind = draw(st.sampled_from(["random", "sparse", "cancelling", "strided"]))
    if kind == "sparse":
        x = (x > 1.5).to(dtype)
    if kind == "cancelling":  # x nearly constant in t and g centred: a Gram norm in float32 is then worthless
        x, g = 1e-3 * x + 2.0, g - g.mean(2, keepdim=True)
    if kind == "strided":  # a view with gaps, at an odd storage offset
        x = torch.cat([x, x], 2)[:, :, length:] if length else x
        g = g.transpose(1, 2).contiguous().transpose(1, 2)
    bias_role = draw(st.sampled_from([ops.BIAS_NONE, ops.BIAS_FROM_GRAD, ops.BIAS_FROM_INPUT]))
    units = torch.randint(0, 4, (rows,), generator=generator)
    return x, g, (kernel, stride, padding, dilation, groups, bias_role), units


def grouping(units):
    groups = ops.group_units(units, len(units)) if len(units) else None
    return (None, None) if groups is None else (groups.row_order, groups.unit_offsets)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["direct", "gram"])
@given(case=conv_cases(), level=st.sampled_from(available_simd_levels()), grouped=st.booleans())
def test_norms_equal_the_float64_reference(device, mode, case, level, grouped):
    x, g, geometry, units = case
    units = grouping(units) if grouped else (None, None)
    expected = _reference.conv_sq_norm(x, g, *geometry, mode, *units)
    on_device = [None if t is None else t.to(device) for t in (x, g, *units)]
    with at_simd_level(level):
        got = kernels.conv_sq_norm(on_device[0], on_device[1], *geometry, mode, on_device[2], on_device[3])
    # A Gram norm in double may lose eight digits to cancellation before the kernel goes over to the direct one.
    rtol = max(RTOL[x.dtype], 1e-8) if mode == "gram" else RTOL[x.dtype]
    torch.testing.assert_close(got.cpu(), expected, rtol=rtol, atol=1e-30)


@pytest.mark.parametrize("device", DEVICES)
@given(
    rows=st.sampled_from([0, 1, 7]),
    groups=st.sampled_from([1, 2, 3]),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    bias_role=st.sampled_from([ops.BIAS_NONE, ops.BIAS_FROM_GRAD, ops.BIAS_FROM_INPUT]),
    scale=st.sampled_from([1.0, 1e-15, 1e15]),
    strided=st.booleans(),
    level=st.sampled_from(available_simd_levels()),
)
def test_the_norm_of_an_outer_product_is_exact(device, rows, groups, sizes, bias_role, scale, strided, level):
    """A Linear without positions: |x|^2 |g|^2, in double."""
    x, g = (scale * torch.randn(rows, groups * size, 2 if strided else 1) for size in sizes)
    x, g = x[:, :, :1], g[:, :, -1:]
    geometry = (1, 1, 0, 1, groups, bias_role)
    expected = _reference.conv_sq_norm(x, g, *geometry, "gram", None, None)
    with at_simd_level(level):
        got = kernels.conv_sq_norm(x.to(device), g.to(device), *geometry, "gram")
    torch.testing.assert_close(got.cpu(), expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@given(
    rows=st.sampled_from([0, 1, 2, 255, 257, 600]),
    sizes=st.tuples(st.integers(1, 70), st.integers(1, 40)),
    bias_role=st.sampled_from([ops.BIAS_NONE, ops.BIAS_FROM_GRAD]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    strided=st.booleans(),
    level=st.sampled_from(available_simd_levels()),
)
def test_the_sum_of_outer_products_is_in_double(device, rows, sizes, bias_role, dtype, strided, level):
    """A Linear without positions, by blocks of rows, inputs and outputs; rows of factor 0 are not read."""
    x, g = (torch.randn(rows, size, 2 if strided else 1, dtype=dtype)[:, :, :1] for size in sizes)
    x, g = (side.transpose(0, 1).contiguous().transpose(0, 1) if strided else side for side in (x, g))
    factor = torch.rand(rows, dtype=torch.float64)
    factor[::3] = 0
    expected = torch.einsum("n,no,ni->oi", factor, g[:, :, 0].double(), x[:, :, 0].double())
    x[::3], g[::3] = float("nan"), float("inf")
    with at_simd_level(level):
        weight, bias = kernels.conv_weighted_grad(
            x.to(device), g.to(device), factor.to(device), 1, 1, 0, 1, 1, bias_role
        )
    torch.testing.assert_close(weight.cpu(), expected[:, :, None], rtol=1e-12, atol=1e-12)
    used = factor != 0
    summed = factor[used] @ g[used, :, 0].double()
    torch.testing.assert_close(bias.cpu(), summed if bias_role else summed[:0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@given(case=conv_cases(), level=st.sampled_from(available_simd_levels()))
def test_per_sample_gradients_and_weighted_sums_equal_the_float64_reference(device, case, level):
    x, g, geometry, _ = case
    rows = x.shape[0]
    scale = float(x.abs().max() * g.abs().max() * g.shape[2] * rows) if x.numel() and g.numel() else 1.0
    atol = {torch.float32: 2e-7, torch.float64: 1e-14}[x.dtype] * scale
    factor = torch.rand(rows, dtype=torch.float64)
    factor[torch.rand(rows) < 0.3] = 0
    xd, gd, fd = (t.to(device) for t in (x, g, factor))
    with at_simd_level(level):
        grads = kernels.conv_per_sample_grad(xd, gd, *geometry)
        sums = kernels.conv_weighted_grad(xd, gd, fd, *geometry)
    references = _reference.conv_per_sample_grad(x, g, *geometry)
    references += _reference.conv_weighted_grad(x, g, factor, *geometry)
    for got, expected in zip((*grads, *sums), references, strict=True):
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=atol)


def microbatch_sq_norms(layer: nn.Module, x: torch.Tensor, grad_out: torch.Tensor) -> torch.Tensor:
    """Squared norms by autograd, one row at a time, in float64: an oracle that knows nothing of convolutions."""
    layer = layer.double()
    norms = []
    for row, grad in zip(x.double(), grad_out.double(), strict=True):
        layer.zero_grad()
        (layer(row.unsqueeze(0)) * grad.unsqueeze(0)).sum().backward()
        norms.append(sum(p.grad.square().sum() for p in layer.parameters()))
    return torch.stack(norms)


@pytest.mark.parametrize("mode", ["auto", "direct", "gram", "materialise"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (4, 1, 1, 1), (3, 2, 2, 1), (7, 0, 1, 2)]
)
def test_conv1d_norm_equals_autograd_row_by_row(mode, bias, stride, padding, dilation, groups):
    layer = nn.Conv1d(4, 6, 5, stride, padding, dilation, groups, bias)
    x = torch.randn(3, 4, 29)
    grad_out = torch.randn_like(layer(x))
    got = ops.conv1d_sq_norm(x, grad_out, layer.weight.shape, stride, padding, dilation, groups, bias, mode)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), microbatch_sq_norms(layer, x, grad_out), rtol=4e-6, atol=0)


@pytest.mark.parametrize("mode", ["auto", "direct", "gram", "materialise"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("stride", "padding", "output_padding", "groups"), [(1, 0, 0, 1), (4, 0, 3, 1), (2, 1, 1, 2), (5, 2, 0, 1)]
)
def test_conv_transpose1d_norm_equals_autograd_row_by_row(mode, bias, stride, padding, output_padding, groups):
    layer = nn.ConvTranspose1d(4, 6, 7, stride, padding, output_padding, groups, bias)
    x = torch.randn(3, 4, 11)
    grad_out = torch.randn_like(layer(x))
    got = ops.conv_transpose1d_sq_norm(
        x, grad_out, layer.weight.shape, stride, padding, output_padding, groups=groups, bias=bias, mode=mode
    )
    torch.testing.assert_close(got.double(), microbatch_sq_norms(layer, x, grad_out), rtol=4e-6, atol=0)


@pytest.mark.parametrize("mode", ["auto", "direct", "gram", "materialise"])
@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (2, 3, 4, 5)])
def test_linear_norm_equals_autograd_row_by_row(mode, shape):
    layer = nn.Linear(5, 4)
    x = torch.randn(shape)
    grad_out = torch.randn(*shape[:-1], 4)
    got = ops.linear_sq_norm(x, grad_out, mode=mode)
    torch.testing.assert_close(got.double(), microbatch_sq_norms(layer, x, grad_out), rtol=4e-6, atol=0)


def test_the_plain_float32_gram_is_useless_where_x_is_constant_and_g_centred():
    """The hazard that the kernels handle: shows that the case is a real one, and that both modes survive it."""
    x = 1e-2 * torch.randn(64, 16, 270) + torch.randn(64, 16, 1)
    g = torch.randn(64, 32, 66)
    g = g - g.mean(2, keepdim=True)
    taps = x.unfold(2, 8, 4).permute(0, 1, 3, 2).reshape(64, -1, 66)
    plain = ((taps.mT @ taps) * (g.mT @ g)).sum((1, 2))
    geometry = (8, 4, 0, 1, 1, ops.BIAS_NONE)
    expected = _reference.conv_sq_norm(x, g, *geometry, "gram")
    assert (plain.double() / expected - 1).abs().max() > 1e-4
    for mode in ("direct", "gram"):
        got = kernels.conv_sq_norm(x, g, *geometry, mode)
        assert (got / expected - 1).abs().max() < 1e-6
        assert (1 - got / expected).max() < 1e-9, "a norm that is too small would let a record exceed max_grad_norm"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_sum_that_cancels_has_the_norm_that_was_measured(scale):
    """Norm and clipped sum belong together even where float32 leaves little but rounding."""
    x = 2e-3 * torch.randn(4, 3, 400) + 5.0
    g = torch.randn(4, 8, 99) * scale
    g = (g - g.mean(2, keepdim=True)).contiguous()
    problem = ops.ConvProblem(8, 4)
    for mode in ("direct", "gram"):
        sq_norm = problem.sq_norm(x, g, mode)
        for row in range(4):
            factor = torch.zeros(4, dtype=torch.float64)
            factor[row] = 1.0
            weight, _ = problem.weighted_grad(x, g, factor)
            assert float(weight.square().sum() / sq_norm[row]) == pytest.approx(1.0, abs=2e-9)


def test_norms_neither_overflow_nor_underflow_where_float32_squares_would():
    for size in (1e-25, 1e25):
        x, g = torch.full((1, 2, 9), size), torch.ones(1, 3, 9)
        got = kernels.conv_sq_norm(x, g, 1, 1, 0, 1, 1, ops.BIAS_NONE, "direct")
        assert float(got) == pytest.approx(2 * 3 * (9 * size) ** 2, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("mode", ["direct", "gram"])
def test_a_row_that_is_not_finite_has_a_norm_that_is_not_finite(bad, mode):
    x, g = torch.randn(3, 2, 12), torch.randn(3, 4, 10)
    x[1, 0, 5] = bad
    got = kernels.conv_sq_norm(x, g, 3, 1, 0, 1, 1, ops.BIAS_FROM_GRAD, mode)
    assert torch.isfinite(got).tolist() == [True, False, True]


def test_rows_of_factor_zero_are_never_read():
    x, g = torch.randn(3, 2, 12), torch.randn(3, 4, 10)
    x[1], g[1] = float("nan"), float("inf")
    factor = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    for sums in kernels.conv_weighted_grad(x, g, factor, 3, 1, 0, 1, 1, ops.BIAS_FROM_GRAD):
        assert torch.isfinite(sums).all()


def test_the_sum_over_a_large_batch_has_no_float32_drift():
    """A thousand equal rows, less one, differ by exactly one row: what sensitivity rests on."""
    x, g = torch.randn(1, 4, 40).expand(1024, 4, 40), torch.randn(1, 8, 33).expand(1024, 8, 33)
    problem = ops.ConvProblem(8, 1)
    factor = torch.ones(1024, dtype=torch.float64)
    whole, _ = problem.weighted_grad(x, g, factor)
    one = problem.per_sample_grad(x[:1], g[:1])[0][0].double()
    factor[7] = 0
    less_one, _ = problem.weighted_grad(x, g, factor)
    assert float((whole - less_one - one).norm() / one.norm()) < 5e-6


BAD_ARGUMENTS = [
    (dict(x=torch.zeros(2, 4)), r"conv_sq_norm: expected x of shape \(B, C, L\), got \[2, 4\]"),
    (dict(g=torch.zeros(3, 6, 9)), "expected x and g with one batch size, got 2 and 3"),
    (dict(x=torch.zeros(2, 4, 20, dtype=torch.float16)), "expected x of dtype float32 or float64, got Half"),
    (dict(g=torch.zeros(2, 6, 9, dtype=torch.float64)), "expected x and g of one dtype"),
    (dict(kernel_size=0), "expected kernel_size > 0, got 0"),
    (dict(stride=-1), "expected stride > 0, got -1"),
    (dict(padding=-1), "expected padding >= 0, got -1"),
    (dict(dilation=0), "expected dilation > 0, got 0"),
    (dict(groups=3), "expected groups=3 to divide the channels"),
    (dict(bias_role=7), "expected bias_role in"),
    (dict(mode="fast"), "expected mode direct or gram, got fast"),
    (dict(row_order=torch.tensor([0, 1])), "expected row_order and unit_offsets both or neither"),
    (dict(row_order=torch.tensor([0, 9]), unit_offsets=torch.tensor([0, 2])), r"expected row_order in \[0, 2\), got 9"),
    (
        dict(row_order=torch.tensor([0, 1]), unit_offsets=torch.tensor([0, 1])),
        "expected unit_offsets to run from 0 to 2",
    ),
    (dict(row_order=torch.tensor([0, 1]), unit_offsets=torch.tensor([0, 3, 2])), "expected unit_offsets not to fall"),
    (dict(row_order=torch.tensor([0.0, 1]), unit_offsets=torch.tensor([0, 2])), "contiguous int64 vector"),
]


@pytest.mark.parametrize(("change", "message"), BAD_ARGUMENTS)
def test_bad_arguments_are_refused_by_name_and_the_next_call_works(change, message):
    good = dict(
        x=torch.zeros(2, 4, 20), g=torch.zeros(2, 6, 9), kernel_size=4, stride=2, padding=0, dilation=1, groups=1,
        bias_role=0, mode="direct", row_order=None, unit_offsets=None,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        kernels.conv_sq_norm(**{**good, **change})
    assert kernels.conv_sq_norm(**good).tolist() == [0.0, 0.0]


def test_shapes_that_do_not_belong_together_are_refused():
    x = torch.zeros(2, 4, 20)
    with pytest.raises(ValueError, match=r"Expected grad_out of shape \(2, 6, 9\), got \(2, 6, 8\)"):
        ops.conv1d_sq_norm(x, torch.zeros(2, 6, 8), (6, 4, 4), stride=2)
    with pytest.raises(ValueError, match=r"Expected x of shape \(B, 5, L\)"):
        ops.conv1d_sq_norm(x, torch.zeros(2, 6, 9), (6, 5, 4), stride=2)
    with pytest.raises(ValueError, match="Expected mode to be one of auto, direct, gram, materialise, got 'ghost'"):
        ops.conv1d_sq_norm(x, torch.zeros(2, 6, 9), (6, 4, 4), stride=2, mode="ghost")  # type: ignore[arg-type]


def test_results_do_not_depend_on_the_number_of_threads():
    x, g = torch.randn(64, 8, 60), torch.randn(64, 16, 53)
    problem, factor = ops.ConvProblem(8), torch.rand(64, dtype=torch.float64)
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append((problem.sq_norm(x, g, "gram"), problem.weighted_grad(x, g, factor)[0]))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=0)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-12, atol=1e-12)


def test_linear_is_a_convolution_of_kernel_size_one():
    x = torch.randn(2, 3, 4, 5)
    assert ops.as_channels(x).shape == (2, 5, 12)
    assert ops.as_channels(x).data_ptr() == x.data_ptr(), "no copy"
    weight = torch.randn(7, 5)
    as_conv = F.conv1d(ops.as_channels(x), weight.unsqueeze(2))
    torch.testing.assert_close(as_conv.transpose(1, 2).reshape(2, 3, 4, 7), x @ weight.T)
