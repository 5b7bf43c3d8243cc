"""Files mapped into memory, and their pages given back before they fill it.

What was read of a map counts as the process's memory until the system wants it back, or until it is let go of: it is
then read again, mostly out of the system's cache of files.
"""

import mmap
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

_MAPS: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by address, as long as an array uses them


def mapped(path: Path, dtype: Any, count: int) -> np.ndarray:
    """The first `count` values of a file, (count,), read-only. Raises OSError or ValueError if it has fewer."""
    if count == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype)
    with path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    values = np.frombuffer(pages, dtype, count)
    _MAPS[values.ctypes.data] = pages
    return values


def let_go(values: np.ndarray) -> None:
    """Lets go of all pages of the file in which an array lies, if it lies in one; its values stay what they are."""
    where = values.ctypes.data
    for first, pages in list(_MAPS.items()):
        if first <= where < first + len(pages) and hasattr(mmap, "MADV_DONTNEED"):
            pages.madvise(mmap.MADV_DONTNEED)  # of a file that is only read, nothing can be lost
