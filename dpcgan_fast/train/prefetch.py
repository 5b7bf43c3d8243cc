"""The next chunk of rows is drawn and gathered while the step at hand runs.

What is prefetched is decided before it starts: a draw depends on its key and its number alone, and chunks are made in
the order in which they are taken, one at a time. So a run with a prefetch thread takes the very same steps as one
without, and so does one that was stopped and goes on. Only draws of steps that the ledger has charged are made.
"""

from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from dpcgan_fast.privacy import PoissonSampler
from dpcgan_fast.train.data import Chunk, TrainingData

THREAD_NAME = "dpcgan-prefetch"
_Item = TypeVar("_Item")
_END = object()


class Ahead(Generic[_Item]):
    """Runs an iterator one item ahead of its taker, in a thread of its own; a context manager.

    The item after the one that was taken last is made meanwhile, and no further one: two buffers are enough for all.
    An exception of the iterator is raised where its item would be taken, or on leaving the block if that is never; one
    that leaves the block comes first. The thread has ended when the block is left.
    """

    def __init__(self, items: Iterator[_Item]):
        self._items = items
        self._pool = ThreadPoolExecutor(1, THREAD_NAME)
        self._next = self._begin()

    def _begin(self) -> "Future[_Item | object]":
        return self._pool.submit(next, self._items, _END)

    def __iter__(self) -> Iterator[_Item]:
        return self

    def __next__(self) -> _Item:
        item = self._next.result()
        if item is _END:
            raise StopIteration
        self._next = self._begin()
        return item  # type: ignore[return-value]  _END is the only other object

    def __enter__(self) -> "Ahead[_Item]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if error is None:
            with suppress(CancelledError):  # it had not begun
                self._next.result()


def drawn_chunks(data: TrainingData, sampler: PoissonSampler, steps: range) -> Iterator[tuple[Chunk | None, bool]]:
    """The chunks of the draws of some steps, each with whether it is the last of its draw; None for an empty draw.

    A chunk lasts until the second next one is asked for: its memory is used again.
    """
    here, there = data.buffer(), data.buffer()
    for step in steps:
        cuts = data.cuts(sampler.draw(step))
        cut = next(cuts, None)
        if cut is None:
            yield None, True
        while cut is not None:
            following = next(cuts, None)
            yield data.gather(cut, here), following is None
            here, there, cut = there, here, following


def one_draw(chunks: Iterator[tuple[Chunk | None, bool]]) -> Iterator[Chunk]:
    """The chunks of the next draw out of those of many, as `drawn_chunks` yields them."""
    last = False
    while not last:
        chunk, last = next(chunks)
        if chunk is not None:
            yield chunk
