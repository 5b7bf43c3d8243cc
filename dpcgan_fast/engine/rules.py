"""Layer rules: how one use of a layer turns into per-sample gradients, their norms, and their clipped sum.

A rule takes a recorded use, the gradient of its output, and the parameters that are trained, by their names. It returns
None for a use that it does not know. `per_sample_fallback` serves those, and every layer without a rule.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from dpcgan_fast.engine.fallback import per_sample_fallback
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient
from dpcgan_fast.engine.recorder import LayerUse
from dpcgan_fast.engine.rules_attention import attention
from dpcgan_fast.engine.rules_conv import convolution, linear
from dpcgan_fast.engine.rules_embedding import embedding, embedding_bag
from dpcgan_fast.engine.rules_norm import group_norm, instance_norm, layer_norm, rms_norm
from dpcgan_fast.engine.rules_rnn import recurrent

Rule = Callable[[LayerUse, Tensor, dict[str, nn.Parameter]], LayerGradient | None]

_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: linear,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
    nn.Conv3d: convolution,
    nn.ConvTranspose1d: convolution,
    nn.ConvTranspose2d: convolution,
    nn.ConvTranspose3d: convolution,
    nn.Embedding: embedding,
    nn.EmbeddingBag: embedding_bag,
    nn.GroupNorm: group_norm,
    nn.InstanceNorm1d: instance_norm,
    nn.InstanceNorm2d: instance_norm,
    nn.InstanceNorm3d: instance_norm,
    nn.LayerNorm: layer_norm,
    nn.RMSNorm: rms_norm,
}
_PLAIN = {"weight", "bias"}  # parameters of a layer with a rule
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)


def ruled_layers() -> list[type[nn.Module]]:
    """Kinds of layers that have a rule for a use with one tensor."""
    return list(_RULES)


@lru_cache(maxsize=1024)
def _rule_of(kind: type[nn.Module]) -> Rule | None:
    """The rule of a kind of layers, also of subclasses that leave the forward as it is."""
    known = next((base for base in kind.__mro__ if base in _RULES), None)
    if known is None:
        return None
    parts = ("forward", "_conv_forward")  # convolutions have both
    same = all(getattr(kind, part, None) is getattr(known, part, None) for part in parts)
    return _RULES[known] if same else None


def gradient_by_rule(
    use: LayerUse, grads: tuple[Tensor | None, ...], own: dict[str, nn.Parameter], rows: int
) -> LayerGradient | None:
    """The gradient by the rule of the layer's kind; None if there is none, or not for this use."""
    module = use.module
    rule = _rule_of(type(module))
    plain = module._parameters.keys() <= _PLAIN and own.keys() <= module._parameters.keys()
    given = len(use.args)
    alone = given == 1 and not use.kwargs
    bag = isinstance(module, nn.EmbeddingBag) and given > 0  # weights of its tokens may come beside
    if type(module) is nn.MultiheadAttention and given > 0:
        check_rows(use, use.args[0], rows)
        return attention(use, grads, own)
    if type(module) in _RECURRENT and alone:
        check_rows(use, use.args[0], rows)
        return recurrent(use, grads, own)
    if rule is None or not plain or len(grads) != 1 or not (alone or bag):
        return None
    grad = grads[0]
    assert grad is not None  # the losses depend on the use
    check_rows(use, use.args[0], rows)
    return rule(use, grad, own)


def layer_gradient(use: LayerUse, grads: tuple[Tensor | None, ...], trainable: Any, rows: int) -> LayerGradient:
    """The gradient of one layer use, given the gradients of its outputs.

    use:       what the forward recorded
    grads:     one for each output, (B, ...) or None where the losses do not depend on it
    trainable: set of parameters that are trained

    Raises ValueError if the layer's leading dimension is not the rows, or if it has no rule and cannot be vectorised.
    """
    use.check_unchanged()
    module = use.module
    named = module.named_parameters() if module._modules else module._parameters.items()
    own: dict[str, nn.Parameter] = {name: p for name, p in named if p is not None and p in trainable}
    gradient = gradient_by_rule(use, grads, own, rows)
    if gradient is not None:
        return gradient
    per_sample = per_sample_fallback(use, grads, own, rows)
    reason = f"no rule for this use of {type(use.module).__name__}; per-sample gradients by vmap"
    return MaterialisedGradient("torch.func", reason, per_sample)


def check_rows(use: LayerUse, x: Tensor, rows: int) -> None:
    """Raises ValueError if the rows of the losses do not lead a layer's tensor; how many rows there are is private."""
    if x.shape[0] != rows:
        raise ValueError(
            f"Expected the input of module {use.name or '(root)'!r} to have the B rows of the losses as its leading "
            "dimension; otherwise its gradients cannot be told apart by row. Keep rows as the leading dimension "
            "throughout, and give a loss for each of them."
        )
