"""Fake (meta) kernels: the shapes and dtypes of the ops' results, so that torch.compile and export can trace them."""

# Arguments are those of the schemas in csrc/registration.cpp, and opcheck runs each function:
# pyright: basic
import math

import torch
from torch import Tensor

from dpcgan_fast.ops._fused import fused_output, fused_parameters


def _bias_numel(x: Tensor, g: Tensor, bias_role: int) -> int:
    return (0, g.shape[1], x.shape[1])[bias_role]


def _unit_count(rows: Tensor, unit_offsets: Tensor | None) -> int:
    return rows.shape[0] if unit_offsets is None else unit_offsets.shape[0] - 1


def register() -> None:
    """Registers the fake kernel of every op. Call once, after the native extension is loaded."""
    register_fake = torch.library.register_fake

    @register_fake("dpcgan_fast::conv_sq_norm")
    def _(x, g, kernel_size, stride, padding, dilation, groups, bias_role, mode, row_order=None, unit_offsets=None):  # noqa: ARG001
        units = _unit_count(x, unit_offsets)
        return x.new_empty(units, dtype=torch.float64)

    @register_fake("dpcgan_fast::conv_per_sample_grad")
    def _(x, g, kernel_size, stride, padding, dilation, groups, bias_role):  # noqa: ARG001
        dtype = torch.promote_types(x.dtype, torch.float32)
        weight = x.new_empty(x.shape[0], g.shape[1], x.shape[1] // groups, kernel_size, dtype=dtype)
        return weight, x.new_empty(x.shape[0], _bias_numel(x, g, bias_role), dtype=dtype)

    @register_fake("dpcgan_fast::window_per_sample_grad_")
    def _(out, sq_norm, bias, x, g, kernel_size, stride, padding, dilation, groups):  # noqa: ARG001
        return None

    @register_fake("dpcgan_fast::windows_clipped_sum")
    def _(x, g, geometry, others_sq_norm, max_grad_norm, scale):  # noqa: ARG001
        weights, biases, left = [], [], list(geometry)
        for inputs, grads in zip(x, g, strict=True):
            dimensions = inputs.dim() - 2
            own, left = left[: 4 * dimensions + 2], left[4 * dimensions + 2 :]
            sizes = grads.shape[1], inputs.shape[1] // own[-2], math.prod(own[:dimensions])
            weights.append(inputs.new_empty(*sizes, dtype=torch.float64))
            biases.append(inputs.new_empty(grads.shape[1] if own[-1] else 0, dtype=torch.float64))
        return torch.empty_like(others_sq_norm), weights, biases

    @register_fake("dpcgan_fast::fused_infer")
    def _(x, parameters, layers, numbers, lanes):  # noqa: ARG001
        return x.new_empty(x.shape[0], *fused_output(layers, x.shape[1], x.shape[2]))

    @register_fake("dpcgan_fast::fused_draw")
    def _(x, parameters, layers, numbers, lanes, prior, classes, uniform, last_cells):  # noqa: ARG001
        return torch.empty_like(uniform)

    @register_fake("dpcgan_fast::uniform_")
    def _(out, key):  # noqa: ARG001
        return None

    @register_fake("dpcgan_fast::gather_rows")
    def _(out, rows, dense, starts, positions, first_code):  # noqa: ARG001
        return None

    @register_fake("dpcgan_fast::conv_weighted_grad")
    def _(x, g, factor, kernel_size, stride, padding, dilation, groups, bias_role):  # noqa: ARG001
        weight = x.new_empty(g.shape[1], x.shape[1] // groups, kernel_size, dtype=torch.float64)
        return weight, x.new_empty(_bias_numel(x, g, bias_role), dtype=torch.float64)

    @register_fake("dpcgan_fast::group_norm_per_sample_grad")
    def _(x, g, groups, eps):  # noqa: ARG001
        size, dtype = (x.shape[0], x.shape[1]), torch.promote_types(x.dtype, torch.float32)
        return x.new_empty(size, dtype=dtype), x.new_empty(size, dtype=dtype)

    @register_fake("dpcgan_fast::layer_norm_per_sample_grad")
    def _(x, g, eps):  # noqa: ARG001
        size, dtype = (x.shape[0], x.shape[2]), torch.promote_types(x.dtype, torch.float32)
        return x.new_empty(size, dtype=dtype), x.new_empty(size, dtype=dtype)

    @register_fake("dpcgan_fast::rows_sq_norm")
    def _(grads, row_order=None, unit_offsets=None):  # noqa: ARG001
        return grads[0].new_empty(_unit_count(grads[0], unit_offsets), dtype=torch.float64)

    @register_fake("dpcgan_fast::rows_weighted_sum")
    def _(grad, factor):  # noqa: ARG001
        return grad.new_empty(grad.shape[1:], dtype=torch.float64)

    @register_fake("dpcgan_fast::clip_factor")
    def _(sq_norm, max_grad_norm, valid=None):  # noqa: ARG001
        return torch.empty_like(sq_norm)

    @register_fake("dpcgan_fast::step_clip_factor")
    def _(x, g, geometry, grads, max_grad_norm, row_order=None, unit_offsets=None, valid=None):  # noqa: ARG001
        like = x[0] if x else grads[0]
        units = _unit_count(like, unit_offsets)
        return like.new_empty(units, dtype=torch.float64), like.new_empty(units, dtype=torch.float64)

    @register_fake("dpcgan_fast::step_weighted_sum_")
    def _(x, g, geometry, grads, factor, weights, biases, sums):  # noqa: ARG001
        return None

    @register_fake("dpcgan_fast::fused_forward")
    def _(x, parameters, layers, numbers, lanes, workspace):  # noqa: ARG001
        return x.new_empty(x.shape[0], *fused_output(layers, x.shape[1], x.shape[2]))

    @register_fake("dpcgan_fast::fused_sq_norm")
    def _(grad_out, layers, numbers, lanes, channels, length, measure, input_grad, workspace):  # noqa: ARG001
        rows = grad_out.shape[0]
        grad_in = grad_out.new_empty(rows if input_grad else 0, channels, length)
        return grad_out.new_empty(rows, dtype=torch.float64), grad_out.new_empty(rows, dtype=torch.bool), grad_in

    @register_fake("dpcgan_fast::fused_clipped_sum")
    def _(grad_out, factor, max_grad_norm, layers, numbers, lanes, channels, length, workspace):  # noqa: ARG001
        rows, total = grad_out.shape[0], fused_parameters(layers, channels)
        doubles = grad_out.new_empty(rows + total, dtype=torch.float64)
        return doubles.new_empty(total), doubles.new_empty(rows), grad_out.new_empty(rows, dtype=torch.bool)

    @register_fake("dpcgan_fast::gaussian_noise_")
    def _(tensors, std, key, counter):  # noqa: ARG001
        return None

    @register_fake("dpcgan_fast::noisy_update_")
    def _(*_arguments):
        return None

    @register_fake("dpcgan_fast::noisy_update_armed_")
    def _(parameters, first, second, sums, public_sums, std, control, optimizer, clamps=()):  # noqa: ARG001
        return None
