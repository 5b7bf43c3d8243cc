"""Runs a module for all rows at once, where a function of one row calls it: `dp_grad` on the engine's private path.

The function runs under vmap as it is. Where it calls the module, the call is made once, with the rows of the whole
batch, outside of vmap, so that the engine can record it; each row then sees its own row of the output.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from dpcgan_fast.engine.backward import reached_uses
from dpcgan_fast.engine.clipped_sum import GradientSum, add_clipped_sum
from dpcgan_fast.engine.norm_picker import NormPicker
from dpcgan_fast.engine.recorded import RecordedModule
from dpcgan_fast.engine.recorder import ForwardCall, tensors_in
from dpcgan_fast.engine.report import StepReport
from dpcgan_fast.engine.row_mixing import refuse_mixing_modules
from dpcgan_fast.ops import UnitGroups

Values = dict[str, Tensor]  # parameter name -> value


def _are_values(given: Any, own: dict[str, nn.Parameter]) -> TypeGuard[Values]:
    """Whether these are values for some of the module's own parameters."""
    if not isinstance(given, dict):
        return False
    pairs = cast("dict[Any, Any]", given)
    return all(name in own and isinstance(value, Tensor) for name, value in pairs.items())


class NotBatchedError(ValueError):
    """Why a function of one row cannot have its module run for all rows at once."""


class _ForAllRows(torch.autograd.Function):
    """A call whose vmap rule sees the rows of the whole batch, and runs outside of vmap."""

    @staticmethod
    def forward(_call: Any, *_tensors: Tensor) -> Any:
        raise NotBatchedError("the function calls the module with nothing that depends on the row")

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:  # noqa: ARG004
        """Only called where a transform of torch.func inside of the function takes a gradient."""
        raise NotBatchedError("the function takes a gradient through the module itself, as a gradient penalty does")

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:  # noqa: ARG004
        if any(dim is None for dim in in_dims[1:]):
            raise NotBatchedError("the function gives the module a tensor that does not depend on the row")
        call, *tensors = args
        outputs = call([x.movedim(dim, 0) for x, dim in zip(tensors, in_dims[1:], strict=True)])
        return outputs, (0,) * len(outputs)


