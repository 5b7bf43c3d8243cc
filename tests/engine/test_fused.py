"""The fused path: its sums are those of float64 micro-batches, for any net that it takes; else it says why not."""

import copy
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dpcgan_fast import ops
from dpcgan_fast.models.published import MIMIC, UCI, PublishedNetworks
from tests.conftest import at_simd_level, available_simd_levels, examples
from tests.engine.nets import NETS, clipped_sum_by_microbatches, flat, row_losses
from tests.engine.steps import Sum, relative

FUSED_NETS = ("conv critic", "autoencoder")
UNITS = "rows are grouped into units, now or in an earlier backward"


@st.composite
def sequential_nets(draw):
    """A random sequential net that has a fused form, and the shape of a row."""
    channels, length = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    shape = (channels, length)
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
        out = groups * draw(st.integers(1, 20))
        kernel, stride = draw(st.integers(1, 9)), draw(st.integers(1, 5))
        padding, dilation = draw(st.integers(0, 3)), draw(st.integers(1, 3))
        bias = draw(st.booleans())
        if draw(st.booleans()) and length + 2 * padding > dilation * (kernel - 1):
            layers.append(nn.Conv1d(channels, out, kernel, stride, padding, dilation, groups, bias))
            length = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        else:
            extra = draw(st.integers(0, max(stride, dilation) - 1))
            after = (length - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1
            if not 1 <= after <= 80:
                continue
            layers.append(
                nn.ConvTranspose1d(channels, out, kernel, stride, padding, extra, groups, bias, dilation=dilation)
            )
            length = after
        channels = out
        # PyTorch refuses a group of a single value
        group_counts = [g for g in (1, 2, 4) if channels % g == 0 and channels // g * length > 1]
        if group_counts and draw(st.booleans()):
            layers.append(nn.GroupNorm(draw(st.sampled_from(group_counts)), channels))
        for _ in range(draw(st.integers(0, 2))):
            layers.append(draw(st.sampled_from([nn.LeakyReLU(0.2), nn.Tanh(), nn.Sigmoid(), nn.SiLU(), nn.ReLU()])))
    if draw(st.booleans()):
        most = max(1, min(9, 2**14 // (channels * length)))  # wider ones are taken layer by layer
        layers += [nn.Flatten(), nn.Linear(channels * length, draw(st.integers(1, most)))]
    if not any(list(layer.parameters()) for layer in layers):
        layers.append(nn.Conv1d(channels, 3, 1))
    return nn.Sequential(*layers), shape


class TestClippedSum:
    @settings(max_examples=examples(250))
    @given(net=sequential_nets(), rows=st.integers(1, 40), level=st.sampled_from(available_simd_levels()),
           seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.5, 1.0]))  # fmt: skip
    def test_equals_the_float64_microbatch_reference_for_any_net(self, net, rows, level, seed, share):
        module, shape = net
        with at_simd_level(level):
            torch.manual_seed(seed)
            for parameter in module.parameters():
                parameter.data.normal_(std=0.5)
            x = torch.randn(rows, *shape) + share * 2
            norms = [float(flat(clipped_sum_by_microbatches(module, x[i : i + 1], math.inf)).norm()) for i in (0, -1)]
            bound = 0.5 * sum(norms) + 1e-3
            expected = flat(clipped_sum_by_microbatches(module, x, bound))
            total = Sum(module, bound)
            got = total.of(x)
            assert total.step.last.path == "fused", total.step.last.why
            # Clipped rows may cancel in the sum, so that the error is measured by what a row may add.
            assert float((got - expected).norm()) <= 2e-4 * rows * bound

    @pytest.mark.parametrize("spec", [UCI, MIMIC], ids=["uci", "mimic"])
    @pytest.mark.usefixtures("simd_level")
    def test_on_the_published_autoencoders_and_critics(self, spec):
        networks = PublishedNetworks(spec)
        x = torch.rand(19, 1, spec.record_length)
        for module in (networks.autoencoder.stacks, networks.critic.stacks):
            total = Sum(module, 0.1)
            assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.1))) <= 1e-4
            assert total.step.last.path == "fused"

    @pytest.mark.parametrize("name", FUSED_NETS)
    @pytest.mark.usefixtures("simd_level")
    def test_infinite_max_grad_norm_is_the_plain_gradient(self, name):
        build, shape = NETS[name]
        module, x = build(), torch.rand(21, *shape)
        assert relative(Sum(module, math.inf).of(x), flat(clipped_sum_by_microbatches(module, x, math.inf))) <= 1e-5

    def test_agrees_with_the_layerwise_path_chunk_by_chunk(self):
        build, shape = NETS["conv critic"]
        module, x = build(), torch.rand(50, *shape)
        fused, layerwise = Sum(module, 0.2), Sum(copy.deepcopy(module), 0.2, fused=False)
        assert relative(fused.of(*x.split(7)), layerwise.of(x)) <= 1e-6
        assert (fused.step.last.path, layerwise.step.last.path) == ("fused", "layerwise")
        assert layerwise.step.last.why == "fused=False"


