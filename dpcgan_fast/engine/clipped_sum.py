"""Clips the per-unit gradients of one batch over all layers together, and adds them up."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.fused import FusedGradient
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient
from dpcgan_fast.engine.norm_picker import NormPicker
from dpcgan_fast.engine.report import LayerReport
from dpcgan_fast.engine.rules_conv import ConvGradient, WindowGradient
from dpcgan_fast.ops import LayerNorms, NormChoice, NormMode, UnitGroups

GradientSum = dict[nn.Parameter, Tensor]  # parameter -> float64 sum of clipped gradients

_MOST_CACHED = 2**21  # weights of all layers whose gradients of a row wait: 8 MiB, and 16 of sums, for each thread


@dataclass(frozen=True)
class Clipped:
    """How a batch was clipped.

    layers: a report for each layer
    factor: gives the clip factors, (U,) float64
    """

    layers: tuple[LayerReport, ...]
    factor: Callable[[], Tensor]


def _joined(named: Sequence[tuple[str, LayerGradient]]) -> list[tuple[str, LayerGradient]]:
    """Uses of one linear layer as one use with the positions of all: as a recurrent net has, a use a time step."""
    of_layer: dict[tuple[nn.Parameter, ...], list[ConvGradient]] = {}
    for _, gradient in named:
        if isinstance(gradient, ConvGradient) and gradient.rule == "linear":
            of_layer.setdefault(tuple(gradient.parameters()), []).append(gradient)
    joined: list[tuple[str, LayerGradient]] = []
    for name, gradient in named:
        uses = of_layer.get(tuple(gradient.parameters()), [])
        if len(uses) < 2 or not isinstance(gradient, ConvGradient):
            joined.append((name, gradient))
        elif gradient is uses[0]:
            x, g = (torch.cat([getattr(use, side) for use in uses], dim=2) for side in ("x", "g"))
            joined.append((name, replace(gradient, x=x, g=g)))
    return joined


def merge_shared(named: Sequence[tuple[str, LayerGradient]]) -> list[tuple[str, LayerGradient]]:
    """Uses that share a parameter, merged: their per-sample gradients add before the norm is taken.

    Squared norms of the uses must not be added one by one: that would leave out the cross terms.
    """
    every = [id(parameter) for _, gradient in named for parameter in gradient.parameters()]
    if len(set(every)) == len(every):
        return list(named)
    named = _joined(named)
    uses = Counter(p for _, gradient in named for p in gradient.parameters())
    alone, shared = [], []
    for name, gradient in named:
        (shared if any(uses[p] > 1 for p in gradient.parameters()) else alone).append((name, gradient))
    if not shared:
        return alone
    total: dict[nn.Parameter, Tensor] = {}
    for _, gradient in shared:
        for parameter, grad in gradient.per_sample().items():
            total[parameter] = grad if parameter not in total else total[parameter] + grad
    names = ", ".join(dict.fromkeys(name or "(root)" for name, _ in shared))
    merged = MaterialisedGradient("shared", "parameters used more than once; their uses add before the norm", total)
    return [*alone, (names, merged)]


def add_clipped_sum(
    named: Sequence[tuple[str, LayerGradient]],
    max_grad_norm: float,
    units: UnitGroups | None,
    pick: NormPicker,
    total: GradientSum,
    valid: Tensor | None = None,
    scale: int = 1,
) -> Clipped:
    """Adds the sum over units of scale min(1, max_grad_norm / norm_u) G_u to `total`, in float64.

    named: (layer name, gradient) pairs of one batch
    units: rows of one unit add before the norm; None if every row is a unit
    pick:  the norm mode of each layer
    valid: () int64 on the device: units from this number on add exactly zero; None: all count
    scale: of losses that were divided by their number, what they were divided by

    Formal guarantees: the norm is over all layers together; a unit whose gradient is not finite adds exactly zero;
    removing a unit moves the sum by at most scale max_grad_norm (1 + 1e-6).
    Source: arXiv 1607.00133, algorithm 1; book-keeping of output gradients, arXiv 2210.00038.
    """
    named = merge_shared(named)
    name, only = named[0] if len(named) == 1 else ("", None)
    if isinstance(only, FusedGradient) and valid is None:
        sums, sq_norm = only.clipped_sum(max_grad_norm)
        if scale != 1:
            torch._foreach_mul_(list(sums.values()), scale)  # pyright: ignore[reportPrivateImportUsage]
        add_to(total, sums)
        return Clipped(only.reports(name, pick(only, False)), lambda: ops.clip_factor(sq_norm, max_grad_norm))
    cached = units is None and valid is None
    gradients: list[tuple[LayerGradient, NormMode]] = []
    reports: list[LayerReport] = []
    lent: list[Tensor] = []
    room = _MOST_CACHED if cached and pick.chooses else math.inf
    for name, gradient in named:
        choice = pick(gradient, units is not None)
        if choice.mode == "direct" and isinstance(gradient, WindowGradient) and gradient.in_registers:
            room -= gradient.weight.numel()
            if room < 0:
                choice = NormChoice("materialise", "gradients of other layers fill the cache")
        reports += gradient.reports(name, choice)
        if choice.mode == "materialise":
            gradient = _form(gradient, choice.reason)
            if gradient.lent:
                lent += gradient.grads.values()
        gradients.append((gradient, choice.mode))
    if not gradients:
        return Clipped((), lambda: torch.ones(0, dtype=torch.float64))
    step = _WholeStep.of(gradients, pick.chooses and units is None and ops.backend() == "native")
    if step is None:
        windows = _OneVisit.of(gradients) if cached else None
        if windows is None:
            factor, sums = _by_layer(gradients, max_grad_norm, units, valid, scale)
        else:
            factor, sums = windows.clipped_sums(max_grad_norm, scale)
        for layer_sum in sums:  # all or none: after an error the same rows may be given again
            add_to(total, layer_sum)
    else:
        factor = step.clip_factor(max_grad_norm, units, valid)
        step.add_weighted_sum(_of_rows(factor, units, scale), total)
    ops.give_back(lent)
    return Clipped(tuple(reports), lambda: factor)


def _of_rows(factor: Tensor, units: UnitGroups | None, scale: int) -> Tensor:
    """What each row's gradient is multiplied by, (B,), from the factors of units."""
    scaled = factor if scale == 1 else factor * scale
    return scaled if units is None else scaled[units.unit_of_row]


