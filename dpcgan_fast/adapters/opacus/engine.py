"""`PrivacyEngine` of Opacus: its loaders, validators, accountants and checkpoints, with our module and optimizer."""

# Opacus has no type stubs, and leaves much of what it has without types:
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from opacus import PrivacyEngine as OpacusPrivacyEngine
from opacus.grad_sample import AbstractGradSampleModule
from opacus.utils.uniform_sampler import UniformWithReplacementSampler
from torch import nn
from torch.utils.data import DataLoader

from dpcgan_fast.adapters.opacus.arguments import arguments_of, arguments_of_search, refuse_unknown
from dpcgan_fast.adapters.opacus.batches import SecurePoissonBatches
from dpcgan_fast.adapters.opacus.module import GradSampleHooks, GradSampleModule
from dpcgan_fast.adapters.opacus.optimizer import AdaClipDPOptimizer, DPOptimizer, DPPerLayerOptimizer

_OPTIMIZERS: dict[str, type[DPOptimizer]] = {
    "flat": DPOptimizer,
    "per_layer": DPPerLayerOptimizer,
    "adaptive": AdaClipDPOptimizer,
}
_MODES = ("hooks", "functorch", "ew", "ghost", "ghost_fsdp", "ghost_tp", "no_op")


class PrivacyEngine(OpacusPrivacyEngine):
    """Opacus's PrivacyEngine with faster steps; methods and arguments are those of Opacus.

    accountant:  "prv", "rdp" or "gdp"
    secure_mode: accepted; noise and Poisson draws are secure in any case, unless a noise_generator is given, which
                 makes both repeat

    `grad_sample_mode` names ways to per-sample gradients, which are not formed here: all of Opacus's are taken alike,
    and with "ghost" the criterion is returned as it was given.
    Raises ValueError for distributed modules, and TypeError for an argument that a method does not have.
    """

    def __init__(self, *, accountant: str = "prv", secure_mode: bool = False):
        with warnings.catch_warnings():  # Opacus warns that its noise is not secure; ours is
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(accountant=accountant, secure_mode=False)
        self._repeats = False
        self._of_search: set[str] = set()  # while a search for the noise is on: arguments that are of it alone
        self._secure_asked = secure_mode

    @functools.wraps(OpacusPrivacyEngine.make_private)
    def make_private(self, **settings: Any) -> Any:  # type: ignore[override]  it passes all on
        """As Opacus's."""
        for name in self._of_search:  # Opacus gives them to its search for the noise, and here
            settings.pop(name, None)
        refuse_unknown("make_private", settings, self._known(OpacusPrivacyEngine.make_private, settings))
        self._repeats = settings.get("noise_generator") is not None
        return super().make_private(**settings)

    @functools.wraps(OpacusPrivacyEngine.make_private_with_epsilon)
    def make_private_with_epsilon(self, **settings: Any) -> Any:  # type: ignore[override]  it passes all on
        """As Opacus's."""
        search = arguments_of_search(self.accountant.mechanism())
        known = self._known(OpacusPrivacyEngine.make_private_with_epsilon, settings) | {"rand_on_empty"}
        refuse_unknown("make_private_with_epsilon", settings, known | search)
        self._of_search = search
        try:
            return super().make_private_with_epsilon(**settings)
        finally:
            self._of_search = set()

    def _known(self, method: Callable[..., Any], settings: dict[str, Any]) -> set[str]:
        """Arguments of one of Opacus's methods, and those of the optimizer that it makes."""
        kind = _OPTIMIZERS.get(settings.get("clipping", "flat"), DPOptimizer)
        return arguments_of(method) | (arguments_of(kind) - arguments_of(DPOptimizer))

    def _prepare_data_loader(
        self, data_loader: DataLoader[Any], *, poisson_sampling: bool, **settings: Any
    ) -> DataLoader[Any]:
        loader = super()._prepare_data_loader(data_loader, poisson_sampling=poisson_sampling, **settings)
        sampler = loader.batch_sampler
        if poisson_sampling and not self._repeats and type(sampler) is UniformWithReplacementSampler:
            draws = SecurePoissonBatches(sampler.num_samples, sampler.sample_rate, sampler.steps)
            object.__setattr__(loader, "batch_sampler", draws)  # past the loader's own guard: it has not been used yet
        return loader

    def _prepare_model(  # type: ignore[override]  ours is no subclass of its GradSampleHooks
        self, module: nn.Module, *, batch_first: bool = True, max_grad_norm: Any = 1.0, loss_reduction: str = "mean",  # noqa: ARG002
        grad_sample_mode: str = "hooks", wrap_model: bool = True,
    ) -> GradSampleHooks:  # fmt: skip
        if grad_sample_mode not in _MODES:
            raise ValueError(f"Unexpected grad_sample_mode: {grad_sample_mode!r}; known are {list(_MODES)}.")
        if isinstance(module, GradSampleModule):
            if module.batch_first != batch_first or module.loss_reduction != loss_reduction:
                raise ValueError(
                    "Pre-existing GradSampleModule doesn't match new arguments: it has "
                    f"loss_reduction={module.loss_reduction!r}. Please pass vanilla nn.Module instead"
                )
            return module
        if isinstance(module, AbstractGradSampleModule):
            raise ValueError(
                f"The module is wrapped by Opacus's {type(module).__name__}. Please pass vanilla nn.Module instead"
            )
        self.validate(module=module, optimizer=None, data_loader=None)
        kind = GradSampleModule if wrap_model else GradSampleHooks
        return kind(module, batch_first=batch_first, loss_reduction=loss_reduction)

    def _prepare_optimizer(
        self, *, optimizer: torch.optim.Optimizer, noise_multiplier: float, max_grad_norm: Any,
        expected_batch_size: int, loss_reduction: str = "mean", distributed: bool = False, clipping: str = "flat",  # noqa: ARG002
        noise_generator: torch.Generator | None = None, grad_sample_mode: str = "hooks", **kwargs: Any,  # noqa: ARG002
    ) -> DPOptimizer:  # fmt: skip
        if clipping not in _OPTIMIZERS:
            raise ValueError(f"Unexpected optimizer parameters. Clipping: {clipping}; known are {list(_OPTIMIZERS)}.")
        if noise_generator is not None and self._secure_asked:
            raise ValueError("Passing seed is prohibited in secure mode")
        inner = getattr(optimizer, "original_optimizer", optimizer)
        return _OPTIMIZERS[clipping](
            inner, noise_multiplier=noise_multiplier, max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size, loss_reduction=loss_reduction, generator=noise_generator, **kwargs,
        )  # fmt: skip

    def _prepare_criterion(self, *, criterion: Any, **_: Any) -> Any:  # type: ignore[override]
        return criterion
