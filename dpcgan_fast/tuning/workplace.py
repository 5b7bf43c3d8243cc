"""Where a search makes its runs: a folder that only its owner can read, and of which one run at most is left."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dpcgan_fast.errors import InputError, MachineError, StoppedError
from dpcgan_fast.files import machine_error, sync_folder
from dpcgan_fast.synthesis.run_folder import RunFolder
from dpcgan_fast.train.stopping import StopRequest


@contextlib.contextmanager
def workplace(out: str | Path) -> Iterator[Path]:
    """A private folder beside `out`, mode 0700, that is gone when the block ends, also by an error or a signal.

    Raises InputError if there is something at `out` already, StoppedError in the search's own words after a signal,
    MachineError if the folder cannot be made or removed. A process that is killed (SIGKILL) leaves the folder behind,
    as `.OUT.*.search`.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("There is something at the output path already", str(out), "Choose a new folder for the run.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".search", dir=out.parent))
    except OSError as error:
        raise machine_error(error, out) from error
    try:
        try:
            yield work
        finally:
            destroy(work)
    except StoppedError as error:
        raise _stopped(error.what, out) from None
    finally:
        if work.exists():  # a second signal came while the folder was removed; later ones do nothing
            destroy(work)


def destroy(folder: Path) -> None:
    """Removes a run that must not leave the search. Raises MachineError if it is still there."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise MachineError(
            f"A run that was not chosen could not be removed: {type(error).__name__}",
            str(folder),
            "Remove it yourself.",
        ) from error


def publish(run: Path, out: str | Path) -> None:
    """Moves the chosen run to `out`. All its files get one time, which would tell when in the search it was made."""
    out, now = Path(out), time.time()
    try:
        for path in (run, *run.rglob("*")):
            os.utime(path, (now, now))
        if out.exists():
            out.rmdir()
        run.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise machine_error(error, out) from error


def check_stop(stop: StopRequest, out: str | Path) -> None:
    """Raises StoppedError if a stop was asked for."""
    if stop.requested:
        raise StoppedError(f"Stopped by {stop.signal_name}", str(out), "")


def _stopped(what: str, out: Path) -> StoppedError:
    if RunFolder(out).config.exists():
        return StoppedError(f"{what}, after the run was complete", str(out), "Use it; its budget is spent.")
    return StoppedError(
        f"{what}; the search is given up, and all that it made is removed: nothing was released, and nothing is spent",
        str(out),
        "Start it anew with the same command.",
    )
