"""Where another library's loop meets the private path: a plain tensor for the loss, recorded layers behind it.

A forward runs on the private path in a graph of its own, and the caller gets its output as the end of that graph. When
the caller's `loss.backward()` arrives there, one backward pass through the graph takes the gradients of the layers'
outputs, and of the inputs where they are asked for; no gradient of a parameter is formed. What was reached waits as a
`Batch` until the optimizer clips it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from dpcgan_fast import ops
from dpcgan_fast.adapters.opacus.loss_watch import End, LossWatch
from dpcgan_fast.engine.backward import reached_uses
from dpcgan_fast.engine.recorded import RecordedModule, rows_of_call
from dpcgan_fast.engine.recorder import ForwardCall, Reached


@dataclass
class Batch:
    """Rows whose gradients wait to be clipped: what one backward pass reached.

    rows:   B; every use has one gradient for each of them
    scale:  what turns a gradient of the loss into one of a row's own loss: B for a mean over rows, else 1
    public: whether the rows touch no data
    """

    recorded: RecordedModule
    reached: list[Reached]
    rows: int
    scale: int
    public: bool
    versions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = [p._version for p in self.recorded.trainable]

    def check_parameters(self) -> None:
        """Raises ValueError if a parameter was moved after the backward: gradients would be those of other weights."""
        for (parameter, name), version in zip(self.recorded.trainable.items(), self.versions, strict=True):
            if parameter._version != version:
                raise ValueError(
                    f"Parameter {name!r} was changed between backward and step. Call optimizer.step() first."
                )


@dataclass
class _Forward:
    """One forward: its graph, from the inputs that need a gradient to the outputs."""

    recorded: RecordedModule
    call: ForwardCall
    rows: int
    public: bool
    inputs: list[Tensor]
    outputs: list[Tensor]


class Boundary:
    """Runs a module so that a plain backward leaves a `Batch`.

    mean:     whether losses are means over rows
    row_dim:  of the module's inputs
    deliver:  is given the batches of each backward pass, at its end
    """

    def __init__(self, mean: bool, row_dim: int, deliver: Callable[[list[Batch]], None]):
        self._mean = mean
        self._row_dim = row_dim
        self._deliver = deliver
        self._losses = LossWatch(mean)
        # An input of every forward's end, so that its outputs need a gradient even if no input does.
        self._anchor = torch.empty(0, requires_grad=True)
        self._task = -1  # the backward pass at work, by autograd's number
        self._reached: list[tuple[_Forward, list[Reached]]] = []

    def run(
        self, recorded: RecordedModule, args: tuple[Any, ...], kwargs: dict[str, Any], public: bool,
        modules: list[nn.Module],
    ) -> Any:  # fmt: skip
        """The module's output. Raises ValueError for modules that mix rows. modules: all that it has now."""
        rows = rows_of_call(args, kwargs, self._row_dim)
        outer: list[Tensor] = []  # inputs whose gradients the caller needs, and what stands for them
        inner: list[Tensor] = []
        if kwargs or not all(isinstance(arg, Tensor) and not arg.requires_grad for arg in args):
            leaves, structure = tree_flatten((args, kwargs))
            outer = list({id(x): x for x in leaves if isinstance(x, Tensor) and x.requires_grad}.values())
            within = {id(leaf): leaf.detach().requires_grad_() for leaf in outer}
            inner = [within[id(leaf)] for leaf in outer]
            args, kwargs = tree_unflatten([within.get(id(leaf), leaf) for leaf in leaves], structure)
        output, call = recorded.forward(args, kwargs, modules)
        if isinstance(output, Tensor) and output.requires_grad:
            return self._end(_Forward(recorded, call, rows, public, inner, [output]), outer)[0]
        found, shape = tree_flatten(output)
        ends = [leaf for leaf in found if isinstance(leaf, Tensor) and leaf.requires_grad]
        if not ends:
            return output
        given = iter(self._end(_Forward(recorded, call, rows, public, inner, ends), outer))
        return tree_unflatten(
            [next(given) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf for leaf in found], shape
        )

    def _end(self, forward: _Forward, inputs: list[Tensor]) -> tuple[Tensor, ...]:
        """The outputs, as the caller gets them."""
        rows = forward.rows
        dims = tuple([self._dim_of_rows(output.shape[: self._row_dim + 1], rows) for output in forward.outputs])
        self._losses.expects(rows, forward.public)
        end = End(self._losses, rows, forward.public, dims)
        return _End.apply(self, forward, end, self._anchor, *inputs)  # type: ignore[no-any-return]

    @staticmethod
    def _dim_of_rows(sizes: torch.Size, rows: int) -> int | None:
        """Which dimension of an output is the rows, or None if that is not known. sizes: of those that may be"""
        return sizes.index(rows) if sizes.count(rows) == 1 else None

    def backward(self, forward: _Forward, grads: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Takes the gradients of the outputs on through the forward's graph; returns those of its inputs."""
        if forward.call.used:
            raise ValueError(
                "A second backward through the same forward: its rows would count twice. Call the module anew for "
                "every backward."
            )
        task = torch._C._current_graph_task_id()  # pyright: ignore[reportPrivateUsage]  it has no public name
        if task != self._task:  # what a backward pass left that failed half-way is dropped
            self._task, self._reached = task, []
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)  # type: ignore[attr-defined]
        pairs = [(out, grad) for out, grad in zip(forward.outputs, grads, strict=True) if grad is not None]
        if not pairs:
            return [None] * len(forward.inputs)
        outputs, given = (list(side) for side in zip(*pairs, strict=True))
        recorded = forward.recorded
        early = recorded.early(forward.rows, units=False)
        with ops.same_backend():
            reached, input_grads = reached_uses(
                [forward.call], outputs, given, recorded.trainable, forward.inputs, early
            )
        forward.call.used = True
        self._reached.append((forward, reached))
        return input_grads

    def _finish(self) -> None:
        """At the end of a backward pass. Forwards of one pass are uses of the same rows: their gradients add."""
        reached, self._reached, self._task = self._reached, [], -1
        batches: list[Batch] = []
        for public in (False, True):
            own = [(forward, uses) for forward, uses in reached if forward.public == public and uses]
            if not own:
                continue
            sizes = {forward.rows for forward, _ in own}
            if len(sizes) > 1:
                raise ValueError(
                    "One loss depends on forwards of different numbers of rows, which cannot be the same rows twice. "
                    "Call backward for each, and mark rows that touch no data, such as fakes, by module.public_rows()."
                )
            first, rows = own[0][0], sizes.pop()
            uses = [use for _, part in own for use in part]
            batches.append(Batch(first.recorded, uses, rows, rows if self._mean else 1, public))
        self._deliver(batches)


class _End(torch.autograd.Function):
    """The end of a forward's own graph, for the caller to go on from."""

    @staticmethod
    def forward(
        ctx: Any, boundary: Boundary, forward: _Forward, end: End, _anchor: Tensor, *_inputs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.boundary, ctx.of, ctx.end = boundary, forward, end
        return tuple(output.detach() for output in forward.outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise ValueError(
                "A gradient with create_graph=True, as a gradient penalty takes it, has no per-sample gradient here. "
                "dpcgan_fast.adapters.functional.dp_grad has exact ones for losses with penalties."
            )
        return None, None, None, None, *ctx.boundary.backward(ctx.of, grads)
