"""`GradSampleModule` and `GradSampleHooks` of Opacus: the same loop, without a per-sample gradient in memory."""

# Opacus has no type stubs, and leaves much of what it has without types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample import AbstractGradSampleModule
from opacus.grad_sample import GradSampleModule as OpacusGradSampleModule
from opacus.grad_sample.gsm_base import AbstractGradSampleHooks
from opacus.layers.dp_rnn import DPRNNBase, RNNLinear
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dpcgan_fast.adapters.opacus.boundary import Batch, Boundary
from dpcgan_fast.engine.recorded import RecordedModule
from dpcgan_fast.engine.recorder import modules_below

# id of a parameter -> weak references to it and to what records the forwards of its module. It is asked many times a
# step, of all parameters, for which torch's dictionaries with weak keys are too slow.
_OWNERS: dict[int, tuple[weakref.ref[nn.Parameter], "weakref.ref[GradSampleHooks]"]] = {}


def owner_of(parameter: nn.Parameter) -> "GradSampleHooks | None":
    """What records the forwards of a parameter's module."""
    entry = _OWNERS.get(id(parameter))
    if entry is None or entry[0]() is not parameter:  # an id may be another's by now
        return None
    return entry[1]()


def _own(parameter: nn.Parameter, owner: "GradSampleHooks") -> None:
    """Has `owner` answer for a parameter until either is gone, or another wrapper takes its place."""
    key = id(parameter)
    _OWNERS[key] = weakref.ref(parameter, lambda _: _OWNERS.pop(key, None)), weakref.ref(owner)


def _trainable_ids(modules: list[nn.Module]) -> tuple[int, ...]:
    """Ids of the modules' trainable parameters, those that are shared more than once."""
    own = [module._parameters.values() for module in modules]  # pyright: ignore[reportPrivateUsage]  names take longer
    return tuple([id(p) for parameters in own for p in parameters if p is not None and p.requires_grad])


