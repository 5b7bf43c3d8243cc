"""The networks that the step benchmark runs: critics for health tables, and the preset autoencoders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dpcgan_fast.errors import InputError
from dpcgan_fast.models.published import MIMIC, UCI, PublishedNetworks, PublishedSpec


@dataclass(frozen=True)
class BenchNet:
    """A network, the length of its records, and the batch size."""

    name: str
    build: Callable[[], nn.Module]  # (B, 1, F) -> (B, ...)
    length: int
    batch: int


def critic(length: int, channels: Sequence[int], kernel: int, stride: int, padding: int) -> nn.Sequential:
    """Convolutions with GroupNorm of min(8, C) groups and LeakyReLU, then one of full length to a score."""
    layers: list[nn.Module] = []
    inputs = 1
    for outputs in channels:
        layers += [nn.Conv1d(inputs, outputs, kernel, stride, padding), nn.GroupNorm(min(8, outputs), outputs)]
        layers.append(nn.LeakyReLU(0.2))
        length = (length + 2 * padding - kernel) // stride + 1
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv1d(inputs, 1, length))


def _autoencoder(spec: PublishedSpec) -> nn.Module:
    return PublishedNetworks(spec).autoencoder.stacks


def _seed_critic(length: int) -> Callable[[], nn.Module]:
    return lambda: critic(length, (16, 32, 64), 8, 4, 1)


def _big_critic(length: int) -> Callable[[], nn.Module]:
    return lambda: critic(length, (64, 128, 256, 256), 5, 2, 1)


CPU_NETS = (
    BenchNet("seed critic, F=178, B=128", _seed_critic(178), 178, 128),
    BenchNet("seed critic, F=178, B=1024", _seed_critic(178), 178, 1024),
    BenchNet("seed critic, F=1071, B=256", _seed_critic(1071), 1071, 256),
    BenchNet("seed critic, F=10000, B=64", _seed_critic(10000), 10000, 64),
    BenchNet("64-128-256-256 critic, F=178, B=128", _big_critic(178), 178, 128),
    BenchNet("64-128-256-256 critic, F=1071, B=128", _big_critic(1071), 1071, 128),
    BenchNet("autoencoder rdpcgan-uci, B=128", lambda: _autoencoder(UCI), 179, 128),
    BenchNet("autoencoder rdpcgan-mimic, B=128", lambda: _autoencoder(MIMIC), 1071, 128),
)
# A GPU earns its keep with larger batches.
GPU_NETS = (
    BenchNet("seed critic, F=178, B=128", _seed_critic(178), 178, 128),
    BenchNet("seed critic, F=178, B=1024", _seed_critic(178), 178, 1024),
    BenchNet("seed critic, F=178, B=16384", _seed_critic(178), 178, 16384),
    BenchNet("seed critic, F=10000, B=1024", _seed_critic(10000), 10000, 1024),
    BenchNet("64-128-256-256 critic, F=178, B=1024", _big_critic(178), 178, 1024),
    BenchNet("64-128-256-256 critic, F=1071, B=1024", _big_critic(1071), 1071, 1024),
    BenchNet("autoencoder rdpcgan-uci, B=1024", lambda: _autoencoder(UCI), 179, 1024),
    BenchNet("autoencoder rdpcgan-mimic, B=1024", lambda: _autoencoder(MIMIC), 1071, 1024),
)


def bench_nets(device: str) -> Sequence[BenchNet]:
    """The nets that are timed on a type of device, "cpu" or "cuda"."""
    return GPU_NETS if device == "cuda" else CPU_NETS


def chosen_nets(wanted: str, device: str = "cpu") -> list[int]:
    """Places in `bench_nets(device)` of the nets that are asked for: places with commas between, or a part of names.

    "" is all of them. Raises InputError if there is none.
    """
    nets = bench_nets(device)
    parts = [part.strip() for part in wanted.split(",")]
    if all(part.isdecimal() for part in parts):
        found = [int(part) for part in parts if int(part) < len(nets)]
        missed = len(found) < len(parts)
    else:
        found = [place for place, net in enumerate(nets) if wanted.lower() in net.name.lower()]
        missed = not found
    if missed:
        names = "; ".join(f"{place}: {net.name}" for place, net in enumerate(nets))
        raise InputError("There is no such net", f"--nets {wanted}", f"Give places or a part of a name. {names}.")
    return found
