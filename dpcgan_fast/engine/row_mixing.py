"""Refuses modules whose output for one row depends on other rows: they have no per-unit gradient."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_flatten, tree_map_only

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a forward

_PROBE_ROWS = 4
_RNN_KIN = (nn.RNNBase, nn.MultiheadAttention)
_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_OVER_ROWS = (nn.Softmax, nn.LogSoftmax, nn.Softmin)
_MOVED = (
    "its output for one row changes with another row's input, by what it or a module before it does. Compute over the "
    "other dimensions, not over rows"
)


def _mixing_reason(module: nn.Module) -> str | None:
    """Why a module mixes rows, or None if its kind does not."""
    if isinstance(module, _BatchNorm):
        return "it normalises over the batch and keeps running statistics of it. Use GroupNorm"
    if getattr(module, "running_mean", None) is not None:
        return "it keeps running statistics of the batch. Set track_running_stats=False"
    if isinstance(module, _RNN_KIN) and not module.batch_first:
        return "its rows are not the leading dimension. Set batch_first=True"
    if isinstance(module, _EMBEDDINGS) and module.max_norm is not None:
        return "its forward rescales the vectors of the tokens that are there, without noise. Set max_norm=None"
    if isinstance(module, _EMBEDDINGS) and module.scale_grad_by_freq:
        return "it divides gradients by how often a token is in the batch. Set scale_grad_by_freq=False"
    if isinstance(module, _OVER_ROWS) and module.dim == 0:
        return "it normalises over the leading dimension. Choose another dim"
    if isinstance(module, nn.Flatten) and module.start_dim == 0:
        return "it flattens rows together. Set start_dim=1"
    return None


def _refusal(name: str, module: nn.Module, reason: str) -> ValueError:
    return ValueError(
        f"Module {name or '(root)'!r} ({type(module).__name__}) mixes rows: {reason}. Otherwise no per-unit gradient "
        "exists and the epsilon reported would be wrong."
    )


def refuse_mixing_modules(root: nn.Module) -> None:
    """Raises ValueError that names the first submodule of a kind that mixes rows, in train and in eval mode alike."""
    for name, module in root.named_modules():
        reason = _mixing_reason(module)
        if reason is not None:
            raise _refusal(name, module, reason)


@dataclass(frozen=True)
class _Probe:
    """What a forward on a few rows gave.

    output:  of the root
    layers:  by name of every module without children or with trainable parameters, its input and output
    buffers: by name, as the forward left them
    """

    output: Any
    layers: dict[str, tuple[Any, Any]]
    buffers: dict[str, Tensor]


def _probed(
    root: nn.Module, inputs: Inputs, device: torch.device, containers: tuple[type[nn.Module], ...], seed: int = 0
) -> _Probe:
    """A forward that leaves the module's buffers and the random state as they were."""
    args, kwargs = inputs
    clones = {name: buffer.clone() for name, buffer in root.named_buffers()}
    layers: dict[str, tuple[Any, Any]] = {}
    buffers: dict[str, Tensor] = {}

    def keep_buffers(module: nn.Module, _args: Any, _output: Any) -> None:
        buffers.update((name, buffer.clone()) for name, buffer in module.named_buffers())

    def keep_layer(name: str, args: Any, kwargs: Any, output: Any) -> None:
        layers.setdefault(name, ((args, kwargs), output))

    def refuse_packed(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if any(isinstance(x, PackedSequence) for x in (*args, *kwargs.values())):
            reason = "a packed sequence has its rows one after another, not by a leading dimension. Give it padded ones"
            raise _refusal(name, module, reason)

    def refuse_offsets(name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        ids = args[0] if args else kwargs["input"]
        if ids.dim() == 1:
            reason = "its rows are told apart by offsets, not by a leading dimension. Pad them to ids of shape (B, T)"
            raise _refusal(name, module, reason)

    handles = [root.register_forward_hook(keep_buffers)]
    handles += [
        module.register_forward_pre_hook(partial(refuse_packed, name), with_kwargs=True)
        for name, module in root.named_modules()
    ]
    handles += [
        module.register_forward_pre_hook(partial(refuse_offsets, name), with_kwargs=True)
        for name, module in root.named_modules()
        if isinstance(module, nn.EmbeddingBag)
    ]
    handles += [
        module.register_forward_hook(
            lambda _m, args, kwargs, out, name=name: keep_layer(name, args, kwargs, out), with_kwargs=True
        )
        for name, module in root.named_modules()
        if not list(module.children()) or (_trains(module) and not isinstance(module, containers))
    ]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            output = torch.func.functional_call(root, clones, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return _Probe(output, layers, buffers)


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _same_other_rows(first: Any, second: Any) -> bool:
    """Whether all rows but the first agree, up to float noise."""
    pairs = zip(tree_flatten(first)[0], tree_flatten(second)[0], strict=True)
    return all(
        torch.allclose(a[1:].double(), b[1:].double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor) and a.dim() > 0
    )


def _refuse_moved_rows(modules: dict[str, nn.Module], first: _Probe, second: _Probe) -> None:
    if _same_other_rows(first.output, second.output):
        return
    guilty = (name for name in first.layers if not _same_other_rows(first.layers[name][1], second.layers[name][1]))
    name = next(guilty, "")
    raise _refusal(name, modules[name], _MOVED)


def _refuse_data_in_buffers(modules: dict[str, nn.Module], first: _Probe, other: _Probe) -> None:
    """Not up to float noise: a buffer that depends on no row is bit by bit the same, whatever the rows are."""
    for path, buffer in first.buffers.items():
        if not torch.equal(buffer.nan_to_num(), other.buffers[path].nan_to_num()):
            name, _, own = path.rpartition(".")
            reason = f"its forward writes what it is given into buffer {own!r}, which leaves the step without noise"
            raise _refusal(name, modules[name], f"{reason}. Keep no statistics of the rows")


def _refuse_rows_elsewhere(modules: dict[str, nn.Module], probe: _Probe, rows: int) -> None:
    """Raises if a layer that is trained has anything but the rows in front, in what it takes or gives."""
    for name, (given, output) in probe.layers.items():
        module = modules[name]
        if isinstance(module, nn.RNNBase):
            output = output[0]  # the fallback refuses losses that depend on the final state, which has layers in front
        tensors = [x for x in tree_flatten((given, output))[0] if isinstance(x, Tensor)]
        if _trains(module) and any(x.dim() == 0 or x.shape[0] != rows for x in tensors):
            raise _refusal(
                name, module,
                "the leading dimension of its input or output is not that of the rows. Keep rows in front throughout, "
                "or freeze it",
            )  # fmt: skip


def _agree(first: Any, second: Any) -> bool:
    pairs = zip(tree_flatten(first)[0], tree_flatten(second)[0], strict=True)
    return all(
        torch.allclose(a.double(), b.double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor)
    )


def _refuse_reordered_rows(modules: dict[str, nn.Module], whole: _Probe, flipped: _Probe, reseeded: _Probe) -> None:
    """Raises if a trained layer does not see the rows in the order of the batch: sorted, run and put back, say.

    The gradients of one unit would then be those of another's rows in that layer. Layers that see or make what
    is random, as with dropout, cannot be compared so.
    """
    for name, (given, output) in whole.layers.items():
        if not _trains(modules[name]) or not _agree((given, output), reseeded.layers[name]):
            continue
        outputs = (output[0], flipped.layers[name][1][0]) if isinstance(modules[name], nn.RNNBase) else (
            output, flipped.layers[name][1],
        )  # fmt: skip
        turned = tree_map_only(Tensor, lambda x: x.flip(0), (given, outputs[0]))
        if not _agree(turned, (flipped.layers[name][0], outputs[1])):
            reason = (
                "it is given the rows in another order than they come in, so that rows of two units would be taken "
            )
            raise _refusal(name, modules[name], f"{reason}for one's. Keep the order of the rows throughout")


def refuse_mixed_second_rows(
    root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int, containers: tuple[type[nn.Module], ...]
) -> bool:
    """`refuse_mixed_outputs` where rows are the second dimension: whether another row's output moves, and buffers.

    In an output, rows are where its size follows their number.
    """
    if rows < 2:
        return False

    def taken(count: int, change: bool = False) -> Inputs:
        def few(x: Any) -> Any:
            if x.dim() < 2 or x.shape[1] != rows:
                return x
            x = x.detach()[:, torch.arange(count, device=x.device) % rows]
            if change:
                x[:, 0] = x[:, 1] + 1 if x.is_floating_point() else x[:, 1]
            return x

        return tree_map_only(Tensor, few, (args, kwargs))

    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    whole, changed = (_probed(root, taken(_PROBE_ROWS, change), device, containers) for change in (False, True))
    fewer = _probed(root, taken(_PROBE_ROWS - 1), device, containers)
    outputs = [[x for x in tree_flatten(probe.output)[0] if isinstance(x, Tensor)] for probe in (whole, changed, fewer)]
    for first, second, less in zip(*outputs, strict=True):
        axes = [axis for axis in range(first.dim()) if first.shape[axis] != less.shape[axis]]
        if len(axes) != 1 or not _same_other_rows(first.transpose(0, axes[0]), second.transpose(0, axes[0])):
            raise _refusal("", root, _MOVED)
    modules = dict(root.named_modules())
    for other in (changed, fewer):
        _refuse_data_in_buffers(modules, whole, other)
    return True


def refuse_mixed_outputs(
    root: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    rows: int,
    containers: tuple[type[nn.Module], ...] = (),
) -> bool:
    """Runs a few rows some times and raises ValueError for what no list of kinds can catch.

    That is: another row's output that moves when the first row is changed, such as with statistics over the batch in a
    module of one's own; a buffer that depends on the rows; a trained layer whose leading dimension is not the number
    of rows, or which is given them in another order. A run with another number of rows tells a dimension that happens
    to be as long as the batch. What a module keeps of its rows outside of its buffers is not seen.

    containers: modules whose own parameters are but other names for those of layers below

    Returns False if there are too few rows to tell, and then should be called again with another batch. Of a single row
    only buffers are looked at.
    """
    if rows < 1 or (rows < 2 and next(root.buffers(), None) is None):
        return False

    def taken(count: int, change: bool = False, flip: bool = False) -> Inputs:
        """The first rows of the batch, over and over if it has not as many."""

        def few(x: Any) -> Any:
            if x.dim() == 0 or x.shape[0] != rows:
                return x
            x = x.detach()[torch.arange(count, device=x.device) % rows]
            if change:
                other = x[min(1, count - 1)]
                x[0] = other + 1 if x.is_floating_point() else other
            return x.flip(0) if flip else x

        return tree_map_only(Tensor, few, (args, kwargs))

    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    modules = dict(root.named_modules())
    if rows < 2:
        first, second = (_probed(root, taken(1, change=changed), device, containers) for changed in (False, True))
        _refuse_data_in_buffers(modules, first, second)
        return False
    whole = _probed(root, taken(_PROBE_ROWS), device, containers)
    changed = _probed(root, taken(_PROBE_ROWS, change=True), device, containers)
    _refuse_moved_rows(modules, whole, changed)
    fewer = _probed(root, taken(_PROBE_ROWS - 1), device, containers)
    for probe, count in ((whole, _PROBE_ROWS), (fewer, _PROBE_ROWS - 1)):
        _refuse_rows_elsewhere(modules, probe, count)
    for other in (changed, fewer):
        _refuse_data_in_buffers(modules, whole, other)
    flipped, reseeded = (
        _probed(root, taken(_PROBE_ROWS, flip=True), device, containers),
        _probed(root, taken(_PROBE_ROWS), device, containers, 1),
    )
    _refuse_reordered_rows(modules, whole, flipped, reseeded)
    return True
