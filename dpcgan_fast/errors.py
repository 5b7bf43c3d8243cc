"""Errors that reach the user, one class for each exit code of the command line.

A message is one line, `WHAT (WHERE). HOW TO FIX`, and never contains a cell's value: error text leaves the process, and
the privacy claim covers everything that does.
"""


class DpcganError(Exception):
    """Base of all errors that the user can do something about.

    what:  what is wrong, without a full stop
    where: file, column, row or argument, never with dashes: Python has no options, and who gives --epsilon knows it by
           "epsilon 0" as well. A table is "the real test table" or the like
    how:   what to do about it, a full sentence. What Python calls otherwise has both names: resume=True (--resume)
    """

    exit_code: int = 1
    what: str
    where: str
    how: str

    def __init__(self, what: str, where: str, how: str):
        super().__init__(f"{what} ({where}). {how}")
        self.what, self.where, self.how = what, where, how

    def __reduce__(self) -> tuple[type["DpcganError"], tuple[str, str, str]]:
        """How a worker's error reaches the process that it works for: from one text no error can be made again."""
        return type(self), (self.what, self.where, self.how)


class InputError(DpcganError, ValueError):
    """Bad usage or bad input."""

    exit_code: int = 2


class PrivacyError(DpcganError, RuntimeError):
    """Refused for privacy: the budget is spent, the ledger is broken, or a checkpoint was rolled back."""

    exit_code: int = 3


class StoppedError(DpcganError, RuntimeError):
    """Stopped by a signal; the run can be resumed."""

    exit_code: int = 4


class MachineError(DpcganError, RuntimeError):
    """The machine failed: disk full, out of memory, device lost."""

    exit_code: int = 5
