"""Stopping by a signal: the step at hand is finished, a checkpoint is written, and the run can be resumed."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.signal_name is not None


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request; a second one acts as usual. Main thread only."""
    request = StopRequest()
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name
        restore()

    for number in signals:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore()
