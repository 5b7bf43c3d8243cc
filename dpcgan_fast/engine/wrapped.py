"""Refuses modules whose forward is no longer plain Python over plain tensors: compiled, replicated or sharded ones."""

from torch import nn

_ALONE = (
    "One process holds a private step: its noise is drawn once for the whole batch, and its clipped sum is that of all "
    "rows. Give it the module that was wrapped"
)
# By the name of a class of torch or Opacus, since importing these takes as long as the rest of the engine.
_WRAPPERS = {
    "OptimizedModule": (
        "was compiled by torch.compile: a graph that was compiled before would run without recording its layers. Give "
        "it the module that was compiled, which takes fused kernels anyway"
    ),
    "DataParallel": f"splits each batch over GPUs. {_ALONE}",
    "DistributedDataParallel": f"averages gradients over processes, before they are clipped. {_ALONE}",
    "DifferentiallyPrivateDistributedDataParallel": f"adds gradients up over processes. {_ALONE}",
    "FullyShardedDataParallel": f"holds parts of its parameters in other processes. {_ALONE}",
    "FSDPModule": f"was given to fully_shard and holds parts of its parameters in other processes. {_ALONE}",
}


def refuse_wrapped_modules(root: nn.Module) -> None:
    """Raises ValueError that names the first submodule that is compiled, replicated or sharded, and what to do."""
    for name, module in root.named_modules():
        reason = _wrapped_reason(module)
        if reason is not None:
            raise ValueError(f"Module {name or '(root)'!r} ({type(module).__name__}) {reason}.")


def _wrapped_reason(module: nn.Module) -> str | None:
    if getattr(module, "_compiled_call_impl", None) is not None:
        return _WRAPPERS["OptimizedModule"].replace("by torch.compile", "in place by its method compile()")
    kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith(("torch.", "opacus."))]
    return next((_WRAPPERS[kind] for kind in kinds if kind in _WRAPPERS), None)