class GradSampleHooks(AbstractGradSampleHooks):
    """Records the forwards of a module that stays as it is, so that `loss.backward()` leaves what can be clipped.

    m:               rows are the leading dimension throughout; modules that mix rows are refused
    batch_first:     False where rows are the second dimension, of every layer
    loss_reduction:  "mean" or "sum", what the loss does with its rows
    strict:          refuses trained layers with buffers, as Opacus does
    force_functorch: accepted for Opacus's signature; layers without a rule take torch.func by themselves
    grad_samples:    also fills `p.grad_sample`, (B, *p.shape), and `p.grad`, for code that reads them; it costs what
                     Opacus costs
    fused:           False keeps to the layerwise path

    Raises ValueError for modules that mix rows, and for compiled or distributed ones, by name; NotImplementedError for
    trained layers with buffers, as Opacus does.
    """

    def __init__(
        self,
        m: nn.Module,
        *,
        batch_first: bool = True,
        loss_reduction: str = "mean",
        strict: bool = True,
        force_functorch: bool = False,  # noqa: ARG002
        grad_samples: bool = False,
        fused: bool = True,
    ):
        super().__init__(m, batch_first=batch_first, loss_reduction=loss_reduction)
        if loss_reduction not in ("mean", "sum"):
            raise ValueError(f"Expected loss_reduction 'mean' or 'sum', got {loss_reduction!r}.")
        if strict:
            OpacusGradSampleModule.validate(m, strict=True)
        self.grad_samples = grad_samples
        self.hooks_enabled = True
        self.accumulation_forbidden = False
        self._fused = fused and not grad_samples
        self._public = False
        self._pending: list[Batch] = []
        self._row_dim = 0 if batch_first else 1
        self._boundary = Boundary(loss_reduction == "mean", self._row_dim, self._receive)
        self._recordings: dict[tuple[int, ...], RecordedModule] = {}  # by ids of parameters, which they keep alive
        self._guards: list[RemovableHandle] = []
        for name, parameter in m.named_parameters():
            _own(parameter, self)
            if parameter.requires_grad:
                self._guards.append(parameter.register_post_accumulate_grad_hook(self._guard(name)))
        self._recorded(modules_below(m))
        self._attach()

    def _attach(self) -> None:
        """Has the module's own forward recorded."""
        self._module.forward = self._run

    def _detach(self) -> None:
        self._module.__dict__.pop("forward", None)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, by its own forward."""
        self._detach()
        try:
            return self.recorded_forward(args, kwargs)
        finally:
            self._attach()

    def recorded_forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's output. Where gradients are recorded, `backward` from it reaches no parameter's `.grad`."""
        if self.hooks_enabled and self._module.training and torch.is_grad_enabled():
            modules = modules_below(self._module)
            recorded = self._recorded(modules)
            if recorded is not None:  # not all parameters are frozen
                return self._boundary.run(recorded, args, kwargs, self._public, modules)
        return self._module(*args, **kwargs)

    @contextmanager
    def public_rows(self) -> Generator[None]:
        """For forwards on rows that touch no data, such as a generator's fakes: clipped, but of no account.

        They are averaged over their own number, which must be public, and get no noise. Not to be used for any row that
        depends on the data other than through what was released.
        """
        before, self._public = self._public, True
        try:
            yield
        finally:
            self._public = before

    @contextmanager
    def plain(self) -> Generator[None]:
        """For work in which the module runs as it is: where layers without a rule are run again, row by row."""
        own = vars(self)  # a module's own way to set an attribute takes as long as a small op
        before, own["hooks_enabled"] = self.hooks_enabled, False
        try:
            yield
        finally:
            own["hooks_enabled"] = before

    def take_layerwise(self) -> None:
        """Keeps to the layerwise path from now on."""
        self._fused = False
        self._recordings.clear()

    def take_pending(self) -> list[Batch]:
        """What backward passes have left since the last call."""
        pending = self._pending.copy()
        self._pending.clear()
        return pending

    @property
    def waiting(self) -> int:
        """Private backward passes that `take_pending` would give."""
        return sum(not batch.public for batch in self._pending)

    def forbid_grad_accumulation(self) -> None:
        """Says that batches are Poisson draws: backward passes that share a step are charged as that many uses."""
        self.accumulation_forbidden = True

    def allow_grad_accumulation(self) -> None:
        """The opposite, as where batches are not Poisson draws."""
        self.accumulation_forbidden = False

    def set_grad_sample_to_none(self) -> None:
        """Drops what backward passes have left."""
        super().set_grad_sample_to_none()
        self._pending.clear()

    def enable_hooks(self) -> None:
        """Records again."""
        self.hooks_enabled = True

    def disable_hooks(self) -> None:
        """Runs the module as it is, without recording."""
        self.hooks_enabled = False

    def remove_hooks(self) -> None:
        """Stops recording for good."""
        self.disable_hooks()
        self._detach()
        while self._guards:
            self._guards.pop().remove()

    def _recorded(self, modules: list[nn.Module]) -> RecordedModule | None:
        """The recording of what is trainable now; layers may be frozen and thawed between forwards."""
        key = _trainable_ids(modules)
        if key not in self._recordings:
            trainable = {p: name for name, p in self._module.named_parameters() if p.requires_grad}
            if not trainable:
                return None
            recorded = RecordedModule(
                self._module,
                trainable,
                fused=self._fused,
                norm_mode="auto",
                measure=True,
                row_dim=self._row_dim,
                containers=(DPRNNBase,),
                rows_lead=(RNNLinear,),
            )
            self._recordings = {key: recorded}
        return self._recordings[key]

    def _guard(self, name: str) -> Any:
        """A hook for a parameter that ordinary autograd reached."""
        module = weakref.ref(self)

        def refuse(parameter: Tensor) -> None:
            wrapper = module()
            if wrapper is not None and wrapper.hooks_enabled and wrapper._module.training:
                parameter.grad = None
                raise ValueError(
                    f"Parameter {name!r} was used outside of the forward of its GradSampleModule, where its per-sample "
                    "gradient cannot be recorded. Call the wrapped module; for weight decay, use the optimizer's."
                )

        return refuse

    def _receive(self, batches: list[Batch]) -> None:
        self._pending.extend(batches)
        if self.grad_samples:
            with self.plain():
                for batch in batches:
                    self._fill_grad_samples(batch)

    def _fill_grad_samples(self, batch: Batch) -> None:
        """`p.grad_sample`: the batch's gradients, or a list of them where there are several batches, as in Opacus."""
        total: dict[nn.Parameter, Tensor] = {}
        if batch.rows == 0:
            total = {p: p.new_zeros((0, *p.shape)) for p in batch.recorded.trainable}
        else:
            for _, gradient in batch.recorded.gradients(batch.reached, batch.rows, units=False):
                for parameter, grad in gradient.per_sample().items():
                    total[parameter] = grad if parameter not in total else total[parameter] + grad
        for parameter, grad in total.items():
            whole = grad.sum(0).to(parameter.dtype)
            parameter.grad = whole if parameter.grad is None else parameter.grad + whole
            grad = (grad * batch.scale).to(parameter.dtype).contiguous()
            before = parameter.grad_sample  # type: ignore[attr-defined]  Opacus gives it to parameters
            held = grad if before is None else [*(before if isinstance(before, list) else [before]), grad]
            parameter.grad_sample = held  # type: ignore[attr-defined]


class GradSampleModule(GradSampleHooks, AbstractGradSampleModule):
    """Wraps a module; arguments are those of `GradSampleHooks`."""

    def __init__(self, m: nn.Module, **settings: Any):
        nn.Module.__init__(self)
        GradSampleHooks.__init__(self, m, **settings)
        self.grad_accumulation_hook: RemovableHandle | None = None

    def _attach(self) -> None:
        """Nothing: it is the wrapper's forward that is recorded."""

    def _detach(self) -> None:
        """Nothing, likewise."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, recorded where gradients are."""
        return self.recorded_forward(args, kwargs)
