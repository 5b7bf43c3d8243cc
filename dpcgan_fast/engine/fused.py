"""The fused path: runs of layers that take one native call forward and one backward, a row in each lane of a vector.

The backward measures, clips and sums. Where other layers count for the norm, too, it only measures, and another one
sums once the clip factors are known.

A run is an nn.Sequential, the whole module or a part of it, and qualifies by its structure alone; `fused_runs` says why
not, where it does not. What a row contributes is the same as layer by layer, up to float rounding. Rows whose gradient
cancels so far that single precision cannot sum it are taken layer by layer, in double.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks
from torch.nn.utils import parametrize

from dpcgan_fast import ops
from dpcgan_fast.engine.fused_forms import NotFusedError, fused_net, has_fused_form
from dpcgan_fast.engine.layer_gradients import LayerGradient
from dpcgan_fast.engine.recorder import LayerUse, Reached, recording
from dpcgan_fast.engine.report import LayerReport
from dpcgan_fast.engine.rules import layer_gradient
from dpcgan_fast.ops import FusedNet, NormChoice, NormMode, UnitGroups

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _changed(module: nn.Module) -> bool:
    """Whether others have given a module hooks, a forward of its own or a parametrization: a fused run would pass over
    them. Looks at the instance alone, since this is asked before every forward."""
    own = module.__dict__
    return "forward" in own or "parametrizations" in own["_modules"] or any(own[hooks] for hooks in _HOOKS)


def _in_order(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    if _changed(module):
        raise NotFusedError(f"module {name or '(root)'!r} has hooks, a forward of its own or a parametrization")
    if type(module) is not nn.Sequential:
        return [(name, module)]
    pairs: list[tuple[str, nn.Module]] = []
    for child, below in module._modules.items():
        if below is not None:
            pairs += _in_order(f"{name}.{child}" if name else child, below)
    return pairs


def _layers(name: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers of a run in order, with their names. Raises NotFusedError if one of them was changed by others."""
    if _global_forward_hooks or _global_forward_pre_hooks:
        raise NotFusedError("there are global forward hooks")
    return [pair for pair in _in_order(name, module) if type(pair[1]) is not nn.Identity]


def _own_parameters(layers: Iterable[tuple[str, nn.Module]]) -> list[nn.Parameter]:
    return [p for _, layer in layers for p in layer._parameters.values() if p is not None]


def _ids(things: Iterable[object]) -> list[int]:
    return [id(thing) for thing in things]


def _identities(layers: Iterable[tuple[str, nn.Module]]) -> list[tuple[int, float]]:
    """What of its layers a net depends on, beside their parameters and sizes: which they are, and slope or eps."""
    own = ((id(layer), layer.__dict__) for _, layer in layers)
    return [(identity, float(values.get("negative_slope", values.get("eps", 0.0)))) for identity, values in own]


@dataclass
class FusedRun:
    """A run of layers in the form that the fused kernels take, for every input shape.

    modules: layers in order, with their full names
    measure: whether norms are asked for; without, only rows that are not finite are found
    refused: why the last call of the module did not qualify; empty if it did
    """

    name: str
    module: nn.Module
    modules: tuple[tuple[str, nn.Module], ...]
    parameters: tuple[nn.Parameter, ...]
    measure: bool
    refused: str = ""
    numbers: list[tuple[int, float]] = field(default_factory=list)  # `_identities` when it was made
    _nets: dict[tuple[int, ...], FusedNet | str] = field(default_factory=dict)  # by a row's shape; or why there is none
    _reports: dict[int, tuple[LayerReport, ...]] = field(default_factory=dict)  # by the net's identity

    def usable(self) -> bool:
        """Whether its modules are those that it was made of, as they were; `refused` says so otherwise."""
        try:
            now = _layers(self.name, self.module)
        except NotFusedError as reason:
            self.refused = str(reason)
            return False
        parameters = _own_parameters(now)
        same = _identities(now) == self.numbers and _ids(parameters) == _ids(self.parameters)
        if not same or not all(parameter.requires_grad for parameter in parameters):
            self.refused = "its layers or parameters were changed after PrivateStep was made"
            return False
        self.refused = ""
        return True

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, "FusedUse"] | None:
        """The output, in the autograd graph, and what a backward needs; None if this call does not qualify.

        args: one tensor (B, F) or (B, C, L)
        """
        try:
            self._check_call(args, kwargs)
            x: Tensor = args[0]
            net = self._net(tuple(x.shape[1:]))
        except NotFusedError as reason:
            self.refused = str(reason)
            return None
        self.refused = ""
        rows = x.detach() if x.dim() == 3 else x.detach().unsqueeze(2)
        out, workspace = net.forward(rows, self.parameters)
        use = FusedUse(self, net, workspace)
        # The empty tensor is there so that the output needs a gradient even if x does not.
        result: Any = _Graph.apply(x, torch.empty(0, requires_grad=True), out.flatten(1) if net.flat else out, use)
        return result, use

    def reports(self, net: FusedNet) -> tuple[LayerReport, ...]:
        """One report for each layer that has parameters."""
        if id(net) not in self._reports:
            kept = [(own, module) for own, module in self.modules if type(module) is not nn.Flatten]
            self._reports[id(net)] = tuple(
                LayerReport(own, layer.kind, *layer.norm_mode, fused=True)
                for (own, module), layer in zip(kept, net.layers, strict=True)
                if list(module.parameters(recurse=False))
            )
        return self._reports[id(net)]

    def _check_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
            raise NotFusedError("it is called with more than one tensor")
        x = args[0]
        if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            raise NotFusedError("its input is not float32 on the CPU, or autocast is on")
        if x.dim() not in (2, 3) or 0 in x.shape:
            raise NotFusedError("its input is neither (B, F) nor (B, C, L)")
        if any(p.dtype != torch.float32 or not p.is_contiguous() or p.device != x.device for p in self.parameters):
            raise NotFusedError("a parameter is not contiguous float32 on the CPU")

    def _net(self, shape: tuple[int, ...]) -> FusedNet:
        if shape not in self._nets:
            try:
                self._nets[shape] = fused_net(self.modules, shape)
            except NotFusedError as reason:
                self._nets[shape] = str(reason)
        net = self._nets[shape]
        if isinstance(net, str):
            raise NotFusedError(net)
        return net


