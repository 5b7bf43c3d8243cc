"""Layer rules of convolutions and linear layers.

In one dimension a row's norm can be had without its gradient in several ways; in two and three its gradient is one
product of its output gradient and the windows of its input.
"""

from dataclasses import dataclass
from functools import cached_property

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dpcgan_fast import ops
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient, PerSample, operands
from dpcgan_fast.engine.recorder import LayerUse
from dpcgan_fast.engine.report import LayerReport
from dpcgan_fast.ops import ConvProblem, NormChoice, NormMode, NormProblem, UnitGroups, WindowLayer, WindowProblem

_KEPT = 2**18  # weights, 1 MiB a row
_CACHED = 2**20  # likewise, while a row is formed and clipped
_IMAGES = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


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

    def choose(self, asked: NormMode, grouped: bool = False) -> NormChoice:  # noqa: ARG002
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
        by_library = ops.gpu_ops(self.x.device) and ops.backend() == "native"
        form = self.problem.library_grad if by_library else self.problem.per_sample_grad
        return self._by_parameter(*form(self.x, self.g), leading=(self.x.shape[0],))

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:
        """Norms without per-sample gradients."""
        return self.problem.sq_norm(self.x, self.g, mode, units)

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """One contraction over rows and positions."""
        return self._by_parameter(*self.problem.weighted_grad(self.x, self.g, factor), leading=())

    def weighted_by_products(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """`weighted` by products of a GPU's library in double."""
        return self._by_parameter(*self.problem.weighted_products(self.x, self.g, factor), leading=())


@dataclass(eq=False)
class WindowGradient:
    """Convolutions in two and three dimensions; x and g in the roles of `WindowProblem`.

    transposed: the bias belongs to x, the gradient of the output, and not to g
    """

    rule: str
    problem: WindowProblem
    x: Tensor
    g: Tensor
    transposed: bool
    weight: nn.Parameter
    bias: nn.Parameter | None

    def parameters(self) -> list[nn.Parameter]:
        """The weight and, where it is trainable, the bias."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def choose(self, asked: NormMode, grouped: bool = False) -> NormChoice:
        """Gradients of a moderate size are kept, others go by the cost model, unless a mode was asked for."""
        if asked == "auto" and self.in_registers and not grouped and self.weight.numel() <= _CACHED:
            return NormChoice("direct", "a row's gradients stay in the cache until it is clipped")
        if asked == "auto" and self.weight.numel() <= _KEPT:
            return NormChoice("materialise", "one product in single precision a row, and few enough weights to keep")
        groups, positions = self.problem.groups, self.g.shape[2:].numel()
        taps, outputs = self.problem.taps(self.x), self.g.shape[1] // groups
        return ops.pick_norm_mode(NormProblem(taps, positions, outputs, positions, 1, 1, 1), asked)

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:
        """One report."""
        return (LayerReport(name, self.rule, choice.mode, choice.reason),)

    def per_sample(self) -> PerSample:
        """Per-sample gradients of the weight and, where it is trainable, the bias."""
        return {self.weight: self.problem.formed(self.x, self.g).weight, **self._bias_rows}

    def materialised(self, reason: str) -> MaterialisedGradient:
        """The gradient row by row, measured where that costs nothing beside it."""
        formed = self.problem.formed(self.x, self.g, bias=self.bias is not None and not self.transposed)
        sq_norm = formed.sq_norm
        if formed.bias is not None and self.bias is not None:
            bias = {self.bias: formed.bias}
        else:
            bias = self._bias_rows
            if bias and sq_norm is not None:
                sq_norm = sq_norm + ops.rows_sq_norm(list(bias.values()))
        return MaterialisedGradient(self.rule, reason, {self.weight: formed.weight, **bias}, sq_norm, lent=True)

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:
        """Norms without per-sample gradients of the weight, in double."""
        sq_norm = self.problem.sq_norm(self.x, self.g, mode, units)
        bias = list(self._bias_rows.values())
        return sq_norm + ops.rows_sq_norm(bias, units) if bias else sq_norm

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """One contraction over rows and positions, in double."""
        bias = {parameter: ops.rows_weighted_sum(grad, factor) for parameter, grad in self._bias_rows.items()}
        return {self.weight: self.problem.weighted_grad(self.x, self.g, factor), **bias}

    @property
    def in_registers(self) -> bool:
        """Whether `ops.windows_clipped_sum` takes the weight's gradient, as `window_layer` has it."""
        return self.problem.in_registers(self.x)

    @property
    def window_layer(self) -> WindowLayer:
        """The layer with the bias whose gradient is formed beside the weight's, if there is one."""
        return WindowLayer(self.problem, self.x, self.g, self.bias is not None and not self.transposed)

    @property
    def bias_beside(self) -> PerSample:
        """Per-sample gradients of a bias that `window_layer` leaves out."""
        return self._bias_rows if self.transposed else {}

    @cached_property
    def _bias_rows(self) -> PerSample:
        """Per-sample gradients of the bias, (B, channels), where it is trained."""
        return {} if self.bias is None else {self.bias: ops.sum_positions(self.x if self.transposed else self.g)}


def kept_early(module: nn.Module, row: int) -> bool:
    """Whether a layer's gradients, row by row, take less memory than those of its output, which are let go in return.

    row: elements of a row of the output
    """
    if not isinstance(module, _IMAGES):
        return False
    # Not by `module.weight`: to ask a parametrized one is to form it anew, which may move its buffers.
    return sum(parameter.numel() for parameter in module.parameters()) <= min(_KEPT, row)


def formed_early(gradient: LayerGradient) -> LayerGradient:
    """The gradient of such a layer row by row; as it is where that is no way to form it."""
    if not isinstance(gradient, WindowGradient) or not gradient.in_registers:
        return gradient
    return gradient.materialised("smaller than the gradient of the output, which is let go")


def _explicit_padding(module: _ConvNd, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """x as the convolution sees it, and the zero padding that is left to the kernel."""
    if module.padding_mode == "zeros" and not isinstance(module.padding, str):
        return x, module.padding  # type: ignore[return-value]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0,) * len(module.kernel_size)


def _bias_alone(rule: str, g: Tensor, bias: nn.Parameter) -> MaterialisedGradient:
    """Where the weight is frozen; g: (B, channels, ...)."""
    return MaterialisedGradient(rule, "only the bias is trained, which is small", {bias: ops.sum_positions(g)})


def convolution(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient | None:
    """Conv1d, 2d, 3d and their transposed forms; not without a dimension of rows, which torch takes as well."""
    module, x = use.module, use.args[0].detach()
    assert isinstance(module, _ConvNd)
    dimensions = len(module.kernel_size)
    if x.dim() != dimensions + 2:
        return None
    transposed = isinstance(module, _ConvTransposeNd)
    rule, bias = f"conv_transpose{dimensions}d" if transposed else f"conv{dimensions}d", own.get("bias")
    x, g = operands(x, grad_out, by_kernels=dimensions == 1 and "weight" in own)
    if "weight" not in own:
        return _bias_alone(rule, g, own["bias"])
    x, padding = _explicit_padding(module, x)
    role = ops.BIAS_NONE if bias is None else ops.BIAS_FROM_INPUT if transposed else ops.BIAS_FROM_GRAD
    if transposed:
        x, g = g, x  # the weight's gradient is that of a convolution that takes the output's gradient
    weight = own["weight"]
    if dimensions == 1:
        problem = ConvProblem(
            module.kernel_size[0], module.stride[0], padding[0], module.dilation[0], module.groups, role
        )
        return ConvGradient(rule, problem, x, g, weight, bias)
    windows = WindowProblem(module.kernel_size, module.stride, padding, module.dilation, module.groups)
    return WindowGradient(rule, windows, x, g, transposed, weight, bias)


def linear(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient:
    """Linear, on rows (B, I) and on sequences (B, ..., I)."""
    sides = operands(use.args[0].detach(), grad_out, by_kernels="weight" in own)
    x, g = (ops.as_channels(side) for side in sides)
    bias = own.get("bias")
    if "weight" not in own:
        return _bias_alone("linear", g, own["bias"])
    problem = ConvProblem(1, bias_role=ops.BIAS_NONE if bias is None else ops.BIAS_FROM_GRAD)
    return ConvGradient("linear", problem, x, g, own["weight"], bias)
