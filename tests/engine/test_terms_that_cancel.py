"""Rows and units whose gradient adds up huge terms that cancel: they must not wipe out what others add, nor add more
than max_grad_norm themselves (csrc/common/cancellation.h, `kLeastShare`)."""

import pytest
import torch
from torch import nn

from dpcgan_fast import ops
from tests.engine.steps import Sum

ALONE = 9999  # a unit of its own
HUGE = 1e25
BACKENDS = ["native", "reference"]


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setenv("DPCGAN_BACKEND", request.param)
    return request.param


class Weighted(nn.Module):
    """A layer whose outputs are weighted by data, so that a row's output gradient is whatever the row says."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, weights):
        return (self.layer(x) * weights).flatten(1).sum(1)


def clipped_sum(module, *inputs, bound=1.0, units=None, **options):
    total = Sum(module, bound, **options)
    total.step.backward(total.step(*inputs), units)
    return total.take()


def moved(module, inputs, more, bound=1.0, units=None, at=None, **options):
    """How far the rows `more`, of one unit, move the sum, in multiples of the bound; at: put in front of this row."""
    rows, extra = len(inputs[0]), len(more[0])
    at = rows if at is None else at
    larger = [torch.cat([x[:at], new, x[at:]]) for x, new in zip(inputs, more, strict=True)]
    ids = None if units is None else torch.cat([units[:at], torch.full((extra,), ALONE), units[at:]])
    before = clipped_sum(module, *inputs, bound=bound, units=units, **options)
    after = clipped_sum(module, *larger, bound=bound, units=ids, **options)
    return float((after - before).norm()) / bound


@pytest.mark.usefixtures("backend")
class TestUnitsWhoseRowsCancel:
    def test_in_kept_gradients(self):
        x, more = torch.zeros(40, 4), torch.zeros(2, 4)
        x[:, 0], more[:, 0] = 0.5, torch.tensor([HUGE, -HUGE])
        module = Weighted(nn.Linear(4, 1))
        ones = torch.ones(40, 1), torch.ones(2, 1)
        assert moved(module, (x, ones[0]), (more, ones[1]), units=torch.arange(40)) <= 1 + 1e-6

    @pytest.mark.parametrize("mode", ["auto", "gram", "direct"])
    def test_in_a_bias(self, mode):
        weights, more = torch.zeros(100, 64), torch.zeros(2, 64)
        weights[:, 0], more[:, 0] = 0.5, torch.tensor([2.0**60, -(2.0**60)])
        module = Weighted(nn.Linear(64, 64))
        zeros = torch.zeros(100, 64), torch.zeros(2, 64)
        got = moved(module, (zeros[0], weights), (zeros[1], more), units=torch.arange(100), norm_mode=mode)
        assert got <= 1 + 1e-6

    def test_in_clip_and_sum(self):
        grads = torch.tensor([[0.5], [HUGE], [-HUGE]])
        (total,), _ = ops.clip_and_sum([grads], 1.0, torch.tensor([0, 1, 1]), torch.float64)
        assert abs(float(total) - 0.5) <= 1 + 1e-6
        assert float(total) == pytest.approx(0.5)


@pytest.mark.usefixtures("backend")
class TestRowsWhosePositionsCancel:
    def test_tokens_of_an_embedding(self):
        class Bag(nn.Module):
            def __init__(self):
                super().__init__()
                self.bag = nn.EmbeddingBag(10, 4, mode="sum")

            def forward(self, ids, weights):
                return self.bag(ids, per_sample_weights=weights).sum(1)

        ids, weights = torch.zeros(40, 3, dtype=torch.long), torch.zeros(40, 3)
        weights[:, 0] = 0.4
        more = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[HUGE, -HUGE, 0.0]])
        assert moved(Bag(), (ids, weights), more) <= 1 + 1e-6

    @pytest.mark.parametrize("at", [0, 3, 7, 31, 100, 199])
    def test_a_bias_over_positions(self, at):
        x, weights = torch.zeros(200, 2, 64), torch.zeros(200, 2, 64)
        weights[:, :, 0] = 0.45
        more = torch.zeros(1, 2, 64)
        more[0, :, 0] = torch.tensor([HUGE, -HUGE])
        module = Weighted(nn.Linear(64, 64))
        assert moved(module, (x, weights), (x[:1], more), at=at) <= 1 + 1e-6

    @pytest.mark.parametrize("bound", [4.02, 1e-3])
    def test_a_sequence(self, bound):
        """Products that cancel exactly as they are, and round one way once they are scaled."""
        half, large = 49, 2.0**53 - 2.0**29
        x, weights = torch.zeros(1, 2 * half + 2, 256), torch.zeros(1, 2 * half + 2, 256)
        x[0, :, 0] = torch.tensor([large, *[1.0] * half, -large, *[-1.0] * half])
        weights[:, :, 0] = 1
        assert float(clipped_sum(Weighted(nn.Linear(256, 256, bias=False)), x, weights, bound=bound).norm()) <= bound

    def test_a_row_of_zeros_in_front_of_others_that_cancel(self):
        generator = torch.Generator().manual_seed(3)
        values, weights = torch.rand(5, generator=generator), (torch.rand(5, generator=generator) - 0.5) * 1e9
        values[2:] = 1
        rest = -(values[:2].double() * weights[:2].double()).sum()
        for i in range(2, 5):
            weights[i] = rest.float()
            rest -= weights[i].double()
        sides = torch.zeros(2, 1000, 5, 64)
        sides[0, :, :, 0], sides[1, :, :, 0] = values, weights
        zeros = torch.zeros(1, 5, 64)
        module = Weighted(nn.Linear(64, 64, bias=False))
        assert moved(module, tuple(sides), (zeros, zeros), bound=1e-9, at=0) <= 1 + 1e-6


@pytest.mark.usefixtures("simd_level")
def test_a_row_of_the_fused_path_that_is_taken_again():
    half, large, bound = 29, 2.0**53 - 2.0**29, 4.02
    module = nn.Sequential(
        nn.Conv1d(256, 256, 1, bias=False), nn.Flatten(), nn.Linear(256 * (2 * half + 2), 1, bias=False)
    )
    with torch.no_grad():
        for layer in (module[0], module[2]):
            layer.weight.zero_()
        module[2].weight.view(256, -1)[0] = 1
    x = torch.zeros(1, 256, 2 * half + 2)
    x[0, 0] = torch.tensor([large, *[1.0] * half, -large, *[-1.0] * half])
    total = Sum(module, bound)
    total.step.backward(total.step(x).squeeze(1))
    assert total.step.last.path == "fused"
    assert float(total.take().norm()) <= bound


class TestWhetherRowsShareAUnit:
    """It must not change how the rows of others are rounded: a unit that adds zero then leaves every bit as it was."""

    def images(self):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 16, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(),
            nn.Linear(256, 1),
        )  # fmt: skip

    @pytest.mark.parametrize("ids", [(ALONE, ALONE), (ALONE, ALONE + 1)])
    def test_leaves_others_as_they_are(self, ids):
        x, gone = torch.randn(1, 3, 16, 16).repeat(64, 1, 1, 1), torch.full((2, 3, 16, 16), float("nan"))
        module = self.images()
        before = Sum(module, 0.1).of(x, units=torch.arange(64))
        after = Sum(module, 0.1).of(torch.cat([x, gone]), units=torch.cat([torch.arange(64), torch.tensor(ids)]))
        assert torch.equal(before, after)

    def test_distinct_ids_are_grouped_too(self):
        groups = ops.group_units(torch.tensor([3, 1, 2]), 3)
        assert groups.unit_of_row.tolist() == [2, 0, 1]


def test_a_gram_norm_of_many_channels_sees_the_small_ones():
    channels, bound = 4096, 1e-5
    x, weights = torch.zeros(1, 2, channels), torch.zeros(1, 2, 64)
    weights[0, :, 0] = torch.tensor([1.0, -1.0])
    below_half_an_ulp = float(torch.nextafter(torch.tensor(2.0**-26.5), torch.tensor(0.0)))
    x[0, :, 0] = torch.tensor([1 + 2.02e-4, 1.0])
    x[0, 0, 1 : channels // 2] = below_half_an_ulp
    x[0, 1, channels // 2 :] = below_half_an_ulp
    total = Sum(Weighted(nn.Linear(channels, 64, bias=False)), bound, norm_mode="gram")
    total.step.backward(total.step(x, weights))
    assert float(total.take().norm()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("rows", [512, 4096])
def test_a_gram_norm_of_many_rows_together(rows):
    """Its additions all round one way where the rows of a unit repeat each other."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(1, 8, generator=generator) + 1).expand(rows, 8).contiguous()
    values = torch.rand(8, generator=generator) + 1
    weights = torch.cat([values.expand(rows // 2, 8), (-values * (1 - 2.05e-4)).expand(rows // 2, 8)])
    module = Weighted(nn.Linear(8, 8, bias=False))
    got = clipped_sum(module, x, weights, units=torch.zeros(rows, dtype=torch.long), norm_mode="gram")
    assert float(got.norm()) <= 1 + 1e-6


def test_the_sum_of_a_bias_alone_is_that_beside_others():
    """torch splits one long sum among threads, and rounds it otherwise than several."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(2**16, generator=generator) * 2.0 ** torch.randint(-60, 60, (2**16,), generator=generator)
    row = torch.cat([half, -half[torch.randperm(2**16, generator=generator)]]).view(1, 1, -1)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        alone, beside = ops.sum_positions(row), ops.sum_positions(torch.cat([row, torch.zeros_like(row)]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone, beside[:1])
