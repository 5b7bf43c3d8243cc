"""Made-up results of the benchmarks, of the form that the suites give."""

from dataclasses import asdict

from dpcgan_fast.bench.contenders import OPACUS, OURS, OURS_PLAIN, PLAIN
from dpcgan_fast.bench.roofline import WHOLE
from dpcgan_fast.bench.step import merge_runs
from dpcgan_fast.bench.timing import timing

MACHINE = {"processor": "Some CPU", "device": "cpu", "threads": 2, "torch": "2.13"}
SEED = "seed critic, F=178, B=128"


def step_run(ours: float, net: str = SEED) -> dict:
    """One run in which the plain step takes 4 ms, Opacus's 16 ms, and ours as many as are given."""
    medians = {PLAIN: 4.0, OURS: ours, OURS_PLAIN: 1.0, OPACUS: 16.0}
    return {
        "net": net,
        "agreement_with_torch_func": 1e-7,
        "milliseconds": {name: asdict(timing([value] * 3)) for name, value in medians.items()},
        "ratio_to_plain": {name: value / 4.0 for name, value in medians.items()},
        "ratio_to_own_plain": ours,
    }


def described(path: str = "fused", ours: int = 130) -> dict:
    """What stands beside the runs; ours: bytes, where the plain step has 100."""
    line = {"calls": 1, "gflop": 0.5, "megabytes": 2.0, "gflop_per_s": 250.0, "gb_per_s": 1.0, "of_roof": 0.8}
    roofline = [{"op": op, "milliseconds": 2.0, **line} for op in ("fused_forward", WHOLE)]
    memory = {PLAIN: 100, OURS: ours}
    return {"parameters": 21073, "path": path, "layers": {}, "peak_tensor_bytes": memory, "roofline": roofline}


def step_results(*ours: float) -> dict:
    """Results of as many runs as there are times of ours."""
    row = merge_runs([step_run(o) for o in ours], described())
    return {
        "suite": "step",
        "machine": MACHINE,
        "peaks": {"gflop_per_s": 300.0, "gb_per_s": 20.0},
        "results": [row],
    }


def train_results(seconds: float, steps: int = 1000, data: str = "support2") -> dict:
    """Results of the train suite with one training."""
    spread = {"median": seconds, "lowest": seconds, "highest": seconds + 1}
    row = {"data": data, "epsilon": 3.0, "rows": 10, "columns": 3, "steps": steps, "seconds": spread,
           "steps_per_second": {name: steps / value for name, value in spread.items()},
           "phases": {"autoencoder": seconds / 2, "ledger": 0.25}, "runs": [{}, {}]}  # fmt: skip
    return {"suite": "train", "machine": MACHINE, "results": [row]}
