"""Records what per-sample gradients need from one forward: each layer's input, and the graph edge of its output.

Hooks are on the module only while a forward of the private path runs. The edge is taken when the layer returns, so a
later in-place activation does not move it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_flatten
from torch.utils.hooks import RemovableHandle

_USED = "dpcgan_fast: used by a backward"


@dataclass(frozen=True)
class LayerUse:
    """One call of one layer."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    edges: tuple[GradientEdge | None, ...]
    input_nodes: tuple[Any, ...]  # graph nodes that produced the inputs; None for those that no node did
    versions: tuple[int, ...]  # of the tensor inputs, to notice a change in place
    fused: Any = None  # what the fused path keeps, if the module is a run of layers that took it
    numel: int = 0  # of the output, if that is one tensor

    def check_unchanged(self) -> None:
        """Raises ValueError if an input was changed in place after the layer used it."""
        if _versions(tensors_in(self.args, self.kwargs)) != self.versions:
            raise ValueError(
                f"An input of module {self.name or '(root)'!r} was changed in place after the module used it, so its "
                "per-sample gradient cannot be formed. Use the operation's out-of-place form."
            )


class Reached(NamedTuple):
    """A use that losses depend on.

    grads:  of its outputs
    formed: the layer's gradient, if it was formed during the backward pass; `grads` are let go then
    """

    use: LayerUse
    grads: tuple[Tensor | None, ...]
    formed: Any = None


class FusedForward(Protocol):
    """A run of layers with a forward of its own."""

    module: nn.Module

    def usable(self) -> bool:
        """Whether its modules are as they were, without hooks, which it would pass over."""
        ...

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any] | None:
        """The output, in the autograd graph, and what its backward needs; None for a call that it cannot take."""
        ...


@dataclass
class ForwardCall:
    """Layer uses of one call of the private path; `used` once a backward reached them."""

    uses: list[LayerUse] = field(default_factory=list)
    used: bool = False


def tensors_in(args: tuple[Any, ...], kwargs: Mapping[str, Any] = MappingProxyType({})) -> list[Tensor]:
    """All tensors in the arguments of a call, also nested in containers."""
    if not kwargs and all(isinstance(arg, Tensor) for arg in args):
        return list(args)  # arguments of nearly every layer; the general way costs as much as a small layer
    return [leaf for leaf in tree_flatten((args, dict(kwargs)))[0] if isinstance(leaf, Tensor)]


def _edges_of(output: Any) -> tuple[GradientEdge | None, ...]:
    """The edge of each tensor in a layer's output, None where it has no gradient."""
    outputs = (output,) if isinstance(output, Tensor) else tensors_in((output,))
    return tuple([_edge_of(out) for out in outputs])


def _edge_of(output: Tensor) -> GradientEdge | None:
    node = output.grad_fn
    if node is None or isinstance(node, torch._C._FunctionBase):  # a leaf, or a node that needs more than a reference
        return get_gradient_edge(output) if output.requires_grad else None
    return GradientEdge(node, output.output_nr)


def _versions(tensors: list[Tensor]) -> tuple[int, ...]:
    return tuple([x._version for x in tensors])


def modules_below(root: nn.Module) -> list[nn.Module]:
    """A module and all below it, each once, in a fixed order; asked before every forward, so without names."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    pending: list[nn.Module | None] = [root]
    while pending:
        module = pending.pop()
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            found.append(module)
            pending += module._modules.values()
    return found


def recorded_layers(
    root: nn.Module, trainable: set[nn.Parameter], containers: tuple[type[nn.Module], ...] = ()
) -> dict[str, nn.Module]:
    """Modules to record, by name: those that own a trainable parameter.

    containers: modules whose own parameters are but other names for those of layers below

    A module without a rule is taken as a whole with everything below it, since its forward may use the parameters of
    its children in any way.
    """
    layers: dict[str, nn.Module] = {}
    seen: set[nn.Module] = set()  # a module under two names is one layer

    def visit(name: str, module: nn.Module) -> None:
        if module in seen:
            return
        seen.add(module)
        own = [p for p in module.parameters(recurse=False) if p in trainable]
        if isinstance(module, containers):
            own = []
        if own or (parametrize.is_parametrized(module) and any(p in trainable for p in module.parameters())):
            layers[name] = module
            return
        for child_name, child in module.named_children():
            visit(f"{name}.{child_name}" if name else child_name, child)

    visit("", root)
    return layers


@contextmanager
def recording(layers: dict[str, nn.Module], runs: Mapping[str, FusedForward]) -> Iterator[ForwardCall]:
    """Records the layers' uses while the block runs; hooks, and the forwards of fused runs, are gone afterwards."""
    call = ForwardCall()
    runs = {name: run for name, run in runs.items() if run.usable()}

    def record(name: str, module: nn.Module, args: tuple, kwargs: dict, output: Any, fused: Any = None) -> None:
        edges = _edges_of(output)
        if edges.count(None) == len(edges):
            return
        inputs = tensors_in(args, kwargs)
        nodes = tuple([x.grad_fn for x in inputs])
        numel = output.numel() if isinstance(output, Tensor) else 0
        call.uses.append(LayerUse(name, module, args, kwargs, edges, nodes, _versions(inputs), fused, numel))

    handles: list[RemovableHandle] = []

    def hook_layers() -> None:
        for name, module in layers.items():
            handles.append(module.register_forward_hook(partial(record, name), with_kwargs=True))

    def run_fused(name: str, run: FusedForward, *args: Any, **kwargs: Any) -> Any:
        made = run.forward(args, kwargs)
        if made is None:
            if not handles:
                hook_layers()
            return type(run.module).forward(run.module, *args, **kwargs)
        record(name, run.module, args, kwargs, made[0], made[1])
        return made[0]

    try:
        if "" not in runs:  # also those of a run that is only a part: its layers may be called one by one
            hook_layers()
        for name, run in runs.items():
            # No hook can stand in for a forward; the attribute is deleted below, also after an error.
            run.module.forward = partial(run_fused, name, run)
        yield call
    finally:
        for handle in handles:
            handle.remove()
        for run in runs.values():
            run.module.__dict__.pop("forward", None)


def check_graph(outputs: Sequence[Tensor], uses: list[LayerUse], trainable: dict[nn.Parameter, str]) -> None:
    """Raises ValueError if outputs depend on something that the recorded gradients would miss or count twice.

    Walks the graph from the outputs; at a recorded layer's output it goes on from that layer's inputs. A trainable
    parameter that it meets was used outside of its layer; a node with the mark of `mark_used` was summed before.
    """
    inputs_of = {edge.node: use.input_nodes for use in uses for edge in use.edges if edge is not None}
    pending: list[Any] = [output.grad_fn for output in outputs]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in inputs_of:
            pending.extend(inputs_of[node])
            continue
        if _USED in node.metadata:
            raise ValueError(
                "The losses depend on a forward that was used by a backward before; its rows would count twice. Call "
                "step(x) anew for every backward."
            )
        variable = getattr(node, "variable", None)
        if isinstance(variable, nn.Parameter) and variable in trainable:
            raise ValueError(
                f"Parameter {trainable[variable]!r} is used outside of the layer that owns it, where its per-sample "
                "gradient cannot be recorded. Use it through its layer, or freeze it."
            )
        pending.extend(next_node for next_node, _ in node.next_functions)


def mark_used(call: ForwardCall) -> None:
    """Marks the graph of a forward whose gradients have been summed."""
    for use in call.uses:
        for edge in use.edges:
            if edge is not None:
                edge.node.metadata[_USED] = True  # type: ignore[index]  its stub calls the property a method
