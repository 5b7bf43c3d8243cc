"""Per-sample gradients of the affine pairs of GroupNorm, InstanceNorm and LayerNorm."""

import pytest
import torch
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.ops import _reference

kernels = torch.ops.dpcgan_fast


def microbatch_grads(layer, x, grad_out):
    """Per-sample gradients by autograd, one row at a time, in float64."""
    layer = layer.double()
    rows = [
        torch.autograd.grad((layer(row[None]) * grad[None]).sum(), list(layer.parameters()))
        for row, grad in zip(x.double(), grad_out.double(), strict=True)
    ]
    return [torch.stack(grads) for grads in zip(*rows, strict=True)]


@pytest.mark.parametrize(
    ("channels", "groups", "length"), [(8, 2, 13), (8, 8, 5), (6, 1, 7), (4, 4, (3, 5)), (3, 1, ())]
)
def test_group_norm_equals_autograd_row_by_row(device, channels, groups, length):
    shape = length if isinstance(length, tuple) else (length,)
    x, grad_out = 3 * torch.randn(5, channels, *shape) + 1, torch.randn(5, channels, *shape)
    expected = microbatch_grads(nn.GroupNorm(groups, channels), x, grad_out)
    got = ops.group_norm_per_sample_grad(x.to(device), grad_out.to(device), groups, 1e-5)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=2e-6, atol=2e-6)
    sq_norm = ops.group_norm_sq_norm(x.to(device), grad_out.to(device), groups)
    torch.testing.assert_close(
        sq_norm.cpu().double(), sum(g.square().flatten(1).sum(1) for g in expected), rtol=4e-6, atol=0
    )


@pytest.mark.parametrize(("shape", "normalized"), [((4, 6), (6,)), ((4, 3, 6), (6,)), ((4, 3, 2, 5), (2, 5))])
def test_layer_norm_equals_autograd_row_by_row(device, shape, normalized):
    x, grad_out = 3 * torch.randn(shape) + 1, torch.randn(shape)
    expected = microbatch_grads(nn.LayerNorm(normalized), x, grad_out)
    got = ops.layer_norm_per_sample_grad(x.to(device), grad_out.to(device), normalized, 1e-5)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=2e-6, atol=2e-6)
    sq_norm = ops.layer_norm_sq_norm(x.to(device), grad_out.to(device), normalized)
    torch.testing.assert_close(
        sq_norm.cpu().double(), sum(g.square().flatten(1).sum(1) for g in expected), rtol=4e-6, atol=0
    )


@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_kernels_equal_the_float64_reference(device, rows, dtype):
    x, g = torch.randn(rows, 6, 9, dtype=dtype), torch.randn(rows, 6, 9, dtype=dtype)
    for name, extra in (("group_norm_per_sample_grad", (3, 1e-5)), ("layer_norm_per_sample_grad", (1e-5,))):
        got = getattr(kernels, name)(x.to(device), g.to(device), *extra)
        for a, b in zip(got, getattr(_reference, name)(x, g, *extra), strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a.cpu(), b, rtol=1e-6, atol=1e-6)


def test_bad_arguments_are_refused_by_name():
    x = torch.zeros(2, 6, 9)
    with pytest.raises(
        RuntimeError, match="group_norm_per_sample_grad: expected groups=4 to divide the channels, got 6"
    ):
        kernels.group_norm_per_sample_grad(x, x, 4, 1e-5)
    with pytest.raises(RuntimeError, match="expected g of the shape of x"):
        kernels.group_norm_per_sample_grad(x, torch.zeros(2, 6, 8), 2, 1e-5)
    with pytest.raises(RuntimeError, match="layer_norm_per_sample_grad: expected eps > 0, got 0"):
        kernels.layer_norm_per_sample_grad(x, x, 0.0)
