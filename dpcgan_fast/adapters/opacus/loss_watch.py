"""What a module's first losses are made of is looked at before their backward pass.

A wrapper is given the gradients of its outputs alone, which do not say how the loss came about; and once they arrive,
the loss's graph is gone. So until a few losses were seen, `torch.autograd.backward`, which every `loss.backward()`
calls, is one that looks at the loss first. An unmodified loop has no other place for it: a tensor subclass as the
output, which would see the same, cannot be given to a compiled loss.
"""

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import wraps
from math import isclose
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from dpcgan_fast.adapters.opacus.loss_graph import (
    LossGraph,
    couples_rows,
    divides_by_weights,
    graph_of,
    one_behind_another,
    reductions,
    rows_seen,
)

_LOOKS = 3  # at losses: a GAN's loop has several


@dataclass(frozen=True)
class End:
    """What is known of a forward's outputs, at the node they come from.

    rows:    of the forward
    leading: for each output, whether its first dimension is known to be the rows
    """

    watch: "LossWatch"
    rows: int
    public: bool
    leading: tuple[bool, ...]


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
            torch.autograd.backward = _looking_backward

    def wants(self, rows: int, public: bool) -> bool:
        """Whether a forward's loss is to be looked at: of one row nothing can be seen, of public ones nothing leaks."""
        return self._left > 0 and rows > 1 and not public

    def seen(self) -> None:
        """Counts a loss that was found good, or cannot be looked at."""
        self._left -= 1
        if self._left == 0:
            _WAITING.discard(self)


_backward = torch.autograd.backward
_WAITING: "weakref.WeakSet[LossWatch]" = weakref.WeakSet()


@wraps(_backward)
def _looking_backward(tensors: Any, grad_tensors: Any = None, *args: Any, **settings: Any) -> None:
    """As torch's own, which it calls in the end. Raises ValueError for losses that are refused."""
    if _WAITING:
        losses = [tensors] if isinstance(tensors, Tensor) else list(tensors)
        grads = [grad_tensors] if grad_tensors is None or isinstance(grad_tensors, Tensor) else list(grad_tensors)
        _look_at(losses, grads * len(losses) if grad_tensors is None else grads)
    if not _WAITING and torch.autograd.backward is _looking_backward:
        torch.autograd.backward = _backward
    _backward(tensors, grad_tensors, *args, **settings)


def _end(node: Any) -> End | None:
    found = getattr(node, "end", None)
    return found if isinstance(found, End) else None


def _is_end(node: Any) -> bool:
    return _end(node) is not None


def _leads(node: Any, number: int) -> bool:
    """Whether rows lead in an output."""
    end = _end(node)
    return end is not None and end.leading[number]


def _look_at(losses: list[Any], gradients: list[Tensor | None]) -> None:
    """Raises ValueError for losses that are refused by the watch of a module that they depend on."""
    if len(gradients) != len(losses) or any(not isinstance(loss, Tensor) or loss.grad_fn is None for loss in losses):
        return  # torch says what is wrong with that, or they are no tensors but edges of a graph
    if any(loss.numel() != 1 and gradient is None for loss, gradient in zip(losses, gradients, strict=True)):
        return  # the same
    graph = graph_of(losses, _is_end)
    for watch in {end.watch for node, _ in graph.ends if (end := _end(node)) and end.watch.wants(end.rows, end.public)}:
        reached = [(node, number) for node, number in graph.ends if (end := _end(node)) and end.watch is watch]
        _check_coupling(graph, losses, gradients, reached)
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
    for found in reductions(graph):
        said, is_one = ("mean", "sum") if watch.mean else ("sum", "mean")
        if found.mean != watch.mean and found.scale == 1.0:
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
    if watch.mean and known and len(counts) == 1:
        rows = counts.pop()
        taken = int(rows_seen(graph, rows).sum())
        if taken < rows:
            raise ValueError(
                f"The loss is of {taken} of the {rows} rows that the module was given, so that it is no mean over all "
                "of them, as loss_reduction='mean' says. Give the module the rows that the loss is of, or add losses "
                "up and give loss_reduction='sum'."
            )


def _check_coupling(
    graph: LossGraph, losses: list[Tensor], gradients: list[Tensor | None], reached: Sequence[tuple[Any, int]]
) -> None:
    own: list[GradientEdge] = []
    public: list[GradientEdge] = []
    rows: set[int] = set()
    for node, number in reached:
        end = _end(node)
        if end is not None and end.public:
            public.append(GradientEdge(node, number))
        elif end is not None and end.leading[number]:
            own.append(GradientEdge(node, number))
            rows.add(end.rows)
    if len(rows) != 1:
        return  # no output's rows are known, or forwards differ in their number, which the boundary refuses
    why = "the module was given its own output"
    if not one_behind_another([node for node, _ in graph.ends]):
        try:
            coupled = couples_rows(losses, gradients, own, public)
        except (RuntimeError, NotImplementedError) as reason:
            why = str(reason).partition("\n")[0]
        else:
            if coupled:
                raise ValueError(
                    "The loss couples rows, as the square of a mean or a contrastive loss does: the gradient of a row "
                    "depends on others, and the epsilon reported would be wrong. Let each row have a loss of its own, "
                    "and take their mean or sum."
                )
            opaque = [node.name() for node in graph.nodes if not node.name()[-1].isdigit()]  # not of torch's own ops
            if not opaque:
                return
            why = f"{opaque[0]} may have no second derivative"
    warnings.warn(
        f"Whether the loss couples rows could not be seen ({why}). Each row's loss must depend on its own output "
        "alone, or the epsilon reported is wrong.",
        stacklevel=5,
    )
