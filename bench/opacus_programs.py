"""Training programs as Opacus's examples have them, with the import changed: the same sums and epsilon, and the cost.

    OMP_NUM_THREADS=2 python bench/opacus_programs.py [--calls 15] [--out bench/results/opacus_programs.json]

Three programs on made-up data of the examples' shapes: a convolutional net for 28x28 images, one for 32x32 images in
colour, and a character-level LSTM. Each takes `make_private`, then `zero_grad`, forward, `backward`, `step`, by Opacus
and by dpcgan_fast.adapters.opacus; the plain program has neither. Before anything is timed, the clipped sums of both
must agree to 1e-5 (relative), and epsilon after an epoch must be the same.
"""

import argparse
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import opacus
import torch
from opacus.layers import DPLSTM
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dpcgan_fast.adapters import opacus as ours
from dpcgan_fast.bench.machine import describe
from dpcgan_fast.bench.memory import peak_tensor_bytes
from dpcgan_fast.bench.table import machine_text, table
from dpcgan_fast.bench.timing import interleaved

RESULTS = Path(__file__).resolve().parent / "results"
AGREEMENT, DELTA = 1e-5, 1e-5
PLAIN, OPACUS, OURS = "plain step", "Opacus hooks", "dpcgan_fast.adapters.opacus"
CLIP, NOISE = 1.0, 1.1


