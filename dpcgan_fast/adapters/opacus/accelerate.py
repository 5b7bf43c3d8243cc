"""Opacus's own GradSampleModule and DPOptimizer with our kernels, for code that keeps Opacus's classes."""

# Opacus has no type stubs, and leaves much of what it has without types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Callable
from typing import Any

from opacus.grad_sample import GradSampleHooks
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient
from opacus.optimizers import DPOptimizer
from opacus.optimizers.optimizer import _check_processed_flag, _mark_as_processed  # pyright: ignore
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.recorder import LayerUse
from dpcgan_fast.engine.rules import gradient_by_rule, ruled_layers

Sampler = Callable[[nn.Module, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]


def accelerate() -> Callable[[], None]:
    """Gives Opacus's grad samplers for layers that have a rule here, and its flat clipping, our kernels.

    Holds for the process, for modules that are wrapped before or after. Per-sample gradients are formed as before, so
    memory stays that of Opacus; `dpcgan_fast.adapters.opacus.PrivacyEngine` does without them.

    Returns a function that takes it back.
    """
    samplers, before = GradSampleHooks.GRAD_SAMPLERS, dict(GradSampleHooks.GRAD_SAMPLERS)
    clip_before = DPOptimizer.clip_and_accumulate
    for kind in ruled_layers():
        samplers[kind] = _sampler(before.get(kind))
    DPOptimizer.clip_and_accumulate = _clip_and_accumulate  # type: ignore[method-assign]

    def undo() -> None:
        samplers.clear()
        samplers.update(before)
        DPOptimizer.clip_and_accumulate = clip_before  # type: ignore[method-assign]

    return undo


def _sampler(otherwise: Sampler | None) -> Sampler:
    """A grad sampler by our rule, or Opacus's own where that has none for a use."""

    def per_sample(module: nn.Module, activations: list[Tensor], backprops: Tensor) -> dict[nn.Parameter, Tensor]:
        own = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not own:
            return {}
        args = tuple(activations)
        use = LayerUse("", module, args, {}, (None,), (), tuple(x._version for x in args))
        gradient = gradient_by_rule(use, (backprops,), own, backprops.shape[0])
        if gradient is not None:
            return {
                parameter: grad.to(parameter.dtype).contiguous() for parameter, grad in gradient.per_sample().items()
            }
        if otherwise is None:
            return ft_compute_per_sample_gradient(module, activations, backprops)
        return otherwise(module, activations, backprops)

    return per_sample


def _clip_and_accumulate(self: Any) -> None:
    """In place of DPOptimizer's: clips and adds up in double, in one pass over the per-sample gradients."""
    grads = [grad.contiguous() for grad in self.grad_samples]
    sums, _ = ops.clip_and_sum(grads, float(self.max_grad_norm))
    for parameter, total in zip(self.params, sums, strict=True):
        _check_processed_flag(parameter.grad_sample)
        grad = total.to(parameter.dtype)
        parameter.summed_grad = grad if parameter.summed_grad is None else parameter.summed_grad + grad
        _mark_as_processed(parameter.grad_sample)
