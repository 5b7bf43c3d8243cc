"""A module run so that the gradients of its rows can be measured, clipped and summed.

What is common to `PrivateStep` and the adapters for other libraries' loops.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from operator import is_
from typing import Any

from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.backward import FormEarly
from dpcgan_fast.engine.fallback import per_sample_fallback
from dpcgan_fast.engine.fused import FusedGradient, FusedRun, fused_runs, layers_again
from dpcgan_fast.engine.layer_gradients import LayerGradient, MaterialisedGradient
from dpcgan_fast.engine.recorder import (
    ForwardCall,
    LayerUse,
    Reached,
    modules_below,
    recorded_layers,
    recording,
    tensors_in,
)
from dpcgan_fast.engine.report import LayerReport, StepReport
from dpcgan_fast.engine.row_mixing import refuse_mixed_outputs, refuse_mixed_second_rows, refuse_mixing_modules
from dpcgan_fast.engine.rules import check_rows, layer_gradient
from dpcgan_fast.engine.rules_conv import formed_early, kept_early
from dpcgan_fast.engine.wrapped import refuse_wrapped_modules
from dpcgan_fast.ops import NormMode

# Layers that take every position alike, so that rows may be their second dimension.
_POSITION_WISE = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)

_ALL_FUSED = "every layer has a fused form"


def rows_of_call(args: tuple[Any, ...], kwargs: dict[str, Any], dim: int = 0) -> int:
    """Rows of a call, from its first tensor."""
    tensors = tensors_in(args, kwargs)
    return tensors[0].shape[dim] if tensors and tensors[0].dim() > dim else 0


class RecordedModule:
    """Runs a module on the private path, and turns what a backward reached into gradients row by row.

    module:     its rows are the leading dimension throughout; modules that mix rows are refused, and those that were
                compiled, replicated or sharded
    trainable:  the parameters whose gradients count, with their names
    fused:      False keeps to the layerwise path
    norm_mode:  as in PrivateStep; another one than "auto" keeps to the layerwise path
    measure:    whether norms will be asked for; without, only rows that are not finite are found
    row_dim:    0, or 1 where positions lead and rows come second; whether inner layers see rows there is then not
                looked at
    rows_lead:  kinds of layers in which rows lead all the same
    containers: modules whose own parameters are but other names for those of layers below
    """

    def __init__(
        self, module: nn.Module, trainable: dict[nn.Parameter, str], *, fused: bool, norm_mode: NormMode,
        measure: bool, row_dim: int = 0, containers: tuple[type[nn.Module], ...] = (),
        rows_lead: tuple[type[nn.Module], ...] = (),
    ):  # fmt: skip
        self.module = module
        self.trainable = trainable
        self.rows_known_apart: set[bool] = set()  # training flags for which rows were seen not to mix
        self._modules: list[nn.Module] = []  # that were looked at
        self._refuse_by_name(modules_below(module))
        self._layers = recorded_layers(module, set(trainable), containers)
        self._runs: dict[str, FusedRun] = {}
        self._row_dim = row_dim
        self._containers = containers
        self._rows_lead = rows_lead
        self._why = "rows do not lead" if row_dim else "fused=False" if not fused else f"norm_mode={norm_mode!r}"
        if fused and norm_mode == "auto" and row_dim == 0:
            self._runs, why = fused_runs(module, set(trainable), measure)
            self._why = why or _ALL_FUSED
        self._norm_mode = norm_mode
        self._layerwise_next = False

    def _refuse_by_name(self, modules: list[nn.Module]) -> None:
        """Looks at all modules, anew if any was put in or replaced since: each by itself, and whether rows mix."""
        if len(modules) == len(self._modules) and all(map(is_, modules, self._modules)):
            return
        refuse_wrapped_modules(self.module)
        refuse_mixing_modules(self.module)
        self.rows_known_apart.clear()
        self._modules = modules

    def begin_step(self) -> None:
        """Makes what was found out during a step hold from the next one on: all chunks of a step go one way."""
        if self._layerwise_next:
            self._runs = {}

    def forward(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], modules: list[nn.Module] | None = None
    ) -> tuple[Any, ForwardCall]:
        """The output, in the autograd graph, and the uses of layers. Raises ValueError for modules that mix rows.

        modules: what `modules_below` gives now, where the caller has asked for it
        """
        self._refuse_by_name(modules_below(self.module) if modules is None else modules)
        training = self.module.training
        refuse = refuse_mixed_outputs if self._row_dim == 0 else refuse_mixed_second_rows
        rows = rows_of_call(args, kwargs, self._row_dim)
        if training not in self.rows_known_apart and refuse(self.module, args, kwargs, rows, self._containers):
            self.rows_known_apart.add(training)
        with recording(self._layers, self._runs) as call:
            output = self.module(*args, **kwargs)
        return output, call

    def gradients(self, reached: list[Reached], rows: int, units: bool) -> list[tuple[str, LayerGradient]]:
        """(layer name, gradient) of each use.

        units: whether units were given, which is public
        """
        return [
            (use.name, self._gradient(use, grads, rows) if formed is None else formed)
            for use, grads, formed in self._unfused_where_needed(reached, units)
        ]

    def early(self, rows: int, units: bool) -> FormEarly:
        """What forms gradients of images during the backward pass, where they are smaller than those of the output.

        rows, units: as in `gradients`
        """

        def form_early(use: LayerUse) -> Callable[[Tensor], LayerGradient] | None:
            if units or self._norm_mode != "auto" or self._row_dim > 0 or rows == 0:
                return None
            if not kept_early(use.module, use.numel // rows):
                return None
            return lambda grad: formed_early(self._gradient(use, (grad,), rows))

        return form_early

    def report(self, layers: tuple[LayerReport, ...], debug: dict[str, int]) -> StepReport:
        """What a step says of its path."""
        path = "fused" if all(x.fused for x in layers) else "mixed" if any(x.fused for x in layers) else "layerwise"
        refused = next((run.refused for run in self._runs.values() if run.refused), "")
        why = _ALL_FUSED if path == "fused" else refused or self._why
        return StepReport(path, why, ops.backend(), layers, debug=debug)

    def _unfused_where_needed(self, reached: list[Reached], units: bool) -> list[Reached]:
        """Uses of fused runs that must be taken layer by layer are run again so: their gradients add across rows of a
        unit, or across uses of the same parameters, before the norm. From then on all go layer by layer."""
        if all(of.use.fused is None for of in reached) or (len(reached) == 1 and not units):
            return reached
        uses = Counter(p for of in reached for p in of.use.module.parameters())

        def fits(use: LayerUse) -> bool:
            return use.fused is None or (not units and all(uses[p] == 1 for p in use.fused.run.parameters))

        if all(fits(of.use) for of in reached):
            return reached
        self._layerwise_next = True  # not at once: all chunks of a step are taken alike, whichever rows they hold
        what = "rows are grouped into units" if units else "several forwards share a loss"
        self._why = f"{what}, now or in an earlier backward"
        again: list[Reached] = []
        for of in reached:
            again += [of] if fits(of.use) else layers_again(of.use, of.grads[0], slice(None))  # type: ignore[arg-type]
        return again

    def _gradient(self, use: LayerUse, grads: tuple[Tensor | None, ...], rows: int) -> LayerGradient:
        if use.fused is None:
            if self._row_dim > 0 and not isinstance(use.module, self._rows_lead):
                return self._gradient_by_second(use, grads, rows)
            return layer_gradient(use, grads, self.trainable, rows)
        (grad_out,) = grads
        assert grad_out is not None
        use.check_unchanged()
        check_rows(use, grad_out, rows)
        return FusedGradient(use, use.fused, grad_out, self.trainable)

    def _gradient_by_second(self, use: LayerUse, grads: tuple[Tensor | None, ...], rows: int) -> LayerGradient:
        """The gradient of a layer whose rows are the second dimension: turned where all positions are taken alike."""
        x = use.args[0] if len(use.args) == 1 and not use.kwargs else None
        # Features come last, except for ids: (B, I) is no sequence, also where I happens to be the number of rows.
        least = 2 if isinstance(use.module, nn.Embedding) else 3
        if any(x.dim() < least for x in tensors_in(use.args, use.kwargs) if x.is_floating_point() or least == 2):
            raise ValueError(
                f"Module {use.name or '(root)'!r} ({type(use.module).__name__}) is trained where rows are the second "
                "dimension, and takes a tensor without positions in front. Keep rows in front (batch_first)."
            )
        if isinstance(use.module, _POSITION_WISE) and isinstance(x, Tensor):
            turned = tuple(None if grad is None else grad.transpose(0, 1) for grad in grads)
            return layer_gradient(replace(use, args=(x.transpose(0, 1),)), turned, self.trainable, rows)
        use.check_unchanged()
        own = {name: p for name, p in use.module.named_parameters() if p in self.trainable}
        per_sample = per_sample_fallback(use, grads, own, rows, row_dim=1)
        return MaterialisedGradient("torch.func", "rows are the second dimension", per_sample)
