"""Progress on the terminal: of a training run with steps, epsilon so far and time left; of other work."""

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from dpcgan_fast.cli.console import say
from dpcgan_fast.train.free import is_free

_LINES_PER_PHASE = 10
_LINES_OF_SPARE = 2


class _Bars:
    """A bar for each phase on a terminal, and none elsewhere; a context manager."""

    def __init__(self, *columns: ProgressColumn):
        self._bars = Progress(*columns, console=Console(stderr=True)) if sys.stderr.isatty() else None
        self._phase, self._total = "", 0
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()


class TerminalProgress(_Bars):
    """A bar for each phase on a terminal; a few plain lines elsewhere, such as in a log file.

    spare: whether rows are drawn from statistics, so that none depends on what is trained
    """

    def __init__(self, spare: bool = False) -> None:
        super().__init__(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epsilon {task.fields[epsilon]}"),
            TimeRemainingColumn(),
        )
        self._epsilon = "-"
        self._explained = False
        self._spare = spare

    def start(self, phase: str, total: int, done: int) -> None:
        """A phase begins, or goes on after `done` steps."""
        if not self._explained:  # not on entering: bad input would be told of after this line
            if self._spare:
                say("Synthetic rows are drawn from statistics, which have been released by now. The networks below are "
                    "trained with the small rest of the budget, and no row depends on them.")  # fmt: skip
            say("epsilon so far is an upper bound: that of Renyi DP, or the run's budget, whichever is smaller")
            self._explained = True
        self._phase, self._total = phase, total
        if self._bars is not None:
            self._task = self._bars.add_task(phase, total=total, completed=done, epsilon=self._epsilon)
        else:
            kind = "steps that cost nothing" if is_free(phase) else "private steps"
            say(f"{phase}: {total} {kind}" + (f", {done} done before" if done else ""))

    def advance(self, done: int, epsilon: float | None) -> None:
        """Steps taken so far, and a bound on epsilon where it was computed anew."""
        if epsilon is not None:
            self._epsilon = f"at most {epsilon:.3f}"
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, epsilon=self._epsilon)
        elif done % max(1, self._total // (_LINES_OF_SPARE if self._spare else _LINES_PER_PHASE)) == 0:
            so_far = "" if is_free(self._phase) else f", epsilon so far {self._epsilon}"
            say(f"{self._phase}: {done}/{self._total}{so_far}")


class WorkProgress(_Bars):
    """A bar for each phase of work other than training, a count if its end is not known; lines without a terminal."""

    def __init__(self) -> None:
        super().__init__(TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    def start(self, phase: str, total: int, done: int) -> None:
        """A phase begins, or goes on after `done`; a total of 0 is not known."""
        self._phase, self._total = phase, total
        if self._bars is not None:
            self._task = self._bars.add_task(phase, total=total or None, completed=done)
        else:
            say(phase + (f": {total}" if total else "") + (f", {done} done before" if done else ""))

    def advance(self, done: int) -> None:
        """So much of the phase is done."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done)
        elif done % max(1, self._total // _LINES_PER_PHASE) == 0:
            say(f"{self._phase}: {done}" + (f"/{self._total}" if self._total else ""))
