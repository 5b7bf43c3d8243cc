"""Ops of a step, timed as PyTorch dispatches them."""

import copy

import pytest
import torch
from torch import nn

from dpcgan_fast.bench.contenders import PLAIN, report
from dpcgan_fast.bench.nets import critic
from dpcgan_fast.bench.roofline import OUTSIDE, WHOLE, Peaks, machine_peaks, measure_ops, moved_bytes, own_flops
from dpcgan_fast.bench.work import conv_shapes, fused_work, plain_flops

PEAKS = Peaks(gflop_per_s=100.0, gb_per_s=10.0)


@pytest.fixture
def measured():
    module, x = critic(178, (16, 32), 8, 4, 1), torch.rand(64, 1, 178)
    path = report(module, x)
    return module, x, path, {line["op"]: line for line in measure_ops(module, x, path, PEAKS, calls=3)}


def test_every_fused_op_has_its_work_and_its_time(measured):
    module, x, path, lines = measured
    assert path.path == "fused"
    modes = {layer.name: layer.mode for layer in path.layers}
    work = fused_work(conv_shapes(module, x), modes, 64)
    assert set(work) == {"fused_forward", "fused_clipped_sum"}
    assert set(work) <= set(lines)
    for name in work:
        assert lines[name]["calls"] == 1
        assert lines[name]["gflop"] == work[name].flops / 1e9
        assert lines[name]["megabytes"] * 1e6 > work[name].kept_bytes
    forward = lines["fused_forward"]
    given = 4 * (x.numel() + sum(p.numel() for p in module.parameters()) + 64)  # rows, parameters, scores
    assert forward["megabytes"] == pytest.approx((given + work["fused_forward"].kept_bytes) / 1e6)
    assert lines[WHOLE]["gflop"] == pytest.approx(sum(w.flops for w in work.values()) / 1e9)
    assert lines[PLAIN]["gflop"] == plain_flops(conv_shapes(module, x), 64) / 1e9


def test_a_run_that_is_only_a_part_measures_and_sums_apart():
    class Part(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(1, 8, 5)
            self.run = nn.Sequential(nn.Conv1d(8, 64, 8, 4), nn.LeakyReLU(0.2), nn.Conv1d(64, 1, 44))

        def forward(self, x):
            return self.run(self.conv(x))

    module, x = Part(), torch.rand(256, 1, 187)
    path = report(module, x)
    assert path.path == "mixed"
    lines = {line["op"]: line for line in measure_ops(module, x, path, PEAKS, calls=3)}
    modes = {layer.name: layer.mode for layer in path.layers if layer.fused}
    shapes = {name: shape for name, shape in conv_shapes(module, x).items() if name in modes}
    work = fused_work(shapes, modes, 256, whole=False)
    for name in ("fused_forward", "fused_sq_norm", "fused_clipped_sum"):
        assert lines[name]["gflop"] == work[name].flops / 1e9


def test_rates_belong_to_work_and_time(measured):
    for line in measured[-1].values():
        if line["op"] == OUTSIDE:
            assert line["gflop"] is line["megabytes"] is line["of_roof"] is None
            continue
        seconds = line["milliseconds"] / 1e3
        bounds = []
        for work, rate, peak in (("gflop", "gflop_per_s", 100.0), ("megabytes", "gb_per_s", 10.0)):
            if line[work] is not None:
                amount = line[work] if work == "gflop" else line[work] / 1e3
                assert line[rate] == pytest.approx(amount / seconds)
                bounds.append(line[rate] / peak)
        assert line["of_roof"] == pytest.approx(max(bounds))


def test_ops_and_all_else_make_up_the_whole(measured):
    lines = dict(measured[-1])
    whole = lines.pop(WHOLE)["milliseconds"]
    lines.pop(PLAIN)
    assert sum(line["milliseconds"] for line in lines.values()) >= whole - 1e-9


def test_the_layerwise_path_shows_convolutions_and_our_ops():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(8, 64, 5)

        def forward(self, x):
            return self.conv(x)

    module, x = Own(), torch.rand(256, 8, 200)
    path = report(module, x)
    assert path.path == "layerwise"
    lines = {line["op"]: line for line in measure_ops(module, x, path, PEAKS, calls=2)}
    one_pass = plain_flops(conv_shapes(module, x), 256) / 2  # forward and the weight's gradient
    assert lines["aten::convolution"]["gflop"] == one_pass / 1e9
    assert lines["conv_per_sample_grad"]["gflop"] == one_pass / 1e9
    assert "fused_forward" not in lines


def test_flops_of_the_layerwise_ops():
    x, g = torch.rand(3, 4, 20), torch.rand(3, 6, 9)
    geometry = [3, 2, 0, 1, 1, 1]
    one_pass, weights = 2 * 9 * 4 * 6 * 3, 4 * 6 * 3
    assert own_flops("conv_sq_norm", (x, g, *geometry, "direct", None, None)) == 3 * (one_pass + 2 * weights)
    assert own_flops("conv_per_sample_grad", (x, g, *geometry)) == 3 * one_pass
    assert own_flops("conv_weighted_grad", (x, g, torch.rand(3), *geometry)) == 3 * one_pass
    assert own_flops("rows_sq_norm", ([x, g],)) == 2 * (x.numel() + g.numel())
    assert own_flops("rows_weighted_sum", (x, torch.rand(3))) == 2 * x.numel()
    assert own_flops("clip_factor", (torch.rand(3),)) is None


def test_bytes_count_what_is_given_once_what_is_changed_twice_and_scratch_not_at_all():
    grad, factor = torch.rand(5, 7), torch.rand(5, dtype=torch.float64)
    out = torch.rand(7, dtype=torch.float64)
    weighted = torch.ops.dpcgan_fast.rows_weighted_sum.default
    assert moved_bytes(weighted, (grad, factor), out) == 4 * 35 + 8 * 5 + 8 * 7
    noise = torch.ops.dpcgan_fast.gaussian_noise_.default
    key = torch.zeros(8, dtype=torch.int64)
    assert moved_bytes(noise, ([out], 1.0, key, 0), None) == 2 * 8 * 7 + key.nbytes
    forward = torch.ops.dpcgan_fast.fused_forward.default
    assert moved_bytes(forward, (grad, [grad], [], [], 4, torch.rand(1000)), grad) == 3 * grad.nbytes


def test_measuring_leaves_the_module_as_it_was():
    module, x = critic(40, (8,), 5, 2, 1), torch.rand(4, 1, 40)
    before = copy.deepcopy(module.state_dict())
    measure_ops(module, x, report(module, x), PEAKS, calls=1)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(m._forward_hooks for m in module.modules())


def test_peaks_are_those_of_a_machine_that_works():
    peaks = machine_peaks(torch.device("cpu"))
    assert peaks.gflop_per_s > 0.1
    assert peaks.gb_per_s > 0.1
