"""The public functions of the ops in torch.compile and torch.export: one graph each, for any batch size."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves

from dpcgan_fast import ops

PROBLEM = ops.ConvProblem(4, 2, 1, 1, 2, ops.BIAS_FROM_GRAD)
SIZES = (3, 4, 7, 12, 0, 1)
GRAPHS = 4  # torch compiles the first size as it is, then one for all others but 0 and 1, which it takes apart


def factors(rows):
    return torch.rand(rows, dtype=torch.float64)


def per_sample_grads(rows):
    return [torch.randn(rows, 5, 3), torch.randn(rows, 4)]


def conv(rows):
    return torch.randn(rows, 4, 19), torch.randn(rows, 6, 9)


def pair(rows):
    return torch.randn(rows, 6, 9), torch.randn(rows, 6, 9)


def conv_norm(mode):
    return lambda x, g: ops.conv1d_sq_norm(x, g, (6, 2, 4), 2, 1, 1, 2, mode=mode)


FUNCTIONS = {
    "clip_and_sum": (lambda n: (per_sample_grads(n),), lambda grads: ops.clip_and_sum(grads, 0.5)),
    "clip_and_sum of units": (
        lambda n: (per_sample_grads(n), torch.arange(n) // 2),
        lambda grads, units: ops.clip_and_sum(grads, 0.5, units),
    ),
    "clip_and_sum of units with one row each": (
        lambda n: (per_sample_grads(n), torch.arange(n).flip(0)),
        lambda grads, units: ops.clip_and_sum(grads, 0.5, units),
    ),
    "rows_weighted_sum": (lambda n: (torch.randn(n, 5, 3), factors(n)), ops.rows_weighted_sum),
    "rows_sq_norm": (lambda n: (per_sample_grads(n),), ops.rows_sq_norm),
    "clip_factor": (lambda n: (factors(n),), lambda sq_norm: ops.clip_factor(sq_norm, 0.5)),
    "conv1d_sq_norm": (conv, conv_norm("auto")),
    "conv1d_sq_norm, direct": (conv, conv_norm("direct")),
    "conv1d_sq_norm, gram": (conv, conv_norm("gram")),
    "conv_transpose1d_sq_norm": (
        lambda n: (torch.randn(n, 6, 9), torch.randn(n, 4, 20)),
        lambda x, g: ops.conv_transpose1d_sq_norm(x, g, (6, 2, 4), 2, groups=2),
    ),
    "linear_sq_norm": (lambda n: (torch.randn(n, 5, 6), torch.randn(n, 5, 4)), ops.linear_sq_norm),
    "group_norm_sq_norm": (pair, lambda x, g: ops.group_norm_sq_norm(x, g, 2)),
    "layer_norm_sq_norm": (pair, lambda x, g: ops.layer_norm_sq_norm(x, g, (9,))),
    "group_norm_per_sample_grad": (pair, lambda x, g: ops.group_norm_per_sample_grad(x, g, 2, 1e-5)),
    "layer_norm_per_sample_grad": (pair, lambda x, g: ops.layer_norm_per_sample_grad(x, g, (9,), 1e-5)),
    "ConvProblem.per_sample_grad": (conv, PROBLEM.per_sample_grad),
    "ConvProblem.weighted_grad": (lambda n: (*conv(n), factors(n)), PROBLEM.weighted_grad),
}


@pytest.fixture(autouse=True)
def forgotten_graphs():
    torch._dynamo.reset()


def assert_compiles(name, backend, sizes):
    inputs, function = FUNCTIONS[name]
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    for rows in sizes:
        arguments = inputs(rows)
        for got, expected in zip(tree_leaves(compiled(*arguments)), tree_leaves(function(*arguments)), strict=True):
            # Products over positions are the library's outside of a graph, and our op's inside.
            torch.testing.assert_close(got, expected, rtol=1e-6 if name == "linear_sq_norm" else 0, atol=0)
    return counter.frame_count


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_one_graph_for_all_batch_sizes(name):
    assert assert_compiles(name, "aot_eager", SIZES) <= GRAPHS


@pytest.mark.parametrize("name", ["clip_and_sum of units", "conv1d_sq_norm"])
def test_inductor_compiles_it(name):
    assert_compiles(name, "inductor", (3, 4))


class Clip(torch.nn.Module):
    def forward(self, x, grad_out, units):
        norms = ops.conv1d_sq_norm(x, grad_out, (6, 2, 4), 2, 1, 1, 2)
        return norms, ops.clip_and_sum(list(PROBLEM.per_sample_grad(x, grad_out)), 0.5, units)


def test_it_can_be_exported_for_any_batch_size():
    batch = {0: torch.export.Dim("batch")}
    exported = torch.export.export(Clip(), (*conv(5), torch.arange(5) // 2), dynamic_shapes=(batch,) * 3)
    arguments = (*conv(8), torch.arange(8) // 3)
    results = tree_leaves(exported.module()(*arguments)), tree_leaves(Clip()(*arguments))
    assert all(torch.equal(got, expected) for got, expected in zip(*results, strict=True))


class Noise(torch.nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, x):
        noisy = x.clone()
        ops.gaussian_noise_([noisy], 1.0, self.key)
        return noisy


@pytest.mark.parametrize("seed", [None, 3])
def test_a_compiled_function_draws_fresh_noise_at_every_call(seed):
    key = ops.NoiseKey(seed=seed)
    draw = torch.compile(Noise(key), backend="aot_eager")
    drawn = [draw(torch.zeros(8)) for _ in range(3)]
    assert key.position == 3
    assert len({float(noise[0]) for noise in drawn}) == 3


@pytest.mark.parametrize(
    "trace",
    [
        lambda module, x: torch.compile(module, backend="aot_eager", fullgraph=True)(x),
        lambda module, x: torch.export.export(module, (x,)),
        lambda module, x: torch.jit.trace(module, (x,)),
    ],
    ids=["compile", "export", "jit"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_noise_never_becomes_a_constant_of_a_graph(trace):
    key = ops.NoiseKey(seed=0)
    with pytest.raises(RuntimeError, match="cannot be used in a traced graph"):
        trace(Noise(key), torch.zeros(8))
    assert key.position == 0
