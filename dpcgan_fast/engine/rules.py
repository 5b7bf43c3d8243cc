"""Layer rules: how one use of a layer turns into per-sample gradients, their norms, and their clipped sum.

A rule knows three things about a layer's gradient: its per-sample form, its squared norm without that form where there
is a cheaper way, and its weighted sum over rows. `per_sample_fallback` serves every layer without a rule.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.fallback import per_sample_fallback
from dpcgan_fast.engine.recorder import LayerUse
from dpcgan_fast.engine.report import LayerReport
from dpcgan_fast.ops import ConvProblem, NormChoice, NormMode, UnitGroups

PerSample = dict[nn.Parameter, Tensor]  # parameter -> (B, *parameter.shape)


class LayerGradient(Protocol):
    """The gradient of one use of one layer with respect to its trainable parameters, row by row."""

    rule: str

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that the gradient is taken for."""
        ...

    def choose(self, asked: NormMode) -> NormChoice:
        """The norm mode to take, with the reason."""
        ...

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:
        """What `PrivateStep.last` says of it."""
        ...

    def per_sample(self) -> PerSample:
        """Per-sample gradients, (B, *parameter.shape) each."""
        ...

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:
        """Squared norms (U,) float64, for a mode that keeps no gradient."""
        ...

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """sum_n factor[n] G_n in float64 for each parameter; factor: (B,), one a row."""
        ...


@dataclass(eq=False)
class ConvGradient:
    """Conv1d, ConvTranspose1d and Linear; x and g in the roles of `ConvProblem`."""

    rule: str
    problem: ConvProblem
    x: Tensor
    g: Tensor
    weight: nn.Parameter
    bias: nn.Parameter | None

    def parameters(self) -> list[nn.Parameter]:
        """The weight and, where it is trainable, the bias."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def choose(self, asked: NormMode) -> NormChoice:
        """By the cost model, unless a mode was asked for."""
        return ops.pick_norm_mode(self.problem.sizes(self.x, self.g), asked)

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:
        """One report."""
        return (LayerReport(name, self.rule, choice.mode, choice.reason),)

    def _by_parameter(self, weight: Tensor, bias: Tensor, leading: tuple[int, ...]) -> dict[nn.Parameter, Tensor]:
        grads = {self.weight: weight.reshape(*leading, *self.weight.shape)}
        return grads if self.bias is None else {**grads, self.bias: bias}

    def per_sample(self) -> PerSample:
        """Per-sample gradients of the weight and, where it is trainable, the bias."""
        return self._by_parameter(*self.problem.per_sample_grad(self.x, self.g), leading=(self.x.shape[0],))

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:
        """Norms without per-sample gradients."""
        return self.problem.sq_norm(self.x, self.g, mode, units)

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """One contraction over rows and positions."""
        return self._by_parameter(*self.problem.weighted_grad(self.x, self.g, factor), leading=())


@dataclass(eq=False)
class MaterialisedGradient:
    """A gradient that exists row by row: small affine pairs, and layers without a rule."""

    rule: str
    reason: str
    grads: PerSample

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that there are gradients for."""
        return list(self.grads)

    def choose(self, asked: NormMode) -> NormChoice:  # noqa: ARG002  there is no other way
        """Always `materialise`."""
        return NormChoice("materialise", self.reason)

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:
        """One report."""
        return (LayerReport(name, self.rule, choice.mode, choice.reason),)

    def per_sample(self) -> PerSample:
        """The gradients as they are."""
        return self.grads

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:
        """Never asked for, since `choose` returns `materialise`."""
        raise AssertionError(f"sq_norm({mode}, {units}) of a materialised gradient")

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """Sum over rows in double."""
        return {parameter: ops.rows_weighted_sum(grad, factor) for parameter, grad in self.grads.items()}


