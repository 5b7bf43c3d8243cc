"""One backward pass through recorded forwards: the gradients of what layers gave, and none of a parameter.

Of layers whose per-sample gradients are smaller than the gradient of the layer's output, they are formed on the way, so
that the latter is let go as soon as the pass is done with it. All of those at once are more memory than the
activations, and the system would clear it anew page by page in every step.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils.hooks import RemovableHandle

from dpcgan_fast.engine.layer_gradients import LayerGradient
from dpcgan_fast.engine.recorder import ForwardCall, LayerUse, Reached, check_graph, mark_used

# The gradient of a layer from that of its output, formed as far as it can be before norms are known; None for layers
# that wait until the end of the pass.
FormEarly = Callable[[LayerUse], Callable[[Tensor], LayerGradient] | None]

_SPLITS = 3  # of a batch, by which losses are seen to mix rows


def reached_uses(
    calls: Sequence[ForwardCall],
    outputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor],
    trainable: dict[nn.Parameter, str],
    inputs: Sequence[Tensor] = (),
    early: FormEarly = lambda _: None,
) -> tuple[list[Reached], list[Tensor | None]]:
    """The uses of layers that outputs depend on, with the gradients of what the layers gave; one backward pass.

    calls:        of forwards; those that were reached are marked as used
    outputs:      of the graph, such as losses
    grad_outputs: one for each, of its shape
    inputs:       tensors whose gradients are asked for as well
    early:        of which layers the gradient is formed on the way, where the pass goes on behind them

    Returns the uses in the order of the forwards, and the gradients of the inputs, None where nothing depends on them.
    Raises ValueError for outputs that depend on a forward that was used before, or on a parameter outside of its layer.
    """
    pending = [(call, use) for call in calls for use in call.uses]
    check_graph(outputs, [use for _, use in pending], trainable)
    ends = {edge.node for _, use in pending for edge in use.edges if edge is not None}
    ends |= {get_gradient_edge(tensor).node for tensor in inputs}
    wanted: list[Any] = []  # its stubs know no mixed sequences
    formed: dict[int, LayerGradient | None] = {}  # by the use's place, of those that are formed on the way
    hooks: list[RemovableHandle] = []
    for place, (_, use) in enumerate(pending):
        if use.fused is not None:
            use.fused.measured = None  # another pass through the graph, with other gradients, does not count
        form, edge = early(use), use.edges[0]
        if form is None or edge is None or len(use.edges) > 1 or not _leads_on(edge.node, ends):
            wanted += [edge for edge in use.edges if edge is not None]
            continue
        formed[place] = None
        hooks.append(edge.node.register_prehook(partial(_form, formed, place, form, edge.output_nr)))
    try:
        found = iter(_grad(outputs, [*wanted, *inputs], grad_outputs))
    finally:
        for hook in hooks:
            hook.remove()
    reached: list[Reached] = []
    for place, (call, use) in enumerate(pending):
        if place in formed:
            use_reached = Reached(use, (None,), formed[place])
        else:
            use_reached = Reached(use, tuple(None if edge is None else next(found) for edge in use.edges))
        if use_reached.formed is not None or any(grad is not None for grad in use_reached.grads):
            reached.append(use_reached)
            call.used = True
    for call in calls:
        if call.used:
            mark_used(call)
    return reached, [next(found) for _ in inputs]


def _grad(outputs: Sequence[Tensor], inputs: Sequence[Any], grad_outputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """`torch.autograd.grad(..., allow_unused=True)` without its looks at the arguments, which take as long as a layer
    of a small net; the engine itself refuses gradients of another shape."""
    keep_graph = create_graph = False
    return torch.autograd.graph._engine_run_backward(
        tuple(outputs), tuple(grad_outputs), keep_graph, create_graph, tuple(inputs), True, accumulate_grad=False
    )


def _form(
    formed: dict[int, LayerGradient | None], place: int, form: Callable[[Tensor], LayerGradient], output: int,
    grads: tuple[Tensor | None, ...],
) -> None:  # fmt: skip
    grad = grads[output]
    if grad is not None:
        formed[place] = form(grad)


def _leads_on(node: Any, ends: set[Any]) -> bool:
    """Whether one of the ends is behind a node, so that a pass to the ends runs the node."""
    pending, seen = [node], {node}
    while pending:
        for behind, _ in pending.pop().next_functions:
            if behind in ends:
                return True
            if behind is not None and behind not in seen:
                seen.add(behind)
                pending.append(behind)
    return False


def losses_mix_rows(calls: Sequence[ForwardCall], losses: Tensor) -> bool | None:
    """Whether the losses of half of the rows depend on what layers gave for the others; None if they depend on nothing.

    losses: (B,) with B > 1

    Looks at both halves of a few splits, by a backward pass each, which leave the graph; a row that depends on one
    other row alone may be missed, and so is a dependence that was detached from the graph.
    """
    # Of what a layer gives beside its output, such as a final state, rows need not be the first dimension.
    edges: list[Any] = [use.edges[0] for call in calls for use in call.uses if use.edges[0] is not None]
    if not edges:
        return None
    draw = torch.Generator().manual_seed(0)
    weights = torch.rand(losses.shape, generator=draw) + 0.5  # no two alike: what they add must not cancel
    halves = [torch.randperm(len(losses), generator=draw) < len(losses) // 2 for _ in range(_SPLITS)]
    depend = False
    for own in [side for half in halves for side in (half, ~half)]:
        given = torch.where(own, weights, 0.0).to(losses)
        found = torch.autograd.grad([losses], edges, grad_outputs=[given], retain_graph=True, allow_unused=True)
        by_row = [grad.flatten(1) for grad in found if grad is not None and grad.shape[:1] == losses.shape]
        # 0 times infinity is NaN, and no sign of a dependence.
        moved = [((grad != 0) & grad.isfinite()).any(1).cpu() for grad in by_row]
        if any(bool(rows[~own].any()) for rows in moved):
            return True
        depend = depend or any(bool(rows[own].any()) for rows in moved)
    return False if depend else None
