"""One DP-SGD step on any supported module, in one backward pass."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.backward import losses_mix_rows, reached_uses
from dpcgan_fast.engine.clipped_sum import GradientSum, add_clipped_sum, sum_of
from dpcgan_fast.engine.norm_picker import NormPicker, timing_refused
from dpcgan_fast.engine.recorded import RecordedModule
from dpcgan_fast.engine.recorder import ForwardCall, Reached
from dpcgan_fast.engine.report import StepReport
from dpcgan_fast.engine.settings import noise_std
from dpcgan_fast.engine.update import OwnStepError, check_update, noisy_gradients, noisy_update
from dpcgan_fast.ops import NoiseKey, NormMode


class PrivateStep:
    """Turns a module and an optimizer into a DP-SGD step.

        step = PrivateStep(critic, optimizer, max_grad_norm=1.0, noise_multiplier=1.1, expected_batch_size=128)
        step.backward(-step(real).squeeze(1))                      # private rows: clipped, noised
        step.backward(step(fake).squeeze(1), private=False)        # rows that touch no data: clipped alone
        step.step()

    module:              every trainable layer sees rows as its leading dimension; modules that mix rows are refused, as
                         are those that torch.compile, DistributedDataParallel or FSDP wrapped: give the one inside
    optimizer:           any torch optimizer over parameters of the module; those it lacks stay as they are
    max_grad_norm:       C >= 1e-12, in gradient units; `inf` clips nothing and needs noise_multiplier 0
    noise_multiplier:    sigma >= 0; the noise of a step is N(0, (sigma C)^2) on the sum of clipped gradients
    expected_batch_size: public divisor q N > 0, never the size of the batch that was drawn
    noise_key:           from `privacy.noise_key()`; a fresh secret one by default
    norm_mode:           "auto", or one of "direct", "gram", "materialise" for every layer that has them. "auto" times
                         modes of about equal cost on made-up rows, unless the step is reproducible: `norm_picker.py`
    fused:               False keeps to the layerwise path; True takes the fused one where the module has it
    clamp:               parameters that every update leaves in [-clamp, clamp]: the weight clipping of a Wasserstein
                         critic (arXiv 1701.07875, algorithm 1)
    debug:               lets `last` hold batch sizes, which are private

    Formal guarantees: with noise_multiplier sigma, one `step()` is a Gaussian mechanism of sensitivity C (1 + 1e-6)
    and standard deviation sigma C with respect to adding or removing one unit of the private rows, whatever they hold;
    noise is drawn once a step, after all chunks, also if there were no rows; gradients of an earlier step, and those
    that others left in `.grad`, never enter. Where torch runs the layers, that is, not in a fused run, it may round a
    row's forward otherwise in a batch of another size: what that changes, for losses that amplify the last bit of an
    output, is left out of the sensitivity. So is, on a GPU, how its library rounds the per-sample gradients that it
    forms, which too may follow from the number of rows; a `GraphedStep` always gives it the same number.
    Raises ValueError at construction for values out of range and for modules that it refuses, naming them.
    Source: arXiv 1607.00133, algorithm 1.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        max_grad_norm: float,
        noise_multiplier: float,
        expected_batch_size: float,
        *,
        noise_key: NoiseKey | None = None,
        norm_mode: NormMode = "auto",
        fused: bool = True,
        clamp: Mapping[nn.Parameter, float] | None = None,
        debug: bool = False,
    ):
        self._noise_std = noise_std(max_grad_norm, noise_multiplier)
        _check_batch_size(expected_batch_size)
        ops.check_norm_mode(norm_mode)
        self._optimizer = optimizer
        self._trainable = _trainable_parameters(module, optimizer)
        _check_devices(self._trainable)
        self._clamps = _clamps(clamp or {}, self._trainable)
        self._recorded = RecordedModule(
            module, self._trainable, fused=fused, norm_mode=norm_mode, measure=math.isfinite(max_grad_norm)
        )
        self._max_grad_norm = max_grad_norm
        self._expected_batch_size = expected_batch_size
        self._noise_key = noise_key if noise_key is not None else NoiseKey()
        not_timed = timing_refused(self._noise_std, self._noise_key.seeded)
        self._pick = NormPicker(norm_mode, expected_batch_size, not_timed)
        self._debug = debug
        self._losses_known_apart: set[bool] = set()  # of private rows, and of public ones
        self.last: StepReport | None = None
        self._reset()

    def _reset(self) -> None:
        self._recorded.begin_step()
        self._calls: list[ForwardCall] = []
        self._private_sum: GradientSum = {}
        self._public_sum: GradientSum = {}
        self._public_rows = 0
        self._seen_units: list[Tensor] = []
        self._chunks = 0
        self._backwards = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module on the private path. Without gradients enabled it is a plain forward."""
        if not torch.is_grad_enabled():
            return self._recorded.module(*args, **kwargs)
        output, call = self._recorded.forward(args, kwargs)
        self._calls.append(call)
        return output

    def backward(self, losses: Tensor, units: Tensor | None = None, private: bool = True) -> None:
        """Clips the gradients of one batch, or of one chunk of it, and adds them up.

        losses:  (B,), one a row, not reduced; each depends on its own row alone, also in what is detached
        units:   (B,) int64; rows with one id are one unit, whose gradients add before clipping. All rows of a unit
                 must be in one call. None: every row is a unit of its own
        private: False for rows that touch no data: each is clipped to max_grad_norm, they are averaged over their own
                 number, which must be public, and get no noise

        Raises ValueError if the losses are of another shape, do not come from a forward of this step, or come from
        one that was used before; if, in the first batch, a loss depends on another row; if a unit returns in a later
        chunk; or if a parameter is used outside of the layers.
        """
        if losses.dim() == 0:
            raise ValueError(
                "Expected losses of shape (B,), one a row, got one number; a loss that is already reduced over rows "
                "has no per-unit gradient. Use reduction='none'."
            )
        if losses.dim() > 1:
            raise ValueError(
                f"Expected losses of shape (B,), one a row, got {losses.dim()} dimensions. Add up or average the "
                "others: losses.flatten(1).sum(1)."
            )
        if units is not None and not private:
            raise ValueError("Expected no units for rows that touch no data (private=False): each is clipped alone.")
        rows = losses.shape[0]
        self._backwards += 1
        groups = self._grouped(units, rows)
        if rows > 0:
            self._chunks += 1
            total = self._private_sum if private else self._public_sum
            self._check_first_losses(losses, private)
            self.last = self._accumulate(losses, groups, total)
        if not private:
            self._public_rows += rows

    def _accumulate(
        self,
        losses: Tensor,
        groups: ops.UnitGroups | None,
        total: GradientSum,
        valid: Tensor | None = None,
    ) -> StepReport:
        """Adds the clipped gradients of one batch to `total`; of its first `valid` rows, () int64 on the device."""
        rows = losses.shape[0]
        with ops.same_backend():
            named = self._recorded.gradients(self._uses(losses, groups is not None), rows, groups is not None)
            clipped = add_clipped_sum(named, self._max_grad_norm, groups, self._pick, total, valid)
            return self._recorded.report(clipped.layers, {"rows": rows, "chunks": self._chunks} if self._debug else {})

    def _grouped(self, units: Tensor | None, rows: int) -> ops.UnitGroups | None:
        if units is None:
            return None
        groups = ops.group_units(units, rows)
        for seen in self._seen_units:
            if bool(torch.isin(units, seen).any()):
                raise ValueError(
                    "A unit of this batch was already in an earlier chunk of the step; it would be clipped twice and "
                    "move the sum by twice max_grad_norm. Keep all rows of a unit in one backward."
                )
        self._seen_units.append(units.detach().clone())
        return groups

    def _uses(self, losses: Tensor, units: bool) -> list[Reached]:
        """Layer uses that the losses depend on, each with the gradients of its outputs."""
        reached: list[Reached] = []
        if losses.requires_grad and any(call.uses for call in self._calls):
            early = self._recorded.early(losses.shape[0], units)
            reached, _ = reached_uses(self._calls, [losses], [torch.ones_like(losses)], self._trainable, early=early)
            self._calls = [call for call in self._calls if not call.used]
        if not reached:
            raise ValueError(
                "The losses do not depend on a forward of this step, or that forward was used by a backward before and "
                "its rows would count twice. Run the module as step(x) anew for every backward, with gradients enabled."
            )
        return reached

    def _check_first_losses(self, losses: Tensor, private: bool) -> None:
        """Raises ValueError if losses mix rows. Private and public rows may have other losses, and are looked at once
        each."""
        if private in self._losses_known_apart or len(losses) < 2 or not losses.requires_grad:
            return
        mixed = losses_mix_rows(self._calls, losses)
        if mixed:
            raise ValueError(
                "A loss depends on another row, as where losses are compared with their mean: the gradients of one "
                "unit would then be in the loss of another, and the epsilon reported would be wrong. Let each loss "
                "depend on its own row alone."
            )
        if mixed is False:
            self._losses_known_apart.add(private)

    def step(self) -> None:
        """Adds noise once, divides by the public expected batch size, updates the parameters, clears the gradients.

        Without a private `backward` since the last step this is an empty batch: the noise is added all the same. It
        warns if the module was run as step(x) all the same: where a loss's own backward() was called, the gradient is
        lost.
        """
        if self._calls and self._backwards == 0:
            warnings.warn(
                "The module was run as step(x), but step.backward was not called, so this step is noise alone. Call "
                "step.backward(losses) with one loss a row in place of loss.backward().",
                stacklevel=2,
            )
        parameters = list(self._trainable)
        sums = [sum_of(self._private_sum, parameter) for parameter in parameters]
        public = [sum_of(self._public_sum, parameter) for parameter in parameters] if self._public_rows > 0 else []
        public_rows = max(1, self._public_rows)
        self._reset()
        try:
            check_update(self._optimizer, parameters)
        except OwnStepError as reason:
            self._report_update(f"optimizer.step(): {reason}")
            self._optimizer_step(parameters, sums, public, public_rows)
            return
        self._drop_gradients()  # what others may have left there is not released by this step
        self._report_update("one pass: noise, division and the optimizer's rule")
        noisy_update(
            self._optimizer, parameters, sums, public, self._noise_std, self._noise_key, self._expected_batch_size,
            public_rows, self._clamps,
        )  # fmt: skip

    def _report_update(self, update: str) -> None:
        if self.last is not None:
            self.last = replace(self.last, update=update)

    def _optimizer_step(
        self, parameters: list[nn.Parameter], sums: list[Tensor], public: list[Tensor], public_rows: int
    ) -> None:
        self._drop_gradients()
        grads = noisy_gradients(
            parameters, sums, public, self._noise_std, self._noise_key, self._expected_batch_size, public_rows
        )
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        try:
            self._optimizer.step()
        finally:
            self._drop_gradients()
        with torch.no_grad():
            for parameter, bound in zip(parameters, self._clamps, strict=False):  # there may be none
                parameter.clamp_(-bound, bound)

    def _drop_gradients(self) -> None:
        """Clears the gradients of all parameters of the optimizer, also of those that this step does not train."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def _check_batch_size(expected_batch_size: float) -> None:
    if not (math.isfinite(expected_batch_size) and expected_batch_size > 0):
        raise ValueError(f"Expected a finite expected_batch_size={expected_batch_size} > 0, a public figure.")