def _by_layer(
    gradients: Sequence[tuple[LayerGradient, NormMode]], max_grad_norm: float, units: UnitGroups | None,
    valid: Tensor | None, scale: int,
) -> tuple[Tensor, list[GradientSum]]:  # fmt: skip
    """Clip factors (U,), and the clipped sums of each layer: norms of all layers first, then their sums."""
    norms = [gradient.sq_norm(mode, units) for gradient, mode in gradients]
    factor = ops.clip_factor(reduce(Tensor.add, norms), max_grad_norm, valid)
    row_factor = _of_rows(factor, units, scale)
    return factor, [gradient.weighted(row_factor) for gradient, _ in gradients]


@dataclass(frozen=True)
class _OneVisit:
    """Convolutions of images on the CPU: norms of all other layers come first, and then each row is visited once."""

    windows: list[WindowGradient]
    others: list[tuple[LayerGradient, NormMode]]

    @classmethod
    def of(cls, gradients: Sequence[tuple[LayerGradient, NormMode]]) -> "_OneVisit | None":
        """None where no gradient is formed so."""
        windows: list[WindowGradient] = []
        others: list[tuple[LayerGradient, NormMode]] = []
        for gradient, mode in gradients:
            if (
                isinstance(gradient, WindowGradient)
                and mode == "direct"
                and gradient.in_registers
                and all(gradient.x.dtype == window.x.dtype for window in windows)
            ):
                windows.append(gradient)
            else:
                others.append((gradient, mode))
        return cls(windows, others) if windows else None

    def clipped_sums(self, max_grad_norm: float, scale: int) -> tuple[Tensor, list[GradientSum]]:
        """Clip factors (B,), and the clipped sums of each layer."""
        norms = [gradient.sq_norm(mode, None) for gradient, mode in self.others]
        biases = [bias for window in self.windows for bias in window.bias_beside.items()]
        norms += [ops.rows_sq_norm([rows]) for _, rows in biases]
        x = self.windows[0].x
        of_others = reduce(Tensor.add, norms) if norms else x.new_zeros(x.shape[0], dtype=torch.float64)
        layers = [window.window_layer for window in self.windows]
        clipped = ops.windows_clipped_sum(layers, of_others, max_grad_norm, scale)
        row_factor = _of_rows(clipped.factor, None, scale)
        sums = [gradient.weighted(row_factor) for gradient, _ in self.others]
        sums += [{parameter: ops.rows_weighted_sum(rows, row_factor)} for parameter, rows in biases]
        for window, weight, bias in zip(self.windows, clipped.weights, clipped.biases, strict=True):
            sums.append({window.weight: weight})
            if window.bias is not None and not window.transposed:
                sums.append({window.bias: bias})
        return clipped.factor, sums


