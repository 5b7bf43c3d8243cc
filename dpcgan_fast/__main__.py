"""The `dpcgan` command, also as `python -m dpcgan_fast`."""

import os
import sys

_STOPPED = 4  # the exit code of what a signal stops


def main() -> None:
    """Entry point of the command. What it imports takes seconds, during which Ctrl-C is to end in one line, too."""
    try:
        from dpcgan_fast.cli import main as command
    except KeyboardInterrupt:
        sys.stderr.write("error: Stopped by SIGINT (the command). Nothing was begun; run it again.\n")
        sys.stderr.flush()
        os._exit(_STOPPED)
    command()


if __name__ == "__main__":
    main()
