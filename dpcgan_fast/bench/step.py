"""One private step against the plain step of the same network, and against other ways to take it."""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from dpcgan_fast.bench.memory import peak_tensor_bytes
from dpcgan_fast.bench.nets import BENCH_NETS, BenchNet
from dpcgan_fast.bench.timing import interleaved
from dpcgan_fast.engine import PrivateStep

MAX_GRAD_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.1, 1e-3
PLAIN, OURS, OURS_PLAIN = "plain step (eager)", "dpcgan_fast", "dpcgan_fast, epsilon inf"
OPACUS, GHOST, VMAP, COMPILED = "Opacus hooks", "Opacus ghost", "torch.func vmap(grad)", "plain step (torch.compile)"
_AGREEMENT = 1e-4


def _row_losses(output: Tensor) -> Tensor:
    return output.flatten(1).sum(1)


def _plain(module: nn.Module, x: Tensor, compiled: bool = False) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    forward = torch.compile(module) if compiled else module

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        _row_losses(forward(x)).mean().backward()
        optimizer.step()

    return run


def _ours(module: nn.Module, x: Tensor, private: bool) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    clip, noise = (MAX_GRAD_NORM, NOISE_MULTIPLIER) if private else (math.inf, 0.0)
    step = PrivateStep(module, optimizer, clip, noise, len(x))

    def run() -> None:
        step.backward(_row_losses(step(x)))
        step.step()

    return run


def _opacus(module: nn.Module, x: Tensor) -> Callable[[], None]:
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    wrapped = GradSampleModule(module)
    optimizer = DPOptimizer(
        torch.optim.Adam(wrapped.parameters(), LEARNING_RATE), noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=MAX_GRAD_NORM, expected_batch_size=len(x),
    )  # fmt: skip

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _without_hook_warnings():
            _row_losses(wrapped(x)).mean().backward()
        optimizer.step()

    return run


def _opacus_ghost(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """Norms first, then a second backward of the reweighted loss."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping

    wrapped = GradSampleModuleFastGradientClipping(
        module,
        max_grad_norm=MAX_GRAD_NORM,  # type: ignore[arg-type]  its stub says int
        use_ghost_clipping=True,
        loss_reduction="mean",
    )
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.Adam(wrapped.parameters(), LEARNING_RATE), noise_multiplier=NOISE_MULTIPLIER,
        max_grad_norm=MAX_GRAD_NORM, expected_batch_size=len(x), loss_reduction="mean",
    )  # fmt: skip

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        with _without_hook_warnings():
            losses = _row_losses(wrapped(x))
            losses.mean().backward(retain_graph=True)
            optimizer.zero_grad()
            factor = wrapped.get_clipping_coef()
            wrapped.disable_hooks()
            (factor * losses).sum().backward()
            wrapped.enable_hooks()
        optimizer.step()

    return run


@contextlib.contextmanager
def _without_hook_warnings() -> Iterator[None]:
    with warnings.catch_warnings():  # torch warns that hooks fire where no input needs a gradient
        warnings.simplefilter("ignore", UserWarning)
        yield


def _per_sample_grads(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return _row_losses(torch.func.functional_call(module, parameters, (row.unsqueeze(0),))).sum()

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)


def _vmap(module: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)

    def run() -> None:
        for parameter, total in zip(module.parameters(), _clipped_sums(module, x).values(), strict=True):
            noise = torch.randn_like(total) * (NOISE_MULTIPLIER * MAX_GRAD_NORM)
            parameter.grad = (total + noise) / len(x)
        optimizer.step()

    return run


def _clipped_sums(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    grads = _per_sample_grads(module, x)
    norms = torch.stack([g.flatten(1).square().sum(1) for g in grads.values()]).sum(0).sqrt()
    factor = (MAX_GRAD_NORM / norms).clamp(max=1.0)
    return {name: torch.tensordot(factor, grad, dims=1) for name, grad in grads.items()}


def _check(net: BenchNet, x: Tensor) -> float:
    """Relative difference of our clipped sum from that of torch.func; nothing is timed before it is small."""
    module = net.build().to(x.device)
    expected = _clipped_sums(module, x)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    rate = 1e4
    step = PrivateStep(module, torch.optim.SGD(module.parameters(), rate), MAX_GRAD_NORM, 0.0, 1.0)
    step.backward(_row_losses(step(x)))
    step.step()
    difference = {n: (before[n] - p.detach()) / rate - expected[n] for n, p in module.named_parameters()}
    off = math.sqrt(sum(float(d.double().square().sum()) for d in difference.values()))
    size = math.sqrt(sum(float(e.double().square().sum()) for e in expected.values()))
    if off > _AGREEMENT * size:
        raise AssertionError(f"{net.name}: our clipped sum differs from torch.func's by {off / size:.1e}")
    return off / size


def _contenders(module: nn.Module, x: Tensor, compiled: bool) -> dict[str, Callable[[], Callable[[], None]]]:
    """Ways to take a step, each as a function that sets it up on a copy of the module."""
    made: dict[str, Callable[[], Callable[[], None]]] = {
        PLAIN: lambda: _plain(copy.deepcopy(module), x),
        OURS: lambda: _ours(copy.deepcopy(module), x, private=True),
        OURS_PLAIN: lambda: _ours(copy.deepcopy(module), x, private=False),
        VMAP: lambda: _vmap(copy.deepcopy(module), x),
    }
    if find_spec("opacus") is not None:
        made[OPACUS] = lambda: _opacus(copy.deepcopy(module), x)
        made[GHOST] = lambda: _opacus_ghost(copy.deepcopy(module), x)
    if compiled:
        made[COMPILED] = lambda: _plain(copy.deepcopy(module), x, compiled=True)
    return made


def bench_step(device: torch.device, calls: int, compiled: bool, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Times every network with every contender, and takes the peak of tensor memory; a row each."""
    rows = []
    for net in BENCH_NETS:
        torch.manual_seed(0)
        x = torch.rand(net.batch, 1, net.length, device=device)
        agreement = _check(net, x)
        module = net.build().to(device)
        contenders = _contenders(module, x, compiled)
        timings = interleaved({name: make() for name, make in contenders.items()}, calls)
        plain = timings[PLAIN].median
        peaks = {name: peak_tensor_bytes(make) for name, make in contenders.items() if device.type == "cpu"}
        row = {
            "net": net.name,
            "parameters": sum(p.numel() for p in module.parameters()),
            "agreement_with_torch_func": agreement,
            "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
            "ratio_to_plain": {name: timing.median / plain for name, timing in timings.items()},
            "ratio_to_own_plain": timings[OURS].median / timings[OURS_PLAIN].median,
            "peak_tensor_bytes": peaks,
        }
        rows.append(row)
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratio_to_plain"].items() if name != PLAIN)
        say(f"{net.name}: plain {plain:.2f} ms; ratios: {ratios}")
    return rows
