"""Differentially private convolutional GANs for health records, on fused DP-SGD kernels.

Names load when they are first used, so that `import dpcgan_fast.ops` needs torch and numpy alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpcgan_fast import baselines as baselines
    from dpcgan_fast import data as data
    from dpcgan_fast import engine as engine
    from dpcgan_fast import errors as errors
    from dpcgan_fast import evaluate as evaluate
    from dpcgan_fast import models as models
    from dpcgan_fast import ops as ops
    from dpcgan_fast import privacy as privacy
    from dpcgan_fast import report as report
    from dpcgan_fast import synthesis as synthesis
    from dpcgan_fast import train as train
    from dpcgan_fast.data.schema import Schema as Schema
    from dpcgan_fast.engine import PrivateStep as PrivateStep
    from dpcgan_fast.errors import DpcganError as DpcganError
    from dpcgan_fast.errors import InputError as InputError
    from dpcgan_fast.errors import MachineError as MachineError
    from dpcgan_fast.errors import PrivacyError as PrivacyError
    from dpcgan_fast.errors import StoppedError as StoppedError
    from dpcgan_fast.synthesis import DPCGAN as DPCGAN

__version__ = "0.1.0"

__all__ = [
    "DPCGAN",
    "DpcganError",
    "InputError",
    "MachineError",
    "PrivacyError",
    "PrivateStep",
    "Schema",
    "StoppedError",
    "baselines",
    "data",
    "engine",
    "errors",
    "evaluate",
    "models",
    "ops",
    "privacy",
    "report",
    "synthesis",
    "train",
]

_MODULES = (
    "ops",
    "privacy",
    "baselines",
    "engine",
    "data",
    "models",
    "train",
    "synthesis",
    "evaluate",
    "report",
    "errors",
)
_NAMES = {
    "Schema": "data.schema",
    "PrivateStep": "engine",
    "DPCGAN": "synthesis",
    "DpcganError": "errors",
    "InputError": "errors",
    "MachineError": "errors",
    "PrivacyError": "errors",
    "StoppedError": "errors",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _NAMES:
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES, *_NAMES])
