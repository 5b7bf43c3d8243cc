"""`dpcgan doctor`: what is installed, what this build contains and why, and which kernels run."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import dpcgan_fast
from dpcgan_fast import ops
from dpcgan_fast.cli.console import result, result_json
from dpcgan_fast.cli.options import Json
from dpcgan_fast.engine import PrivateStep
from dpcgan_fast.engine.norm_picker import timing_refused
from dpcgan_fast.models.published import UCI, PublishedNetworks
from dpcgan_fast.train.stepping import GRAPH_VARIABLE, graph_capture

_PACKAGES = ("torch", "numpy", "pyarrow", "dp-accounting", "scikit-learn", "safetensors", "opacus")


def doctor(as_json: Json = False) -> None:
    """Versions, compiled features, and which kernels are in use and why."""
    values = examine()
    if as_json:
        result_json(values)
        return
    for title, section in values.items():
        result(f"{title}:")
        for name, value in section.items():
            result(f"  {name:<24} {value}")


def examine() -> dict[str, dict[str, Any]]:
    """What the doctor found, by section."""
    versions = {"dpcgan_fast": dpcgan_fast.__version__, "python": platform.python_version()}
    versions |= {name: _version(name) for name in _PACKAGES}
    return {"versions": versions, "build": _build(), "machine": _machine(), "kernels": _kernels()}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _build() -> dict[str, Any]:
    try:
        info = ops.native_module().build_info()
    except ImportError as error:
        return {"native extension": f"MISSING: {error}"}
    built_for = info["torch"]
    same = "" if built_for == torch.__version__ else f"; torch is {torch.__version__} now: rebuild if ops fail"
    return {
        "native extension": f"loaded, compiled by {info['compiler']} for torch {built_for}{same}",
        "CUDA kernels": f"{'built' if info['cuda'] else 'not built'}: {info['cuda_reason']}",
    }


def _machine() -> dict[str, Any]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "torch sees none"
    return {
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "GPU": gpu,
        "device auto": "cuda" if _gpu_serves() else "cpu",
    }


def _gpu_serves() -> bool:
    return torch.cuda.is_available() and ops.has_cuda_kernels()


def _captured_steps() -> str:
    if not _gpu_serves():
        return "none: they need a GPU and the CUDA kernels"
    if graph_capture(torch.device("cuda")) is None:
        return f"none in training: {GRAPH_VARIABLE}=0"
    return "CUDA graphs, in training where every row is a unit"


def _kernels() -> dict[str, Any]:
    """Which back end and vector width run, and the path that a preset's critic takes, from a real step."""
    forced = os.environ.get("DPCGAN_BACKEND")
    found: dict[str, Any] = {"ops": ops.backend() + (" (DPCGAN_BACKEND)" if forced else "")}
    if ops.backend() == "native":
        native = ops.native_module()
        asked = os.environ.get("DPCGAN_SIMD")
        because = f"DPCGAN_SIMD={asked}" if asked else "the widest that this CPU has"
        found["vector width"] = f"{native.simd_level()}: {because} ({native.build_info()['simd_detected']} detected)"
    critic = PublishedNetworks(UCI).critic
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.0)
    step = PrivateStep(critic, optimizer, 1.0, 1.0, 2.0)
    step.backward(step(torch.zeros(2, UCI.record_length), torch.zeros(2, 0)))
    step.step()
    assert step.last is not None
    found["path of a step"] = f"{step.last.path}: {step.last.why} (critic of preset rdpcgan-uci)"
    for layer in step.last.layers:
        found[f"  {layer.name}"] = f"{'fused ' if layer.fused else ''}{layer.rule}: {layer.mode}, {layer.reason}"
    not_timed = timing_refused(noise_std=1.0, seeded=False)
    how = f"by the cost model: {not_timed}" if not_timed else "timed at the first step of a shape, with secret noise"
    found["norm modes"] = f"{how} (layers that are not fused)"
    found["update of a step"] = step.last.update
    found["captured steps"] = _captured_steps()
    return found
