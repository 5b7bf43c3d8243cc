"""Refuses modules whose output for one row depends on other rows: they have no per-unit gradient."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_flatten, tree_map_only

Inputs = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments of a forward

_PROBE_ROWS = 4
_RNN_KIN = (nn.RNNBase, nn.MultiheadAttention)
_OVER_ROWS = (nn.Softmax, nn.LogSoftmax, nn.Softmin)


def _mixing_reason(module: nn.Module) -> str | None:
    """Why a module mixes rows, or None if its kind does not."""
    if isinstance(module, _BatchNorm):
        return "it normalises over the batch and keeps running statistics of it. Use GroupNorm"
    if getattr(module, "running_mean", None) is not None:
        return "it keeps running statistics of the batch. Set track_running_stats=False"
    if isinstance(module, _RNN_KIN) and not module.batch_first:
        return "its rows are not the leading dimension. Set batch_first=True"
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


def _run(root: nn.Module, inputs: Inputs, device: torch.device) -> Any:
    """A forward that leaves buffers and the random state as they were."""
    args, kwargs = inputs
    buffers = {name: buffer.clone() for name, buffer in root.named_buffers()}
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        return torch.func.functional_call(root, buffers, args, kwargs)


def _same_other_rows(first: Any, second: Any) -> bool:
    """Whether all rows but the first agree, up to float noise."""
    pairs = zip(tree_flatten(first)[0], tree_flatten(second)[0], strict=True)
    return all(
        torch.allclose(a[1:].double(), b[1:].double(), rtol=1e-3, atol=1e-5, equal_nan=True)
        for a, b in pairs
        if isinstance(a, Tensor) and a.dim() > 0
    )


def _outputs_by_module(root: nn.Module, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    outputs: dict[str, Any] = {}
    handles = [
        module.register_forward_hook(lambda _m, _a, out, name=name: outputs.setdefault(name, out))
        for name, module in root.named_modules()
        if not list(module.children())
    ]
    try:
        _run(root, inputs, device)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def refuse_mixed_outputs(root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> bool:
    """Runs a few rows twice, with the first one changed, and raises ValueError if any other row's output moves.

    It catches what no list of kinds can: statistics over the batch in a module of one's own. Returns False if there
    are too few rows to tell, and then should be called again with another batch.
    """
    if rows < 2:
        return False

    def changed(x: Tensor) -> Tensor:
        x = x[:_PROBE_ROWS].detach().clone()
        x[0] = x[1] + 1 if x.is_floating_point() else x[1]
        return x

    def is_rows(x: Tensor) -> bool:
        return x.dim() > 0 and x.shape[0] == rows

    def mapped(function: Any, tree: Any) -> Any:
        return tree_map_only(Tensor, lambda x: function(x) if is_rows(x) else x, tree)

    original = mapped(lambda x: x[:_PROBE_ROWS].detach(), (args, kwargs))
    perturbed = mapped(changed, (args, kwargs))
    device = next((p.device for p in root.parameters()), torch.device("cpu"))
    if _same_other_rows(_run(root, original, device), _run(root, perturbed, device)):
        return True
    before, after = (_outputs_by_module(root, inputs, device) for inputs in (original, perturbed))
    modules = dict(root.named_modules())
    guilty = next((name for name in before if not _same_other_rows(before[name], after[name])), "")
    raise _refusal(guilty, modules[guilty], "its output for one row changes with another row's input")
