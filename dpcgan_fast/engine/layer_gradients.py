"""What the engine asks of the gradient of one use of a layer, and the form that serves every layer.

A layer's gradient knows three things: its per-sample form, its squared norm without that form where there is a cheaper
way, and its weighted sum over rows.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.report import LayerReport
from dpcgan_fast.ops import NormChoice, NormMode, UnitGroups

PerSample = dict[nn.Parameter, Tensor]  # parameter -> (B, *parameter.shape)


class LayerGradient(Protocol):
    """The gradient of one use of one layer with respect to its trainable parameters, row by row."""

    rule: str

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters that the gradient is taken for."""
        ...

    def choose(self, asked: NormMode, grouped: bool = False) -> NormChoice:
        """The norm mode to take, with the reason. grouped: whether rows are grouped into units."""
        ...

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:
        """What `PrivateStep.last` says of it."""
        ...

    def per_sample(self) -> PerSample:
        """Per-sample gradients, (B, *parameter.shape) each."""
        ...

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:
        """Squared norms (U,) float64; mode: as `choose` gave it."""
        ...

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """sum_n factor[n] G_n in float64 for each parameter; factor: (B,), one a row."""
        ...


@dataclass(eq=False)
class MaterialisedGradient:
    """A gradient that exists row by row: of small affine pairs, most convolutions of images, layers without a rule.

    row_sq_norm: (B,) float64, the squared norms of the rows over all of `grads`, where they were taken on the way
    lent:        whether `grads` were formed for one sum alone, and their memory is given back after it
    """

    rule: str
    reason: str
    grads: PerSample
    row_sq_norm: Tensor | None = None
    lent: bool = False

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that there are gradients for."""
        return list(self.grads)

    def choose(self, asked: NormMode, grouped: bool = False) -> NormChoice:  # noqa: ARG002  there is no other way
        """Always `materialise`."""
        return NormChoice("materialise", self.reason)

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:
        """One report."""
        return (LayerReport(name, self.rule, choice.mode, choice.reason),)

    def per_sample(self) -> PerSample:
        """The gradients as they are."""
        return self.grads

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:  # noqa: ARG002  there is no other way
        """Squared norms, (U,) float64, as they were taken on the way or of the gradients."""
        if units is None and self.row_sq_norm is not None:
            return self.row_sq_norm
        return ops.rows_sq_norm(list(self.grads.values()), units)

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """Sum over rows in double."""
        return {parameter: ops.rows_weighted_sum(grad, factor) for parameter, grad in self.grads.items()}


def operands(x: Tensor, g: Tensor, by_kernels: bool = True) -> tuple[Tensor, Tensor]:
    """x and g in one type that holds the values of both exactly: the norm is that of what is summed.

    by_kernels: whether only this project's ops read them. Kernels sum in double, also where they read bfloat16, and
                round no product of clip factor and gradient; torch would store gradients in bfloat16
    """
    if x.dtype == g.dtype == torch.float32:
        return x, g
    if by_kernels and x.dtype == g.dtype == torch.bfloat16 and ops.gpu_ops(x.device):
        return x, g
    dtype = torch.promote_types(torch.promote_types(x.dtype, g.dtype), torch.float32)
    return x.to(dtype), g.to(dtype)
