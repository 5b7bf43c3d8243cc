"""What `check_wheel.sh` runs in the environment that it installed into: names, data files, and a private step."""

import sys
from importlib.metadata import version
from pathlib import Path

import torch

import dpcgan_fast as dpf
import dpcgan_fast.ops
from dpcgan_fast import DPCGAN
from dpcgan_fast.data.datasets import load_support2

folder = Path(dpf.__file__).parent
assert folder.is_relative_to(sys.prefix), f"{folder} is not what was installed into {sys.prefix}"
assert version("dpcgan_fast") == dpf.__version__
assert dpf.ops.backend() == "native"
assert (folder / "py.typed").exists()
assert (folder / "report" / "report.html.j2").exists()
assert callable(DPCGAN.load)
assert load_support2().num_rows == 9105

module = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 8, 4), torch.nn.LeakyReLU(0.2), torch.nn.Conv1d(4, 1, 5))
step = dpf.PrivateStep(module, torch.optim.Adam(module.parameters()), 1.0, 1.1, 8.0)
before = [parameter.clone() for parameter in module.parameters()]
step.backward(step(torch.rand(9, 1, 24)).flatten())
step.step()
assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
