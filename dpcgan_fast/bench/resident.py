"""Memory that a process holds: work in a process of its own, and the peak of what lies in its memory meanwhile."""

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

_STATUS = Path("/proc/self/status")
_EVERY = 0.01  # seconds
_PACKAGE = "import torch, dpcgan_fast; dpcgan_fast.DPCGAN"
_READ = f"print(open('{_STATUS}').read())"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Resident:
    """Peak bytes beyond those of an interpreter that has imported torch and this package.

    total:     all pages that were in memory at once
    anonymous: those of the process's own; the others are of files that it maps, which the system can drop at any time
    """

    total: int
    anonymous: int


def _fields(status: str) -> dict[str, int]:
    """Bytes by name, out of the lines of a process's status."""
    words = [line.split() for line in status.splitlines()]
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in words if len(line) == 3 and line[2] == "kB"}


@lru_cache(maxsize=1)
def _imported() -> dict[str, int]:
    command = [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{_PACKAGE}; {_READ}"]
    return _fields(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _watched(work: Callable[..., _T], arguments: tuple[Any, ...]) -> tuple[_T, dict[str, int]]:
    """Work's result, and the peak of its process, with that of the memory that maps no file."""
    peak, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _fields(_STATUS.read_text(encoding="ascii"))["RssAnon"])
            done.wait(_EVERY)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        result = work(*arguments)
    finally:
        done.set()
        watching.join()
    return result, {"VmHWM": _fields(_STATUS.read_text(encoding="ascii"))["VmHWM"], "RssAnon": peak}


def with_resident(work: Callable[..., _T], *arguments: Any) -> tuple[_T, Resident | None]:
    """Runs a function of a module in a fresh process; its result, and what the process held (None but on Linux)."""
    spawning = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawning) as pool:
        if not _STATUS.exists():
            return pool.submit(work, *arguments).result(), None
        result, peak = pool.submit(_watched, work, arguments).result()
    before = _imported()
    return result, Resident(peak["VmHWM"] - before["VmHWM"], peak["RssAnon"] - before["RssAnon"])
