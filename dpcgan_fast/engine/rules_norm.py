"""Layer rules of normalisation layers: their affine pair, or one weight, is small, so its gradients are kept."""

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient, operands
from dpcgan_fast.engine.recorder import LayerUse

_WHY = "affine parameters are no larger than one position of the input"
_INSTANCE_NORMS = {nn.InstanceNorm1d: ("instance_norm1d", 3), nn.InstanceNorm2d: ("instance_norm2d", 4),
                   nn.InstanceNorm3d: ("instance_norm3d", 5)}  # fmt: skip


def _materialised(rule: str, own: dict[str, nn.Parameter], *grads: Tensor) -> LayerGradient:
    pair: dict[str, Tensor] = dict(zip(("weight", "bias"), grads, strict=False))
    return MaterialisedGradient(rule, _WHY, {parameter: pair[name] for name, parameter in own.items()})


def group_norm(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient:
    """GroupNorm in any number of dimensions."""
    module, (x, g) = use.module, operands(use.args[0].detach(), grad_out)
    assert isinstance(module, nn.GroupNorm)
    return _materialised("group_norm", own, *ops.group_norm_per_sample_grad(x, g, module.num_groups, module.eps))


def instance_norm(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient | None:
    """InstanceNorm1d, 2d and 3d; not without a dimension of rows, which torch takes as well."""
    module = use.module
    rule, dimensions = _INSTANCE_NORMS[type(module)]  # type: ignore[index]
    if use.args[0].dim() != dimensions:
        return None
    x, g = operands(use.args[0].detach(), grad_out)
    return _materialised(rule, own, *ops.group_norm_per_sample_grad(x, g, module.num_features, module.eps))  # type: ignore[arg-type]


def layer_norm(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient:
    """LayerNorm."""
    module, (x, g) = use.module, operands(use.args[0].detach(), grad_out)
    assert isinstance(module, nn.LayerNorm)
    return _materialised("layer_norm", own, *ops.layer_norm_per_sample_grad(x, g, module.normalized_shape, module.eps))


def rms_norm(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient:
    """RMSNorm, which has no bias."""
    module, (x, g) = use.module, operands(use.args[0].detach(), grad_out, by_kernels=False)
    assert isinstance(module, nn.RMSNorm)
    eps = module.eps if module.eps is not None else torch.finfo(use.args[0].dtype).eps
    return _materialised("rms_norm", own, ops.rms_norm_per_sample_grad(x, g, module.normalized_shape, eps))
