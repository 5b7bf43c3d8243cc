"""A private step that is captured once and replayed: forward, backward, norms, clip and sum; then noise and update.

Every replay takes the same number of rows, of which the first `valid`, read on the device, count. So batches of any
size, also empty ones, need neither another capture nor more memory, and the host launches one graph where it launched a
hundred kernels.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dpcgan_fast import ops
from dpcgan_fast.engine.capture import Capture, CudaGraph
from dpcgan_fast.engine.private_step import PrivateStep
from dpcgan_fast.engine.report import StepReport
from dpcgan_fast.engine.update import OwnStepError, check_update, next_settings, update_state

Loss = Callable[..., Tensor]


class GraphedStep:
    """Repeats the work of a `PrivateStep` by CUDA graphs.

        graphed = GraphedStep(step, rows=256)
        real = graphed.backward_of(lambda x: -step(x).squeeze(1), (x,))
        fake = graphed.backward_of(lambda x: step(x).squeeze(1), (fakes,), private=False)
        for x, fakes in batches:                     # of any size
            real(x)                                  # ceil(B / rows) replays
            fake(fakes)
            graphed.step()                           # noise and update, one replay

    step:    its module, optimizer, clipping and noise; the module is on a GPU
    rows:    of one replay, public; larger batches take several, whose sums add before the noise
    capture: how work is repeated; `RunAgain()` does so without a graph, on any device

    Formal guarantees: those of `PrivateStep`, with every row a unit of its own. Rows beyond those given add exactly
    zero, whatever their memory holds. Each `step()` takes fresh blocks of the noise key before the device hears of
    them, and an update that is replayed without them moves nothing.
    Raises ValueError without a GPU, for an optimizer whose own step would be needed, or for rows < 1.
    """

    def __init__(self, step: PrivateStep, rows: int, *, capture: Capture | None = None):
        parameters = list(step._trainable)
        device = parameters[0].device
        if rows < 1:
            raise ValueError(f"Expected rows={rows} >= 1, the fixed number of rows of one replay.")
        if capture is None and device.type != "cuda":
            raise ValueError(
                f"Expected a module on a GPU, since a CUDA graph repeats a GPU's work; this one is on {device}. Use "
                "PrivateStep itself here."
            )
        self._base = step
        self._rows = rows
        self._parameters = parameters
        self._capture: Capture = CudaGraph(device) if capture is None else capture
        self._valid = torch.zeros((), dtype=torch.int64, device=device)  # rows of the next replay that count
        self._control = ops.UpdateControl(device)
        sizes = [p.numel() for p in parameters]
        self._sums = torch.zeros(2, sum(sizes), dtype=torch.float64, device=device)
        self._private, self._public = (
            [part.view(p.shape) for part, p in zip(line.split(sizes), parameters, strict=True)] for line in self._sums
        )
        self._blocks = ops.noise_blocks(self._private) if step._noise_std > 0 else 0
        self._public_rows = 0
        self._torn = False
        self._check_update()
        self._state = update_state(step._optimizer, parameters)
        self._memory = self._addresses()
        self._update = self._capture(self._move)

    def backward_of(self, loss: Loss, example: Sequence[Tensor], private: bool = True) -> "GraphedBackward":
        """Captures the backward of a loss.

        loss:    of tensors like those of `example`, `rows` rows each, to (rows,) losses, not reduced; it calls the
                 PrivateStep as `step(x)`, and nothing in it waits for the device
        example: one or more rows of each tensor, for shapes and dtypes
        private: as in `PrivateStep.backward`
        """
        total = dict(zip(self._parameters, self._private if private else self._public, strict=True))
        return GraphedBackward(self, loss, example, total, private)

    def step(self) -> None:
        """Adds noise once, divides, updates the parameters, clears the sums. Without a backward, an empty batch.

        Raises ValueError if the optimizer, a parameter or their memory was changed since the capture.
        """
        self._check_update()
        self.check_whole()
        self.check_memory()
        base = self._base
        settings = next_settings(base._optimizer, self._state)
        public_rows, self._public_rows = max(1, self._public_rows), 0
        self._control.arm(base._noise_key, self._blocks, base._expected_batch_size, public_rows, settings)
        base._drop_gradients()  # what others may have left there is not released by this step
        self._update()
        torch.autograd.graph.increment_version(self._parameters)
        base._report_update(f"one pass: noise, division and the optimizer's rule; {self._capture.how}")

    def _move(self) -> None:
        ops.noisy_update_armed_(
            [p.detach() for p in self._parameters], self._state.first, self._state.second, self._private, self._public,
            self._base._noise_std, self._control, self._state.name, self._base._clamps,
        )  # fmt: skip
        self._sums.zero_()

    def _check_update(self) -> None:
        try:
            check_update(self._base._optimizer, self._parameters)
        except OwnStepError as reason:
            raise ValueError(
                f"Expected an optimizer whose update can be captured: {reason}. Use PrivateStep itself, which then "
                "calls optimizer.step()."
            ) from reason

    def _addresses(self) -> list[int]:
        state = update_state(self._base._optimizer, self._parameters)
        tensors = [*self._parameters, *state.first, *state.second]
        return [tensor.data_ptr() for tensor in tensors] + [id(count) for count in state.steps]

    def check_whole(self) -> None:
        """Raises ValueError if a backward failed among its replays, so that it is not known which rows were added."""
        if self._torn:
            raise ValueError(
                "A captured backward failed among its replays, and some of its rows are in the sums: given again, they "
                "would count twice. Make a new GraphedStep."
            )

    def check_memory(self) -> None:
        """Raises ValueError if a parameter or the optimizer's state no longer lies where the graphs will look."""
        if self._addresses() != self._memory:
            raise ValueError(
                "A parameter or the optimizer's state was replaced since the capture, as load_state_dict or "
                "module.to() do; the graphs would go on with the old one. Make a new GraphedStep."
            )