class TestSensitivity:
    @settings(max_examples=examples(150))
    @given(net=sequential_nets(), rows=st.integers(1, 40), level=st.sampled_from(available_simd_levels()),
           removed=st.integers(0, 39), scale=st.sampled_from([1.0, 1e6]), same=st.booleans())  # fmt: skip
    def test_removing_a_row_moves_the_sum_by_at_most_c(self, net, rows, level, removed, scale, same):
        module, shape = net
        with at_simd_level(level):
            x = torch.randn(1, *shape).expand(rows, *shape).clone() if same else torch.randn(rows, *shape)
            removed %= rows
            x[removed] *= scale
            total = Sum(module, 0.01)
            without = x[torch.arange(rows) != removed]
            move = total.of(x) - (total.of(without) if rows > 1 else 0.0)
            assert float(move.norm()) <= 0.01 * (1 + 1e-6)

    @pytest.mark.parametrize("fused", [True, False])
    def test_what_a_row_adds_does_not_depend_on_the_others_also_by_rounding(self, fused):
        """Coherent rows: all weights of the sum round alike, and removing the first row shifts all others."""
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False))
        scales = torch.rand(2048, 1, generator=torch.Generator().manual_seed(1)) + 0.5
        rows = scales.expand(-1, 16).contiguous()
        sums = []
        for x in (rows, rows[1:]):
            total = Sum(module, 0.01, fused=fused)
            total.step.backward(total.step(x).sum(1))
            sums.append(total.take())
        assert float((sums[0] - sums[1]).norm()) <= 0.01 * (1 + 1e-7)

    @pytest.mark.parametrize("fused", [True, False])
    @pytest.mark.parametrize(("x_scale", "g_scale"), [(1e37, 10.0), (1e-15, 2e38), (3e18, 3e18)])
    def test_rows_so_large_that_their_clip_factor_is_not_a_float(self, fused, x_scale, g_scale):
        module = nn.Sequential(nn.Flatten(), nn.Linear(40, 30, bias=False))
        torch.manual_seed(0)
        for seed in range(10):
            torch.manual_seed(seed)
            x = torch.rand(1, 40) * x_scale
            total = Sum(module, 0.1, fused=fused)
            total.step.backward((total.step(x) * (torch.rand(1, 30) * g_scale)).sum(1))
            assert float(total.take().norm()) <= 0.1 * (1 + 1e-6)

    def test_rows_whose_gradient_cancels_are_summed_in_double(self):
        """Nearly constant rows and centred output gradients: what single precision sums of them is mostly rounding."""
        torch.manual_seed(0)
        module = nn.Sequential(nn.Conv1d(24, 32, 4, bias=False))
        x = 1.0 + 1e-3 * torch.rand(20, 24, 11)
        direction = torch.rand(20, 32, 8)
        direction -= direction.mean(2, keepdim=True)
        total = Sum(module, 1e-3)
        assert ops.FusedLayer("conv1d", 24, 11, 32, 8, 4).norm_mode[0] == "gram"
        total.step.backward((total.step(x) * direction).sum((1, 2)))
        sums = total.take().reshape(32, 24, 4)
        taps = x.double().unfold(2, 4, 1)  # (B, C, T, k)
        grads = torch.einsum("bot,bctk->bock", direction.double(), taps)
        factor = (1e-3 * (1 - 2**-20) / grads.flatten(1).norm(dim=1)).clamp(max=1)
        expected = torch.einsum("b,bock->ock", factor, grads)
        assert relative(sums, expected) <= 1e-9


