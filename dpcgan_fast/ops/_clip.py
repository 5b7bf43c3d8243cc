"""Clip and sum of materialised per-sample gradients."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dpcgan_fast.ops._backend import op
from dpcgan_fast.ops._conv import clip_factor, rows_sq_norm
from dpcgan_fast.ops._units import group_units


def rows_weighted_sum(grad: Tensor, factor: Tensor) -> Tensor:
    """sum_n factor[n] grad[n] in float64; rows of factor 0 are not read. grad: (B, ...), factor: (B,) float64."""
    return op("rows_weighted_sum")(grad, factor)


def clip_and_sum(
    per_sample_grads: Sequence[Tensor],
    max_grad_norm: float,
    units: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Sums per-sample gradients, each unit's clipped over all tensors together.

    per_sample_grads: tensors (B, *param_shape), float32 or float64, one a parameter
    max_grad_norm:    in gradient units, > 0
    units:            (B,) int64 or None; rows with one id add before the norm is taken
    dtype:            of the results; that of the gradients by default. float64 leaves sums as they were added up, for
                      sums over several batches
    out:              sums (*param_shape), and norms before clipping: (B,) in row order, or (U,) in ascending order of
                      unit id

    Formal guarantees: removing one unit moves the joint sum by at most max_grad_norm in L2, up to the rounding of the
    sum to its dtype; a unit whose gradient is not finite contributes exactly zero.
    Raises ValueError for an empty list, for `units` of another shape, or if max_grad_norm is not positive.
    Source: arXiv 1607.00133, algorithm 1.
    """
    grads = list(per_sample_grads)
    if not grads:
        raise ValueError("Expected at least one per-sample gradient, got an empty list.")
    if not max_grad_norm > 0 or math.isnan(max_grad_norm):
        raise ValueError(f"Expected max_grad_norm > 0, got {max_grad_norm}.")
    groups = None if units is None else group_units(units, grads[0].shape[0])
    sq_norm = rows_sq_norm(grads, groups)
    factor = clip_factor(sq_norm, max_grad_norm)
    row_factor = factor if groups is None else factor[groups.unit_of_row]
    sums = [rows_weighted_sum(grad, row_factor).to(dtype or grad.dtype) for grad in grads]
    norms = sq_norm.sqrt().to(dtype or grads[0].dtype)
    return sums, norms
