"""The fused ops seen alone: shapes, refusals, and an empty workspace pool."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given as given_by
from hypothesis import settings
from hypothesis import strategies as st

from dpcgan_fast.ops import FusedLayer, FusedNet, clip_factor
from tests.conftest import at_simd_level, available_simd_levels, examples

LAYERS = (
    FusedLayer("conv1d", 2, 20, 6, 9, 4, 2, bias=True),
    FusedLayer("group_norm", 6, 9, 6, 9, groups=2, number=1e-5),
    FusedLayer("silu", 6, 9, 6, 9),
    FusedLayer("conv_transpose1d", 6, 9, 4, 27, 3, 3, groups=2, bias=False),
    FusedLayer("leaky_relu", 4, 27, 4, 27, number=0.2),
    FusedLayer("conv1d", 4, 27, 3, 1, 27, bias=True),
)


def parameters():
    return [torch.rand(6, 2, 4), torch.rand(6), torch.rand(6), torch.rand(6), torch.rand(6, 2, 3), torch.rand(3, 4, 27),
            torch.rand(3)]  # fmt: skip


@pytest.mark.parametrize("rows", [0, 1, 5, 33])
def test_shapes(rows):
    net = FusedNet(LAYERS, 2, 20)
    out, workspace = net.forward(torch.rand(rows, 2, 20), parameters())
    assert out.shape == (rows, 3, 1)
    total, sq_norm, cancelled = net.clipped_sum(torch.rand_like(out), workspace, 0.5)
    assert total.shape == (sum(p.numel() for p in parameters()),)
    assert sq_norm.shape == cancelled.shape == (rows,)


@pytest.mark.parametrize("rows", [0, 1, 33])
@pytest.mark.parametrize("level", available_simd_levels())
def test_inference_gives_the_output_of_forward(rows, level):
    with at_simd_level(level):
        net = FusedNet(LAYERS, 2, 20)
        x, given = torch.randn(rows, 2, 20), parameters()
        assert torch.equal(net.infer(x, given), net.forward(x, given)[0])


@settings(max_examples=examples(60))
@given_by(data=st.data())
def test_transposed_convolutions_of_two_taps_each_infer_what_torch_gives(data):
    """Two outputs by three products, at every length, padding and number of channels, at every width of a vector."""
    groups, stride = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    inputs, outputs = (groups * data.draw(st.integers(1, 10)) for _ in range(2))
    length, rows, bias = data.draw(st.integers(1, 21)), data.draw(st.integers(1, 20)), data.draw(st.booleans())
    padding = data.draw(st.integers(0, min(2 * stride, ((length + 1) * stride - 1) // 2)))
    given = [torch.randn(inputs, outputs // groups, 2 * stride), *([torch.randn(outputs)] if bias else [])]
    x = torch.randn(rows, inputs, length)
    doubles = [p.double() for p in given]
    expected = F.conv_transpose1d(x.double(), *doubles, stride=stride, padding=padding, groups=groups)
    layer = FusedLayer(
        "conv_transpose1d", inputs, length, outputs, expected.shape[2], 2 * stride, stride, padding, groups=groups,
        bias=bias,
    )  # fmt: skip
    for level in available_simd_levels():
        with at_simd_level(level):
            found = FusedNet([layer], inputs, length).infer(x, given).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-6 * max(1.0, float(expected.abs().max())))


@pytest.mark.parametrize("max_grad_norm", [0.01, 1e6, math.inf])
def test_the_clipped_sum_is_the_sum_weighted_by_the_factors_of_its_norms(max_grad_norm):
    net = FusedNet(LAYERS, 2, 20)
    out, workspace = net.forward(torch.rand(37, 2, 20), parameters())
    grad_out = torch.rand_like(out)
    total, sq_norm, cancelled = net.clipped_sum(grad_out, workspace, max_grad_norm)
    measured, same, _ = net.sq_norm(grad_out, workspace, measure=math.isfinite(max_grad_norm))
    assert torch.equal(sq_norm, measured)
    assert torch.equal(cancelled, same)
    factor = clip_factor(sq_norm, max_grad_norm).masked_fill(cancelled, 0.0)
    assert torch.equal(total, net.weighted_sum(grad_out, workspace, factor))


def test_a_workspace_that_is_given_back_serves_the_next_forward():
    net = FusedNet(LAYERS, 2, 20)
    _, first = net.forward(torch.rand(9, 2, 20), parameters())
    _, second = net.forward(torch.rand(9, 2, 20), parameters())
    assert first.data_ptr() != second.data_ptr()
    net.release(first)
    _, third = net.forward(torch.rand(4, 2, 20), parameters())
    assert third.data_ptr() == first.data_ptr()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"x": a["x"].double()}, "expected float32 x of shape"),
        (lambda a: a | {"workspace": torch.empty(8)}, "expected a contiguous float32 workspace of at least"),
        (lambda a: a | {"lanes": 5}, "expected 4, 8 or 16 lanes, got 5"),
        (lambda a: a | {"parameters": a["parameters"][:-1]}, "expected more parameters, got 6"),
        (lambda a: a | {"parameters": [*a["parameters"], torch.rand(2)]}, "expected 7 parameters, got 8"),
        (lambda a: a | {"numbers": []}, "expected 10 integers a layer"),
        (lambda a: a | {"x": torch.rand(3, 2, 22)}, "expected the output length of the convolution"),
    ],
)
def test_it_refuses_what_does_not_fit(change, message):
    net = FusedNet(LAYERS, 2, 20)
    workspace = net.forward(torch.rand(3, 2, 20), parameters())[1]
    arguments = {
        "x": torch.rand(3, 2, 20), "parameters": parameters(), "layers": net._integers, "numbers": net._numbers,
        "lanes": net._lanes, "workspace": workspace,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dpcgan_fast.fused_forward(*change(arguments).values())
