"""FLOPs and bytes from shapes, against PyTorch's own counter and against counting one by one."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dpcgan_fast.bench.nets import CPU_NETS
from dpcgan_fast.bench.work import ConvShape, Work, conv_shapes, fused_work, plain_flops


def counted(run) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("net", CPU_NETS, ids=lambda net: net.name)
def test_a_plain_step_is_what_torchs_counter_counts(net):
    module, x = net.build(), torch.rand(3, 1, net.length)
    shapes = conv_shapes(module, x)
    assert plain_flops(shapes, 3) == counted(lambda: module(x).sum().backward())
    assert fused_work(shapes, {}, 3)["fused_forward"].flops == counted(lambda: module(x))


layers = st.tuples(st.booleans(), *[st.integers(1, high) for high in (6, 6, 5, 4, 3)])  # transposed, C, O, k, s, d


@given(layers, st.integers(1, 20), st.integers(1, 4), st.integers(0, 2))
def test_passes_of_one_layer_are_what_torchs_counter_counts(layer, extra, rows, padding):
    transposed, inputs, outputs, k, s, d = layer
    kind = nn.ConvTranspose1d if transposed else nn.Conv1d
    module = kind(inputs, outputs, k, s, padding, dilation=d)
    length = d * (k - 1) + extra + (2 * padding if transposed else 0)
    x = torch.rand(rows, inputs, length, requires_grad=True)
    (shape,) = conv_shapes(module, x).values()
    assert rows * shape.pass_flops == counted(lambda: module(x))
    assert rows * 3 * shape.pass_flops == counted(lambda: module(x).sum().backward())
    assert shape.weights == module.weight.numel()
    assert (shape.in_floats, shape.out_floats) == (x[0].numel(), module(x)[0].numel())


def test_a_grouped_layer_costs_one_part_in_groups():
    shape, whole = (ConvShape(8, 4, 10, 3, 1, 1, groups, 0, 0) for groups in (4, 1))
    assert shape.pass_flops * 4 == whole.pass_flops == 2 * 10 * 8 * 4 * 3
    assert shape.weights == nn.Conv1d(8, 4, 3, groups=4).weight.numel()


def test_a_linear_layer_on_a_sequence_is_a_convolution_of_one_tap():
    module, x = nn.Linear(5, 7), torch.rand(2, 3, 5)
    (shape,) = conv_shapes(module, x).values()
    assert 2 * shape.pass_flops == counted(lambda: module(x))
    assert (shape.positions, shape.in_floats, shape.out_floats) == (3, 15, 21)


def gram_flops_one_by_one(c: int, o: int, t: int, k: int, s: int, dilation: int) -> int:
    """The polyphase Gram norm, operation by operation, of one row and one group."""
    columns = t + -(-k // s) - 1
    shared = dilation == 1 and s < k and columns * (columns + 1) / 2 * s < t * (t + 1) / 2 * k  # fewer products
    phases = s if shared else k
    folds = -(-k // phases)
    flops = 0
    columns_done = set()
    for first in range(t):
        for second in range(first, t):
            for fold in range(folds):
                pair = first + fold, second + fold
                if pair not in columns_done:
                    columns_done.add(pair)
                    flops += 2 * c * phases  # the product of two columns of the polyphase view
            flops += folds - 1  # which are added up
            flops += 2 * o  # (g^T g)[t, t']
            flops += 2  # times A[t, t'], added to the norm
    return flops


@given(*[st.integers(1, high) for high in (5, 5, 9, 8, 8, 2)])
def test_gram_is_counted_as_one_by_one(c, o, t, k, s, dilation):
    shape = ConvShape(c, o, t, k, s, dilation, 1, 0, 0)
    assert shape.norm_flops("gram") == gram_flops_one_by_one(c, o, t, k, s, dilation)


def test_norms_and_sums_by_hand():
    shape = ConvShape(channels=2, outputs=3, positions=5, kernel_size=4, stride=2, dilation=1, groups=1, in_floats=20,
                      out_floats=15)  # fmt: skip
    weights = 2 * 3 * 4
    assert shape.norm_flops("direct") == shape.norm_flops("materialise") == 2 * 5 * weights + 2 * weights
    assert shape.norm_flops("gram") == (15 + 5) * 2 * 2 * 2 + 15 * 1 + 15 * 2 * 3 + 15 * 2
    assert shape.sum_flops("materialise") == 2 * weights
    assert shape.sum_flops("gram") == shape.sum_flops("direct") == 2 * 5 * weights


def test_fused_work_by_hand():
    """Conv(1 -> 2, k3) on length 8, conv(2 -> 1, k6): 6 and 12 weights, outputs of 12 and 1 floats a row."""
    module = nn.Sequential(nn.Conv1d(1, 2, 3), nn.LeakyReLU(0.2), nn.Conv1d(2, 1, 6))
    shapes = conv_shapes(module, torch.rand(1, 1, 8))
    passes = 2 * 6 * 6, 2 * 1 * 12
    norms = passes[0] + 2 * 6 + shapes["2"].norm_flops("gram")
    read = 4 * (10 * (8 + 12) + 18)  # rows and the first layer's outputs, weights
    modes = {"0": "materialise", "2": "gram", "a norm": "materialise"}
    work = fused_work(shapes, modes, rows=10)
    assert work["fused_forward"] == Work(10 * sum(passes), 4 * 10 * 12)
    assert work["fused_clipped_sum"] == Work(10 * (passes[1] + norms + 2 * 6 + passes[1]), read)
    assert list(work) == ["fused_forward", "fused_clipped_sum"]
    part = fused_work(shapes, modes, rows=10, whole=False)
    assert part["fused_forward"] == work["fused_forward"]
    assert part["fused_sq_norm"] == Work(10 * (passes[1] + norms), read)
    assert part["fused_clipped_sum"] == Work(10 * (passes[1] + sum(passes)), read)
    assert fused_work(shapes, {}, rows=10)["fused_clipped_sum"] == part["fused_clipped_sum"], "no norms: only the sum"
