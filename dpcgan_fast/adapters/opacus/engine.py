"""`PrivacyEngine` of Opacus: its loaders, validators, accountants and checkpoints, with our module and optimizer."""

import warnings
from typing import Any

import torch
from opacus import PrivacyEngine as OpacusPrivacyEngine
from opacus.grad_sample import AbstractGradSampleModule
from torch import nn
from torch.utils.data import DataLoader

from dpcgan_fast.adapters.opacus.batches import SecureDraws
from dpcgan_fast.adapters.opacus.module import GradSampleHooks, GradSampleModule
from dpcgan_fast.adapters.opacus.optimizer import AdaClipDPOptimizer, DPOptimizer, DPPerLayerOptimizer

_OPTIMIZERS: dict[str, type[DPOptimizer]] = {
    "flat": DPOptimizer,
    "per_layer": DPPerLayerOptimizer,
    "adaptive": AdaClipDPOptimizer,
}


class PrivacyEngine(OpacusPrivacyEngine):
    """Opacus's PrivacyEngine with faster steps; methods and arguments are those of Opacus.

    accountant:  "prv", "rdp" or "gdp"
    secure_mode: accepted; noise is secure in any case, and with it Poisson draws are, too

    `grad_sample_mode` names ways to per-sample gradients, which are not formed here: all are taken alike, and with
    "ghost" the criterion is returned as it was given.
    Raises ValueError for distributed modules.
    """

    def __init__(self, *, accountant: str = "prv", secure_mode: bool = False):
        with warnings.catch_warnings():  # Opacus warns that its noise is not secure; ours is
            warnings.simplefilter("ignore", UserWarning)
            super().__init__(accountant=accountant, secure_mode=False)
        self.secure_draws = secure_mode

    def _prepare_model(  # type: ignore[override]  ours is no subclass of its GradSampleHooks
        self, module: nn.Module, *, batch_first: bool = True, max_grad_norm: Any = 1.0, loss_reduction: str = "mean",  # noqa: ARG002
        grad_sample_mode: str = "hooks", wrap_model: bool = True,  # noqa: ARG002
    ) -> GradSampleHooks:  # fmt: skip
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
        if noise_generator is not None and self.secure_draws:
            raise ValueError("Passing seed is prohibited in secure mode")
        inner = getattr(optimizer, "original_optimizer", optimizer)
        return _OPTIMIZERS[clipping](
            inner, noise_multiplier=noise_multiplier, max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size, loss_reduction=loss_reduction, generator=noise_generator, **kwargs,
        )  # fmt: skip

    def _prepare_data_loader(self, data_loader: DataLoader[Any], *, poisson_sampling: bool, **settings: Any) -> Any:
        loader = super()._prepare_data_loader(data_loader, poisson_sampling=poisson_sampling, **settings)
        if self.secure_draws and poisson_sampling:
            drawn = loader.batch_sampler
            secure = SecureDraws(num_samples=drawn.num_samples, sample_rate=drawn.sample_rate, steps=drawn.steps)
            loader.__dict__["batch_sampler"] = secure  # a loader refuses to have it set
        return loader

    def _prepare_criterion(self, *, criterion: Any, **_: Any) -> Any:  # type: ignore[override]
        return criterion
