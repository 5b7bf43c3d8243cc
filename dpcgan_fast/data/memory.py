"""Whether a table fits into memory, from the sizes of its files and before any of it is read."""

import contextlib
from pathlib import Path

from dpcgan_fast.errors import MachineError

_MACHINE = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes that this process may still take, by the machine and by the limit of its container; None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError):
        found.append(1024 * _numbers(_MACHINE)["MemAvailable:"])
    with contextlib.suppress(OSError, ValueError, KeyError):  # without a limit the file says "max"
        most = int((_CONTAINER / "memory.max").read_text())
        used = int((_CONTAINER / "memory.current").read_text())
        cached = _numbers(_CONTAINER / "memory.stat")  # files, which make room
        found.append(most - used + cached["inactive_file"] + cached["active_file"])
    return min(found, default=None)


def _numbers(path: Path) -> dict[str, int]:
    """The number behind each word with which a line begins."""
    words = (line.split() for line in path.read_text().splitlines())
    return {name: int(number) for name, number, *_ in words}


def refuse_too_large(needed: float, where: str) -> None:
    """Raises MachineError if reading a table needs more bytes than there are, in place of being killed for it.

    No size is named: how much a table needs tells how many rows it has, and errors are outside the privacy claim.
    """
    available = available_memory()
    if available is not None and needed > available:
        how = "Put it into a store with `dpcgan prepare`, whatever its size, and give the store in its place."
        raise MachineError("Reading the table takes more memory than is free", where, how)
