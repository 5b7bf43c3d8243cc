"""Per-sample gradients of the affine pair, or the one weight, of normalisation layers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dpcgan_fast.ops._backend import op
from dpcgan_fast.ops._conv import rows_sq_norm


def group_norm_per_sample_grad(x: Tensor, grad_out: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Per-sample gradients of GroupNorm's weight and bias. InstanceNorm is num_groups = channels.

    x, grad_out: (B, C, ...) float32 or float64, on a GPU also bfloat16
    out:         weight and bias, (B, C) each, in the dtype of x, or float32 for bfloat16

    Raises RuntimeError if the shapes differ, num_groups does not divide C, or eps is not positive.
    """
    return op("group_norm_per_sample_grad")(_flat_positions(x), _flat_positions(grad_out), num_groups, eps)


def layer_norm_per_sample_grad(
    x: Tensor, grad_out: Tensor, normalized_shape: Sequence[int], eps: float
) -> tuple[Tensor, Tensor]:
    """Per-sample gradients of LayerNorm's weight and bias.

    x, grad_out: (B, ..., *normalized_shape) float32 or float64, on a GPU also bfloat16
    out:         weight and bias, (B, *normalized_shape) each, in the dtype of x, or float32 for bfloat16

    Raises RuntimeError if the shapes differ or eps is not positive.
    """
    rows, features = x.shape[0], x.shape[x.dim() - len(normalized_shape) :].numel()
    positions = x.shape[1 : x.dim() - len(normalized_shape)].numel()
    flat = (rows, positions, features)
    weight, bias = op("layer_norm_per_sample_grad")(x.reshape(flat), grad_out.reshape(flat), eps)
    return weight.reshape(rows, *normalized_shape), bias.reshape(rows, *normalized_shape)


def rms_norm_per_sample_grad(x: Tensor, grad_out: Tensor, normalized_shape: Sequence[int], eps: float) -> Tensor:
    """Per-sample gradients of RMSNorm's weight.

    x, grad_out: (B, ..., *normalized_shape) float32 or float64
    out:         (B, *normalized_shape) in the dtype of x, summed in double
    """
    dims = tuple(range(x.dim() - len(normalized_shape), x.dim()))
    normalised = x * torch.rsqrt(x.square().mean(dims, keepdim=True) + eps)
    positions = x.shape[1 : x.dim() - len(normalized_shape)].numel()
    products = (normalised * grad_out).reshape(x.shape[0], positions, *normalized_shape)
    return products.sum(1, dtype=torch.float64).to(x.dtype)


def group_norm_sq_norm(x: Tensor, grad_out: Tensor, num_groups: int, eps: float = 1e-5) -> Tensor:
    """Squared L2 norm of each sample's gradient of GroupNorm's affine pair.

    x, grad_out: (B, C, ...) float32 or float64
    out:         (B,) in the dtype of x, in squared gradient units
    """
    return rows_sq_norm(group_norm_per_sample_grad(x, grad_out, num_groups, eps)).to(x.dtype)


def layer_norm_sq_norm(x: Tensor, grad_out: Tensor, normalized_shape: Sequence[int], eps: float = 1e-5) -> Tensor:
    """Squared L2 norm of each sample's gradient of LayerNorm's affine pair.

    x, grad_out: (B, ..., *normalized_shape) float32 or float64
    out:         (B,) in the dtype of x, in squared gradient units
    """
    return rows_sq_norm(layer_norm_per_sample_grad(x, grad_out, normalized_shape, eps)).to(x.dtype)


def _flat_positions(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], x.shape[2:].numel())  # (B, C, ...) -> (B, C, S)
