"""The norm picker: timed on made-up rows where nothing is to be reproduced, and by the cost model alone elsewhere."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.engine import PrivateStep, norm_picker
from dpcgan_fast.engine.norm_picker import TIMING_VARIABLE, timing_refused
from dpcgan_fast.ops import near_norm_modes
from dpcgan_fast.privacy import noise_key
from tests.engine.nets import row_losses

LENGTH = 124  # 30 positions of the layer below, where the modes cost about the same and the model picks gram


def layer():
    return nn.Conv1d(16, 32, 8, 4)


@pytest.fixture(autouse=True)
def nothing_timed_before():
    norm_picker._confirmed.cache_clear()
    yield
    norm_picker._confirmed.cache_clear()


@pytest.fixture
def clock(monkeypatch):
    """Each mode takes as long as a test says, in ms; what was timed is noted."""

    made = SimpleNamespace(milliseconds={"materialise": 1.0, "gram": 3.0, "direct": 2.0}, timed=[])

    def work(_problem, mode, x, _g):
        return mode, x

    def seconds(work):
        made.timed.append(work)
        return 1e-3 * made.milliseconds[work[0]]

    monkeypatch.setattr(norm_picker, "_work", work)
    monkeypatch.setattr(norm_picker, "_seconds", seconds)
    return made


def one_step(rows=5, noise=1.0, **settings):
    module = layer()
    step = PrivateStep(module, torch.optim.SGD(module.parameters()), 1.0, noise, 32.0, fused=False, **settings)
    step.backward(row_losses(step(torch.rand(rows, 16, LENGTH))))
    assert step.last is not None
    (report,) = step.last.layers
    return report


@pytest.mark.usefixtures("clock")
def test_the_quickest_mode_is_taken_and_the_times_are_shown():
    report = one_step()
    assert report.mode == "materialise"
    for text in ("timed", "gram 3.00 ms", "direct 2.00 ms", "materialise 1.00 ms"):
        assert text in report.reason


def test_the_models_choice_stays_where_no_other_is_clearly_quicker(clock):
    clock.milliseconds = {"materialise": 1.0, "gram": 1.05, "direct": 1.0}
    assert one_step().mode == "gram"


def test_a_shape_is_timed_once(clock):
    one_step()
    one_step()
    assert len(clock.timed) == 3


def test_the_choice_sees_neither_the_rows_nor_their_number(clock):
    reports = [one_step(rows) for rows in (1, 5, 200)]
    assert len(set(reports)) == 1
    assert len(clock.timed) == 3
    assert {len(x) for _, x in clock.timed} == {32}, "as many as the public expected batch size"


def test_made_up_rows_are_not_drawn_from_a_global_generator(clock):
    before = torch.get_rng_state()
    module = layer()
    torch.set_rng_state(before)
    step = PrivateStep(module, torch.optim.SGD(module.parameters()), 1.0, 1.0, 32.0, fused=False)
    step.backward(row_losses(step(torch.ones(3, 16, LENGTH))))
    assert clock.timed
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "why"),
    [({"noise_key": noise_key(seed=1)}, "the noise key is seeded"), ({"noise": 0.0}, "there is no noise")],
)
def test_a_step_that_is_reproducible_is_never_timed(clock, settings, why):
    report = one_step(**settings)
    assert clock.timed == []
    assert report.mode == "gram"
    assert report.reason.endswith(f"; not timed: {why}")


def test_the_environment_or_torch_can_rule_timing_out(clock, monkeypatch):
    monkeypatch.setenv(TIMING_VARIABLE, "0")
    assert f"{TIMING_VARIABLE}=0" in one_step().reason
    monkeypatch.setenv(TIMING_VARIABLE, "yes")
    with pytest.raises(ValueError, match=TIMING_VARIABLE):
        one_step()
    monkeypatch.delenv(TIMING_VARIABLE)
    torch.use_deterministic_algorithms(True)
    try:
        assert timing_refused(1.0, seeded=False) == "torch uses deterministic algorithms"
    finally:
        torch.use_deterministic_algorithms(False)
    assert timing_refused(1.0, seeded=False) == ""
    assert clock.timed == []


def test_a_mode_that_is_asked_for_is_taken_untimed(clock):
    for mode in ("direct", "gram", "materialise"):
        assert one_step(norm_mode=mode).mode == mode
    assert clock.timed == []


def test_rows_that_are_grouped_into_units_go_by_the_model(clock):
    module = layer()
    step = PrivateStep(module, torch.optim.SGD(module.parameters()), 1.0, 1.0, 32.0)
    step.backward(row_losses(step(torch.rand(4, 16, LENGTH))), units=torch.tensor([0, 0, 1, 2]))
    assert step.last is not None
    assert "rows are grouped into units" in step.last.layers[0].reason
    assert clock.timed == []


def test_a_seeded_run_is_the_same_bit_by_bit_whatever_a_clock_would_say(clock):
    def parameters_after(milliseconds):
        clock.milliseconds = milliseconds
        norm_picker._confirmed.cache_clear()
        torch.manual_seed(3)
        module = layer()
        step = PrivateStep(
            module, torch.optim.SGD(module.parameters(), lr=1.0), 1.0, 1.0, 32.0, fused=False, noise_key=noise_key(5)
        )
        step.backward(row_losses(step(torch.rand(6, 16, LENGTH))))
        step.step()
        return [p.detach().clone() for p in module.parameters()]

    first = parameters_after({"materialise": 1.0, "gram": 3.0, "direct": 3.0})
    second = parameters_after({"materialise": 3.0, "gram": 1.0, "direct": 3.0})
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_every_near_mode_can_be_timed_for_real():
    """What is timed are the ops that a step calls."""
    problem = ops.ConvProblem(8, 4, bias_role=ops.BIAS_FROM_GRAD)
    x, g = torch.rand(16, 16, LENGTH), torch.rand(16, 32, 30)
    near = near_norm_modes(problem.sizes(x, g))
    assert len(near) == 3
    for mode in near:
        assert norm_picker._seconds(norm_picker._work(problem, mode, x, g)) > 0
    choice = norm_picker._confirmed(problem, 16, (16, LENGTH), (32, 30), torch.float32, 1, ops.backend())
    assert choice.mode in near
    assert "timed on 16 made-up rows" in choice.reason
