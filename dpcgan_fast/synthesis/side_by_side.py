"""Blocks of a table made by several threads, taken in order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def side_by_side(make: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> Generator[_Result]:
    """`make` of each item, in the items' order; at most `threads` + 2 results are made or wait to be taken.

    make: gives the same whichever thread runs it and when

    Each thread has torch to itself, without helpers: whole blocks side by side keep all cores busy, also while the
    taker writes a file, where one block cut among threads would have them wait for each other at every op. No thread
    is left when the iterator ends or is closed.
    """
    threads_of_torch = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, "dpcgan-sample", lambda: torch.set_num_threads(1))
    waiting: deque[Future[_Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > threads + 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(threads_of_torch)  # of threads that are yet to start, which the pool's have changed