def _clamps(clamp: Mapping[nn.Parameter, float], trainable: dict[nn.Parameter, str]) -> list[float]:
    """The clamp of each trainable parameter, inf for none; empty if no parameter has one."""
    if not set(clamp) <= set(trainable) or not all(bound > 0 for bound in clamp.values()):
        raise ValueError("Expected `clamp` to map parameters that the step trains to positive numbers.")
    return [clamp.get(parameter, math.inf) for parameter in trainable] if clamp else []


def _trainable_parameters(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, str]:
    """Parameters that the step trains, with their names, in the module's order."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    optimised = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    if not optimised <= set(names):
        raise ValueError(
            f"The optimizer holds {len(optimised - set(names))} parameter(s) that are not the module's; they would be "
            "updated without clipping and noise. Give them an optimizer of their own."
        )
    trainable = {p: name for p, name in names.items() if p in optimised and p.requires_grad}
    if not trainable:
        raise ValueError("The optimizer holds no parameter of the module that requires a gradient.")
    return trainable


def _check_devices(trainable: dict[nn.Parameter, str]) -> None:
    on_cuda = any(parameter.is_cuda for parameter in trainable)
    if on_cuda and ops.backend() == "native" and not ops.has_cuda_kernels():
        reason = ops.native_module().build_info()["cuda_reason"]
        raise ValueError(
            f"The module is on a GPU, but this build has no CUDA kernels: {reason}. Rebuild it, move the module to "
            "the CPU, or set DPCGAN_BACKEND=reference."
        )
