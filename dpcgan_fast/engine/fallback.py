"""Per-sample gradients of any module by torch.func: slow and general, for layers without a rule."""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from dpcgan_fast.engine.recorder import LayerUse, tensors_in

_DROPOUT_KIN = nn.modules.dropout._DropoutNd


def _refuse_dropout(use: LayerUse) -> None:
    for name, module in use.module.named_modules():
        drops = module.p if isinstance(module, _DROPOUT_KIN) else getattr(module, "dropout", 0.0)
        if module.training and isinstance(drops, float) and drops > 0:
            raise ValueError(
                f"Module {use.name or '(root)'!r} has no layer rule and contains dropout ({name or 'itself'}): its "
                "per-sample gradients would be taken with another mask than its output. Move the dropout outside of "
                "it, or set its probability to 0."
            )


def _refuse_final_state(use: LayerUse, grads: tuple[Tensor | None, ...]) -> None:
    """By kind and not by shape: there may be as many layers as rows."""
    if isinstance(use.module, nn.RNNBase) and any(grad is not None for grad in grads[1:]):
        raise ValueError(
            f"The losses depend on the final state of module {use.name or '(root)'!r}, in which the rows do not lead; "
            "its per-sample gradients cannot be formed. Take the last position of its output instead."
        )


def _at_least(own: dict[str, nn.Parameter], x: Tensor) -> Tensor:
    """x in a type that is no narrower than the parameters': autocast, which is off here, would have seen to that."""
    if not x.is_floating_point():
        return x
    return functools.reduce(lambda y, p: y.to(torch.promote_types(y.dtype, p.dtype)), own.values(), x)


def per_sample_fallback(
    use: LayerUse, grads: tuple[Tensor | None, ...], own: dict[str, nn.Parameter], rows: int, row_dim: int = 0
) -> dict[nn.Parameter, Tensor]:
    """Per-sample gradients of a module's parameters by vmap over vector-Jacobian products.

    use:     the recorded call; every tensor argument has the rows as its leading dimension, or as that of row_dim
    grads:   gradient of each output tensor, (B, ...), or None
    own:     trainable parameters by their name in the module
    row_dim: 0, or 1 where positions lead and rows come second

    Raises ValueError if an argument or a used output does not have the rows there, if dropout is active, or if the
    module cannot be vectorised.
    """
    _refuse_dropout(use)
    _refuse_final_state(use, grads)
    leaves, structure = tree_flatten((use.args, use.kwargs))
    for tensor in [*tensors_in(use.args, use.kwargs), *(g for g in grads if g is not None)]:
        if tensor.dim() <= row_dim or tensor.shape[row_dim] != rows:
            raise ValueError(
                f"Module {use.name or '(root)'!r} has no layer rule, and the B rows do not lead in one of its tensors; "
                "its per-sample gradients cannot be formed."
            )
    row_inputs = tuple(_at_least(own, leaf.detach()) for leaf in leaves if isinstance(leaf, Tensor))
    used = [i for i, grad in enumerate(grads) if grad is not None]
    row_grads = tuple(grad for grad in grads if grad is not None)

    def row_product(parameters: dict[str, Tensor], inputs: tuple[Tensor, ...], outer: tuple[Tensor, ...]) -> Tensor:
        remaining = iter(inputs)
        filled = [next(remaining).unsqueeze(row_dim) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(filled, structure)
        outputs: list[Any] = tensors_in((torch.func.functional_call(use.module, parameters, args, kwargs),))
        products = [(outputs[i] * grad.unsqueeze(row_dim)).sum() for i, grad in zip(used, outer, strict=True)]
        return torch.stack(products).sum()

    try:
        # Attention by plain operations: vmap takes the fused ones row by row.
        with torch.autocast(next(iter(own.values())).device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            by_name = torch.func.vmap(
                torch.func.grad(row_product), in_dims=(None, row_dim, row_dim), randomness="error"
            )({name: parameter.detach() for name, parameter in own.items()}, row_inputs, row_grads)
    except RuntimeError as error:
        raise ValueError(
            f"Module {use.name or '(root)'!r} ({type(use.module).__name__}) has no layer rule, and torch.func cannot "
            f"vectorise it: {str(error).splitlines()[0]}"
        ) from error
    return {own[name]: grad if grad.dtype == torch.float64 else grad.float() for name, grad in by_name.items()}
