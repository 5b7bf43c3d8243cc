"""The graph between a loss and what a module gave: which rows reach the loss, how it reduces them, and whether they are
apart. All by what autograd keeps of the loss for its backward pass."""

# What autograd's nodes keep has no types:
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isclose
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

_SPLITS = 3  # of a batch, by which a loss is seen to couple rows
_AS_IT_IS = {  # nodes that neither reduce nor scale
    *("AliasBackward0", "CloneBackward0", "ToCopyBackward0", "NegBackward0", "AddBackward0", "SubBackward0"),
    *("ViewBackward0", "UnsafeViewBackward0", "SqueezeBackward0", "SqueezeBackward1", "UnsqueezeBackward0"),
}
_ELEMENT_WISE = {  # nodes that leave rows where they are, as far as losses commonly have them
    *_AS_IT_IS - {"ViewBackward0", "UnsafeViewBackward0", "UnsqueezeBackward0"},
    *("MulBackward0", "DivBackward0", "PowBackward0", "AbsBackward0", "ReluBackward0", "ClampMinBackward0"),
    *("ExpBackward0", "LogBackward0", "SigmoidBackward0", "LogSigmoidBackward0", "TanhBackward0", "SoftplusBackward0"),
    *("SoftmaxBackward0", "LogSoftmaxBackward0"),
}
_PIECES = ("UnbindBackward0", "SplitBackward0", "SplitWithSizesBackward0")  # nodes that give a tensor in pieces
_MEAN, _SUM = 1, 2  # the values of a loss's `reduction`, as autograd keeps them


@dataclass
class LossGraph:
    """Nodes on the ways from losses to the ends, what the module gave; each before those that are behind it.

    roots: those that losses come from
    ends:  node and number of the output; nothing behind an end is in the graph
    led:   nodes that are surely given the ends' rows in the first dimension
    """

    roots: list[Any]
    nodes: list[Any]
    ends: list[tuple[Any, int]]
    led: set[Any]


def graph_of(
    losses: Sequence[Tensor], is_end: Callable[[Any], bool], leads: Callable[[Any, int], bool]
) -> LossGraph:  # fmt: skip
    """The graph of losses that are taken back together.

    is_end: whether a node is one that outputs come from
    leads:  whether the first dimension of such a node's output is the rows
    """
    roots: list[Any] = list(dict.fromkeys(loss.grad_fn for loss in losses))
    order: dict[Any, None] = {}
    ends = dict.fromkeys((loss.grad_fn, loss.output_nr) for loss in losses if is_end(loss.grad_fn))
    seen, pending = set[Any](roots), [(root, False) for root in roots if not is_end(root)]
    while pending:
        node, done = pending.pop()
        if done:
            if any(behind in order or is_end(behind) for behind, _ in node.next_functions):
                order[node] = None
            continue
        pending.append((node, True))
        for behind, number in node.next_functions:
            if behind is None:
                continue
            if is_end(behind):
                ends[behind, number] = None
            elif behind not in seen:
                seen.add(behind)
                pending.append((behind, False))
    led: set[Any] = set()
    for node in order:
        if any(
            leads(behind, number) if is_end(behind) else behind in led and _leaves_rows(behind)
            for behind, number in node.next_functions
        ):
            led.add(node)
    return LossGraph([root for root in roots if root in order], list(order)[::-1], list(ends), led)


def behind_ends(graph: LossGraph, is_end: Callable[[Any], bool]) -> list[Any]:
    """Nodes that outputs come from which modules were given again, behind the graph's ends."""
    pending: list[Any] = list(dict.fromkeys(node for node, _ in graph.ends))
    seen: dict[Any, None] = {}
    while pending:
        for behind, _ in pending.pop().next_functions:
            if behind is not None and behind not in seen:
                seen[behind] = None
                pending.append(behind)
    return [node for node in seen if is_end(node)]


def rows_seen(graph: LossGraph, rows: int) -> Tensor:
    """Which of the rows the loss takes, (rows,) bool: all but those that an index, a mask or a slice leaves out.

    rows: of all ends, which have them in the first dimension

    Rows whose gradient is zero by the value of their loss, such as a hinge's, are taken all the same.
    """
    everything, nothing = torch.ones(rows, dtype=torch.bool), torch.zeros(rows, dtype=torch.bool)
    ends = {node for node, _ in graph.ends}
    taken: dict[Any, Tensor] = dict.fromkeys(graph.roots, everything)
    reaches = nothing if graph.roots else everything  # an output may be a loss by itself
    for node in graph.nodes:
        through = taken[node]
        if node in graph.led and _is_pieces(node):
            pass  # which rows is known by the piece
        elif node in graph.led:
            selected = _selected(node, rows)
            through = through if selected is None else selected
        elif not _leaves_rows(node):
            through = everything
        for behind, number in node.next_functions:
            if behind in ends:
                reaches = reaches | through
            else:
                of_piece = _piece(behind, number, rows) if behind in graph.led else None
                taken[behind] = taken.get(behind, nothing) | (through if of_piece is None else of_piece)
    return reaches


