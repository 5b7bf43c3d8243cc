"""What a module's first losses are made of is looked at before their backward pass.

A wrapper is given the gradients of its outputs alone, which do not say how the loss came about; and once they arrive,
the loss's graph is gone. So until a few losses were seen, `torch.autograd.backward`, which every `loss.backward()`
calls, is one that looks at the loss first. An unmodified loop has no other place for it: a tensor subclass as the
output, which would see the same, cannot be given to a compiled loss.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import update_wrapper
from math import isclose
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dpcgan_fast.adapters.opacus.loss_graph import (
    LossGraph,
    behind_ends,
    couples_rows,
    divides_by_weights,
    graph_of,
    reductions,
    rows_seen,
)

_LOOKS = 3  # at losses: a GAN's loop has several


@dataclass(frozen=True)
class End:
    """What is known of a forward's outputs, at the node they come from.

    rows:     of the forward
    row_dims: for each output, which of its dimensions is known to be the rows
    """

    watch: "LossWatch"
    rows: int
    public: bool
    row_dims: tuple[int | None, ...]


class LossWatch:
    """Refuses losses that have no gradient row by row, and warns of another reduction than was announced, for one
    module.

    mean: whether losses were announced as means over rows, or as sums
    """

    def __init__(self, mean: bool):
        self.mean = mean
        self._left = _LOOKS

    def expects(self, rows: int, public: bool) -> None:
        """Says that a forward was run, so that its loss will come."""
        if self.wants(rows, public):
            _WAITING.add(self)
            if not isinstance(torch.autograd.backward, _LookingBackward):
                torch.autograd.backward = _LookingBackward(torch.autograd.backward)

    def wants(self, rows: int, public: bool) -> bool:
        """Whether a forward's loss is to be looked at: of one row nothing can be seen, of public ones nothing leaks."""
        return self._left > 0 and rows > 1 and not public

    def seen(self) -> None:
        """Counts a loss that was found good, or cannot be looked at."""
        self._left -= 1
        if self._left == 0:
            _WAITING.discard(self)


_WAITING: "weakref.WeakSet[LossWatch]" = weakref.WeakSet()
_looked = threading.local()  # whether this thread is within a backward that was looked at


class _LookingBackward:
    """As the `torch.autograd.backward` that it takes the place of, torch's or another library's, which it calls in the
    end. Raises ValueError for losses that are refused."""

    def __init__(self, inner: Callable[..., None]):
        self._inner = inner
        update_wrapper(self, inner)

    def __call__(self, tensors: Any, grad_tensors: Any = None, *args: Any, **settings: Any) -> None:
        if _WAITING and not getattr(_looked, "now", False):
            losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
            grads = [grad_tensors] if grad_tensors is None or isinstance(grad_tensors, Tensor) else list(grad_tensors)
            _look_at(losses, grads * len(losses) if grad_tensors is None else grads)
        if not _WAITING and torch.autograd.backward is self:
            torch.autograd.backward = self._inner
        before, _looked.now = getattr(_looked, "now", False), True  # another may be within the one that is called
        try:
            self._inner(tensors, grad_tensors, *args, **settings)
        finally:
            _looked.now = before


def _end(node: Any) -> End | None:
    found = getattr(node, "end", None)
    return found if isinstance(found, End) else None


def _is_end(node: Any) -> bool:
    return _end(node) is not None


def _leads(node: Any, number: int) -> bool:
    """Whether rows lead in an output."""
    end = _end(node)
    return end is not None and end.row_dims[number] == 0


def _look_at(losses: list[Any], gradients: list[Tensor | None]) -> None:
    """Raises ValueError for losses that are refused by the watch of a module that they depend on."""
    if len(gradients) != len(losses) or any(not isinstance(loss, Tensor) or loss.grad_fn is None for loss in losses):
        return  # torch says what is wrong with that, or they are no tensors but edges of a graph
    if any(loss.numel() != 1 and gradient is None for loss, gradient in zip(losses, gradients, strict=True)):
        return  # the same
    graph = graph_of(losses, _is_end, _leads)
    again = behind_ends(graph, _is_end)
    nodes = [node for node, _ in graph.ends] + again
    for watch in {end.watch for node in nodes if (end := _end(node)) and end.watch.wants(end.rows, end.public)}:
        given = {node for node in again if (end := _end(node)) and end.watch is watch}
        reached = [
            (node, number)
            for node, number in graph.ends
            if (end := _end(node)) and end.watch is watch and node not in given
        ]
        _check_coupling(graph, losses, gradients, reached, bool(given))
        _check_reduction(watch, graph, reached)
        watch.seen()


