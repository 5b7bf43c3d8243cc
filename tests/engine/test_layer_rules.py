"""Layer rules against micro-batches: what each layer adds, in every norm mode, and what removing a row moves."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from dpcgan_fast.engine.layer_gradients import operands
from dpcgan_fast.ops import TokenGradients, group_units
from tests.engine.layer_nets import LAYER_NETS, VOCABULARY, Ids, Output
from tests.engine.nets import clipped_sum_by_microbatches, flat, row_losses, sequential
from tests.engine.steps import Sum, assert_close, moved, sgd_step

MODES = ("auto", "direct", "gram", "materialise")
BOUND = 0.7


def median_norm(module, x):
    norms = [flat(clipped_sum_by_microbatches(module, x[i : i + 1], math.inf)).norm() for i in range(len(x))]
    return float(torch.stack(norms).median())  # so that some rows are clipped and some are not


@pytest.mark.parametrize("name", LAYER_NETS)
class TestRules:
    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("grouped", [False, True])
    def test_equals_the_float64_microbatch_reference(self, name, mode, grouped):
        build, shape, rules = LAYER_NETS[name]
        module, x = build().double(), torch.rand(7, *shape, dtype=torch.float64)
        units = torch.tensor([3, 1, 3, 7, 1, 1, 9]) if grouped else None
        bound = median_norm(module, x)
        expected = clipped_sum_by_microbatches(module, x, bound, units)
        step = sgd_step(module, bound, norm_mode=mode)
        step.backward(row_losses(step(x)), units)
        assert [layer.rule for layer in step.last.layers] == rules
        got = moved(module, step)
        assert_close({key: got[key] for key in expected}, expected, rtol=1e-12)

    def test_in_float32(self, name):
        build, shape, _ = LAYER_NETS[name]
        module, x = build(), torch.rand(35, *shape)
        expected = clipped_sum_by_microbatches(module, x, BOUND)
        step = sgd_step(module, BOUND, lr=1e6)
        step.backward(row_losses(step(x)))
        got = moved(module, step)
        assert_close({key: got[key] / 1e6 for key in expected}, expected, rtol=5e-5)

    @pytest.mark.parametrize("mode", MODES)
    def test_removing_a_row_moves_the_sum_by_the_bound_at_most(self, name, mode):
        build, shape, _ = LAYER_NETS[name]
        module = build()
        total = Sum(module, BOUND, norm_mode=mode)
        sum_of = lambda rows: torch.cat([p.flatten() for p in self.private_sum(total, rows)])  # noqa: E731
        x = torch.randn(9, *shape)
        x[0] *= 1e4
        x[1] = 5 + 1e-4 * x[1]
        for row in range(3):
            rest = x[torch.arange(9) != row]
            assert float((sum_of(x) - sum_of(rest)).norm()) <= BOUND * (1 + 1e-6)

    @staticmethod
    def private_sum(total, rows):
        total.step.backward(row_losses(total.step(rows)))
        sums = list(total.step._private_sum.values())
        total.step._reset()
        return sums

    def test_a_row_that_is_not_finite_adds_zero(self, name):
        build, shape, _ = LAYER_NETS[name]
        module, x = build(), torch.rand(4, *shape)
        expected = clipped_sum_by_microbatches(module, x[1:], BOUND)
        step = sgd_step(module, BOUND, lr=1e6)
        losses = row_losses(step(x))
        step.backward(losses * torch.tensor([math.inf, 1, 1, 1]))
        got = moved(module, step)
        assert_close({key: got[key] / 1e6 for key in expected}, expected, rtol=5e-5)


@st.composite
def convolutions(draw):
    """A convolution in two or three dimensions, and the shape of one row that it takes."""
    dimensions, transposed, groups = draw(st.integers(2, 3)), draw(st.booleans()), draw(st.integers(1, 2))
    sizes = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(dimensions))  # noqa: E731
    kernel, stride, dilation, padding = sizes(1, 3), sizes(1, 3), sizes(1, 2), sizes(0, 1)
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 3))
    kinds = {2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
    kind = kinds[dimensions][transposed]
    shape = tuple(size + 4 for size in sizes(1, 3))
    bias = draw(st.booleans())
    layer = kind(channels, outputs, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias)
    return layer, (channels, *shape)


@settings(max_examples=60, deadline=None)
@given(convolutions(), st.sampled_from(MODES), st.integers(1, 5))
def test_convolutions_of_any_shape(drawn, mode, rows):
    layer, shape = drawn
    module, x = sequential(layer).double(), torch.rand(rows, *shape, dtype=torch.float64)
    expected = clipped_sum_by_microbatches(module, x, 2.0)
    step = sgd_step(module, 2.0, norm_mode=mode)
    step.backward(row_losses(step(x)))
    assert_close(moved(module, step), expected, rtol=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 5), st.lists(st.integers(1, 3), max_size=2), st.integers(1, 4), st.integers(0, 2**31), st.booleans()
)
def test_embeddings_of_any_shape(rows, positions, features, seed, grouped):
    generator = torch.Generator().manual_seed(seed)
    module = sequential(Ids(), nn.Embedding(VOCABULARY, features, padding_idx=seed % VOCABULARY)).double()
    x = torch.rand(rows, *positions, generator=generator, dtype=torch.float64)
    units = torch.randint(0, 3, (rows,), generator=generator) if grouped else None
    expected = clipped_sum_by_microbatches(module, x, 0.5, units)
    step = sgd_step(module, 0.5)
    step.backward(row_losses(step(x)), units)
    assert_close(moved(module, step), expected, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([nn.LSTM, nn.GRU, nn.RNN]), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.booleans(),
    st.booleans(), st.sampled_from(["", "weight", "bias", "_hh", "l0"]),
)  # fmt: skip
def test_recurrent_layers_of_any_shape(kind, rows, steps, layers, bias, both_ways, frozen):
    module = Output(kind(2, 3, layers, bias=bias, batch_first=True, bidirectional=both_ways)).double()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not frozen or frozen not in name)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    x = torch.rand(rows, steps, 2, dtype=torch.float64)
    expected = clipped_sum_by_microbatches(module, x, 0.3)
    step = sgd_step(module, 0.3)
    step.backward(row_losses(step(x)))
    got = moved(module, step)
    assert_close({name: got[name] for name in expected}, expected, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.lists(st.integers(2, 4), min_size=1, max_size=3), st.integers(1, 2), st.data())
def test_norms_of_any_shape(rows, positions, groups, data):
    channels = 2 * groups
    kinds = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
    norms = [
        nn.GroupNorm(groups, channels), kinds[len(positions)](channels, affine=True),
        nn.LayerNorm(positions[data.draw(st.integers(0, len(positions) - 1)) :]), nn.RMSNorm(positions, eps=1e-4),
    ]  # fmt: skip
    module = sequential(data.draw(st.sampled_from(norms))).double()
    x = torch.randn(rows, channels, *positions, dtype=torch.float64)
    expected = clipped_sum_by_microbatches(module, x, 1.0)
    step = sgd_step(module, 1.0)
    step.backward(row_losses(step(x)))
    assert_close(moved(module, step), expected, rtol=1e-11)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 2), st.booleans(), st.booleans())
def test_attention_of_any_shape(rows, positions, heads, bias, others):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {"kdim": 3, "vdim": 5} if others else {}
            self.inner = nn.MultiheadAttention(2 * heads, heads, bias=bias, batch_first=True, **sizes)

        def forward(self, x):
            key, value = (x[..., :3], x[..., :5]) if others else (x[..., : 2 * heads],) * 2
            return self.inner(x[..., -2 * heads :], key, value, need_weights=False)[0]

    module, x = Attention().double(), torch.randn(rows, positions, 6, dtype=torch.float64)
    expected = clipped_sum_by_microbatches(module, x, 0.5)
    step = sgd_step(module, 0.5)
    step.backward(row_losses(step(x)))
    assert step.last.layers[0].rule == "attention"
    assert_close(moved(module, step), expected, rtol=1e-12)


class TestWhatARowAddsDoesNotDependOnTheOthers:
    @pytest.mark.parametrize("rows", [1, 2, 33])
    def test_in_a_linear_layer_on_sequences(self, rows):
        net = sequential(nn.Linear(27, 32)).requires_grad_(True)
        x = torch.randn(40, 1024, 27)
        total = Sum(net, math.inf, norm_mode="materialise")
        parts = [total.of(x[i : i + rows]) for i in range(0, 40, rows)]
        assert torch.allclose(sum(parts), total.of(x), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("mode", ["direct", "gram"])
@pytest.mark.parametrize("grouped", [False, True])
def test_norms_of_images_are_taken_a_few_rows_at_a_time(monkeypatch, mode, grouped, backend):
    monkeypatch.setenv("DPCGAN_BACKEND", backend)
    monkeypatch.setattr("dpcgan_fast.ops._windows._WINDOWS_AT_A_TIME", 500)
    build, shape, _ = LAYER_NETS["images"]
    module, x = build().double(), torch.rand(7, *shape, dtype=torch.float64)
    units = torch.tensor([3, 1, 3, 7, 1, 1, 9]) if grouped else None
    expected = clipped_sum_by_microbatches(module, x, 0.3, units)
    step = sgd_step(module, 0.3, norm_mode=mode)
    step.backward(row_losses(step(x)), units)
    assert_close(moved(module, step), expected, rtol=1e-12)


@pytest.mark.parametrize(("channels", "units", "mode"), [
    (512, None, "gram"), (128, None, "direct"),
    (128, torch.tensor([0, 0]), "gram"), (16, torch.tensor([0, 0]), "materialise"),
])  # fmt: skip
def test_large_weights_of_images_are_not_kept(channels, units, mode):
    step = sgd_step(sequential(nn.Conv2d(channels, 256, 3)))
    step.backward(row_losses(step(torch.rand(2, channels, 4, 4))), units)
    assert step.last.layers[0].mode == mode


def test_a_backward_does_not_form_parametrized_weights_anew():
    """As spectral_norm is: it moves its buffers whenever its weight is asked for."""

    class Counted(nn.Module):
        formed = 0

        def forward(self, weight):
            Counted.formed += 1
            return weight

    image = nn.Conv2d(2, 3, 3).requires_grad_(False)
    assert image.bias is not None
    image.bias.requires_grad_(True)
    parametrize.register_parametrization(image, "weight", Counted())
    step = sgd_step(sequential(nn.Conv2d(2, 2, 1), image))
    losses = row_losses(step(torch.rand(4, 2, 6, 6)))
    before = Counted.formed
    step.backward(losses)
    assert Counted.formed == before


@pytest.mark.parametrize(("size", "modes"), [(5, ["direct", "direct"]), (6, ["direct", "materialise"])])
def test_gradients_smaller_than_those_of_the_output_are_formed_on_the_way_back(size, modes):
    """Only where the pass goes on behind the layer, so that letting go of the output's gradient helps."""
    step = sgd_step(sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)))
    step.backward(row_losses(step(torch.rand(2, 3, size, size))))
    assert [layer.mode for layer in step.last.layers] == modes


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_images_whose_gradients_wait_in_the_cache_beside_layers_of_all_kinds(monkeypatch, backend):
    """Each row is visited once, after the norms of all other layers; a transposed one's bias is among those."""
    monkeypatch.setenv("DPCGAN_BACKEND", backend)
    net = sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.ConvTranspose2d(3, 4, 2), nn.Conv2d(4, 5, 3, bias=False),
        nn.GroupNorm(1, 5), nn.Conv2d(5, 6, 2, groups=1), nn.Flatten(), nn.Linear(24, 2),
    ).double()  # fmt: skip
    x = torch.rand(6, 2, 4, 4, dtype=torch.float64)
    expected = clipped_sum_by_microbatches(net, x, 0.3)
    step = sgd_step(net, 0.3)
    step.backward(row_losses(step(x)))
    if backend == "native":
        assert [layer.mode for layer in step.last.layers].count("direct") >= 2
    assert_close(moved(net, step), expected, rtol=1e-12)