class CharLSTM(nn.Module):
    """Names by letter to the language that they come from: embedding, LSTM, last output, linear."""

    def __init__(self, lstm: type[nn.Module] = DPLSTM):
        super().__init__()
        self.embedding = nn.Embedding(128, 64)
        self.lstm = lstm(64, 128, num_layers=1, batch_first=True)
        self.out = nn.Linear(128, 18)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T) int64 -> (B, 18)."""
        return self.out(self.lstm(self.embedding(x))[0][:, -1])


def _mnist_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1), nn.Conv2d(16, 32, 4, 2), nn.ReLU(),
        nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(512, 32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip


def _cifar_net() -> nn.Module:
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate([(3, 32), (32, 64), (64, 64), (64, 128)]):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
        layers.append(nn.AvgPool2d(2) if i < 3 else nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128, 10))


def _images(count: int, channels: int, size: int) -> TensorDataset:
    return TensorDataset(torch.randn(count, channels, size, size), torch.randint(0, 10, (count,)))


def _names(count: int, length: int) -> TensorDataset:
    return TensorDataset(torch.randint(0, 128, (count, length)), torch.randint(0, 18, (count,)))


# name -> module, the plain program's module, data, batch size, optimizer
PROGRAMS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[[], TensorDataset], int, str]] = {
    "MNIST CNN, B=64": (_mnist_net, _mnist_net, lambda: _images(256, 1, 28), 64, "SGD"),
    "MNIST CNN, B=256": (_mnist_net, _mnist_net, lambda: _images(512, 1, 28), 256, "SGD"),
    "CIFAR CNN, B=128": (_cifar_net, _cifar_net, lambda: _images(256, 3, 32), 128, "SGD"),
    "character LSTM, T=16, B=256": (CharLSTM, lambda: CharLSTM(nn.LSTM), lambda: _names(512, 16), 256, "Adam"),
}


def _optimizer(kind: str, module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), 1e-3) if kind == "Adam" else torch.optim.SGD(module.parameters(), 0.05)


def _private(engine: Any, name: str, noise: float, **settings: Any) -> tuple[nn.Module, Any, DataLoader]:
    make, _, data, batch, kind = PROGRAMS[name]
    torch.manual_seed(0)
    module = make()
    torch.manual_seed(1)
    loader = DataLoader(data(), batch_size=batch)
    return engine.make_private(
        module=module, optimizer=_optimizer(kind, module), data_loader=loader, noise_multiplier=noise,
        max_grad_norm=CLIP, **settings,
    )  # fmt: skip


def _step(module: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Callable[[], None]:
    criterion = nn.CrossEntropyLoss()

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(module(x), y).backward()
        optimizer.step()

    return run


def _plain(name: str) -> Callable[[], None]:
    _, make, data, batch, kind = PROGRAMS[name]
    torch.manual_seed(0)
    module = make()
    return _step(module, _optimizer(kind, module), *(part[:batch] for part in data().tensors))


def _contender(engine: type, name: str) -> Callable[[], None]:
    module, optimizer, loader = _private(engine(accountant="rdp"), name, NOISE, poisson_sampling=False)
    return _step(module, optimizer, *next(iter(loader)))


def check(name: str) -> tuple[float, float]:
    """Relative difference of the clipped sums, and the epsilon of an epoch. Raises AssertionError if they differ."""
    sums, spent = [], []
    for kind in (opacus.PrivacyEngine, ours.PrivacyEngine):
        module, optimizer, loader = _private(kind(), name, 0.0, poisson_sampling=False)
        x, y = next(iter(loader))
        nn.CrossEntropyLoss()(module(x), y).backward()
        optimizer.clip_and_accumulate()
        sums.append(torch.cat([p.summed_grad.flatten() for p in module.parameters()]))  # type: ignore[attr-defined]
        engine = kind(accountant="rdp")
        module, optimizer, loader = _private(engine, name, NOISE)
        for x, y in loader:
            _step(module, optimizer, x, y)()
        spent.append(engine.get_epsilon(DELTA))
    off = float((sums[0] - sums[1]).norm() / sums[0].norm())
    if off > AGREEMENT or spent[0] != spent[1]:
        raise AssertionError(f"{name}: sums differ by {off:.1e}; epsilon {spent[0]} and {spent[1]}")
    return off, spent[1]


def markdown(results: dict[str, Any]) -> str:
    """The programs as a table."""
    head = ["program", "plain, ms", "Opacus / plain", "ours / plain", "the two in turn without Opacus", "Opacus / ours",
            "memory: Opacus / plain", "memory: ours / plain", "sums differ by"]  # fmt: skip
    lines = []
    for row in results["results"]:
        times = {name: timing["median"] for name, timing in row["milliseconds"].items()}
        alone = {name: timing["median"] for name, timing in row["milliseconds_without_opacus"].items()}
        held = row["peak_tensor_bytes"]
        ratios = times[OURS] / times[PLAIN], alone[OURS] / alone[PLAIN]
        lines.append([
            row["program"], f"{times[PLAIN]:.1f}", f"{times[OPACUS] / times[PLAIN]:.2f}",
            *(f"**{ratio:.2f}**" for ratio in ratios), f"**{times[OPACUS] / times[OURS]:.1f}**",
            *(f"{held[key] / held[PLAIN]:.2f}" for key in (OPACUS, OURS)), f"{row['agreement']:.0e}",
        ])  # fmt: skip
    note = (
        "Programs of Opacus's examples, on made-up data of their shapes; Opacus 1.6 with its default noise, ours with "
        f"secure noise. Medians of interleaved calls. {machine_text(results['machine'])}.\n\n"
    )
    return note + table(head, lines)


def main() -> None:
    """Checks, times, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "opacus_programs.json")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = []
    for name in PROGRAMS:
        agreement, epsilon = check(name)
        engines = {OPACUS: opacus.PrivacyEngine, OURS: ours.PrivacyEngine}
        make: dict[str, Callable[[], Callable[[], None]]] = {PLAIN: lambda name=name: _plain(name)}
        make |= {key: lambda kind=kind, name=name: _contender(kind, name) for key, kind in engines.items()}
        contenders = {key: build() for key, build in make.items()}
        timings = interleaved(contenders, args.calls)
        # In the wake of Opacus, which goes through far more memory, both others find the caches cold.
        alone = interleaved({key: contenders[key] for key in (PLAIN, OURS)}, args.calls)
        peaks = {key: peak_tensor_bytes(build) for key, build in make.items()}
        rows.append({
            "program": name, "agreement": agreement, "epsilon": epsilon, "peak_tensor_bytes": peaks,
            "milliseconds": {key: asdict(timing) for key, timing in timings.items()},
            "milliseconds_without_opacus": {key: asdict(timing) for key, timing in alone.items()},
        })  # fmt: skip
        print(name, {key: round(timing.median, 2) for key, timing in timings.items()})
    results = {"suite": "opacus programs", "machine": describe(torch.device("cpu")), "results": rows}
    args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    args.out.with_suffix(".md").write_text(markdown(results), encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
