"""Training takes the same steps, whether they are captured and replayed or taken call by call.

Without a GPU the captured work is run again in place of a replay; all else is what runs there.
"""

import math

import pytest
import torch
from safetensors.torch import load_file

from dpcgan_fast.engine import CudaGraph, PrivateStep, RunAgain
from dpcgan_fast.engine.graph import GraphedStep
from dpcgan_fast.synthesis import DPCGAN
from dpcgan_fast.train import session as session_module
from dpcgan_fast.train import stepping as stepping_module
from dpcgan_fast.train.data import MAX_CHUNK_ROWS
from dpcgan_fast.train.stepping import GRAPH_VARIABLE, Stepping, graph_capture, graph_rows
from tests.tables import FEW_STEPS, make_schema, make_table


def weights(model):
    return load_file(model.folder / "model.safetensors")


def capture_on_cpu(monkeypatch):
    """Has training capture its steps on the CPU from now on; the captures that it makes."""
    made = []

    def capture(_device):
        made.append(RunAgain())
        return made[-1]

    monkeypatch.setattr(session_module, "graph_capture", capture)
    return made


def fitted(out, schema=None, table=None, **changes):
    model = DPCGAN(schema or make_schema(), 3.0, 1e-4, device="cpu", **{**FEW_STEPS, "seed": 1, **changes})
    return model.fit(make_table() if table is None else table, out)


def assert_about_equal(captured, plain):
    assert captured.keys() == plain.keys()
    for name, tensor in plain.items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("changes", [{}, {"paired_fakes": True}], ids=str)
def test_captured_training_is_training_up_to_rounding(monkeypatch, tmp_path, changes):
    plain = weights(fitted(tmp_path / "plain", **changes))
    made = capture_on_cpu(monkeypatch)
    captured = weights(fitted(tmp_path / "captured", **changes))
    assert len(made) == 2, "autoencoder and critic"
    assert_about_equal(captured, plain)


def test_draws_of_many_replays_are_taken_in_whole(monkeypatch, tmp_path):
    plain = weights(fitted(tmp_path / "plain"))
    capture_on_cpu(monkeypatch)
    monkeypatch.setattr(stepping_module, "graph_rows", lambda _expected: 7)
    assert_about_equal(weights(fitted(tmp_path / "captured")), plain)


def test_the_graphs_are_what_takes_the_steps(monkeypatch, tmp_path):
    taken, real_step = [], GraphedStep.step
    monkeypatch.setattr(GraphedStep, "step", lambda self: (taken.append(self), real_step(self))[1])
    monkeypatch.setattr(PrivateStep, "step", lambda _self: pytest.fail("taken call by call"))
    made = capture_on_cpu(monkeypatch)
    fitted(tmp_path / "run")
    assert len(made) == len(set(taken)) == 2
    assert len(taken) == 2 * FEW_STEPS["steps"]


def test_rows_of_patients_are_taken_call_by_call(monkeypatch, tmp_path):
    made = capture_on_cpu(monkeypatch)
    schema = make_schema(unit="patient", n_units=60, max_rows_per_unit=5)
    fitted(tmp_path / "run", schema, make_table(patients=60), autoencoder_batch=20, critic_batch=20)
    assert made == []


def test_only_a_gpu_captures_and_a_variable_switches_it_off(monkeypatch):
    assert graph_capture(torch.device("cpu")) is None
    assert isinstance(graph_capture(torch.device("cuda")), CudaGraph)
    monkeypatch.setenv(GRAPH_VARIABLE, "0")
    assert graph_capture(torch.device("cuda")) is None
    monkeypatch.setenv(GRAPH_VARIABLE, "yes")
    with pytest.raises(ValueError, match="0 or 1"):
        graph_capture(torch.device("cuda"))


@pytest.mark.parametrize("expected", [1, 20, 128, 1000, 1e6])
def test_the_rows_of_a_replay_hold_nearly_every_draw(expected):
    rows = graph_rows(expected)
    assert rows % 32 == 0
    assert rows == MAX_CHUNK_ROWS or rows >= expected + 4 * math.sqrt(expected)


def test_an_empty_first_draw_needs_no_capture():
    module = torch.nn.Linear(3, 1)
    step = PrivateStep(module, torch.optim.SGD(module.parameters(), lr=1.0), 1.0, 0.0, 4.0)
    stepping = Stepping(step, 4.0, RunAgain())
    backward = stepping.backward_of(lambda x: stepping(x).squeeze(1))
    before = module.weight.detach().clone()
    backward(torch.rand(0, 3))
    stepping.step()
    assert torch.equal(module.weight, before)
    backward(torch.rand(2, 3))
    stepping.step()
    assert not torch.equal(module.weight, before)
    with pytest.raises(ValueError, match="unit of its own"):
        backward(torch.rand(2, 3), units=torch.arange(2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_training_is_that_of_the_call_by_call_steps(monkeypatch, tmp_path):
    def on_gpu(out):
        model = DPCGAN(make_schema(), 3.0, 1e-4, device="cuda", **{**FEW_STEPS, "seed": 1})
        return weights(model.fit(make_table(), out))

    captured = on_gpu(tmp_path / "captured")
    monkeypatch.setenv(GRAPH_VARIABLE, "0")
    for name, tensor in on_gpu(tmp_path / "plain").items():
        torch.testing.assert_close(captured[name], tensor, rtol=1e-2, atol=1e-3, msg=name)