@dataclass(frozen=True)
class _WholeStep:
    """All gradients of a batch on a GPU, whose norms take one launch and whose sums two."""

    by_products: list[ConvGradient]
    convolutions: list[ConvGradient]
    layers: list[LayerNorms]
    materialised: list[tuple[nn.Parameter, Tensor]]

    @classmethod
    def of(cls, gradients: Sequence[tuple[LayerGradient, NormMode]], products: bool) -> "_WholeStep | None":
        """products: whether Gram norms are by the library's products, as where the GPU's own rule picks them

        None where a gradient is of a kind that those launches do not take, or not on a GPU."""
        in_one_launch = all(isinstance(g, (ConvGradient, MaterialisedGradient)) for g, _ in gradients)
        if not in_one_launch or not ops.gpu_ops(gradients[0][0].parameters()[0].device):
            return None
        of_kind: list[tuple[ConvGradient, NormMode]] = [
            (gradient, mode) for gradient, mode in gradients if isinstance(gradient, ConvGradient)
        ]
        by_products = [g for g, mode in of_kind if products and mode == "gram"]
        others: list[tuple[ConvGradient, NormMode]] = [
            (g, mode) for g, mode in of_kind if not (products and mode == "gram")
        ]
        layers = [LayerNorms(g.problem, g.x, g.g, mode) for g, mode in others]
        kept = [pair for g, _ in gradients if isinstance(g, MaterialisedGradient) for pair in g.grads.items()]
        return cls(by_products, [gradient for gradient, _ in others], layers, kept)

    @property
    def stored(self) -> list[Tensor]:
        """Per-sample gradients in memory."""
        return [grad for _, grad in self.materialised]

    def clip_factor(self, max_grad_norm: float, units: UnitGroups | None, valid: Tensor | None) -> Tensor:
        """Clip factors, (U,)."""
        # Of a norm that is known, its root counts as a gradient of one number.
        gram_norms = [layer.problem.gram_products(layer.x, layer.g).sqrt().unsqueeze(1) for layer in self.by_products]
        return ops.step_clip_factor(self.layers, [*self.stored, *gram_norms], max_grad_norm, units, valid)

    def add_weighted_sum(self, factor: Tensor, total: GradientSum) -> None:
        """Adds the sums of rows, each times its factor (B,)."""
        # All or none, since after an error the same rows may be given again: what may fail comes before what adds.
        formed = [layer.weighted_by_products(factor) for layer in self.by_products]
        products = [(_sum_begun(total, p), added) for sums in formed for p, added in sums.items()]
        if self.layers or self.materialised:
            self._add_stored_and_formed(factor, total)
        for own, added in products:
            own.add_(added)

    def _add_stored_and_formed(self, factor: Tensor, total: GradientSum) -> None:
        none = factor.new_empty(0)
        weights = [_sum_begun(total, layer.weight) for layer in self.convolutions]
        biases = [none if layer.bias is None else _sum_begun(total, layer.bias) for layer in self.convolutions]
        sums = [_sum_begun(total, parameter) for parameter, _ in self.materialised]
        ops.step_weighted_sum_(self.layers, self.stored, factor, weights, biases, sums)


def _sum_begun(total: GradientSum, parameter: nn.Parameter) -> Tensor:
    """The parameter's sum, which begins at zero."""
    if parameter not in total:
        total[parameter] = torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)
    return total[parameter]


def _form(gradient: LayerGradient, reason: str) -> MaterialisedGradient:
    """The gradient row by row."""
    if isinstance(gradient, MaterialisedGradient):
        return gradient
    if isinstance(gradient, WindowGradient):
        return gradient.materialised(reason)
    return MaterialisedGradient(gradient.rule, reason, gradient.per_sample(), lent=True)


def add_to(total: GradientSum, grads: GradientSum) -> None:
    """Adds float64 gradients to a sum; it takes over those of parameters that it did not hold."""
    for parameter, grad in grads.items():
        total[parameter] = grad if parameter not in total else total[parameter].add_(grad)


def sum_of(total: GradientSum, parameter: nn.Parameter) -> Tensor:
    """A parameter's sum, contiguous; zeros where there is none."""
    if parameter in total:
        return total[parameter].contiguous()
    return torch.zeros(parameter.shape, dtype=torch.float64, device=parameter.device)
