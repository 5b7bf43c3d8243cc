"""The end of a step in one pass over all parameters: noise, division, and the optimizer's own rule.

It stands in for `optimizer.step()` where it computes the same: plain SGD, Adam and RMSprop on the CPU. The optimizer's
state stays its own, so that checkpoints and a later `optimizer.step()` go on from it. `check_update` says why not,
where it does not.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, RMSprop
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from dpcgan_fast import ops
from dpcgan_fast.ops import NoiseKey

_FLAGS = (
    "amsgrad",
    "maximize",
    "capturable",
    "differentiable",
    "nesterov",
    "centered",
    "decoupled_weight_decay",
    "dampening",
)


class OwnStepError(Exception):
    """Why an optimizer takes its own step."""


def check_update(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> None:
    """Raises OwnStepError if the one-pass update is not what `optimizer.step()` would do."""
    if ops.backend() != "native":
        raise OwnStepError("the reference back end is in use")
    if type(optimizer) not in (SGD, Adam, RMSprop):
        raise OwnStepError(f"{type(optimizer).__name__} is not plain SGD, Adam or RMSprop")
    if len(optimizer.param_groups) != 1:
        raise OwnStepError("the optimizer has several parameter groups")
    group = optimizer.param_groups[0]
    unusual = [flag for flag in _FLAGS if group.get(flag)]
    if type(optimizer) is RMSprop and group["momentum"]:
        unusual.append("momentum")
    if unusual or any(isinstance(group[name], Tensor) for name in ("lr", "weight_decay")):
        raise OwnStepError(f"the optimizer uses {unusual[0] if unusual else 'tensor settings'}")
    hooks = optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks
    if any(hooks) or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        raise OwnStepError("the optimizer has hooks")
    counts = {float(optimizer.state[p]["step"]) for p in parameters if "step" in optimizer.state.get(p, {})}
    if len(counts) > 1:
        raise OwnStepError("its parameters have taken different numbers of steps")
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        raise OwnStepError("a learning rate scheduler counts the optimizer's steps")
    if "step" in optimizer.__dict__:
        raise OwnStepError("its step was replaced")
    if any(p.device.type != "cpu" or p.dtype != torch.float32 or not p.is_contiguous() for p in parameters):
        raise OwnStepError("a parameter is not contiguous float32 on the CPU")


def _moments(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], *names: str) -> list[list[Tensor]]:
    """The optimizer's moments by name, made as it would make them before its first step; counts the step."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state |= {name: torch.zeros_like(parameter) for name in names}
    states = [optimizer.state[parameter] for parameter in parameters]
    torch._foreach_add_([state["step"] for state in states], 1.0)  # type: ignore[reportPrivateImportUsage]
    return [[state[name] for state in states] for name in names]


def _adam(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], group: dict[str, Any]):
    first, second = _moments(optimizer, parameters, "exp_avg", "exp_avg_sq")
    beta1, beta2 = (float(beta) for beta in group["betas"])
    steps = float(optimizer.state[parameters[0]]["step"])
    corrections = [1.0 - beta1**steps, 1.0 - beta2**steps]
    return first, second, "adam", [beta1, beta2, group["eps"], *corrections]


def _rmsprop(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], group: dict[str, Any]):
    (second,) = _moments(optimizer, parameters, "square_avg")
    return [], second, "rmsprop", [group["alpha"], group["eps"]]


def _sgd(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], group: dict[str, Any]):
    if not group["momentum"]:
        return [], [], "sgd", [0.0]
    for parameter in parameters:
        if optimizer.state[parameter].get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return [optimizer.state[p]["momentum_buffer"] for p in parameters], [], "sgd", [group["momentum"]]


_RULES = {Adam: _adam, RMSprop: _rmsprop, SGD: _sgd}


def noisy_update(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], sums: Sequence[Tensor],
    public_sums: Sequence[Tensor], noise_std: float, key: NoiseKey, divisor: float, public_divisor: float,
) -> None:  # fmt: skip
    """Moves the parameters as `optimizer.step()` would with (sums + noise) / divisor + public_sums / public_divisor.

    sums, public_sums: float64, contiguous, one a parameter; public_sums may be empty
    noise_std:         noise_multiplier * max_grad_norm, in gradient units; 0 draws none and leaves the key as it is

    Call `check_update` first.
    """
    group = optimizer.param_groups[0]
    first, second, name, settings = _RULES[type(optimizer)](optimizer, parameters, group)
    values = [float(value) for value in (group["lr"], group["weight_decay"], *settings)]
    with torch.no_grad():
        ops.noisy_update_(
            parameters, first, second, sums, public_sums, noise_std, key, divisor, public_divisor, name, values
        )
    torch.autograd.graph.increment_version(parameters)
