"""A description of the machine that goes with every figure."""

import os
import platform
from pathlib import Path
from typing import Any

import torch

from dpcgan_fast import ops


def describe(device: torch.device) -> dict[str, Any]:
    """Processor, cores, threads, versions and, on a GPU, its name."""
    info = ops.native_module().build_info()
    described = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vector_width": ops.native_module().simd_level(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": info["compiler"],
        "device": device.type,
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
    return described


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