def test_images_of_two_dtypes_are_clipped_together():
    class Doubled(nn.Module):
        def forward(self, x):
            return x.double()

    net = sequential(nn.Conv2d(1, 8, 3), Doubled(), nn.Conv2d(8, 4, 2).double())
    x = torch.rand(5, 1, 4, 4)
    step = sgd_step(net, 0.3)
    step.backward(row_losses(step(x)))
    assert {layer.mode for layer in step.last.layers} == {"direct"}
    expected = clipped_sum_by_microbatches(copy.deepcopy(net), x, 0.3)
    got = torch.cat([step._private_sum[parameter].flatten() for parameter in net.parameters()])
    torch.testing.assert_close(got, flat(expected), rtol=1e-5, atol=1e-6)


def test_gradients_beyond_what_the_cache_holds_are_stored(monkeypatch):
    net = sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(3)])
    monkeypatch.setattr("dpcgan_fast.engine.clipped_sum._MOST_CACHED", 300)
    step = sgd_step(net, 0.3)
    step.backward(row_losses(step(torch.rand(2, 4, 3, 3))))
    assert [layer.mode for layer in step.last.layers] == ["direct", "direct", "materialise"]
    assert step.last.layers[-1].reason == "gradients of other layers fill the cache"


def test_norms_of_tokens_are_taken_a_few_rows_at_a_time(monkeypatch):
    monkeypatch.setattr("dpcgan_fast.ops._embedding._AT_A_TIME", 20)
    ids, g = torch.randint(0, 5, (9, 4)), torch.randn(9, 4, 3)
    tokens, factor = TokenGradients(ids, g, 5), torch.rand(9, dtype=torch.float64)
    grads = tokens.per_sample_grad().double()
    torch.testing.assert_close(tokens.sq_norm(), grads.square().sum((1, 2)), rtol=1e-5, atol=0)
    torch.testing.assert_close(tokens.weighted_grad(factor), (grads * factor[:, None, None]).sum(0), rtol=1e-5, atol=0)
    units = group_units(torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4]), 9)
    by_unit = torch.zeros(5, 5, 3, dtype=torch.float64).index_add_(0, units.unit_of_row, grads)
    torch.testing.assert_close(tokens.sq_norm(units), by_unit.square().sum((1, 2)), rtol=1e-5, atol=1e-9)