def _explicit_padding(module: nn.Conv1d, x: Tensor) -> tuple[Tensor, int]:
    """x as the convolution sees it, and the zero padding that is left to the kernel."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, module.padding[0]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode), 0


def _bias_role(bias: nn.Parameter | None, role: int) -> int:
    return ops.BIAS_NONE if bias is None else role


def _conv1d(module: nn.Conv1d, x: Tensor, g: Tensor, bias: nn.Parameter | None) -> ConvGradient:
    x, padding = _explicit_padding(module, x)
    problem = ConvProblem(
        module.kernel_size[0],
        module.stride[0],
        padding,
        module.dilation[0],
        module.groups,
        _bias_role(bias, ops.BIAS_FROM_GRAD),
    )
    return ConvGradient("conv1d", problem, x, g, module.weight, bias)  # type: ignore[arg-type]


def _conv_transpose1d(module: nn.ConvTranspose1d, x: Tensor, g: Tensor, bias: nn.Parameter | None) -> ConvGradient:
    padding = module.padding[0]
    assert isinstance(padding, int)  # ConvTranspose1d takes no padding by name
    problem = ConvProblem(
        module.kernel_size[0],
        module.stride[0],
        padding,
        module.dilation[0],
        module.groups,
        _bias_role(bias, ops.BIAS_FROM_INPUT),
    )
    return ConvGradient("conv_transpose1d", problem, g, x, module.weight, bias)  # type: ignore[arg-type]


def _linear(module: nn.Linear, x: Tensor, g: Tensor, bias: nn.Parameter | None) -> ConvGradient:
    problem = ConvProblem(1, bias_role=_bias_role(bias, ops.BIAS_FROM_GRAD))
    return ConvGradient("linear", problem, ops.as_channels(x), ops.as_channels(g), module.weight, bias)  # type: ignore[arg-type]


_CONV_RULES: dict[type[nn.Module], Callable[..., ConvGradient]] = {
    nn.Conv1d: _conv1d,
    nn.ConvTranspose1d: _conv_transpose1d,
    nn.Linear: _linear,
}


def _affine_grads(module: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(module, nn.LayerNorm):
        return ops.layer_norm_per_sample_grad(x, g, module.normalized_shape, module.eps)
    assert isinstance(module, (nn.GroupNorm, nn.InstanceNorm1d))
    groups = module.num_groups if isinstance(module, nn.GroupNorm) else module.num_features
    return ops.group_norm_per_sample_grad(x, g, groups, module.eps)


_AFFINE_RULES: dict[type[nn.Module], str] = {
    nn.GroupNorm: "group_norm",
    nn.LayerNorm: "layer_norm",
    nn.InstanceNorm1d: "instance_norm1d",
}
_ROW_DIMENSIONS = {nn.Conv1d: 3, nn.ConvTranspose1d: 3}


def _operands(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """x and g in one type that holds the values of both exactly: the norm is that of what is summed.

    Kernels sum in double, also where they read bfloat16, and round no product of clip factor and gradient.
    """
    if x.dtype == g.dtype == torch.bfloat16 and ops.gpu_ops(x.device):
        return x, g
    dtype = torch.promote_types(torch.promote_types(x.dtype, g.dtype), torch.float32)
    return x.to(dtype), g.to(dtype)


def _has_rule(use: LayerUse) -> bool:
    module = use.module
    parameters = set(module._parameters)
    if not parameters <= {"weight", "bias"} or len(use.outputs) != 1 or len(use.args) != 1 or use.kwargs:
        return False
    if type(module) in _CONV_RULES:
        return use.args[0].dim() == _ROW_DIMENSIONS.get(type(module), use.args[0].dim())
    return type(module) in _AFFINE_RULES


def layer_gradient(use: LayerUse, grads: tuple[Tensor | None, ...], trainable: Any, rows: int) -> LayerGradient:
    """The gradient of one layer use, given the gradients of its outputs.

    use:       what the forward recorded
    grads:     one for each output, (B, ...) or None where the losses do not depend on it
    trainable: set of parameters that are trained

    Raises ValueError if the layer's leading dimension is not the rows, or if it has no rule and cannot be vectorised.
    """
    use.check_unchanged()
    module = use.module
    own: dict[str, nn.Parameter] = {name: p for name, p in module.named_parameters() if p in trainable}
    if _has_rule(use) and "weight" in own:
        x, g = _operands(use.args[0].detach(), grads[0])  # type: ignore[arg-type]
        check_rows(use, x, rows)
        if type(module) in _CONV_RULES:
            return _CONV_RULES[type(module)](module, x, g, own.get("bias"))
        weight_grad, bias_grad = _affine_grads(module, x, g)
        pair: dict[str, Tensor] = {"weight": weight_grad, "bias": bias_grad}
        reason = "an affine pair is no larger than one position of its input"
        return MaterialisedGradient(_AFFINE_RULES[type(module)], reason, {p: pair[name] for name, p in own.items()})
    per_sample = per_sample_fallback(use, grads, own, rows)
    reason = f"no rule for this use of {type(module).__name__}; per-sample gradients by vmap"
    return MaterialisedGradient("torch.func", reason, per_sample)


def check_rows(use: LayerUse, x: Tensor, rows: int) -> None:
    """Raises ValueError if the rows of the losses do not lead a layer's tensor; how many rows there are is private."""
    if x.shape[0] != rows:
        raise ValueError(
            f"Expected the input of module {use.name or '(root)'!r} to have the B rows of the losses as its leading "
            "dimension; otherwise its gradients cannot be told apart by row. Keep rows as the leading dimension "
            "throughout."
        )
