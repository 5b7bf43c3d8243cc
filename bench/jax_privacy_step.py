"""jax-privacy's private step on the critics of the step table, beside plain steps of JAX and of PyTorch.

    python -m venv jax && jax/bin/pip install -r bench/requirements-jax.txt
    jax/bin/python bench/jax_privacy_step.py [--step bench/results/step.json] [--out bench/results/jax_privacy.json]

It has an environment of its own and no part in the package: nets are read from the results of `dpcgan bench --suite
step`, by their names. Each contender is compiled and run before it counts, and all take turns in one process. The
clipped sum is compared with torch.func's before anything is timed. `bench/render.py` then puts the column into the
table.
"""

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax_privacy import noise_addition
from jax_privacy.clipping import clipped_grad
from torch import nn

RESULTS = Path(__file__).resolve().parent / "results"
MAX_GRAD_NORM, NOISE_MULTIPLIER, LEARNING_RATE = 1.0, 1.1, 1e-3
AGREEMENT = 1e-4
WARM_UPS = 3
PAUSE = 0.02  # s before a timed call: the other library's threads spin on for a while after theirs, and take the cores
PRIVATE, JAX_PLAIN, TORCH_PLAIN = "jax-privacy", "JAX plain step", "PyTorch plain step (eager)"
SEED, BIG = ((16, 32, 64), 8, 4, 1), ((64, 128, 256, 256), 5, 2, 1)
Parameters = list[dict[str, jax.Array]]


@dataclass(frozen=True)
class Critic:
    """Convolutions with GroupNorm of min(8, C) groups and LeakyReLU, then one of full length to a score."""

    channels: Sequence[int]
    kernel: int
    stride: int
    padding: int
    length: int
    batch: int


def critic_of(name: str) -> Critic | None:
    """The critic of a row of the step table; None for other nets."""
    found = re.fullmatch(r"(seed|64-128-256-256) critic, F=(\d+), B=(\d+)", name)
    if found is None:
        return None
    channels, kernel, stride, padding = SEED if found[1] == "seed" else BIG
    return Critic(channels, kernel, stride, padding, int(found[2]), int(found[3]))


def torch_critic(critic: Critic) -> nn.Sequential:
    """The critic in PyTorch."""
    layers: list[nn.Module] = []
    inputs, length = 1, critic.length
    for outputs in critic.channels:
        layers += [
            nn.Conv1d(inputs, outputs, critic.kernel, critic.stride, critic.padding),
            nn.GroupNorm(min(8, outputs), outputs),
            nn.LeakyReLU(0.2),
        ]
        length = (length + 2 * critic.padding - critic.kernel) // critic.stride + 1
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv1d(inputs, 1, length))


def jax_parameters(module: nn.Sequential) -> Parameters:
    """The parameters of a critic, layer by layer, for `score`."""
    layers = [{name: jnp.asarray(p.detach().numpy()) for name, p in layer.named_parameters()} for layer in module]
    return [layer for layer in layers if layer]