class TestRefused:
    @pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag])
    @pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}], ids=str)
    def test_embeddings_that_look_at_the_batch(self, kind, option):
        with pytest.raises(ValueError, match=rf"'1' \({kind.__name__}\).*{next(iter(option))}"):
            sgd_step(sequential(Ids(), kind(VOCABULARY, 3, **option)))

    def test_bags_by_offsets(self):
        class Offsets(nn.Module):
            def __init__(self):
                super().__init__()
                self.bag = nn.EmbeddingBag(VOCABULARY, 3)

            def forward(self, x):
                return self.bag(x.long().flatten(), torch.arange(0, x.numel(), x.shape[1]))

        step = sgd_step(Offsets())
        with pytest.raises(ValueError, match=r"'bag' \(EmbeddingBag\).*offsets"):
            step(torch.ones(5, 4))

    def test_final_states_and_dropout_of_recurrent_layers(self):
        class Final(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.GRU(3, 4, batch_first=True)

            def forward(self, x):
                return self.inner(x)[1][0]

        step = sgd_step(Final())
        with pytest.raises(ValueError, match="final state"):
            step.backward(row_losses(step(torch.rand(3, 2, 3))))


class TestAutocast:
    @pytest.mark.parametrize(
        "name", ["images", "padded images", "tokens", "bags", "tied", "lora", "lstm", "attention", "transposed images"]
    )
    @pytest.mark.parametrize("whole", [False, True])
    def test_gradients_are_near_those_without(self, name, whole):
        """Whether or not the backward, too, is under autocast."""
        build, shape, rules = LAYER_NETS[name]
        module, x = build(), torch.rand(9, *shape)
        expected = clipped_sum_by_microbatches(module, x, BOUND)
        step = sgd_step(module, BOUND, lr=1e6)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = row_losses(step(x)).float()
            if whole:
                step.backward(losses)
        if not whole:
            step.backward(losses)
        assert [layer.rule for layer in step.last.layers] == rules
        got = moved(module, step)
        assert_close({key: got[key] / 1e6 for key in expected}, expected, rtol=0.05)


class Checkpointed(nn.Module):
    """A block whose activations are formed again in the backward."""

    def __init__(self, block, **kwargs):
        super().__init__()
        self.first, self.block, self.kwargs = nn.Linear(6, 6), block, kwargs

    def forward(self, x):
        return checkpoint(self.block, self.first(x), **self.kwargs)


class TestCheckpoint:
    @pytest.mark.parametrize("activation", [nn.GELU, nn.Tanh], ids=["layerwise", "a fused run"])
    def test_not_reentrant(self, activation):
        block = sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 2))
        module, x = Checkpointed(block, use_reentrant=False), torch.rand(9, 6)
        expected = clipped_sum_by_microbatches(module, x, BOUND)
        step = sgd_step(module, BOUND, lr=1e6)
        step.backward(row_losses(step(x)))
        assert_close({key: grad / 1e6 for key, grad in moved(module, step).items()}, expected, rtol=5e-5)

    def test_reentrant_is_refused(self):
        module = Checkpointed(sequential(nn.Linear(6, 5)), use_reentrant=True)
        step = sgd_step(module)
        with pytest.raises(RuntimeError, match="use_reentrant"):
            step.backward(row_losses(step(torch.rand(9, 6))))


