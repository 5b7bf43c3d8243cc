"""How work on memory that stays where it is is done again: by replaying a CUDA graph, or by running it again."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

_WARM_UPS = 3  # torch's advice: lazily made handles and workspaces must be there before a capture


class Capture(Protocol):
    """Takes work apart from its repetition, so that all but the graph itself can be run without a GPU."""

    how: str

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        """Runs body at least once, and returns what does its work again on the same memory."""
        ...


class CudaGraph:
    """Captures work as a CUDA graph: one launch from the host, whatever the number of kernels.

    body: must not wait for the device, and reads what changes from the device's memory

    Graphs of one capturer share scratch memory, so they must be replayed one after another on one stream.
    """

    how = "CUDA graph"

    def __init__(self, device: torch.device):
        self._device = device
        self._pool: Any = None

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        """Runs body on a stream of its own, then captures it there."""
        with torch.cuda.device(self._device):
            current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    body()
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                body()
            self._pool = graph.pool()
        return graph.replay


class RunAgain:
    """Runs the work itself again, on any device: what a graph does, without its speed. For tests and studies."""

    how = "run again, no graph"

    def __call__(self, body: Callable[[], None]) -> Callable[[], None]:
        """Runs body once, as a capture would."""
        body()
        return body