class _Graph(torch.autograd.Function):
    """Puts a run's output into the autograd graph."""

    @staticmethod
    def forward(ctx: Any, _x: Tensor, _anchor: Tensor, out: Tensor, use: "FusedUse") -> Tensor:
        ctx.use = use
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, None]:
        (grad_out,) = grads
        if torch.is_grad_enabled():
            raise ValueError(
                "A gradient through a fused run was asked for with create_graph=True, as a gradient penalty does; it "
                "has no second derivative. Use PrivateStep(..., fused=False)."
            )
        return ctx.use.backward(grad_out, ctx.needs_input_grad[0]), None, None, None


@dataclass
class FusedUse:
    """One forward of a run.

    workspace: what the forward left there; None once the rows are summed and it may serve another forward
    measured:  squared norms and rows that cancel, by the backward pass of the losses; None before it
    """

    run: FusedRun
    net: FusedNet
    workspace: Tensor | None
    measured: tuple[Tensor, Tensor, Tensor] | None = None

    def backward(self, grad_out: Tensor, input_grad: bool = False) -> Tensor | None:
        """Measures the rows, and gives the gradient of the input, in its shape, where it is asked for.

        Runs by autograd where layers before the run need its gradient, and otherwise when the norms are needed.
        """
        sq_norm, cancelled, grad_in = self.net.sq_norm(self.shaped(grad_out), self.kept(), self.run.measure, input_grad)
        self.measured = grad_out, sq_norm, cancelled
        if not input_grad:
            return None
        return grad_in.flatten(1) if self.net.flat_input else grad_in

    def shaped(self, grad_out: Tensor) -> Tensor:
        """A gradient of the output as the kernels take it, (B, O, T)."""
        return grad_out.reshape(grad_out.shape[0], *self.net.out_shape)

    def kept(self) -> Tensor:
        """The workspace. Raises ValueError if it was given back."""
        if self.workspace is None:
            raise ValueError(
                "A forward was used by a step.backward before, and what it kept is gone. Call step(x) anew for every "
                "backward."
            )
        return self.workspace

    def finish(self, total: Tensor) -> dict[nn.Parameter, Tensor]:
        """Gives the workspace back, and the sum over rows, (P,), by parameter."""
        self.net.release(self.kept())
        self.workspace = None
        parts = _unflatten_dense_tensors(total, self.run.parameters)
        return dict(zip(self.run.parameters, parts, strict=True))


