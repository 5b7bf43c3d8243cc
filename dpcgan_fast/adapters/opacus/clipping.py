"""Clips the rows of a batch and adds them up: over all parameters together, or each parameter by itself."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.adapters.opacus.boundary import Batch
from dpcgan_fast.engine.clipped_sum import GradientSum, add_clipped_sum, add_to, merge_shared
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient
from dpcgan_fast.engine.norm_picker import NormPicker
from dpcgan_fast.engine.report import StepReport
from dpcgan_fast.engine.rules_conv import ConvGradient
from dpcgan_fast.engine.settings import LEAST_NORM


def _bound(max_grad_norm: float, batch: Batch) -> float:
    """The clipping norm in units of the loss that was given: a row's own gradient is `scale` times as large."""
    bound = float(max_grad_norm) / batch.scale
    if not bound >= LEAST_NORM:
        raise ValueError(
            f"Expected max_grad_norm={float(max_grad_norm)} >= {LEAST_NORM} times the number of rows of a mean loss."
        )
    return bound


def add_flat(
    batch: Batch, max_grad_norm: float, pick: NormPicker, total: GradientSum
) -> tuple[StepReport, Callable[[], Tensor]]:
    """Adds the rows of a batch, each clipped to max_grad_norm over all parameters together, to `total`.

    Returns which path was taken, and a function that gives the clip factors, (B,).
    """
    batch.check_parameters()
    bound = _bound(max_grad_norm, batch)
    with ops.same_backend():
        named = batch.recorded.gradients(batch.reached, batch.rows, units=False)
        clipped = add_clipped_sum(named, bound, None, pick, total, scale=batch.scale)
        return batch.recorded.report(clipped.layers, {}), clipped.factor


def _by_parameter(gradient: LayerGradient) -> list[LayerGradient]:
    """A layer's gradient as gradients of one parameter each."""
    if isinstance(gradient, ConvGradient):
        if gradient.bias is None:
            return [gradient]
        from_grad = gradient.problem.bias_role == ops.BIAS_FROM_GRAD
        source = gradient.g if from_grad else gradient.x
        weight = replace(gradient, problem=replace(gradient.problem, bias_role=ops.BIAS_NONE), bias=None)
        bias = {gradient.bias: ops.sum_positions(source)}
        return [weight, MaterialisedGradient(gradient.rule, "a bias is small", bias)]
    grads = gradient.per_sample()
    return [
        MaterialisedGradient(gradient.rule, "each parameter is clipped by itself", {p: g}) for p, g in grads.items()
    ]


def add_per_parameter(
    batch: Batch, bounds: dict[nn.Parameter, float], pick: NormPicker, total: GradientSum
) -> StepReport:
    """Adds the rows of a batch, each parameter's gradient clipped to a bound of its own, to `total`."""
    batch.check_parameters()
    layers = ()
    own: GradientSum = {}
    for name, gradient in merge_shared(batch.recorded.gradients(batch.reached, batch.rows, units=False)):
        for part in _by_parameter(gradient):
            (parameter,) = part.parameters()
            bound = _bound(bounds[parameter], batch)
            layers += add_clipped_sum([(name, part)], bound, None, pick, own, scale=batch.scale).layers
    add_to(total, own)
    return batch.recorded.report(layers, {})