def _is_pieces(node: Any) -> bool:
    """Whether a node gives a tensor in pieces along its first dimension."""
    return node.name() in _PIECES and _signed(node._saved_dim) == 0


def _piece(node: Any, number: int, rows: int) -> Tensor | None:
    """The rows of one of the pieces that a node gives, or None if it gives no pieces."""
    if not _is_pieces(node):
        return None
    if node.name() == "UnbindBackward0":
        start, size = number, 1
    elif node.name() == "SplitBackward0":
        start, size = number * node._saved_split_size, node._saved_split_size
    else:
        sizes = node._saved_split_sizes
        start, size = sum(sizes[:number]), sizes[number]
    chosen = torch.zeros(rows, dtype=torch.bool)
    chosen[start : start + size] = True
    return chosen


def _of_one_row(graph: LossGraph, rows: int) -> set[Any]:
    """Nodes whose output is of one row alone, as in a loop over rows."""
    inside, single = {*graph.nodes, *(node for node, _ in graph.ends)}, set[Any]()
    for node in reversed(graph.nodes):
        chosen = _selected(node, rows) if node in graph.led else None
        given = [edge for edge in node.next_functions if edge[0] in inside]
        if (chosen is not None and int(chosen.sum()) == 1) or all(
            behind in single
            or (behind in graph.led and (piece := _piece(behind, number, rows)) is not None and int(piece.sum()) == 1)
            for behind, number in given
        ):
            single.add(node)
    return single


def _leaves_rows(node: Any) -> bool:
    """Whether what a node gives has the rows where what it was given has them, if that is the first dimension."""
    name = node.name()
    if name in _ELEMENT_WISE or getattr(node, "_saved_reduction", None) == 0:
        return True
    if name in ("SelectBackward0", "SliceBackward0"):
        return _signed(node._saved_dim) != 0
    if name in ("MeanBackward1", "SumBackward1"):
        dims, sizes = node._saved_dim, node._saved_self_sym_sizes
        return bool(dims and sizes) and 0 not in [_signed(dim) % len(sizes) for dim in dims]
    return False


def _selected(node: Any, rows: int) -> Tensor | None:
    """The rows that a node takes of a tensor with so many, or None if it takes them all, or is no such node."""
    name = node.name()
    if name == "MaskedSelectBackward0":
        mask = node._saved_mask
        return mask.reshape(rows, -1).any(1).cpu() if mask.dim() > 0 and mask.shape[0] == rows else None
    chosen = torch.zeros(rows, dtype=torch.bool)
    if name == "IndexBackward0":
        index = node._saved_indices[0]
        if index is None:
            return None
        if index.dtype == torch.bool:
            index = index.nonzero()[:, 0]
        chosen[index.flatten().cpu()] = True
    elif name in ("SliceBackward0", "SelectBackward0", "IndexSelectBackward0") and _signed(node._saved_dim) == 0:
        if name == "SliceBackward0":
            chosen[_signed(node._saved_start) : _signed(node._saved_end) : node._saved_step] = True
        elif name == "SelectBackward0":
            chosen[_signed(node._saved_index)] = True
        else:
            chosen[node._saved_index.cpu()] = True
    else:
        return None
    return chosen


def _signed(number: int) -> int:
    """A number that autograd shows without its sign."""
    return number - 2**64 if number >= 2**63 else number


@dataclass(frozen=True)
class Reduction:
    """How rows are reduced on one way from the loss.

    scale: what the reduced loss is multiplied by
    plain: whether no number that the loss is multiplied by could make a mean of a sum, or a sum of a mean
    """

    mean: bool
    scale: float
    plain: bool


def reductions(graph: LossGraph, rows: int) -> list[Reduction]:
    """The reductions over rows that the loss ends with; none for what is not plainly one. rows: of all ends"""
    found: list[Reduction] = []
    pending = [(root, 1.0, True) for root in graph.roots]
    seen = set[tuple[Any, float, bool]]()
    inside, single = set(graph.nodes), _of_one_row(graph, rows)
    while pending:
        node, scale, plain = pending.pop()
        if node in single or (node, scale, plain) in seen:
            continue
        seen.add((node, scale, plain))
        mean, factor = _reduces(node, node in graph.led), _passes(node)
        if mean is not None:
            plain = plain and all(_is_plain(other, rows) for other in _factors_inside(node))
            found.append(Reduction(mean, scale, plain))
        elif factor is not None:
            plain = plain and _is_plain(factor, rows)
            pending += [(behind, scale * factor, plain) for behind, _ in node.next_functions if behind in inside]
        elif node.name().startswith(("MeanBackward", "SumBackward")):  # over what is not the rows
            pending += [(behind, scale, plain) for behind, _ in node.next_functions if behind in inside]
    return found


def _is_plain(factor: float, rows: int) -> bool:
    """Whether a factor surely has nothing to do with how many rows there are."""
    return abs(factor) in (0.5, 1.0, 2.0) and not (isclose(abs(factor) * rows, 1.0) or isclose(abs(factor), rows))


