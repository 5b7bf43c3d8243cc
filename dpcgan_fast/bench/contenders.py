"""Ways to take a training step: plain, ours, and those of other libraries; and the check of ours before it is timed."""

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from dpcgan_fast.bench.nets import BenchNet
from dpcgan_fast.engine import CudaGraph, GraphedStep, PrivateStep
from dpcgan_fast.engine.report import StepReport

MAX_GRAD_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.1, 1e-3
PLAIN, OURS, OURS_PLAIN = "plain step (eager)", "dpcgan_fast", "dpcgan_fast, epsilon inf"
OURS_EAGER, PLAIN_GRAPH = "dpcgan_fast, call by call", "plain step (CUDA graph)"
OPACUS, GHOST, VMAP, COMPILED = "Opacus hooks", "Opacus ghost", "torch.func vmap(grad)", "plain step (torch.compile)"
_AGREEMENT = 1e-4


def _row_losses(output: Tensor) -> Tensor:
    return output.flatten(1).sum(1)


def plain_step(module: nn.Module, x: Tensor, compiled: bool = False) -> Callable[[], None]:
    """PyTorch's own step on x."""
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    forward = torch.compile(module) if compiled else module

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        _row_losses(forward(x)).mean().backward()
        optimizer.step()

    return run


def own_step(module: nn.Module, x: Tensor, private: bool) -> tuple[Callable[[], None], PrivateStep]:
    """Our step on x, and the PrivateStep that takes it."""
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)
    clip, noise = (MAX_GRAD_NORM, NOISE_MULTIPLIER) if private else (math.inf, 0.0)
    step = PrivateStep(module, optimizer, clip, noise, len(x))

    def run() -> None:
        step.backward(_row_losses(step(x)))
        step.step()

    return run, step


def plain_graph(module: nn.Module, x: Tensor) -> Callable[[], None]:
    """PyTorch's own step on x, captured as a CUDA graph."""
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE, capturable=True)

    def body() -> None:
        optimizer.zero_grad(set_to_none=True)
        _row_losses(module(x)).mean().backward()
        optimizer.step()

    return CudaGraph(x.device)(body)


def own_graph(module: nn.Module, x: Tensor, private: bool) -> Callable[[], None]:
    """Our step on x as training takes it on a GPU: captured as CUDA graphs."""
    step = own_step(module, x, private)[1]
    graphed = GraphedStep(step, len(x))
    backward = graphed.backward_of(lambda rows: _row_losses(step(rows)), (x,))

    def run() -> None:
        backward(x)
        graphed.step()

    return run


def report(module: nn.Module, x: Tensor) -> StepReport:
    """Which path our step takes on x."""
    run, step = own_step(copy.deepcopy(module), x, private=True)
    run()
    assert step.last is not None
    return step.last


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


def check(net: BenchNet, x: Tensor) -> float:
    """Relative difference of our clipped sum from that of torch.func; nothing is timed before it is small."""
    module = net.build().to(x.device)
    with _float32_products():
        return _difference(net.name, module, x)


@contextlib.contextmanager
def _float32_products() -> Iterator[None]:
    """Without TF32, which torch's convolutions may take on a GPU and which keeps 10 bits of a float32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _difference(name: str, module: nn.Module, x: Tensor) -> float:
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
        raise AssertionError(f"{name}: our clipped sum differs from torch.func's by {off / size:.1e}")
    return off / size


def contenders(module: nn.Module, x: Tensor, compiled: bool) -> dict[str, Callable[[], Callable[[], None]]]:
    """Ways to take a step, each as a function that sets it up on a copy of the module.

    In an order that keeps our two apart: neither finds the caches as the other left them. On a GPU ours are graphs, as
    in training; the step without one, and PyTorch's own step in one, stand beside them.
    """

    def own(private: bool) -> Callable[[], None]:
        if x.is_cuda:
            return own_graph(copy.deepcopy(module), x, private)
        return own_step(copy.deepcopy(module), x, private)[0]

    made: dict[str, Callable[[], Callable[[], None]]] = {
        PLAIN: lambda: plain_step(copy.deepcopy(module), x),
        OURS: lambda: own(private=True),
        VMAP: lambda: _vmap(copy.deepcopy(module), x),
        OURS_PLAIN: lambda: own(private=False),
    }
    if x.is_cuda:
        made[PLAIN_GRAPH] = lambda: plain_graph(copy.deepcopy(module), x)
        made[OURS_EAGER] = lambda: own_step(copy.deepcopy(module), x, private=True)[0]
    if find_spec("opacus") is not None:
        made[OPACUS] = lambda: _opacus(copy.deepcopy(module), x)
        made[GHOST] = lambda: _opacus_ghost(copy.deepcopy(module), x)
    if compiled:
        made[COMPILED] = lambda: plain_step(copy.deepcopy(module), x, compiled=True)
    return made
