"""One private step against the plain step of the same network, and against other ways to take it."""

import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from typing import Any

import torch

from dpcgan_fast.bench.contenders import OPACUS, OURS, OURS_PLAIN, PLAIN, check, contenders, report
from dpcgan_fast.bench.memory import peak_tensor_bytes
from dpcgan_fast.bench.nets import BenchNet, bench_nets
from dpcgan_fast.bench.roofline import Peaks, machine_peaks, measure_ops
from dpcgan_fast.bench.targets import TARGETS, judge_step
from dpcgan_fast.bench.timing import interleaved, spread


def _run_net(net: BenchNet, device: torch.device, calls: int, compiled: bool) -> dict[str, Any]:
    """Checks our step, then times every contender by turns."""
    torch.manual_seed(0)
    x = torch.rand(net.batch, 1, net.length, device=device)
    agreement = check(net, x)
    made = contenders(net.build().to(device), x, compiled)
    timings = interleaved({name: make() for name, make in made.items()}, calls)
    plain = timings[PLAIN].median
    return {
        "net": net.name,
        "agreement_with_torch_func": agreement,
        "milliseconds": {name: asdict(timing) for name, timing in timings.items()},
        "ratio_to_plain": {name: timing.median / plain for name, timing in timings.items()},
        "ratio_to_own_plain": timings[OURS].median / timings[OURS_PLAIN].median,
    }


def _describe_net(net: BenchNet, device: torch.device, calls: int, compiled: bool, peaks: Peaks) -> dict[str, Any]:
    """What does not change from run to run: path, memory, and the roofline."""
    torch.manual_seed(0)
    x = torch.rand(net.batch, 1, net.length, device=device)
    module = net.build().to(device)
    path = report(module, x)
    memory = {}
    if device.type == "cpu":
        memory = {name: peak_tensor_bytes(make) for name, make in contenders(module, x, compiled).items()}
    return {
        "parameters": sum(p.numel() for p in module.parameters()),
        "path": path.path,
        "layers": {layer.name: layer.mode for layer in path.layers},
        "peak_tensor_bytes": memory,
        "roofline": measure_ops(module, x, path, peaks, calls),
    }


def _run(
    nets: Sequence[int], device: str, calls: int, compiled: bool, number: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """One run over the nets, which are given by their place in `bench_nets`."""
    rows = []
    for place in nets:
        row = _run_net(bench_nets(torch.device(device).type)[place], torch.device(device), calls, compiled)
        rows.append(row)
        ratios = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row["ratio_to_plain"].items() if name != PLAIN)
        plain = row["milliseconds"][PLAIN]["median"]
        say(f"run {number}, {row['net']}: plain {plain:.2f} ms; ratios: {ratios}")
    return rows


def merge_runs(runs: Sequence[dict[str, Any]], described: dict[str, Any], device: str = "cpu") -> dict[str, Any]:
    """The runs of one net as one row: median, lowest and highest of each ratio, and each target's verdict on the worst.

    runs:   as `_run_net` gives them; they stay in the row, without what is the same in all
    device: its type, which decides the targets
    """
    names = runs[0]["ratio_to_plain"]
    ratios = {name: asdict(spread([run["ratio_to_plain"][name] for run in runs])) for name in names}
    own = asdict(spread([run["ratio_to_own_plain"] for run in runs]))
    plain = statistics.median(run["milliseconds"][PLAIN]["median"] for run in runs)
    over_opacus = None
    if OPACUS in names:
        over_opacus = min(run["ratio_to_plain"][OPACUS] / run["ratio_to_plain"][OURS] for run in runs)
    peaks = described["peak_tensor_bytes"]
    memory = peaks[OURS] / peaks[PLAIN] if peaks else None
    verdicts = judge_step(
        TARGETS[device][runs[0]["net"]],
        plain,
        described["path"],
        ratios[OURS]["highest"],
        own["highest"],
        over_opacus,
        memory,
    )
    return {
        "net": runs[0]["net"],
        **described,
        "agreement_with_torch_func": max(run["agreement_with_torch_func"] for run in runs),
        "plain_milliseconds": plain,
        "ratio_to_plain": ratios,
        "ratio_to_own_plain": own,
        "verdicts": {name: asdict(verdict) for name, verdict in verdicts.items()},
        "runs": [{k: run[k] for k in ("milliseconds", "ratio_to_plain", "ratio_to_own_plain")} for run in runs],
    }


def bench_step(
    device: torch.device, nets: Sequence[int], calls: int, runs: int, compiled: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """Times the nets with every contender: `results`, a row for each net, and the machine's `peaks`.

    nets: places in `bench_nets` of the device's type
    runs: each in a process of its own, one after the other; a single one runs in this process
    """
    arguments = list(nets), str(device), calls, compiled
    if runs == 1:
        done = [_run(*arguments, 1, say)]
    else:
        spawning = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawning, max_tasks_per_child=1) as pool:
            done = [pool.submit(_run, *arguments, number, say).result() for number in range(1, runs + 1)]
    peaks = machine_peaks(device)
    say(f"peaks: {peaks.gflop_per_s:.0f} GFLOP/s, {peaks.gb_per_s:.1f} GB/s; now memory and the roofline")
    rows = []
    for i, place in enumerate(nets):
        described = _describe_net(bench_nets(device.type)[place], device, calls, compiled, peaks)
        rows.append(merge_runs([run[i] for run in done], described, device.type))
    return {"peaks": asdict(peaks), "results": rows}
