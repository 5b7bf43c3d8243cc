"""The engine's audit: every way in which it takes a private step, with noise that is calibrated to a claim."""

import math
from collections.abc import Callable

import torch

from dpcgan_fast.auditing.canaries import (
    Form,
    Functional,
    Fused,
    Graphed,
    Layerwise,
    Turn,
    Units,
    drawn_canaries,
    step_scores,
)  # fmt: skip
from dpcgan_fast.engine import CudaGraph, RunAgain
from dpcgan_fast.privacy import Mechanism, account, calibrate_noise_multiplier
from dpcgan_fast.privacy.audit import Audit, audit_scores

SAMPLE_RATE, STEPS, MAX_GRAD_NORM = 0.1, 100, 0.7
MakeForm = Callable[[Mechanism, int, torch.device], Form]


def _graphed(mechanism: Mechanism, canaries: int, device: torch.device) -> Form:
    return Graphed(mechanism, canaries, device, CudaGraph(device) if device.type == "cuda" else RunAgain())


FORMS: dict[str, MakeForm] = {
    "layer by layer": Layerwise,
    "fused": Fused,
    "units of several rows, chunks, fakes": Units,
    "captured and replayed": _graphed,
    "adapters.functional": Functional,
}
TURNS = STEPS * len(FORMS)


def engine_mechanism(epsilon: float, delta: float) -> Mechanism:
    """Private steps whose noise is calibrated to (epsilon, delta), as training calibrates it.

    Raises ValueError for an epsilon that is not finite and above 0, or a delta outside (0, 1).
    """
    if not 0 < epsilon < math.inf:
        raise ValueError(f"Expected a finite epsilon={epsilon} > 0.")

    def steps_with(noise: float) -> list[Mechanism]:
        return [Mechanism("canaries", "poisson_gaussian", SAMPLE_RATE, noise, STEPS, MAX_GRAD_NORM)]

    return steps_with(calibrate_noise_multiplier(steps_with, epsilon, delta))[0]


def audit_engine(
    epsilon: float, delta: float, canaries: int, device: torch.device, turn: Turn = lambda: None
) -> dict[str, tuple[str, Audit]]:
    """What each way of taking private steps gives away, by its name, and which path it took.

    The claim is what the accountant says of these steps.

    canaries: units; each is in the data with probability 1/2
    turn:     called after each step of each way, `TURNS` in all
    Raises ValueError as `engine_mechanism` does.
    """
    mechanism = engine_mechanism(epsilon, delta)
    claimed = account([mechanism], delta).epsilon
    found = {}
    for name, make in FORMS.items():
        included, form = drawn_canaries(canaries), make(mechanism, canaries, device)
        scores = step_scores(mechanism, form, included, turn)
        found[name] = form.path, audit_scores(scores, included, claimed, delta)
    return found
