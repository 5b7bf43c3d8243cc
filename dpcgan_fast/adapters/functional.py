"""DP-SGD for code that is written with torch.func: clipped sums in place of `vmap(grad(...))`.

    grads = vmap(grad(loss_fn), in_dims=(None, 0, 0))(params, x, y)                   # per-sample gradients, as before
    sums, norms = clip_and_aggregate(grads, max_grad_norm=1.0)                        # clipped and added up

    sums, info = dp_grad(loss_fn, max_grad_norm=1.0)(params, x, y)                    # both in one, in bounded memory
    sums, info = dp_grad(loss_fn, max_grad_norm=1.0, module=net)(params, x, y)        # without per-sample gradients

The sums are those of the batch: divide them by a public expected batch size, never by the number of rows that were
drawn. Without noise they are not private; neither are norms, losses and clip factors, with noise or without.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten, tree_flatten_with_path, tree_map_only, tree_unflatten

from dpcgan_fast import ops
from dpcgan_fast.adapters.batched_module import BatchedModule
from dpcgan_fast.engine.clipped_sum import GradientSum
from dpcgan_fast.engine.report import StepReport
from dpcgan_fast.engine.settings import noise_std
from dpcgan_fast.ops import NoiseKey

Tree = Any  # nested dicts, lists and tuples of tensors

_CHUNK_BYTES = 1 << 24  # of per-sample gradients at a time


def clip_and_aggregate(
    per_sample_grads: Tree,
    max_grad_norm: float,
    *,
    units: Tensor | None = None,
    noise_multiplier: float = 0.0,
    noise_key: NoiseKey | None = None,
) -> tuple[Tree, Tensor]:
    """Clips per-sample gradients over all leaves together, and adds them up over rows.

    per_sample_grads: dict, nested dict or any pytree of floating-point tensors (B, *shape), as `vmap(grad(f))` returns
    max_grad_norm:    C >= 1e-12, in gradient units; `inf` clips nothing and needs noise_multiplier 0
    units:            (B,) int64; rows with one id add before the norm is taken. None: every row is a unit
    noise_multiplier: sigma >= 0; N(0, (sigma C)^2) is added to every element of the sums
    noise_key:        from `privacy.noise_key()`; a fresh secret one by default
    out:              the tree of sums (*shape), each in its leaf's dtype; and norms before clipping, which are private:
                      (B,) in row order, or (U,) in ascending order of unit id; float64 if a leaf is, else float32

    Formal guarantees: removing one unit moves the joint sum by at most C (1 + 1e-6), up to the rounding to the leaves'
    dtype, which comes after the noise; a unit whose gradient is not finite adds exactly zero; B = 0 gives zeros, or
    noise alone.
    Raises ValueError for a tree without leaves, for leaves that are no floating-point tensors or differ in their
    number of rows, and for settings out of range.
    Source: arXiv 1607.00133, algorithm 1.
    """
    std = noise_std(max_grad_norm, noise_multiplier)
    leaves, structure = tree_flatten(per_sample_grads)
    _check_float_leaves("per_sample_grads", per_sample_grads)
    rows = {leaf.shape[0] if leaf.dim() > 0 else -1 for leaf in leaves}
    if len(rows) > 1 or -1 in rows:
        raise ValueError(
            "Expected all leaves of per_sample_grads to have the B rows as their leading dimension; otherwise no "
            f"per-sample norm exists. Shapes without it: {[tuple(leaf.shape[1:]) for leaf in leaves]}. Give what "
            "vmap(grad(f)) returns, with its out_dims at 0."
        )
    common = _common_dtype(leaves)
    grads = [leaf.detach().to(common) for leaf in leaves]
    sums, norms = ops.clip_and_sum(grads, max_grad_norm, units, torch.float64)
    released = _released(sums, leaves, std, noise_key)
    return tree_unflatten(released, structure), norms.to(common)


@dataclass(frozen=True)
class GradReport:
    """The way that a `dp_grad` took.

    path:   "module": the engine ran the module for all rows, without per-sample gradients; "vmap": vmap(grad), in
            chunks of rows
    why:    why not the other one
    engine: what the engine says of each layer, on the path "module"
    """

    path: Literal["module", "vmap"]
    why: str
    engine: StepReport | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.why}" + (f"\n{self.engine}" if self.engine is not None else "")


@dataclass(frozen=True)
class GradInfo:
    """What a `dp_grad` returns beside the sums. All of it is private: it comes from single rows.

    losses:      (B,) in row order, detached
    clip_factor: float64, (B,) in row order, or (U,) in ascending order of unit id; 0 for what was not finite
    report:      which way was taken; it names an empty batch
    """

    losses: Tensor
    clip_factor: Tensor
    report: GradReport


def dp_grad(
    fn: Callable[..., Tensor],
    *,
    max_grad_norm: float,
    module: nn.Module | None = None,
    argnums: int | tuple[int, ...] = 0,
    in_dims: Sequence[int | None] | None = None,
    chunk_size: int | None = None,
    noise_multiplier: float = 0.0,
    noise_key: NoiseKey | None = None,
) -> "DPGrad":
    """Turns the loss of one row into the clipped sum of its gradients over a batch.

    fn:               fn(params, x_row, y_row, ...) -> scalar, as for `vmap(grad(fn), in_dims=(None, 0, 0, ...))`
    max_grad_norm:    C >= 1e-12, in gradient units; `inf` clips nothing and needs noise_multiplier 0
    module:           the module that fn calls as `torch.func.functional_call(module, params, (x_row.unsqueeze(0),))`.
                      The engine then runs it for all rows at once, without per-sample gradients, where it can, and
                      vmap(grad) where not. Modules that mix rows, such as BatchNorm, are refused
    argnums:          as for `torch.func.grad`; arguments with gradients are not split into rows
    in_dims:          one for each argument, the dimension of its tensors that holds the rows, or None; by default None
                      for arguments of argnums, and else 0
    chunk_size:       most rows at a time; those of one unit stay together, even if there are more. By default as many
                      as have 16 MiB of per-sample gradients, and all of them where the engine runs the module
    noise_multiplier: as in `clip_and_aggregate`; noise is added once, after all chunks
    noise_key:        from `privacy.noise_key()`; a fresh secret one by default
    out:              g, with g(*args, units=None) -> (sums, GradInfo): sums as `grad(fn)` would return them for the
                      whole batch, in the dtype of the arguments; units as in `clip_and_aggregate`

    Each row draws its own random numbers, as by vmap(..., randomness="different").

    Formal guarantees: removing one unit moves the joint sum by at most C (1 + 1e-6), up to the rounding to the
    arguments' dtype, which comes after the noise, and to what torch itself rounds otherwise in a batch of another size;
    a unit whose gradient is not finite adds exactly zero; B = 0 gives zeros, or noise alone; chunks add up in float64.
    Raises ValueError, here or when called, for settings out of range, for a module that mixes rows, for arguments whose
    rows do not fit together, and for a loss that is no scalar.
    Source: arXiv 1607.00133, algorithm 1.
    """
    return DPGrad(fn, max_grad_norm, module, argnums, in_dims, chunk_size, noise_multiplier, noise_key)


class DPGrad:
    """What `dp_grad` returns."""

    def __init__(
        self,
        fn: Callable[..., Tensor],
        max_grad_norm: float,
        module: nn.Module | None,
        argnums: int | tuple[int, ...],
        in_dims: Sequence[int | None] | None,
        chunk_size: int | None,
        noise_multiplier: float,
        noise_key: NoiseKey | None,
    ):
        self._noise_std = noise_std(max_grad_norm, noise_multiplier)
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"Expected chunk_size={chunk_size} >= 1, or None.")
        self._fn = fn
        self._max_grad_norm = max_grad_norm
        self._argnums = argnums
        self._in_dims = in_dims
        self._chunk_size = chunk_size
        self._noise_key = noise_key if noise_key is not None else NoiseKey()
        self._batched = None if module is None else BatchedModule(module, max_grad_norm)
        self._why_vmap = "no module was given" if module is None else ""

    def __call__(self, *args: Any, units: Tensor | None = None) -> tuple[Tree, GradInfo]:
        """Clipped sums of the gradients of a batch, with noise if any was asked for."""
        dims = self._dims(args)
        wanted = args[self._argnums] if isinstance(self._argnums, int) else tuple(args[i] for i in self._argnums)
        _check_float_leaves(f"the arguments of argnums={self._argnums}", wanted)
        leaves, structure = tree_flatten(wanted)
        batch = _Batch(tree_map_only(Tensor, Tensor.detach, args), dims, units)
        sums, info = self._clipped(batch, leaves)
        return tree_unflatten(_released(sums, leaves, self._noise_std, self._noise_key), structure), info

    def _dims(self, args: tuple[Any, ...]) -> tuple[int | None, ...]:
        argnums = (self._argnums,) if isinstance(self._argnums, int) else self._argnums
        if not argnums or not all(0 <= i < len(args) for i in argnums) or len(set(argnums)) < len(argnums):
            raise ValueError(f"Expected argnums={self._argnums} to be places of the {len(args)} arguments, once each.")
        if self._in_dims is None:
            return tuple(None if i in argnums else 0 for i in range(len(args)))
        dims = tuple(self._in_dims)
        if len(dims) != len(args) or any(type(dim) not in (int, type(None)) for dim in dims):
            raise ValueError(
                f"Expected in_dims={self._in_dims} to be one int or None for each of {len(args)} arguments."
            )
        if any(dims[i] is not None for i in argnums):
            raise ValueError(
                f"Expected in_dims={self._in_dims} to be None at argnums={self._argnums}: parameters that are "
                "split into rows have no sum of gradients over the rows."
            )
        return dims

    def _clipped(self, batch: "_Batch", leaves: list[Tensor]) -> tuple[list[Tensor], GradInfo]:
        """Sums in float64, one for each leaf."""
        if batch.rows == 0:
            empty = torch.zeros(0, dtype=torch.float64, device=leaves[0].device)
            sums = [torch.zeros_like(leaf, dtype=torch.float64, requires_grad=False) for leaf in leaves]
            return sums, GradInfo(empty.to(_common_dtype(leaves)), empty, GradReport("vmap", "there are no rows"))
        why = self._why_vmap
        if self._batched is not None and not why:
            try:
                return self._by_module(self._batched, batch)
            except ValueError as reason:  # the engine's way of saying what it does not take; errors of fn return below
                why = str(reason)
        sums, info = self._by_vmap(batch, leaves, why)
        self._why_vmap = why  # only now: fn itself may have been at fault
        return sums, info

    def _by_module(self, batched: BatchedModule, batch: "_Batch") -> tuple[list[Tensor], GradInfo]:
        if not isinstance(self._argnums, int):
            raise ValueError("the gradient is asked for a tuple of arguments")
        argnum = self._argnums
        batched.begin(batch.args[argnum])
        total: GradientSum = {}
        losses: list[Tensor] = []
        factors: list[Tensor] = []
        report = None
        for chunk in batch.chunks(self._chunk_size):

            def row_losses(parameters: dict[str, nn.Parameter], chunk: _Batch = chunk) -> Tensor:
                args = (*chunk.args[:argnum], parameters, *chunk.args[argnum + 1 :])
                return torch.func.vmap(self._row_loss, in_dims=chunk.dims, randomness="different")(*args)

            groups = None if chunk.units is None else ops.group_units(chunk.units, chunk.rows)
            chunk_losses, factor, report = batched.add_clipped(row_losses, chunk.rows, groups, total)
            losses.append(chunk_losses)
            factors.append(factor)
        info = GradInfo(
            batch.in_row_order(torch.cat(losses)), torch.cat(factors),
            GradReport("module", "the module takes all rows at once", report),
        )  # fmt: skip
        return tree_flatten(batched.sums(total))[0], info

    def _by_vmap(self, batch: "_Batch", leaves: list[Tensor], why: str) -> tuple[list[Tensor], GradInfo]:
        size = self._chunk_size
        if size is None:
            row_bytes = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
            size = max(1, _CHUNK_BYTES // max(1, row_bytes))
        common = _common_dtype(leaves)
        sums = [torch.zeros_like(leaf, dtype=torch.float64, requires_grad=False) for leaf in leaves]
        losses: list[Tensor] = []
        factors: list[Tensor] = []
        for chunk in batch.chunks(size):
            gradient = torch.func.grad_and_value(self._row_loss, argnums=self._argnums)
            with torch.no_grad():  # torch.func.grad does without it; what fn closes over is no part of a graph
                grads, chunk_losses = torch.func.vmap(gradient, in_dims=chunk.dims, randomness="different")(*chunk.args)
            grads = [grad.to(common) for grad in tree_flatten(grads)[0]]
            chunk_sums, norms = ops.clip_and_sum(grads, self._max_grad_norm, chunk.units, torch.float64)
            for total, chunk_sum in zip(sums, chunk_sums, strict=True):
                total += chunk_sum
            losses.append(chunk_losses)
            factors.append(ops.clip_factor(norms.square(), self._max_grad_norm))
        info = GradInfo(batch.in_row_order(torch.cat(losses)), torch.cat(factors), GradReport("vmap", why))
        return sums, info

    def _row_loss(self, *args: Any) -> Tensor:
        loss: Any = self._fn(*args)  # whatever fn returns
        if not isinstance(loss, Tensor) or loss.dim() != 0:
            got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(
                f"Expected fn to return the loss of one row, a tensor of shape (), got {got}. Reduce it within the "
                "row, for example by .sum() or .squeeze()."
            )
        return loss


class _Batch:
    """Arguments whose tensors hold rows. With units, rows are in ascending order of unit id.

    dims:  for each argument, the dimension of the rows in its tensors, or None
    units: (B,) int64 or None
    """

    def __init__(self, args: tuple[Any, ...], dims: tuple[int | None, ...], units: Tensor | None):
        self.args, self.dims, self.units = args, dims, units
        self.rows = _rows_of(args, dims)
        self._order: Tensor | None = None
        if units is not None:
            ops.group_units(units, self.rows)  # checks them
            self._order = torch.argsort(units, stable=True)
            self.units = units[self._order]
            order = self._order
            self.args = self._of_each(lambda x, dim: x.index_select(dim, order.to(x.device)))

    def _of_each(self, change: Callable[[Tensor, int], Tensor]) -> tuple[Any, ...]:
        return tuple(
            arg if dim is None else tree_map_only(Tensor, lambda x, dim=dim: change(x, dim), arg)
            for arg, dim in zip(self.args, self.dims, strict=True)
        )

    def chunks(self, size: int | None) -> list["_Batch"]:
        """Parts of at most `size` rows, or of one unit that has more."""
        if size is None or size >= self.rows:
            return [self]
        ends = list(range(1, self.rows + 1))
        if self.units is not None:
            counts = torch.unique_consecutive(self.units, return_counts=True)[1]  # pyright: ignore
            ends = cast("list[int]", cast("Tensor", counts).cumsum(0).tolist())  # pyright: ignore
        parts: list[_Batch] = []
        start = 0
        for end, after in zip(ends, [*ends[1:], math.inf], strict=True):
            if after - start > size:
                parts.append(self._part(start, end))
                start = end
        return parts

    def _part(self, start: int, end: int) -> "_Batch":
        args = self._of_each(lambda x, dim: x.narrow(dim, start, end - start))
        return _Batch(args, self.dims, None if self.units is None else self.units[start:end])

    def in_row_order(self, of_rows: Tensor) -> Tensor:
        """(B,) as the rows were given."""
        if self._order is None:
            return of_rows
        return torch.empty_like(of_rows).index_copy_(0, self._order.to(of_rows.device), of_rows)


def _rows_of(args: tuple[Any, ...], dims: tuple[int | None, ...]) -> int:
    """The number of rows. Raises ValueError, which does not tell how many there are, unless all arguments agree."""
    found: dict[int, str] = {}
    for i, (arg, dim) in enumerate(zip(args, dims, strict=True)):
        if dim is None:
            continue
        for path, leaf in tree_flatten_with_path(arg)[0]:
            name = f"args[{i}]{keystr(path)}"
            if not isinstance(leaf, Tensor) or not -leaf.dim() <= dim < leaf.dim():
                raise ValueError(
                    f"Expected {name} to be a tensor with rows in dimension {dim}. Give in_dims with None for an "
                    "argument that all rows share."
                )
            found.setdefault(leaf.shape[dim], name)
    if len(found) != 1:
        names = " and ".join(found.values())
        raise ValueError(
            f"Expected arguments with one number of rows; {names} differ in it." if found else
            "Expected at least one argument with rows; in_dims has None for all."
        )  # fmt: skip
    return next(iter(found))


def _check_float_leaves(what: str, tree: Tree) -> None:
    pairs = tree_flatten_with_path(tree)[0]
    if not pairs:
        raise ValueError(f"Expected {what} to have at least one tensor, got an empty tree.")
    for path, leaf in pairs:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise ValueError(
                f"Expected {what} to hold floating-point tensors alone, got {got} at {keystr(path) or 'its root'}. "
                "Keep counters and other state in an argument of their own."
            )


def _common_dtype(leaves: Sequence[Tensor]) -> torch.dtype:
    """A dtype that holds the values of all leaves exactly and that the kernels take."""
    return torch.float64 if any(leaf.dtype == torch.float64 for leaf in leaves) else torch.float32


def _released(sums: Sequence[Tensor], like: Sequence[Tensor], std: float, noise_key: NoiseKey | None) -> list[Tensor]:
    """Sums, float64, with noise if any, and then rounded to the dtypes of `like`."""
    whole = [total.contiguous() for total in sums]
    if std > 0:
        ops.gaussian_noise_(whole, std, noise_key if noise_key is not None else NoiseKey())
    return [total.to(leaf.dtype) for total, leaf in zip(whole, like, strict=True)]
