"""What `PrivateStep.last` shows: which way each layer took, and why."""

from dataclasses import dataclass, field

from dpcgan_fast.ops import NormMode


@dataclass(frozen=True)
class LayerReport:
    """How one layer's per-unit gradients were measured and summed.

    rule: name of the layer rule, or "torch.func" for a layer without one
    mode: norm mode that was used
    """

    name: str
    rule: str
    mode: NormMode
    reason: str


@dataclass(frozen=True)
class StepReport:
    """The path of the last backward.

    path:    "layerwise": one backward for output gradients, then norms, clip and sums layer by layer
    backend: "native" or "reference" ops
    debug:   batch sizes and chunk counts; empty unless PrivateStep was made with debug=True, since the number of rows
             drawn is private
    """

    path: str
    backend: str
    layers: tuple[LayerReport, ...]
    debug: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"path {self.path}, ops {self.backend}"]
        lines += [f"  {layer.name or '(root)'}: {layer.rule}, {layer.mode} ({layer.reason})" for layer in self.layers]
        return "\n".join(lines)