class TestRows:
    @pytest.mark.parametrize("name", FUSED_NETS)
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("bound", [0.1, math.inf])
    @pytest.mark.usefixtures("simd_level")
    def test_a_row_that_is_not_finite_adds_exactly_zero(self, name, bad, bound):
        build, shape = NETS[name]
        module, x = build(), torch.rand(20, *shape)
        x[3] = bad
        got = Sum(module, bound).of(x)
        assert relative(got, Sum(module, bound).of(torch.cat([x[:3], x[4:]]))) <= 1e-6

    @pytest.mark.parametrize("name", FUSED_NETS)
    @pytest.mark.usefixtures("simd_level")
    def test_a_row_that_overflows_on_its_way_adds_at_most_c(self, name):
        build, shape = NETS[name]
        module, x = build(), torch.rand(20, *shape)
        x[3] = 1e38
        move = Sum(module, 0.1).of(x) - Sum(module, 0.1).of(torch.cat([x[:3], x[4:]]))
        assert float(move.norm()) <= 0.1 * (1 + 1e-6)

    def test_units_of_several_rows_go_layer_by_layer(self):
        build, shape = NETS["conv critic"]
        module, x = build(), torch.rand(9, *shape)
        units = torch.tensor([3, 1, 3, 7, 1, 1, 9, 7, 4])
        expected = flat(clipped_sum_by_microbatches(module, x, 0.2, units))
        total = Sum(module, 0.2)
        for _ in range(2):  # the second time the forward goes layer by layer from the start
            assert relative(total.of(x, units=units), expected) <= 1e-5
            assert (total.step.last.path, total.step.last.why) == (
                "layerwise",
                "rows are grouped into units, now or in an earlier backward",
            )

    def test_several_forwards_of_the_same_rows_go_layer_by_layer(self):
        build, shape = NETS["conv critic"]
        module, x, y = build(), torch.rand(5, *shape), torch.rand(5, *shape)
        sums = []
        for fused in (True, False):
            total = Sum(module, 0.2, fused=fused)
            total.step.backward(row_losses(total.step(x)) + 2 * row_losses(total.step(y)))
            sums.append(total.take())
        assert relative(*sums) <= 1e-6

    def test_real_and_fake_forwards_may_both_come_before_their_backwards(self):
        build, shape = NETS["conv critic"]
        module, real, fake = build(), torch.rand(7, *shape), torch.rand(4, *shape)
        together = Sum(module, 0.2)
        expected = [flat(clipped_sum_by_microbatches(module, x, 0.2)) for x in (real, fake)]
        scores, fakes = together.step(real), together.step(fake)
        together.step.backward(row_losses(scores))
        together.step.backward(row_losses(fakes), private=False)
        private, public = together.step._private_sum, together.step._public_sum
        for total, rows in ((private, expected[0]), (public, expected[1])):
            assert relative(torch.cat([total[p].flatten() for p in module.parameters()]), rows) <= 1e-5

    def test_a_second_backward_through_the_same_forward_is_refused(self):
        build, shape = NETS["conv critic"]
        total = Sum(build(), 0.2)
        losses = row_losses(total.step(torch.rand(3, *shape)))
        total.step.backward(losses)
        with pytest.raises(ValueError, match="used by a backward before"):
            total.step.backward(losses)

    def test_another_pass_through_the_graph_is_not_what_is_measured(self):
        build, shape = NETS["conv critic"]
        module, x = build(), torch.rand(5, *shape)
        total = Sum(module, 0.2)
        inputs = x.clone().requires_grad_()
        output = total.step(inputs)
        torch.autograd.grad(5 * output.sum(), inputs, retain_graph=True)
        total.step.backward(row_losses(output))
        assert relative(total.take(), flat(clipped_sum_by_microbatches(module, x, 0.2))) <= 1e-5

    def test_a_forward_whose_rows_are_summed_is_gone(self):
        build, shape = NETS["conv critic"]
        total = Sum(build(), 0.2)
        x = torch.rand(5, *shape, requires_grad=True)
        output = total.step(x)
        total.step.backward(row_losses(output))
        with pytest.raises((ValueError, RuntimeError), match=r"used by a step\.backward before|second time"):
            torch.autograd.grad(output.sum(), x)

    def test_a_gradient_of_a_gradient_is_refused(self):
        build, shape = NETS["conv critic"]
        total = Sum(build(), 0.2)
        x = torch.rand(5, *shape, requires_grad=True)
        output = total.step(x)
        with pytest.raises(ValueError, match="has no second derivative"):
            torch.autograd.grad(output.sum(), x, create_graph=True)

    def test_units_go_layer_by_layer_whether_or_not_two_rows_share_one(self):
        build, shape = NETS["conv critic"]
        for ids in ([1, 2, 3], [1, 1, 3]):
            total = Sum(build(), 0.2)
            total.of(torch.rand(3, *shape), units=torch.tensor(ids))
            assert (total.step.last.path, total.step.last.why) == (
                "layerwise",
                "rows are grouped into units, now or in an earlier backward",
            )

    def test_a_row_does_not_see_the_others(self):
        build, shape = NETS["autoencoder"]
        module, x = build(), torch.rand(33, *shape)
        step = Sum(module, 1.0).step
        permuted = torch.randperm(33)
        assert torch.equal(step(x)[permuted], step(x[permuted]))


