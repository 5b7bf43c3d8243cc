"""`DPOptimizer` of Opacus over our clipped sums: flat, per-parameter and adaptive clipping, with secure noise."""

# Opacus has no type stubs, and leaves much of what it has without types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from opacus.optimizers import DPOptimizer as OpacusDPOptimizer

from dpcgan_fast import ops
from dpcgan_fast.adapters.opacus.boundary import Batch
from dpcgan_fast.adapters.opacus.clipping import add_flat, add_per_parameter
from dpcgan_fast.adapters.opacus.module import GradSampleHooks, owner_of
from dpcgan_fast.engine.clipped_sum import GradientSum, sum_of
from dpcgan_fast.engine.norm_picker import NormPicker, timing_refused
from dpcgan_fast.engine.report import StepReport
from dpcgan_fast.engine.settings import noise_std
from dpcgan_fast.engine.update import noisy_gradients, own_step
from dpcgan_fast.ops import NoiseKey

StepHook = Callable[[Any], None]


class DPOptimizer(OpacusDPOptimizer):
    """Wraps an optimizer: clips the rows that backward passes left, adds noise, divides, and takes its step.

    Arguments are those of Opacus. Noise is ChaCha20's, keyed afresh, whether or not secure_mode is set; with
    `generator` it is reproducible, and not private.

    Formal guarantees: a step is a Gaussian mechanism of sensitivity max_grad_norm (1 + 1e-6) a private backward pass,
    with respect to adding or removing one row; `step_hook` is told the noise multiplier for as many as there were, or
    their number where batches are not Poisson draws and each is taken to have other rows. This is so where a row's
    gradient does not depend on the other rows: of a mean, torch divides by the number of rows before gradients get
    here and rounds, so that for loss_reduction "mean" it holds in real numbers only. With "sum" it holds as computed,
    but for what torch itself rounds otherwise in a batch of another size, where layers run as they are.
    Raises ValueError for a noise multiplier or a bound out of range, here or, where a scheduler moved it, in `step`.
    Source: arXiv 1607.00133, algorithm 1.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: int | None,
        loss_reduction: str = "mean",
        generator: torch.Generator | None = None,
        secure_mode: bool = False,
    ):
        super().__init__(
            optimizer, noise_multiplier=noise_multiplier, max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size, loss_reduction=loss_reduction, generator=generator,
            secure_mode=secure_mode,
        )  # fmt: skip
        noise_std(float(max_grad_norm), float(noise_multiplier))  # checks them: a negative one would pass for no noise
        not_timed = timing_refused(noise_multiplier, seeded=generator is not None)
        self._pick = NormPicker("auto", expected_batch_size or 1, not_timed)
        self.last: StepReport | None = None  # which path the last batch took, and why
        self._sums: GradientSum = {}
        self._public_sums: GradientSum = {}
        self._public_rows = 0
        self._uses = 0  # the largest number of private backward passes in one call of `step`
        self._clipped_to = 0.0  # the largest bound of any row in the sums; a scheduler may move it between their parts
        self._needs_clearing = False
        self.parts_of_one_draw = False  # set by our BatchMemoryManager: no row is in two parts of a step

    @functools.cached_property
    def _key(self) -> NoiseKey:
        """A fresh secret key; a seeded one where the caller asks for reproducible noise by a generator.

        Made when noise is first drawn: as in Opacus, a generator may be seeded until then.
        """
        if self.generator is None:
            return NoiseKey()
        return NoiseKey(int(torch.randint(2**62, (), generator=self.generator, device=self.generator.device)))

    @property
    def modules(self) -> list[GradSampleHooks]:
        """The modules whose parameters are optimized."""
        owners: list[GradSampleHooks] = []
        for parameter in self.params:
            owner = owner_of(parameter)
            if owner is None or (owners and owner is owners[-1]):  # nearly all parameters are the same module's
                continue
            if not any(owner is known for known in owners):
                owners.append(owner)
        return owners

    @property
    def accumulated_iterations(self) -> int:
        """Backward passes in this step that stand for a batch each; 1 for Poisson draws, which `charged` covers."""
        modules = self.modules
        if any(module.accumulation_forbidden for module in modules):
            return 1
        return max(1, self._uses, sum(module.waiting for module in modules))

    def attach_step_hook(self, fn: StepHook) -> None:
        """Has `fn` called after noise was added; it is given the noise multiplier that the step is to be charged for.

        A row may be in each private backward pass of a step, so that k of them have sensitivity k max_grad_norm.
        """

        def charged(_: OpacusDPOptimizer) -> None:
            batches = self.accumulated_iterations
            uses = max(1, self._uses) if batches == 1 else 1
            fn(SimpleNamespace(noise_multiplier=self.noise_multiplier / uses, accumulated_iterations=batches))

        super().attach_step_hook(charged)

    def clip_and_accumulate(self) -> None:
        """Clips and adds the rows of all backward passes since the last call; `p.summed_grad` shows the sums.

        Raises ValueError if there was none, if gradients were not cleared since the last step, or if the optimizer
        lacks a trained parameter; no row then enters the sums.
        """
        self._accumulate()
        self._show(self._sums)

    def _show(self, sums: GradientSum) -> None:
        for parameter in self.params:
            total = sum_of(sums, parameter)
            parameter.summed_grad = total.to(parameter.dtype)  # type: ignore[attr-defined]

    def _accumulate(self) -> None:
        if self._needs_clearing:
            raise ValueError(
                "Gradients haven't been cleared since the last optimizer step. In order to obtain privacy guarantees "
                "you must call optimizer.zero_grad() on each step"
            )
        modules = self.modules
        if not modules:
            raise ValueError("Per sample gradient not found. Are you using GradSampleModule?")
        batches = [batch for module in modules for batch in module.take_pending()]
        if not batches:
            raise ValueError(
                "Per sample gradient is not initialized. Not updated in backward pass? Call the model in train mode, "
                "and loss.backward(), before optimizer.step()."
            )
        params = self.params
        trained = set(map(id, params))
        if not all(trained.issuperset(map(id, batch.recorded.trainable)) for batch in batches):
            raise ValueError("A trained parameter of the module is not in the optimizer. Freeze it, or add it.")
        try:
            with ExitStack() as plain:
                for module in modules:
                    plain.enter_context(module.plain())
                for batch in batches:
                    self._take(batch)
        except BaseException:
            # Some rows are in the sums: given again, they would count twice. The signal was for these rows, too.
            self.drop_unfinished(signals=self._step_skip_queue[1:])
            raise
        self._uses = max(self._uses, sum(not batch.public for batch in batches))
        self._needs_clearing = True

    def _take(self, batch: Batch) -> None:
        if batch.rows == 0:
            return
        if batch.public:
            self.last = add_flat(batch, self.max_grad_norm, self._pick, self._public_sums)[0]
            self._public_rows += batch.rows
        else:
            self._clipped_to = max(self._clipped_to, float(self.max_grad_norm))
            self._clip(batch, self._sums)

    def _clip(self, batch: Batch, total: GradientSum) -> None:
        self.last = add_flat(batch, self.max_grad_norm, self._pick, total)[0]

    def _clear(self) -> None:
        self._sums, self._public_sums, self._public_rows = {}, {}, 0
        self._uses, self._clipped_to = 0, 0.0

    def drop_unfinished(self, signals: Sequence[bool] = ()) -> None:
        """Drops the sums of a batch that came in parts and was not finished, which must not enter the next batch.

        signals: what is left of those that say whether a part is the last one
        """
        self._clear()
        self._step_skip_queue = list(signals)
        self._is_last_step_skipped = False
        for parameter in self.params:
            parameter.summed_grad = None  # type: ignore[attr-defined]

    def _noise_std(self) -> float:
        # Schedulers may move both, and the bound between the parts of a batch.
        return noise_std(self._bound_of_sums(), float(self.noise_multiplier))

    def _bound_of_sums(self) -> float:
        """What one row adds to the sums at most, in one backward pass."""
        return max(float(self.max_grad_norm), self._clipped_to)

    def add_noise(self) -> None:
        """Leaves in `p.grad` the clipped sums with noise, divided by the expected batch size where the loss is a mean,
        and the part of rows that touch no data; no other gradient stays, and no sum, but in `p.summed_grad` where there
        is no noise to hide it."""
        std, params = self._noise_std(), self.params
        sums, self._sums, self._clipped_to = self._sums, {}, 0.0
        public_sums, self._public_sums = self._public_sums, {}
        mean = self.loss_reduction == "mean"
        divisor = (self.expected_batch_size or 1) * self.accumulated_iterations if mean else 1
        public_divisor = max(1, self._public_rows) if mean else 1
        self._public_rows, self._is_last_step_skipped = 0, False
        for parameter in params:  # nothing without noise stays, also where none can be drawn
            parameter.grad = parameter.summed_grad = None  # type: ignore[attr-defined]
        grads = noisy_gradients(
            params, [sum_of(sums, parameter) for parameter in params],
            [sum_of(public_sums, parameter) for parameter in params] if public_sums else [],
            std, self._key, divisor, public_divisor,
        )  # fmt: skip
        for parameter, grad in zip(params, grads, strict=True):
            parameter.grad = grad
        if std == 0:
            self._show(sums)
        self._drop_other_gradients()

    def _drop_other_gradients(self) -> None:
        """Clears the gradients of frozen parameters: the wrapped optimizer would move these by them, without noise."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not parameter.requires_grad:
                    parameter.grad = None

    def scale_grad(self) -> None:
        """Nothing: `add_noise` divides, in the pass that adds noise."""

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # type: ignore[override]  # noqa: ARG002
        """All that comes before the wrapped optimizer's step; whether that is to be taken."""
        if not self.params:
            self._drop_other_gradients()
            return True
        self._accumulate()
        if self._check_skip_next_step():
            if not self.parts_of_one_draw and any(module.accumulation_forbidden for module in self.modules):
                self.drop_unfinished()
                raise ValueError(
                    "A step over several Poisson draws, in each of which a row may be, would be charged as one over a "
                    "single draw. For parts of one draw, use BatchMemoryManager of dpcgan_fast.adapters.opacus."
                )
            self._show(self._sums)
            self._is_last_step_skipped = True
            return False
        self.add_noise()
        self.scale_grad()
        if self.step_hook:
            self.step_hook(self)
        self._is_last_step_skipped = False
        self._uses = 0
        return True

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Clips, adds noise, and takes the wrapped optimizer's step; see `pre_step`."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        return own_step(self.original_optimizer, self.params) if self.pre_step() else None

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Drops what backward passes left; clipped sums as well, unless the last step was skipped."""
        super().zero_grad(set_to_none)
        for module in self.modules:
            module.take_pending()
        if not self._is_last_step_skipped:
            self._clear()
        self._needs_clearing = False


class DPPerLayerOptimizer(DPOptimizer):
    """Clips the gradient of each parameter by itself.

    max_grad_norm: one bound for each parameter that is trained, in the order of the optimizer; noise is for their
                   Euclidean norm, and a scheduler that moves that moves them all alike
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, max_grad_norm: list[float], **kwargs: Any):
        if isinstance(max_grad_norm, (int, float)):
            raise ValueError(
                f"Expected max_grad_norm as a list, one bound a trained parameter, got {max_grad_norm}: each parameter "
                "is clipped by itself."
            )
        total = float(torch.tensor(max_grad_norm, dtype=torch.float64).norm())
        super().__init__(optimizer, max_grad_norm=total, **kwargs)
        if len(max_grad_norm) != len(self.params):
            raise ValueError(f"Expected {len(self.params)} bounds, one a trained parameter, got {len(max_grad_norm)}.")
        self.max_grad_norms = max_grad_norm
        for module in self.modules:
            module.take_layerwise()

    def _clip(self, batch: Batch, total: GradientSum) -> None:
        share = float(self.max_grad_norm) / math.hypot(*self.max_grad_norms)
        bounds = {p: share * bound for p, bound in zip(self.params, self.max_grad_norms, strict=True)}
        self.last = add_per_parameter(batch, bounds, self._pick, total)