def _factors_inside(reduction: Any) -> list[float]:
    """Numbers that each row is multiplied by right before the reduction."""
    factors: list[float] = []
    pending, seen = [reduction], set[Any]()
    while pending:
        for behind, _ in pending.pop().next_functions:
            factor = None if behind is None or behind in seen else _passes(behind)
            seen.add(behind)
            if factor is not None:
                factors.append(factor)
                pending.append(behind)
    return factors


def _passes(node: Any) -> float | None:
    """What a node multiplies its input by, if it is a single number; None if it does something else."""
    if node.name() in _AS_IT_IS:
        return 1.0
    return _factor(node) if node.name() in ("MulBackward0", "DivBackward0") else None


def _reduces(node: Any, led: bool) -> bool | None:
    """Whether a node takes the mean over rows, or False for their sum; None if it does not reduce them.

    led: whether its input's first dimension is the rows
    """
    name = node.name()
    kept = getattr(node, "_saved_reduction", None)
    if kept in (_MEAN, _SUM):
        return bool(kept == _MEAN)
    if not led or not name.startswith(("MeanBackward", "SumBackward")) or _leaves_rows(node):
        return None
    return bool(name.startswith("Mean"))


def _factor(node: Any) -> float | None:
    """The number that a node multiplies by, or None if it is no single number."""
    other = node._saved_other
    if not isinstance(other, Tensor) or other.dim() > 0 or other.requires_grad or other.is_complex() or other == 0:
        return None
    return float(other) if node.name() == "MulBackward0" else 1 / float(other)


def divides_by_weights(graph: LossGraph) -> bool:
    """Whether a mean of cross entropies is divided by the weights of all rows' classes, or by how many are not ignored.

    Then each row's gradient depends on the labels of the others.
    """
    for node in graph.nodes:
        if node.name().startswith("NllLoss") and node._saved_reduction == _MEAN:
            weight, ignored = node._saved_weight, node._saved_target == _signed(node._saved_ignore_index)
            if bool(ignored.any()) or (weight is not None and bool((weight != weight[0]).any())):
                return True
    return False


def couples_rows(
    losses: Sequence[Tensor], gradients: Sequence[Tensor | None], own: dict[GradientEdge, int],
    others: Sequence[GradientEdge],
) -> bool:  # fmt: skip
    """Whether gradients of one half of the rows, or of other rows altogether, change with what the other half gave.

    gradients: of losses that are no single numbers
    own:       outputs with the same rows, and the dimension of each that is the rows
    others:    outputs whose gradients must not depend on any of the rows

    By second derivatives, over a few splits; so a loss that couples rows in straight pieces alone, such as the largest
    of all, may be missed, and so is a dependence that was detached from the graph.
    """
    first = _rows_first(_grads(losses, [*own, *others], gradients, create_graph=True), own)
    rows = next((grad.shape[0] for grad in first[: len(own)] if grad is not None), 0)
    moving, beside = (
        [grad for grad in part if grad is not None and grad.requires_grad]
        for part in (first[: len(own)], first[len(own) :])
    )
    if rows == 0 or not (moving or beside):
        return False
    draw = torch.Generator().manual_seed(0)
    for _ in range(_SPLITS):
        half = torch.randperm(rows, generator=draw) < rows // 2
        for grads, apart in ((moving, ~half), (beside, torch.ones(rows, dtype=torch.bool))):
            if not grads:
                continue
            given = [_weights(grad, half if grads is moving else None, draw) for grad in grads]
            found = _rows_first(_grads(grads, list(own), given, create_graph=False), own)
            moved = [((x != 0) & x.isfinite()).unsqueeze(-1).flatten(1).any(1).cpu() for x in found if x is not None]
            if any(bool(rows_moved[apart].any()) for rows_moved in moved):
                return True
    return False


def _rows_first(grads: list[Tensor | None], own: dict[GradientEdge, int]) -> list[Tensor | None]:
    """Gradients of outputs, and of others after them, with each output's rows moved to the first dimension."""
    moved = [None if grad is None else grad.movedim(dim, 0) for grad, dim in zip(grads, own.values(), strict=False)]
    return [*moved, *grads[len(own) :]]


def _grads(
    outputs: Sequence[Tensor], inputs: Sequence[GradientEdge], given: Sequence[Tensor | None], create_graph: bool
) -> list[Tensor | None]:
    """Gradients, None where nothing depends on an input; the graph stays."""
    return list(
        torch.autograd.grad(outputs, inputs, given, retain_graph=True, create_graph=create_graph, allow_unused=True)
    )


def _weights(grad: Tensor, half: Tensor | None, draw: torch.Generator) -> Tensor:
    """For the elements of a gradient, or for those of one half of its rows. No two are alike: what they add up to must
    not cancel."""
    weights = torch.rand(grad.shape, generator=draw) + 0.5
    if half is not None:
        weights[~half] = 0.0
    return weights.to(grad)