def score(critic: Critic, parameters: Parameters, x: jax.Array) -> jax.Array:
    """The critic in JAX; x: (B, 1, F), out: (B,)."""

    def conv(layer: dict[str, jax.Array], x: jax.Array, stride: int, padding: int) -> jax.Array:
        out = jax.lax.conv_general_dilated(x, layer["weight"], (stride,), [(padding, padding)])
        return out + layer["bias"][:, None]

    for i, channels in enumerate(critic.channels):
        x = conv(parameters[2 * i], x, critic.stride, critic.padding)
        groups = x.reshape(x.shape[0], min(8, channels), -1)  # (B, C, T) -> (B, G, C / G T)
        mean, variance = groups.mean(2, keepdims=True), groups.var(2, keepdims=True)
        x = ((groups - mean) * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        x = x * parameters[2 * i + 1]["weight"][:, None] + parameters[2 * i + 1]["bias"][:, None]
        x = jnp.where(x > 0, x, 0.2 * x)
    return conv(parameters[-1], x, 1, 0)[:, 0, 0]


def clipped_sum(critic: Critic) -> Callable[[Parameters, jax.Array], Any]:
    """jax-privacy's sum of clipped gradients of the rows' scores, with its sensitivity."""
    return clipped_grad(lambda parameters, x: score(critic, parameters, x).sum(), l2_clip_norm=MAX_GRAD_NORM)


def private_step(critic: Critic, parameters: Parameters, x: jax.Array) -> Callable[[], object]:
    """Clipped sum, Gaussian noise, division, Adam; compiled as one function."""
    gradient = clipped_sum(critic)
    noise = noise_addition.gaussian_privatizer(
        stddev=gradient.sensitivity() * NOISE_MULTIPLIER, prng_key=jax.random.key(0)
    )
    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(parameters: Parameters, noise_state: Any, optimizer_state: Any, x: jax.Array) -> tuple[Any, Any, Any]:
        noisy, noise_state = noise.update(gradient(parameters, x), noise_state)
        mean = jax.tree.map(lambda g: g / critic.batch, noisy)
        updates, optimizer_state = optimizer.update(mean, optimizer_state)
        return optax.apply_updates(parameters, updates), noise_state, optimizer_state

    state = parameters, noise.init(parameters), optimizer.init(parameters)

    def run() -> None:
        nonlocal state
        state = step(*state, x)
        jax.block_until_ready(state)

    return run


def jax_plain_step(critic: Critic, parameters: Parameters, x: jax.Array) -> Callable[[], object]:
    """Gradient of the mean score and Adam, compiled as one function."""
    optimizer = optax.adam(LEARNING_RATE)

    @jax.jit
    def step(parameters: Parameters, optimizer_state: Any, x: jax.Array) -> tuple[Any, Any]:
        mean = jax.grad(lambda parameters: score(critic, parameters, x).mean())(parameters)
        updates, optimizer_state = optimizer.update(mean, optimizer_state)
        return optax.apply_updates(parameters, updates), optimizer_state

    state = parameters, optimizer.init(parameters)

    def run() -> None:
        nonlocal state
        state = step(*state, x)
        jax.block_until_ready(state)

    return run


def torch_plain_step(module: nn.Sequential, x: torch.Tensor) -> Callable[[], object]:
    """The plain step of the table."""
    optimizer = torch.optim.Adam(module.parameters(), LEARNING_RATE)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        module(x).flatten(1).sum(1).mean().backward()
        optimizer.step()

    return run


def check(critic: Critic, module: nn.Sequential, x: torch.Tensor) -> float:
    """Relative difference of jax-privacy's clipped sum from torch.func's; AssertionError if it is not small."""

    def loss(parameters: dict[str, torch.Tensor], row: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, parameters, (row.unsqueeze(0),)).sum()

    detached = {name: p.detach() for name, p in module.named_parameters()}
    grads = list(torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(detached, x).values())
    norms = torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()
    factor = (MAX_GRAD_NORM / norms).clamp(max=1.0)
    expected = np.concatenate([torch.tensordot(factor, g, dims=1).double().numpy().ravel() for g in grads])
    layers = jax.jit(clipped_sum(critic))(jax_parameters(module), jnp.asarray(x.numpy()))
    found = np.concatenate([np.asarray(layer[n], np.float64).ravel() for layer in layers for n in ("weight", "bias")])
    off = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    if not off < AGREEMENT:
        raise AssertionError(f"{critic}: jax-privacy's clipped sum differs from torch.func's by {off:.1e}")
    return off


def interleaved(contenders: dict[str, Callable[[], object]], calls: int) -> dict[str, list[float]]:
    """Milliseconds of each call, by turns, after a few that do not count."""
    for run in contenders.values():
        for _ in range(WARM_UPS):
            run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(calls):
        for name, run in contenders.items():
            time.sleep(PAUSE)
            begin = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - begin))
    return times


def time_net(name: str, critic: Critic, calls: int) -> dict[str, Any]:
    """One row of results."""
    torch.manual_seed(0)
    module, x = torch_critic(critic), torch.rand(critic.batch, 1, critic.length)
    agreement = check(critic, module, x)
    parameters, rows = jax_parameters(module), jnp.asarray(x.numpy())
    contenders = {
        TORCH_PLAIN: torch_plain_step(module, x),
        JAX_PLAIN: jax_plain_step(critic, parameters, rows),
        PRIVATE: private_step(critic, parameters, rows),
    }
    times = interleaved(contenders, calls)
    medians = {name: statistics.median(values) for name, values in times.items()}
    quartiles = {name: statistics.quantiles(values, n=4) for name, values in times.items()}
    return {
        "net": name,
        "agreement_with_torch_func": agreement,
        "milliseconds": {
            name: {"median": median, "lower_quartile": quartiles[name][0], "upper_quartile": quartiles[name][2]}
            for name, median in medians.items()
        },
        "ratio_to_torch_plain": medians[PRIVATE] / medians[TORCH_PLAIN],
        "ratio_to_jax_plain": medians[PRIVATE] / medians[JAX_PLAIN],
        "jax_plain_to_torch_plain": medians[JAX_PLAIN] / medians[TORCH_PLAIN],
    }


def main() -> None:
    """Times every critic of the step table and writes the JSON file."""
    parser = argparse.ArgumentParser(description="jax-privacy's private step on the critics of the step table.")
    parser.add_argument("--step", type=Path, default=RESULTS / "step.json", help="results that name the nets")
    parser.add_argument("--out", type=Path, default=RESULTS / "jax_privacy.json")
    parser.add_argument("--calls", type=int, default=15)
    arguments = parser.parse_args()
    nets = [row["net"] for row in json.loads(arguments.step.read_text())["results"]]
    rows = []
    for name in nets:
        critic = critic_of(name)
        if critic is None:
            print(f"{name}: no critic, left out", flush=True)
            continue
        rows.append(time_net(name, critic, arguments.calls))
        print(
            f"{name}: {rows[-1]['ratio_to_torch_plain']:.2f} x PyTorch's plain step, "
            f"{rows[-1]['ratio_to_jax_plain']:.2f} x JAX's",
            flush=True,
        )
    machine = {
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("jax", "jax-privacy", "optax", "torch")},
    }
    results = {"machine": machine, "calls": arguments.calls, "results": rows}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
