"""A mechanism's private step as training takes it: call by call, or on a GPU replayed as CUDA graphs.

Both take the same steps up to rounding. The graphs' number of rows follows from the public expected batch, so that no
draw, however large, needs another capture. `DPCGAN_CUDA_GRAPH=0` has a GPU take its steps call by call, too.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dpcgan_fast.engine import Capture, CudaGraph, GraphedBackward, GraphedStep, PrivateStep
from dpcgan_fast.errors import InputError
from dpcgan_fast.train.data import MAX_CHUNK_ROWS

GRAPH_VARIABLE = "DPCGAN_CUDA_GRAPH"
_ROWS_MULTIPLE = 32
_DEVIATIONS = 4  # of a Poisson draw: larger ones take a second replay

Loss = Callable[..., Tensor]


def graph_capture(device: torch.device) -> Capture | None:
    """How steps on the device are captured, or None: they are taken call by call.

    Raises InputError, a ValueError, for a value of DPCGAN_CUDA_GRAPH other than 0 or 1.
    """
    asked = os.environ.get(GRAPH_VARIABLE, "1")
    if asked not in ("0", "1"):
        raise InputError(f"Expected 0 or 1, got {asked!r}", GRAPH_VARIABLE, "Set it to one of them, or unset it.")
    return CudaGraph(device) if device.type == "cuda" and asked == "1" else None


def graph_rows(expected_rows: float) -> int:
    """Rows of one replay for a public expected batch: nearly every draw fits into one."""
    enough = expected_rows + _DEVIATIONS * math.sqrt(expected_rows)
    return min(MAX_CHUNK_ROWS, _ROWS_MULTIPLE * math.ceil(enough / _ROWS_MULTIPLE))


class Backward:
    """The backward of one loss; it is captured at its first rows, whose values do not enter the capture."""

    def __init__(self, step: PrivateStep, graphed: GraphedStep | None, loss: Loss, private: bool):
        self._step = step
        self._graphed = graphed
        self._loss = loss
        self._private = private
        self._captured: GraphedBackward | None = None

    def __call__(self, *rows: Tensor, units: Tensor | None = None) -> None:
        """Adds the clipped gradients of rows, (B, ...) each. units: (B,) int64, or None if every row is a unit."""
        if self._graphed is None:
            self._step.backward(self._loss(*rows), units, self._private)
            return
        if units is not None:
            raise ValueError("Expected no units: in a captured step every row is a unit of its own.")
        if self._captured is None:
            if len(rows[0]) == 0:
                return
            self._captured = self._graphed.backward_of(self._loss, rows, self._private)
        self._captured(*rows)


class Stepping:
    """A private step with the losses that training gives it.

    step:          the step; `stepping(x)` calls it within a loss
    expected_rows: public
    capture:       from `graph_capture`; rows must then be units
    """

    def __init__(self, step: PrivateStep, expected_rows: float, capture: Capture | None):
        self._step = step
        self._graphed = None if capture is None else GraphedStep(step, graph_rows(expected_rows), capture=capture)

    def __call__(self, *args: Any) -> Any:
        """Runs the module on the private path."""
        return self._step(*args)

    def backward_of(self, loss: Loss, private: bool = True) -> Backward:
        """The backward of a loss of tensors (B, ...) to (B,) losses, one a row.

        private: as in `PrivateStep.backward`
        """
        return Backward(self._step, self._graphed, loss, private)

    def step(self) -> None:
        """Noise once, division by the public expected batch, update."""
        (self._step if self._graphed is None else self._graphed).step()
