"""Stopping by a signal: the step at hand is finished, a checkpoint is written, and the run can be resumed."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from dpcgan_fast.errors import StoppedError

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Whether somebody asked the run to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_name: str | None = None

    @property
    def requested(self) -> bool:
        """True once a signal has arrived."""
        return self.signal_name is not None


@contextlib.contextmanager
def cleaned_up_on_signals() -> Iterator[None]:
    """Makes the first SIGINT, SIGTERM or SIGHUP an error, so that whoever has to clean up does, and later ones nothing,
    so that they do not keep him from it. Main thread only.

    Around `stop_on_signals` it is what a second signal does, which would else end the process at once.
    """

    def on_signal(number: int, _frame: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise StoppedError(f"Stopped by {signal.Signals(number).name}", "this command", "Start it anew.")

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turns the first SIGINT, SIGTERM or SIGHUP into a request; a second one acts as usual. Main thread only."""
    request = StopRequest()
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_signal(number: int, _frame: FrameType | None) -> None:
        request.signal_name = signal.Signals(number).name
        restore()

    for number in _SIGNALS:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        restore()
