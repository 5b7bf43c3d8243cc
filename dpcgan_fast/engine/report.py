"""What `PrivateStep.last` shows: which way each layer took, and why."""

from dataclasses import dataclass, field
from typing import Literal

from dpcgan_fast.ops import NormMode


@dataclass(frozen=True)
class LayerReport:
    """How one layer's per-unit gradients were measured and summed.

    rule:   name of the layer rule, or "torch.func" for a layer without one
    mode:   norm mode that was used
    reason: why that one
    fused:  whether the layer was part of a fused run
    """

    name: str
    rule: str
    mode: NormMode
    reason: str
    fused: bool = False


@dataclass(frozen=True)
class StepReport:
    """The path of the last backward.

    path:     "fused": every layer is in a run of layers that takes one native call forward and one backward, with a row
              in each lane of a vector; "layerwise": one backward for output gradients, then norms, clip and sums layer
              by layer; "mixed": some layers are fused
    why:      why this path was taken
    backend:  "native" or "reference" ops
    update:   how `step()` then moved the parameters, and why
    repeated: how `GraphedStep` does the work again; empty for a plain `PrivateStep`
    debug:    batch sizes and chunk counts; empty unless PrivateStep was made with debug=True, since the number of rows
              drawn is private
    """

    path: Literal["fused", "mixed", "layerwise"]
    why: str
    backend: str
    layers: tuple[LayerReport, ...]
    update: str = ""
    repeated: str = ""
    debug: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"path {self.path} ({self.why}), ops {self.backend}"]
        for layer in self.layers:
            fused = "fused " if layer.fused else ""
            lines.append(f"  {layer.name or '(root)'}: {fused}{layer.rule}, {layer.mode} ({layer.reason})")
        lines += [f"  update: {self.update}"] if self.update else []
        lines += [f"  repeated: {self.repeated}"] if self.repeated else []
        return "\n".join(lines)