class TestChoice:
    @pytest.mark.parametrize(
        ("module", "shape", "why"),
        [
            (nn.Sequential(nn.Conv1d(1, 2, 3, padding="same")), (1, 9), "a convolution pads by a mode or by name"),
            (nn.Sequential(nn.Linear(5, 2)), (3, 5), "a linear layer acts on each position of a sequence"),
            (nn.Sequential(nn.Linear(200, 100)), (200,), "20000 weights of linear layers are summed faster"),
            (nn.Sequential(nn.Flatten(), nn.Linear(200, 100)), (4, 50), "20000 weights of linear layers are summed"),
            (nn.Sequential(nn.Conv1d(1, 2, 3), nn.ELU()), (1, 9), r"module '1' \(ELU\) has no fused form"),
            (nn.Conv1d(1, 2, 3), (1, 9), r"module '\(root\)' \(Conv1d\) is in no nn.Sequential"),
            (nn.Sequential(nn.Conv1d(1, 2, 3), nn.LeakyReLU(-0.5)), (1, 9), "a leaky ReLU has a negative slope"),
        ],
    )
    def test_a_net_without_a_fused_form_goes_layer_by_layer_and_says_why(self, module, shape, why):
        total = Sum(module, 0.1)
        x = torch.rand(6, *shape)
        assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.1))) <= 1e-5
        assert total.step.last.path == "layerwise"
        assert re.search(why, total.step.last.why)

    def test_norm_modes_of_ones_own_choice_go_layer_by_layer(self):
        build, shape = NETS["conv critic"]
        total = Sum(build(), 0.1, norm_mode="direct")
        total.of(torch.rand(3, *shape))
        assert (total.step.last.path, total.step.last.why) == ("layerwise", "norm_mode='direct'")

    def test_frozen_parameters_hooks_and_other_dtypes_go_layer_by_layer(self):
        build, shape = NETS["conv critic"]
        frozen, hooked = build(), build()
        frozen[0].weight.requires_grad_(False)
        hooked[1].register_forward_hook(lambda *_: None)
        x = torch.rand(3, *shape)
        for module, rows, why in (
            (frozen, x, "some parameters are frozen or not in the optimizer"),
            (hooked, x, "module '1' has hooks, a forward of its own or a parametrization"),
            (build().double(), x.double(), "its input is not float32 on the CPU, or autocast is on"),
        ):
            step = Sum(module, 0.1).step
            step.backward(row_losses(step(rows)))
            assert (step.last.path, step.last.why) == ("layerwise", why)

    def test_modules_that_only_look_like_a_known_kind_go_layer_by_layer(self):
        class Twice(nn.Identity):
            def forward(self, x):
                return 2 * x

        own = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh())
        own[1].forward = torch.sin
        x = torch.rand(4, 1, 9)
        for module in (nn.Sequential(nn.Conv1d(1, 2, 3), Twice()), own):
            total = Sum(module, 0.1)
            assert relative(total.of(x), flat(clipped_sum_by_microbatches(module, x, 0.1))) <= 1e-5
            assert total.step.last.path == "layerwise"
        assert own[1].forward is torch.sin

    def test_the_report_names_the_mode_of_each_layer_and_why(self):
        build, shape = NETS["conv critic"]
        step = Sum(build(), 0.1).step
        step.backward(row_losses(step(torch.rand(3, *shape))))
        assert [(layer.name, layer.rule) for layer in step.last.layers] == [
            ("0", "conv1d"), ("2", "conv1d"), ("3", "group_norm"), ("5", "conv1d"),
        ]  # fmt: skip
        assert {layer.mode for layer in step.last.layers} == {"materialise", "gram"}
        assert "path fused (every layer has a fused form), ops native" in str(step.last)
