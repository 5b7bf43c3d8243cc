"""What commands share: one-line errors, exit codes, and where output goes. Results go to stdout, all else to stderr."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dpcgan_fast.errors import DpcganError, MachineError, StoppedError
from dpcgan_fast.files import machine_error

DONE, BUG, USAGE, STOPPED = 0, 1, 2, StoppedError.exit_code
_INTERRUPTED = 130  # what the command-line library makes of Ctrl-C
_STOPPED_TEXT = "Stopped by SIGINT (the command). Nothing was left half-written; run it again."


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201  the command line's own output


def result(text: str) -> None:
    """A line of the result, on stdout."""
    print(text, flush=True)  # noqa: T201


def result_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    result(json.dumps(values, indent=1, sort_keys=True, allow_nan=False))


def fail(text: str, code: int) -> int:
    """Prints an error as one line, `error: WHAT (WHERE). HOW TO FIX`, and returns the exit code."""
    say("error: " + " ".join(text.split()))
    return code


def run(command: Callable[[Sequence[str] | None], Any], arguments: Sequence[str] | None) -> int:
    """Runs the command line and turns whatever it raises into one line and an exit code."""
    try:
        code = command(arguments)
    except DpcganError as error:
        return fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return fail(_STOPPED_TEXT, STOPPED)
    except MemoryError:
        return fail(str(_out_of_memory("memory")), MachineError.exit_code)
    except torch.OutOfMemoryError:
        return fail(str(_out_of_memory("GPU memory")), MachineError.exit_code)
    except torch.AcceleratorError as error:
        return fail(str(MachineError("The GPU failed", type(error).__name__, "Try --device cpu.")), 5)
    except RuntimeError as error:
        if "DefaultCPUAllocator" in str(error):  # torch has no class of its own for it
            return fail(str(_out_of_memory("memory")), MachineError.exit_code)
        return _bug(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS):
            failed = machine_error(error, Path(str(error.filename or "output")))
            return fail(str(failed), failed.exit_code)
        return _bug(error)
    except Exception as error:  # noqa: BLE001  whatever is left is a bug of ours, and must not show a cell's value
        if type(error).__name__ == "NoArgsIsHelpError":
            say(error.format_message())  # type: ignore[attr-defined]  the help of the command
            return USAGE
        if hasattr(error, "format_message"):  # usage errors of the command-line library
            return fail(f"{_usage_text(error)} (command line). See `{_command_of(error)} --help`.", USAGE)
        return _bug(error)
    if code == _INTERRUPTED:
        return fail(_STOPPED_TEXT, STOPPED)
    return code if isinstance(code, int) else DONE


def _out_of_memory(kind: str) -> MachineError:
    return MachineError(f"Out of {kind}", "this machine", "Close other programs, or use a smaller table.")


def _command_of(error: Any) -> str:
    """The command that was called wrongly, such as `dpcgan train`."""
    context = getattr(error, "ctx", None)
    name = None if context is None or context.parent is None else context.info_name
    return f"dpcgan {name}" if name else "dpcgan"


def _usage_text(error: Any) -> str:
    return str(error.format_message()).rstrip(".")


def _bug(error: BaseException) -> int:
    """A bug: its kind and place, never its text, which may hold a cell's value."""
    if os.environ.get("DPCGAN_TRACEBACK") == "1":
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "dpcgan_fast" in frame.filename] or frames
    place = f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "unknown place"
    return fail(
        f"This is a bug of ours: {type(error).__name__} ({place}). Please report it; DPCGAN_TRACEBACK=1 shows more, "
        "which may include values of your data.",
        BUG,
    )
