"""Runs that stop or crash where a test wants them to."""

from dpcgan_fast.synthesis import DPCGAN, FitHooks
from dpcgan_fast.train.session import Silent
from dpcgan_fast.train.stopping import StopRequest
from tests.tables import FEW_STEPS, make_schema


def model_of(schema=None, epsilon=3.0, **changes):
    return DPCGAN(schema or make_schema(), epsilon, 1e-4, device="cpu", **{**FEW_STEPS, **changes})


def model_bytes(model):
    return (model.folder / "model.safetensors").read_bytes()


class StopAfter(Silent):
    """Asks for a stop after some steps of a phase, as a signal would."""

    def __init__(self, stop: StopRequest, phase: str, steps: int):
        self.stop, self.phase, self.steps, self.current = stop, phase, steps, ""

    def start(self, phase, total, done):  # noqa: ARG002
        self.current = phase

    def advance(self, done, epsilon):  # noqa: ARG002
        if self.current == self.phase and done == self.steps:
            self.stop.signal_name = "SIGTERM"


def stopping_hooks(phase, steps):
    stop = StopRequest()
    return FitHooks(progress=StopAfter(stop, phase, steps), stop=stop)


class CrashError(Exception):
    """Stands for a process that dies."""


class CrashAfter(Silent):
    def __init__(self, steps: int):
        self.steps = steps
        self.taken = 0

    def advance(self, done, epsilon):  # noqa: ARG002
        self.taken += 1
        if self.taken == self.steps:
            raise CrashError


class Then(Silent):
    """Does something after some steps."""

    def __init__(self, steps, action):
        self.steps, self.action, self.taken = steps, action, 0

    def advance(self, done, epsilon):  # noqa: ARG002
        self.taken += 1
        if self.taken == self.steps:
            self.action()
