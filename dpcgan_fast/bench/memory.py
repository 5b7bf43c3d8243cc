"""Peak of tensor memory, from the allocations that torch's profiler records."""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile

from dpcgan_fast import ops


def peak_tensor_bytes(make: Callable[[], Callable[[], object]]) -> int:
    """Most bytes of CPU tensors that setting up a step and taking it twice hold at once.

    make: sets the step up and gives a function that takes it; what is kept between steps counts
    """
    gc.collect()  # or what is freed meanwhile, from before, would count as less held
    ops.drop_spare()  # or memory that earlier steps have left, and these use again, would not count
    with _without_native_output(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run = make()
        run()
        run()
    results: Any = recorded.profiler and recorded.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _without_native_output() -> Iterator[None]:
    """Holds back what the profiler's library writes to the process's error stream, which no setting turns off."""
    saved = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)