def test_operands_in_bfloat16_are_read_by_kernels_of_a_gpu_alone(monkeypatch):
    monkeypatch.setattr("dpcgan_fast.ops.gpu_ops", lambda _device: True)
    half = torch.ones(2, dtype=torch.bfloat16)
    assert operands(half, half)[0].dtype == torch.bfloat16
    assert operands(half, half, by_kernels=False)[0].dtype == torch.float32


IMAGE_LAYERS = {
    "few weights": nn.Conv2d(3, 8, 1), "many weights": nn.Conv2d(600, 512, 1, bias=False),
    "patches": nn.Conv2d(3, 64, 4, stride=4), "transposed": nn.ConvTranspose2d(3, 8, 1),
}  # fmt: skip


@pytest.mark.parametrize("layer", IMAGE_LAYERS.values(), ids=IMAGE_LAYERS)
@pytest.mark.parametrize("mode", ["auto", "direct", "gram", "materialise"])
@pytest.mark.parametrize("units", [None, torch.tensor([0, 0, 1])], ids=["rows", "units"])
class TestARowOfImagesAddsNoMoreThanMaxGradNorm:
    def clipped(self, layer, rows, mode, units, scale=1.0):
        step = sgd_step(nn.Sequential(copy.deepcopy(layer)), 1.0, norm_mode=mode)
        first_alone = torch.tensor([scale, 0.0, 0.0])
        step.backward(step(rows).flatten(1).sum(1) * first_alone, units)
        return torch.cat([total.flatten() for total in step._private_sum.values()])

    @pytest.mark.parametrize("side", [8, 32], ids=["few positions", "many positions"])
    def test_where_positions_cancel(self, layer, mode, units, side):
        """In single precision the gradient is nothing but rounding, which must be measured where it is summed."""
        rows = torch.zeros(3, layer.in_channels, side, side)
        rows[0] = torch.tensor([2.0**40, 1000.0, -(2.0**40), -1000.0]).repeat(side, side // 4)
        assert self.clipped(layer, rows, mode, units).norm() <= 1 + 1e-6

    def test_where_products_overflow(self, layer, mode, units):
        rows = torch.zeros(3, layer.in_channels, 4, 4)
        rows[0] = 1e25
        total = self.clipped(layer, rows, mode, units, scale=1e20)
        assert total.isfinite().all()
        assert total.norm() <= 1 + 1e-6
