"""Layer rule of MultiheadAttention: its projections are linear layers on sequences.

Attention is run again from the projected queries, keys and values, and one backward gives their gradients. A row's
gradient of a projection is then one product over positions.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient
from dpcgan_fast.engine.recorder import LayerUse
from dpcgan_fast.ops import ConvProblem, as_channels

_NAMES = ("query", "key", "value", "key_padding_mask", "need_weights", "attn_mask")
_PARAMETERS = {
    *("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_weight", "in_proj_bias"),
    *("out_proj.weight", "out_proj.bias"),
}


def _known(module: nn.MultiheadAttention, given: dict[str, Any], grads: tuple[Tensor | None, ...]) -> bool:
    """Whether the use is batched, without dropout, added keys or a mask of pairs, and its weights count for nothing."""
    drops = module.training and module.dropout > 0
    added = module.bias_k is not None or module.add_zero_attn
    masked = given.get("attn_mask") is not None or given["query"].dim() != 3
    return not (drops or added or masked) and grads[0] is not None and all(g is None for g in grads[1:])


def attention(use: LayerUse, grads: tuple[Tensor | None, ...], own: dict[str, nn.Parameter]) -> LayerGradient | None:
    """MultiheadAttention with rows in front, with a mask of keys or without."""
    module = use.module
    assert isinstance(module, nn.MultiheadAttention)
    given: dict[str, Any] = dict(zip(_NAMES, use.args, strict=False)) | use.kwargs
    grad_out = grads[0]
    known = set(own) <= _PARAMETERS and _known(module, given, grads)
    if not known or grad_out is None:
        return None
    dtype = torch.promote_types(torch.promote_types(given["query"].dtype, module.out_proj.weight.dtype), torch.float32)
    inputs = [given[name].detach().to(dtype) for name in ("query", "key", "value")]
    names = ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    packed = module.in_proj_weight
    weights = [getattr(module, name) for name in names] if packed is None else packed.chunk(3)
    biases = [None] * 3 if module.in_proj_bias is None else module.in_proj_bias.detach().to(dtype).chunk(3)
    with torch.enable_grad(), torch.autocast(grad_out.device.type, enabled=False):
        projected = [
            F.linear(x, weight.detach().to(dtype), bias).requires_grad_()
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
        ]
        mixed = _attend(module, projected, given.get("key_padding_mask"))  # (B, T, E)
        of_mixed = grad_out.to(dtype) @ module.out_proj.weight.detach().to(dtype)
        of_projected = torch.autograd.grad(mixed, projected, of_mixed)
    parts = [_product(of, x) for of, x in zip(of_projected, inputs, strict=True)]
    by_name = dict(zip(names, parts, strict=True)) if packed is None else {"in_proj_weight": torch.cat(parts, 1)}
    by_name["out_proj.weight"] = _product(grad_out.to(dtype), mixed.detach())
    by_name["in_proj_bias"] = torch.cat([ops.sum_positions(as_channels(of)) for of in of_projected], 1)
    by_name["out_proj.bias"] = ops.sum_positions(as_channels(grad_out.to(dtype)))
    reason = "attention is run again; each projection's gradient is a product over positions"
    return MaterialisedGradient("attention", reason, {p: by_name[name] for name, p in own.items()})


def _attend(module: nn.MultiheadAttention, projected: list[Tensor], padding: Tensor | None) -> Tensor:
    heads = [x.unflatten(2, (module.num_heads, -1)).transpose(1, 2) for x in projected]  # (B, heads, T, E / heads)
    mask = None
    if padding is not None:  # True leaves a key out, or floats add to its score
        mask = (~padding if padding.dtype == torch.bool else padding.to(heads[0].dtype))[:, None, None, :]
    return F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)


def _product(of_outputs: Tensor, inputs: Tensor) -> Tensor:
    """Per-sample gradients of a projection's weight; (B, T, O) and (B, T, I) -> (B, O, I)."""
    return ConvProblem(1).per_sample_grad(as_channels(inputs), as_channels(of_outputs))[0].squeeze(3)