@dataclass(eq=False)
class FusedGradient:
    """The gradient of one use of a run."""

    use: LayerUse
    fused: FusedUse
    grad_out: Tensor
    trainable: Any
    rule: str = "fused"
    _exact: dict[int, list[LayerGradient]] = field(default_factory=dict)  # of the rows that cancel, by their number

    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the run."""
        return list(self.fused.run.parameters)

    def choose(self, asked: NormMode, grouped: bool = False) -> NormChoice:  # noqa: ARG002
        """Each layer has its own mode; see `reports`."""
        return NormChoice(asked, "each layer has its own")

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:  # noqa: ARG002
        """One report for each layer that has parameters."""
        return self.fused.run.reports(self.fused.net)

    def per_sample(self) -> dict[nn.Parameter, Tensor]:
        """Never asked for: uses that share parameters are taken layer by layer."""
        raise AssertionError("per-sample gradients of a fused run")

    def clipped_sum(self, max_grad_norm: float) -> tuple[dict[nn.Parameter, Tensor], Tensor]:
        """The clipped sum of a run that has all layers that count for the norm, and squared norms (B,)."""
        total, sq_norm, cancelled = self.fused.net.clipped_sum(
            self.fused.shaped(self.grad_out), self.fused.kept(), max_grad_norm
        )
        sums = self.fused.finish(total)
        for row, exact in self._exact_sq_norms(cancelled).items():
            self._add_exact(sums, row, ops.clip_factor(exact, max_grad_norm))
            sq_norm[row] = exact
        return sums, sq_norm

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:  # noqa: ARG002
        """Squared norms, those of rows that cancel by the layers' own rules."""
        if units is not None:
            raise AssertionError("a fused run of rows that are grouped into units")
        if self.fused.measured is None:
            self.fused.backward(self.grad_out)
        assert self.fused.measured is not None
        # What is summed is what was measured, whatever hooks did to the gradient since.
        self.grad_out, sq_norm, cancelled = self.fused.measured
        for row, exact in self._exact_sq_norms(cancelled).items():
            sq_norm[row] = exact
        return sq_norm

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """The sum over rows, by another backward; those that cancel are summed by the layers' own rules."""
        fused, single = self.fused, factor.clone()
        single[list(self._exact)] = 0.0
        sums = fused.finish(fused.net.weighted_sum(fused.shaped(self.grad_out), fused.kept(), single))
        for row in self._exact:
            self._add_exact(sums, row, factor[row : row + 1])
        return sums

    def _exact_sq_norms(self, cancelled: Tensor) -> dict[int, Tensor]:
        """(1,) for each row that cancels, by its number; their gradients are kept. Each is run again alone: torch
        rounds a row's forward otherwise in a batch of another size, and what a row adds must not depend on how many
        others cancel."""
        norms: dict[int, Tensor] = {}
        for row in cancelled.nonzero().flatten().tolist():
            again = layers_again(self.use, self.grad_out, slice(row, row + 1))
            self._exact[row] = [layer_gradient(of.use, of.grads, self.trainable, 1) for of in again]
            norms[row] = torch.stack([_direct_sq_norm(gradient) for gradient in self._exact[row]]).sum(0)
        return norms

    def _add_exact(self, sums: dict[nn.Parameter, Tensor], row: int, factor: Tensor) -> None:
        for gradient in self._exact[row]:
            for parameter, part in gradient.weighted(factor).items():
                sums[parameter] += part


def _direct_sq_norm(gradient: LayerGradient) -> Tensor:
    mode = gradient.choose("direct").mode
    return (
        ops.rows_sq_norm(list(gradient.per_sample().values()))
        if mode == "materialise"
        else gradient.sq_norm(mode, None)
    )


def layers_again(use: LayerUse, grad_out: Tensor, rows: Tensor | slice) -> list[Reached]:
    """Some rows of a fused forward, run again layer by layer, with the gradients of the layers' outputs."""
    use.check_unchanged()
    run: FusedRun = use.fused.run
    layers = {name: module for name, module in run.modules if list(module.parameters(recurse=False))}
    with torch.enable_grad(), recording(layers, {}) as call:
        output = run.module(use.args[0].detach()[rows])
    edges = [edge for again in call.uses for edge in again.edges]
    found = iter(torch.autograd.grad(output, edges, grad_outputs=grad_out[rows]))  # type: ignore[arg-type]
    return [Reached(again, tuple(next(found) for _ in again.edges)) for again in call.uses]


def _run_form(name: str, module: nn.Module, trainable: set[nn.Parameter], measure: bool) -> FusedRun:
    """The fused form of an nn.Sequential. Raises NotFusedError, whose text says why, if it has none."""
    modules = _layers(name, module)
    for own, layer in modules:
        if not has_fused_form(layer):
            raise NotFusedError(f"module {own!r} ({type(layer).__name__}) has no fused form")
    if modules and getattr(modules[0][1], "inplace", False):
        raise NotFusedError(f"module {modules[0][0]!r} changes its input in place")
    parameters = _own_parameters(modules)
    if not parameters:
        raise NotFusedError(f"module {name or '(root)'!r} has no parameters")
    if len(set(parameters)) < len(parameters):
        raise NotFusedError("a parameter is used by two layers")
    if not set(parameters) <= trainable:
        raise NotFusedError("some parameters are frozen or not in the optimizer")
    return FusedRun(name, module, tuple(modules), tuple(parameters), measure, numbers=_identities(modules))


def fused_runs(root: nn.Module, trainable: set[nn.Parameter], measure: bool) -> tuple[dict[str, FusedRun], str]:
    """The runs of layers of a module that take the fused path, by name, and why others do not; empty if all do."""
    if ops.backend() != "native":
        return {}, "the reference back end is in use"
    runs: dict[str, FusedRun] = {}
    reasons: list[str] = []
    owners = Counter(p for module in root.modules() for p in module.parameters(recurse=False))

    def visit(name: str, module: nn.Module) -> None:
        own = [p for p in module.parameters(recurse=False) if p in trainable]
        if own or parametrize.is_parametrized(module):
            reasons.append(f"module {name or '(root)'!r} ({type(module).__name__}) is in no nn.Sequential")
            return
        if type(module) is nn.Sequential:
            try:
                run = _run_form(name, module, trainable, measure)
                if any(owners[p] > 1 for p in run.parameters):
                    raise NotFusedError("a parameter is used by two layers")
            except NotFusedError as reason:
                reasons.append(str(reason))
            else:
                runs[name] = run
                return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", root)
    return runs, reasons[0] if reasons else ""
