"""Loads the native extension and says which implementation of the ops runs.

The back end is `native` (C++/CUDA) unless `DPCGAN_BACKEND=reference` asks for the float64 references, which are slow
and meant for checks. A missing extension is an error that says how to build it: nothing falls back silently.
"""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from dpcgan_fast.errors import InputError
from dpcgan_fast.ops import _reference

_BUILT_FOR = Path(__file__).parents[1] / "_built_for.txt"  # the version of torch, written by setup.py


def _load() -> ModuleType:
    built_for = _BUILT_FOR.read_text() if _BUILT_FOR.exists() else torch.__version__
    if built_for.split(".")[:2] != torch.__version__.split(".")[:2]:
        # Loaded all the same, it would end in an undefined symbol, or take memory for what it is not.
        raise ImportError(
            f"it was built for torch {built_for} and fits that minor version alone; torch is {torch.__version__} now"
        )
    return import_module("dpcgan_fast._C")


native: ModuleType | None = None
_import_error: ImportError | None = None
try:
    native = _load()
except ImportError as error:
    _import_error = error

_BACKENDS = ("native", "reference")
_SIMD_LEVELS = ("portable", "avx2", "avx512")


def _asked(variable: str, allowed: tuple[str, ...], default: str) -> str:
    """An environment variable's value. Raises InputError, a ValueError, unless it is one of those allowed."""
    value = os.environ.get(variable, default)
    if value not in allowed:
        expected = f"Expected one of {', '.join(allowed)}, got {value!r}"
        raise InputError(expected, variable, "Set it to one of them, or unset it.")
    return value


_kept: str | None = None  # inside of `same_backend`


class same_backend:  # noqa: N801  used as a function, for which contextlib's takes as long as a small op
    """While it runs, `backend` is not asked of the environment for every op anew."""

    def __enter__(self) -> None:
        global _kept
        _kept = backend()

    def __exit__(self, *_: object) -> None:
        global _kept
        _kept = None


def backend() -> str:
    """Name of the implementation that the ops use: `native` or `reference`.

    Raises ImportError if the native extension is wanted and cannot be loaded, and InputError, a ValueError, for an
    unknown name in the environment variables `DPCGAN_BACKEND` and `DPCGAN_SIMD`.
    """
    if _kept is not None:
        return _kept
    name = _asked("DPCGAN_BACKEND", _BACKENDS, "native")
    _asked("DPCGAN_SIMD", _SIMD_LEVELS, "avx512")  # the extension reads it, and knows no way to say what is wrong
    if name == "native":
        native_module()
    return name


def native_module() -> Any:
    """The compiled module, or ImportError with the way to build it."""
    if native is None:
        raise ImportError(
            f"The native extension of dpcgan_fast cannot be loaded: {_import_error}. Build it from its sources against "
            "this torch, with `pip install --no-build-isolation .`, or install a wheel for it; "
            "DPCGAN_BACKEND=reference has the slow reference ops run without it, but stores and statistics of codes "
            "need it."
        ) from _import_error
    return native


def has_cuda_kernels() -> bool:
    """Whether this build contains the CUDA kernels."""
    return native is not None and bool(native.build_info()["cuda"])


def op(name: str) -> Callable[..., Any]:
    """The implementation of a registered op in the current back end; both share one signature."""
    if backend() == "reference":
        return getattr(_reference, name)
    return getattr(torch.ops.dpcgan_fast, name)


def gpu_ops(device: torch.device) -> bool:
    """Whether a device has what is the GPU's alone: ops of a whole step, and operands in bfloat16."""
    return device.type == "cuda"
