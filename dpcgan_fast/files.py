"""Files that are either written whole or not at all, and that other users of the machine cannot read.

Beside them the files of the user: how a data file is opened, and what is said if it cannot be read.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dpcgan_fast.errors import DpcganError, InputError, MachineError

PRIVATE_FILE = 0o600
PRIVATE_FOLDER = 0o700
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def machine_error(error: OSError, path: Path) -> MachineError:
    """The error that the user sees when the machine fails to write `path`."""
    if error.errno in _FULL:
        return MachineError("The disk is full", str(path), "Free some space and run the same command again.")
    reason = os.strerror(error.errno) if error.errno else type(error).__name__
    return MachineError(f"Writing failed: {reason}", str(path), "Check the folder and its permissions.")


def unreadable(error: Exception, path: Path, kind: str = "data file") -> DpcganError:
    """The error that the user sees when `path` cannot be read; the parser's own message may quote the data."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"The {kind} does not exist", str(path), "Check the path.")
    if isinstance(error, MemoryError):
        return MachineError("Out of memory", str(path), "Use a machine with more memory, or a smaller file.")
    number = error.errno if isinstance(error, OSError) else None
    reason = os.strerror(number) if number else "damaged, cut short, or not what its ending says"
    return InputError(f"The {kind} cannot be read: {reason}", str(path), "Check the file, or write it again.")


def open_data(path: Path) -> IO[bytes]:
    """Opens a data file to be read. Raises InputError if it is not a plain file, or OSError."""
    if path.exists() and not path.is_file():  # a pipe could not be read twice
        what = f"A {'folder' if path.is_dir() else 'pipe or device'} was given in place of a data file"
        raise InputError(what, str(path), "Give the path of a file, or of a folder of files.")
    return path.open("rb")


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def written_whole(path: str | Path, private: bool = False) -> Iterator[IO[bytes]]:
    """Opens a temporary file beside `path` that takes its place, durably, when the block ends without an error.

    Raises MachineError if the machine cannot write; whatever stood at `path` is then still there.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, PRIVATE_FILE if private else 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise machine_error(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_whole(path: str | Path, content: bytes | str, private: bool = False) -> None:
    """Writes a file whole or not at all. Raises MachineError if the machine cannot write."""
    with written_whole(path, private) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def make_private_folder(path: Path) -> None:
    """Makes a folder, where there is none yet, that only its owner can read. Raises MachineError if that fails."""
    try:
        path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    except OSError as error:
        raise machine_error(error, path) from error


def append_line(path: Path, text: str) -> None:
    """Adds a line to a file that only its owner can read. Raises MachineError if the machine cannot write."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, PRIVATE_FILE)
        with os.fdopen(descriptor, "a", encoding="utf-8") as file:
            file.write(f"{text}\n")
    except OSError as error:
        raise machine_error(error, path) from error