class AdaClipDPOptimizer(DPOptimizer):
    """Moves the clipping norm towards a quantile of the rows' norms, found by a noisy count.

    Arguments are those of Opacus. Unlike there, the count is of b - 1/2, whose sensitivity is 1/2, and the share of
    unclipped rows is over the expected batch size: how many rows were drawn is private.

    Formal guarantees: the count and the clipped sum together are one Gaussian mechanism of the given noise_multiplier.
    Source: arXiv 1905.03871, theorem 1 and algorithm 1.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, target_unclipped_quantile: float, clipbound_learning_rate: float,
        max_clipbound: float, min_clipbound: float, unclipped_num_std: float, noise_multiplier: float, **kwargs: Any,
    ):  # fmt: skip
        super().__init__(optimizer, noise_multiplier=noise_multiplier, **kwargs)
        if max_clipbound <= min_clipbound:
            raise ValueError("max_clipbound must be larger than min_clipbound.")
        if noise_multiplier >= 2 * unclipped_num_std:
            raise ValueError(
                "noise_multiplier must be smaller than 2 * unclipped_num_std (theorem 1 of arXiv 1905.03871)."
            )
        self.target_unclipped_quantile = target_unclipped_quantile
        self.clipbound_learning_rate = clipbound_learning_rate
        self.max_clipbound = max_clipbound
        self.min_clipbound = min_clipbound
        self.unclipped_num_std = unclipped_num_std
        self._centred_count = 0.0  # sum of b - 1/2, before noise

    def _clip(self, batch: Batch, total: GradientSum) -> None:
        self.last, factor = add_flat(batch, self.max_grad_norm, self._pick, total)
        self._centred_count += float((factor() >= 1).double().sum()) - batch.rows / 2

    def _noise_std(self) -> float:
        if super()._noise_std() == 0:
            return 0.0
        sigma = (self.noise_multiplier**-2 - (2 * self.unclipped_num_std) ** -2) ** -0.5
        return float(sigma * self._bound_of_sums())

    def pre_step(self, closure: Callable[[], float] | None = None) -> bool:  # type: ignore[override]
        """As in DPOptimizer; after a whole batch the clipping norm is moved."""
        whole = super().pre_step(closure)
        if whole:
            self._move_bound()
        return whole

    def _move_bound(self) -> None:
        count = torch.full((1,), self._centred_count, dtype=torch.float64)
        self._centred_count = 0.0
        if self.noise_multiplier > 0:
            ops.gaussian_noise_([count], self.unclipped_num_std, self._key)
        share = 0.5 + float(count) / (self.expected_batch_size or 1)
        factor = torch.exp(torch.tensor(-self.clipbound_learning_rate * (share - self.target_unclipped_quantile)))
        self.max_grad_norm = min(self.max_clipbound, max(self.min_clipbound, self.max_grad_norm * float(factor)))

    def zero_grad(self, set_to_none: bool = False) -> None:
        """As in DPOptimizer; the count starts anew with the clipped sums."""
        super().zero_grad(set_to_none)
        if not self._is_last_step_skipped:
            self._centred_count = 0.0

    def drop_unfinished(self, signals: Sequence[bool] = ()) -> None:
        """As in DPOptimizer; the count with the sums."""
        super().drop_unfinished(signals)
        self._centred_count = 0.0