class _Holder(nn.Module):
    """Runs work while the module beneath holds other tensors: torch.func.functional_call swaps them in and out."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


class BatchedModule:
    """A module that functions of one row call by `torch.func.functional_call`.

    module:        modules that mix rows are refused, ValueError
    max_grad_norm: C, in gradient units

    The module keeps its parameters throughout. Tensors of this object stand for them while the function runs, with the
    values that it was given, so that the engine has one set of parameters to record, whatever the values are.
    """

    def __init__(self, module: nn.Module, max_grad_norm: float):
        refuse_mixing_modules(module)
        self._module = module
        self._max_grad_norm = max_grad_norm
        self._pick = NormPicker("auto", 1.0, "dp_grad is told no public batch size")
        self._parameters: dict[str, nn.Parameter] = {}
        self._recorded: RecordedModule | None = None
        self._known_calls: set[tuple[int, ...]] = set()  # training flag, dimensions: rows were seen not to mix
        self._reset()

    def _reset(self) -> None:
        self._calls: list[ForwardCall] = []
        self._state: dict[str, Tensor] = {}  # all tensors of the module, as the function's calls hold them
        self._rows = 0

    def begin(self, values: Any) -> None:
        """Takes over the values of the parameters. Raises NotBatchedError if they are not those of the module."""
        self._reset()
        own = dict(self._module.named_parameters())
        if not _are_values(values, own):
            raise NotBatchedError("the gradient is not asked for a dict of parameters by the names of the module's own")
        hooks = self._module._forward_hooks or self._module._forward_pre_hooks  # pyright: ignore  no public names
        if hooks or "forward" in self._module.__dict__:
            raise NotBatchedError("the module has hooks or a forward of its own")
        for name, value in values.items():
            like = own[name]
            if (value.shape, value.dtype, value.device) != (like.shape, like.dtype, like.device):
                raise NotBatchedError(f"parameter {name!r} has another shape, dtype or device than the module's own")
        kept = [(name, p.dtype, p.device, p.shape) for name, p in self._parameters.items()]
        if kept != [(name, value.dtype, value.device, value.shape) for name, value in values.items()]:
            self._parameters = {name: nn.Parameter(value.detach()) for name, value in values.items()}
            self._recorded = None
        for name, value in values.items():
            self._parameters[name].data = value.detach()
        if self._recorded is not None:
            self._recorded.begin_step()

    def add_clipped(
        self,
        row_losses: Callable[[dict[str, nn.Parameter]], Tensor],
        rows: int,
        groups: UnitGroups | None,
        total: GradientSum,
    ) -> tuple[Tensor, Tensor, StepReport]:
        """Adds the clipped gradients of some rows to `total`, in float64.

        row_losses:  the losses (B,) of parameters, by vmap
        groups:      as in `add_clipped_sum`

        Returns losses (B,), clip factors (U,) float64, and the engine's report. Raises ValueError, whose text says why,
        if the function is not one that this can run.
        """
        self._reset()
        self._rows = rows
        self._module.forward = self._stand_in  # no hook can stand in for a forward
        try:
            with torch.enable_grad():
                losses = row_losses(self._parameters)
        finally:
            self._module.__dict__.pop("forward", None)
        if not self._calls or not losses.requires_grad:
            raise NotBatchedError("the loss does not depend on a call of the module")

        def summed() -> tuple[Tensor, StepReport]:
            recorded = self._recorder()
            early = recorded.early(rows, groups is not None)
            ones = torch.ones_like(losses)
            reached, _ = reached_uses(self._calls, [losses], [ones], recorded.trainable, early=early)
            named = recorded.gradients(reached, rows, groups is not None)
            clipped = add_clipped_sum(named, self._max_grad_norm, groups, self._pick, total)
            return clipped.factor(), recorded.report(clipped.layers, {})

        # The engine may run layers again here, and has to find the tensors in them that the function had put there.
        state = {f"module.{name}": tensor for name, tensor in self._state.items()}
        factor, report = torch.func.functional_call(_Holder(self._module), state, (summed,))
        self._reset()
        return losses.detach(), factor, report

    def sums(self, total: GradientSum) -> Values:
        """Sums by name, float64; zero for parameters that the losses do not depend on."""
        return {
            name: total[p] if p in total else torch.zeros_like(p, dtype=torch.float64, requires_grad=False)
            for name, p in self._parameters.items()
        }

    def _recorder(self) -> RecordedModule:
        """Made while the module holds the parameters of this object."""
        if self._recorded is None:
            trainable = {parameter: name for name, parameter in self._parameters.items()}
            measure = math.isfinite(self._max_grad_norm)
            self._recorded = RecordedModule(self._module, trainable, fused=True, norm_mode="auto", measure=measure)
        return self._recorded

    def _stand_in(self, *args: Any, **kwargs: Any) -> Any:
        """The module's forward for one row, inside of vmap."""
        leaves, structure = tree_flatten((args, kwargs))
        where = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        output_structure: list[TreeSpec] = []

        def for_all_rows(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            for i, tensor in zip(where, tensors, strict=True):
                leaves[i] = self._without_own_row(tensor)
            outputs, spec = tree_flatten(self._forward(*tree_unflatten(leaves, structure)))
            if not all(isinstance(out, Tensor) and out.dim() > 0 and out.shape[0] == self._rows for out in outputs):
                raise NotBatchedError("the module returns something in which the rows do not lead")
            output_structure.append(spec)
            return tuple(out.unsqueeze(1) for out in outputs)  # (B, 1, ...): a batch of one for each row

        apply = cast("Callable[..., tuple[Tensor, ...]]", _ForAllRows.apply)  # pyright: ignore  what the vmap rule gives
        return tree_unflatten(list(apply(for_all_rows, *(leaves[i] for i in where))), output_structure[0])

    def _without_own_row(self, tensor: Tensor) -> Tensor:
        """(B, 1, ...) -> (B, ...)."""
        if is_functorch_wrapped_tensor(tensor):
            raise NotBatchedError("the function calls the module inside of a vmap of its own")
        if tensor.dim() < 2 or tensor.shape[:2] != (self._rows, 1):
            raise NotBatchedError("the module is not called with a batch of one row, as in x.unsqueeze(0)")
        return tensor.squeeze(1)

    def _forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's output for all rows, recorded; in its place while it runs, its own forward is found again."""
        self._check_state()
        self._module.__dict__.pop("forward")
        try:
            recorded = self._recorder()
            kind = (self._module.training, *(x.dim() for x in tensors_in(args, kwargs)))
            if kind not in self._known_calls:  # what leads may depend on it: a convolution takes (C, L) as one row
                recorded.rows_known_apart.clear()
            output, call = recorded.forward(args, kwargs)
            if recorded.rows_known_apart:
                self._known_calls.add(kind)
        except RuntimeError as error:  # its text may tell how many rows there are
            raise NotBatchedError("the module fails where it is given all rows as one batch") from error
        finally:
            self._module.forward = self._stand_in
        self._calls.append(call)
        return output

    def _check_state(self) -> None:
        """Raises NotBatchedError if the module does not hold the parameters as given, or other tensors than before."""
        module = self._module
        state = {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
        if any(state.get(name) is not parameter for name, parameter in self._parameters.items()):
            raise NotBatchedError(
                "the module is not called by torch.func.functional_call with the parameters as they were given"
            )
        if self._state and any(self._state[name] is not tensor for name, tensor in state.items()):
            raise NotBatchedError("the function calls the module twice, with other parameters or buffers")
        self._state = state