def _check_reduction(watch: LossWatch, graph: LossGraph, reached: Sequence[tuple[Any, int]]) -> None:
    if divides_by_weights(graph):
        raise ValueError(
            "The cross entropy is divided by the class weights of all rows together, or by how many labels are not "
            "ignored, so that a row's gradient depends on the labels of others and the epsilon reported would be "
            "wrong. Take reduction='none', and the mean over rows of what that gives."
        )
    counts = {end.rows for node, _ in reached if (end := _end(node))}
    for found in reductions(graph, max(counts, default=0)):
        said, is_one = ("mean", "sum") if watch.mean else ("sum", "mean")
        if found.mean != watch.mean and found.plain:
            warnings.warn(
                f"loss_reduction={said!r} was announced, but the loss is a {is_one} over rows: its gradients are "
                "scaled by the number of rows that were drawn, which is private, so that the epsilon reported is "
                f"wrong. Take the loss's reduction={said!r}, or give loss_reduction={is_one!r}.",
                stacklevel=5,
            )
        elif found.mean and watch.mean and any(isclose(abs(found.scale) * rows, 1.0, rel_tol=1e-5) for rows in counts):
            warnings.warn(
                "The loss is a mean over rows, divided once more by a number that equals the number of rows. If it is "
                "that number, leave the division out: gradients are too small by it, and it is private.",
                stacklevel=5,
            )
    known = all(_leads(node, number) for node, number in graph.ends)
    if watch.mean and known and len(counts) == 1 and not bool(rows_seen(graph, counts.pop()).all()):
        raise ValueError(
            "The loss is of a part of the rows that the module was given, so that it is no mean over all of them, as "
            "loss_reduction='mean' says. Give the module the rows that the loss is of, or add losses up and give "
            "loss_reduction='sum'."
        )


def _check_coupling(
    graph: LossGraph, losses: list[Tensor], gradients: list[Tensor | None], reached: Sequence[tuple[Any, int]],
    given_again: bool,
) -> None:  # fmt: skip
    own: dict[GradientEdge, int] = {}
    public: list[GradientEdge] = []
    rows: set[int] = set()
    why = "a module was given what this one gave" if given_again else ""
    for node, number in reached:
        end = _end(node)
        if end is None:
            continue
        dim = end.row_dims[number]
        if end.public:
            public.append(GradientEdge(node, number))
        elif dim is not None:
            own[GradientEdge(node, number)] = dim
            rows.add(end.rows)
        else:
            why = why or "the module gave an output whose rows are not known, such as a loss of its own"
    if len(rows) > 1:
        return  # the boundary refuses forwards that differ in their number
    try:
        coupled = bool(own) and couples_rows(losses, gradients, own, public)
    except (RuntimeError, NotImplementedError) as reason:
        why = str(reason).partition("\n")[0]
    else:
        if coupled:
            raise ValueError(
                "The loss couples rows, as the square of a mean or a contrastive loss does: the gradient of a row "
                "depends on others, and the epsilon reported would be wrong. Let each row have a loss of its own, "
                "and take their mean or sum."
            )
        opaque = [node.name() for node in graph.nodes if not _is_torchs(node)]
        if opaque:
            why = why or f"{opaque[0]} may have no second derivative"
    if why:
        warnings.warn(
            f"Whether the loss couples rows could not be seen ({why}). Each row's loss must depend on its own output "
            "alone, or the epsilon reported is wrong.",
            stacklevel=5,
        )


def _is_torchs(node: Any) -> bool:
    """Whether a node is of one of torch's own ops, which have second derivatives or say that they have none."""
    return node.name()[-1].isdigit() or node.name() in ("torch::autograd::CopySlices", "torch::autograd::CopyBackwards")
