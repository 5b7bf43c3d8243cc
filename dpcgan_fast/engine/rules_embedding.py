"""Layer rules of Embedding and EmbeddingBag: norms and sums by the tokens of each row, whatever the vocabulary."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dpcgan_fast.engine.layer_gradients import LayerGradient, PerSample
from dpcgan_fast.engine.recorder import LayerUse
from dpcgan_fast.engine.report import LayerReport
from dpcgan_fast.ops import NormChoice, NormMode, TokenGradients, UnitGroups


@dataclass(eq=False)
class EmbeddingGradient:
    """The gradient of an embedding's weight; only uses that share the weight ask for its per-sample form."""

    rule: str
    tokens: TokenGradients
    weight: nn.Parameter

    def parameters(self) -> list[nn.Parameter]:
        """The weight."""
        return [self.weight]

    def choose(self, asked: NormMode, grouped: bool = False) -> NormChoice:  # noqa: ARG002
        """`direct`, unless gradients are to be kept; there is no Gram form."""
        if asked == "materialise":
            return NormChoice(asked, "asked for by norm_mode")
        return NormChoice("direct", "gradients of equal tokens add before the norm; no row's gradient is formed")

    def reports(self, name: str, choice: NormChoice) -> tuple[LayerReport, ...]:
        """One report."""
        return (LayerReport(name, self.rule, choice.mode, choice.reason),)

    def per_sample(self) -> PerSample:
        """Per-sample gradients, (B, vocabulary, D)."""
        return {self.weight: self.tokens.per_sample_grad()}

    def sq_norm(self, mode: NormMode, units: UnitGroups | None) -> Tensor:  # noqa: ARG002  there is one way
        """Norms by the tokens of each unit."""
        return self.tokens.sq_norm(units)

    def weighted(self, factor: Tensor) -> dict[nn.Parameter, Tensor]:
        """Sum over all tokens in double, as dense as the weight."""
        return {self.weight: self.tokens.weighted_grad(factor)}


def embedding(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient:
    """Embedding of ids (B, ...)."""
    ids = use.args[0].detach().flatten(1) if use.args[0].dim() > 1 else use.args[0].detach()[:, None]  # (B, T)
    g = grad_out.reshape(*ids.shape, grad_out.shape[-1])
    return _gradient("embedding", use.module, ids, g, own)


def embedding_bag(use: LayerUse, grad_out: Tensor, own: dict[str, nn.Parameter]) -> LayerGradient | None:
    """EmbeddingBag of ids (B, T) in the modes sum and mean, with weights of its tokens or without."""
    module = use.module
    assert isinstance(module, nn.EmbeddingBag)
    given: dict[str, Any] = dict(zip(("input", "offsets", "per_sample_weights"), use.args, strict=False)) | use.kwargs
    ids, token_weights = given["input"].detach(), given.get("per_sample_weights")
    if ids.dim() != 2 or module.mode == "max":
        return None
    g = grad_out[:, None, :].expand(*ids.shape, -1)  # (B, T, D)
    if token_weights is not None:
        g = g * token_weights.detach()[:, :, None]
    if module.mode == "mean":
        counted = torch.ones_like(ids) if module.padding_idx is None else ids != module.padding_idx
        g = g / counted.sum(1).clamp(min=1)[:, None, None]
    return _gradient("embedding_bag", module, ids, g, own)


def _gradient(rule: str, module: nn.Module, ids: Tensor, g: Tensor, own: dict[str, nn.Parameter]) -> EmbeddingGradient:
    padding: int | None = module.padding_idx  # type: ignore[assignment]
    g = g.to(torch.promote_types(g.dtype, torch.float32))
    if padding is not None:
        g = g.masked_fill((ids == padding)[:, :, None], 0.0)
    weight = own["weight"]
    return EmbeddingGradient(rule, TokenGradients(ids.long(), g, weight.shape[0]), weight)
