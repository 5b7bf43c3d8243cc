"""Modules that are compiled, replicated or sharded are refused by name, and the module inside is taken."""

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from dpcgan_fast import PrivateStep


def net():
    return nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(0.2), nn.Linear(8, 1))


def compiled_in_place():
    module = net()
    module.compile(backend="eager")
    return module


def sharded():
    module = net()
    fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    return module


WRAPPED = {
    "compiled": (lambda: torch.compile(net(), backend="eager"), r"'\(root\)' \(OptimizedModule\) was compiled by"),
    "compiled child": (
        lambda: nn.Sequential(torch.compile(nn.Linear(6, 1), backend="eager")),
        r"'0' \(OptimizedModule\) was compiled by torch.compile.*Give it the module that was compiled",
    ),
    "compiled in place": (compiled_in_place, r"\(Sequential\) was compiled in place by its method compile\(\)"),
    "data parallel": (lambda: nn.DataParallel(net()), r"\(DataParallel\) splits each batch over GPUs"),
    "replicated": (
        lambda: nn.parallel.DistributedDataParallel(net()),
        r"\(DistributedDataParallel\) averages gradients over processes.*Give it the module that was wrapped",
    ),
    "sharded": (sharded, r"\(FSDPSequential\) was given to fully_shard"),
}


@pytest.fixture
def one_process():
    distributed.init_process_group("gloo", rank=0, world_size=1, store=distributed.HashStore())
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.usefixtures("one_process")
def test_it_is_refused_by_name_with_what_to_do(wrapped):
    make, message = WRAPPED[wrapped]
    module = make()
    with pytest.raises(ValueError, match=message):
        PrivateStep(module, torch.optim.SGD(module.parameters()), 1.0, 1.0, 4.0)


def test_the_module_that_was_compiled_is_taken_beside_its_compiled_form():
    module = net()
    compiled = torch.compile(module, backend="eager")
    compiled(torch.rand(3, 6))
    step = PrivateStep(module, torch.optim.SGD(module.parameters()), 1.0, 1.0, 4.0)
    before = compiled(torch.ones(1, 6))
    step.backward(step(torch.rand(5, 6)).flatten())
    step.step()
    assert not torch.equal(compiled(torch.ones(1, 6)), before)