class GraphedBackward:
    """The captured backward of one loss, made by `GraphedStep.backward_of`."""

    def __init__(
        self,
        owner: GraphedStep,
        loss: Loss,
        example: Sequence[Tensor],
        total: dict[nn.Parameter, Tensor],
        private: bool,
    ):
        if not example or any(x.dim() == 0 or x.shape[0] == 0 for x in example):
            raise ValueError("Expected example to hold one tensor or more, each of one row or more.")
        self._owner = owner
        self._loss = loss
        self._total = total
        self._is_private = private
        device = owner._valid.device
        self._inputs = tuple(x.detach()[torch.arange(owner._rows) % x.shape[0]].to(device) for x in example)
        self._report: StepReport | None = None
        self._modes = self._training()
        self._check_losses()  # not while capturing, since it waits for the device
        owner._valid.zero_()  # what runs while capturing adds nothing
        self._replay = owner._capture(self._add)

    def __call__(self, *rows: Tensor) -> None:
        """Adds the clipped gradients of rows: (B, ...) each, of any B, as `example` was.

        Raises ValueError for other shapes or dtypes, and if the module was changed since the capture.
        """
        self._check(rows)
        count, size = rows[0].shape[0], self._owner._rows
        self._owner._torn = True  # until all replays are done: after an error some rows would be in the sums
        for begin in range(0, count, size):
            valid = min(size, count - begin)
            for memory, given in zip(self._inputs, rows, strict=True):
                memory[:valid].copy_(given.detach()[begin : begin + valid])
            self._owner._valid.fill_(valid)
            self._replay()
        self._owner._torn = False
        if not self._is_private:
            self._owner._public_rows += count
        self._owner._base.last = self._report

    def _check_losses(self) -> None:
        base = self._owner._base
        before, base._calls = base._calls, []
        try:
            losses = self._loss(*self._inputs)
            if losses.shape == (self._owner._rows,):  # else `_add` says so
                base._check_first_losses(losses, self._is_private)
        finally:
            base._calls = before

    def _add(self) -> None:
        base, owner = self._owner._base, self._owner
        losses = self._loss(*self._inputs)
        if losses.shape != (owner._rows,):
            raise ValueError(
                f"Expected losses of shape ({owner._rows},), one a row of the replay, got {tuple(losses.shape)}."
            )
        report = base._accumulate(losses, None, self._total, owner._valid)
        self._report = replace(report, repeated=f"{owner._capture.how}, {owner._rows} rows at a time")

    def _training(self) -> list[bool]:
        return [module.training for module in self._owner._base._recorded.module.modules()]

    def _check(self, rows: Sequence[Tensor]) -> None:
        self._owner.check_whole()
        self._owner.check_memory()
        if self._training() != self._modes:
            raise ValueError(
                "The module was put into train() or eval() since the capture, which the graph does not follow. Capture "
                "the backward in each mode."
            )
        wanted = [(memory.shape[1:], memory.dtype) for memory in self._inputs]
        if [(given.shape[1:], given.dtype) for given in rows] != wanted or len({len(given) for given in rows}) != 1:
            shapes = ", ".join(f"(B{''.join(f', {size}' for size in shape)}) {dtype}" for shape, dtype in wanted)
            raise ValueError(f"Expected {len(wanted)} tensor(s) of one number of rows B: {shapes}, as at the capture.")
