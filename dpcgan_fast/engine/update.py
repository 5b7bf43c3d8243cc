"""The end of a step in one pass over all parameters: noise, division, and the optimizer's own rule.

It stands in for `optimizer.step()` where it computes the same: plain SGD, Adam and RMSprop. The optimizer's
state stays its own, so that checkpoints and a later `optimizer.step()` go on from it. `check_update` says why not,
where it does not; `noisy_gradients` is for an optimizer that takes its own step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


# What plain SGD has none of.
_BEYOND_PLAIN = ("momentum", "weight_decay", "nesterov", "maximize", "differentiable", "fused")


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
    watched = _watched(optimizer)
    if watched:
        raise OwnStepError(watched)
    if group.get("fused") and any(p.is_cuda for p in parameters):
        raise OwnStepError("it was made with fused=True, which counts steps on the GPU")
    counts = {float(optimizer.state[p]["step"]) for p in parameters if "step" in optimizer.state.get(p, {})}
    if len(counts) > 1:
        raise OwnStepError("its parameters have taken different numbers of steps")
    if any(p.dtype != torch.float32 or not p.is_contiguous() for p in parameters):
        raise OwnStepError("a parameter is not contiguous float32")
    if len({p.device for p in parameters}) > 1:
        raise OwnStepError("its parameters lie on several devices")


def _watched(optimizer: torch.optim.Optimizer) -> str:
    """What others have put on the optimizer's step, which must be called then; empty if nothing."""
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "the optimizer has hooks"
    if _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return "all optimizers have hooks"
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return "a learning rate scheduler counts the optimizer's steps"
    return "its step was replaced" if "step" in optimizer.__dict__ else ""


@dataclass(frozen=True)
class UpdateState:
    """An optimizer's rule by name, and its moments, one a parameter; empty where the rule has none."""

    name: str
    first: list[Tensor]
    second: list[Tensor]
    steps: list[Tensor]  # what counts the steps; empty where nothing does


# Name of the rule, and what torch.optim calls its first and second moments.
_RULES: dict[type, tuple[str, str | None, str]] = {
    Adam: ("adam", "exp_avg", "exp_avg_sq"),
    RMSprop: ("rmsprop", None, "square_avg"),
}


def update_state(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> UpdateState:
    """The optimizer's own state, made as it would make it before its first step."""
    state = optimizer.state
    if type(optimizer) is SGD:
        if not optimizer.param_groups[0]["momentum"]:
            return UpdateState("sgd", [], [], [])
        for p in parameters:
            if state[p].get("momentum_buffer") is None:
                state[p]["momentum_buffer"] = torch.zeros_like(p)
        return UpdateState("sgd", [state[p]["momentum_buffer"] for p in parameters], [], [])
    name, first, second = _RULES[type(optimizer)]
    moments = [second] if first is None else [first, second]
    for p in parameters:
        if not state[p]:
            state[p]["step"] = torch.tensor(0.0)
            state[p] |= {moment: torch.zeros_like(p) for moment in moments}
    firsts = [] if first is None else [state[p][first] for p in parameters]
    return UpdateState(name, firsts, [state[p][second] for p in parameters], [state[p]["step"] for p in parameters])


def next_settings(optimizer: torch.optim.Optimizer, state: UpdateState) -> list[float]:
    """Counts a step, and gives the rule's settings for it, as `ops.noisy_update_` takes them."""
    group = optimizer.param_groups[0]
    if state.steps:
        torch._foreach_add_(state.steps, 1.0)  # type: ignore[reportPrivateImportUsage]
    settings = [group["lr"], group["weight_decay"]]
    if state.name == "sgd":
        settings += [group["momentum"]]
    elif state.name == "rmsprop":
        settings += [group["alpha"], group["eps"]]
    else:
        beta1, beta2 = (float(beta) for beta in group["betas"])
        steps = float(state.steps[0])
        settings += [beta1, beta2, group["eps"], 1.0 - beta1**steps, 1.0 - beta2**steps]
    return [float(value) for value in settings]


def noisy_update(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], sums: Sequence[Tensor],
    public_sums: Sequence[Tensor], noise_std: float, key: NoiseKey, divisor: float, public_divisor: float,
    clamps: Sequence[float],
) -> None:  # fmt: skip
    """Moves the parameters as `optimizer.step()` would with (sums + noise) / divisor + public_sums / public_divisor.

    sums, public_sums: float64, contiguous, one a parameter; public_sums may be empty
    noise_std:         noise_multiplier * max_grad_norm, in gradient units; 0 draws none and leaves the key as it is
    clamps:            of each parameter, or empty

    Call `check_update` first.
    """
    state = update_state(optimizer, parameters)
    settings = next_settings(optimizer, state)
    with torch.no_grad():
        ops.noisy_update_(
            parameters, state.first, state.second, sums, public_sums, noise_std, key, divisor, public_divisor,
            state.name, settings, clamps,
        )  # fmt: skip
    torch.autograd.graph.increment_version(parameters)


def own_step(optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]) -> Any:
    """`optimizer.step()`; of plain SGD that nobody watches, its rule alone, bit for bit: what comes before it in
    torch takes as long as a layer of a small net.

    parameters: all that are trained
    """
    grads = [p.grad for p in parameters]
    alone = len(optimizer.param_groups) == 1 and len(parameters) > 0
    if type(optimizer) is not SGD or _watched(optimizer) or not alone or any(grad is None for grad in grads):
        return optimizer.step()
    group = optimizer.param_groups[0]
    if any(group.get(name) for name in _BEYOND_PLAIN) or isinstance(group["lr"], Tensor):
        return optimizer.step()
    with torch.no_grad():
        torch._foreach_add_(parameters, grads, alpha=-group["lr"])  # type: ignore[reportPrivateImportUsage]
    return None


def noisy_gradients(
    parameters: Sequence[nn.Parameter], sums: Sequence[Tensor], public_sums: Sequence[Tensor], noise_std: float,
    key: NoiseKey, divisor: float, public_divisor: float,
) -> list[Tensor]:  # fmt: skip
    """(sums + noise) / divisor + public_sums / public_divisor, in the dtype of the parameters.

    Arguments are those of `noisy_update`; parameters may be of any dtype, and lie on several devices. What the
    sums hold afterwards is as secret as before: let them go.
    """
    grads: dict[int, Tensor] = {}
    for device in dict.fromkeys(total.device for total in sums):
        places = [i for i, total in enumerate(sums) if total.device == device]
        own, public = [sums[i] for i in places], [public_sums[i] for i in places] if public_sums else []
        if all(parameters[i].dtype == torch.float32 for i in places):
            # From nothing, a step of -1 leads to the gradient.
            made = [torch.zeros_like(total, dtype=torch.float32) for total in own]
            step = [-1.0, 0.0, 0.0]
            ops.noisy_update_(made, [], [], own, public, noise_std, key, divisor, public_divisor, "sgd", step)
        else:
            ops.gaussian_noise_(own, noise_std, key)
            made = [total.div_(divisor) for total in own]
            made = [a + b / public_divisor for a, b in zip(made, public, strict=True)] if public else made
            made = [grad.to(parameters[i].dtype) for i, grad in zip(places, made, strict=True)]
        grads |= zip(places, made, strict=True)
    return [grads[i] for i in range(len(sums))]
