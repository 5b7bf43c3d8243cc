"""Records that no gradient passes through: the distributions of `generate`, by other means."""

import math

import pytest
import torch
from torch import nn

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.models import make_networks, sample_records, sampling
from dpcgan_fast.models.heads import NUMERIC_BINS
from tests.conftest import at_simd_level, available_simd_levels
from tests.models.test_auto import mixed_blocks


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def trained_like(blocks, classes):
    """Networks whose weights say something: of the code, and of the label."""
    nets = make_networks("auto", blocks, classes, seed=0)
    with torch.no_grad():
        for parameter in nets.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded()))
    return nets


def one_hot(drawn, classes):
    return nn.functional.one_hot(drawn, classes).float()


@pytest.mark.parametrize("level", available_simd_levels())
def test_columns_and_labels_go_together_as_in_the_networks_own_draws(level):
    blocks, rows = mixed_blocks(), 20_000
    nets = trained_like(blocks, 2)
    labels = one_hot(torch.arange(rows) % 2, 2)
    sampling._NETS.clear()
    with at_simd_level(level):
        got = sample_records(nets, labels, seeded(1))
    sampling._NETS.clear()
    with torch.no_grad():
        expected = nets.generate(labels, seeded(2))
    assert got.shape == expected.shape
    bins = torch.arange(NUMERIC_BINS)
    for own in (labels[:, 0] == 1, labels[:, 1] == 1):
        kinds = [(got[own], expected[own])]
        kinds += [
            tuple(((side[own, at, None] * NUMERIC_BINS).long() == bins).float() for side in (got, expected))
            for at in (0, 1)
        ]
        kinds += [tuple((side[own, :, None] * side[own, None, :]).flatten(1) for side in (got, expected))]
        for a, b in kinds:
            error = ((a.var(0) + b.var(0)) / len(a)).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() <= 5 * error + 1e-6).all()


@pytest.mark.parametrize("columns", [1, 2, 9, 178])
@pytest.mark.parametrize("rows", [0, 1, 300])
def test_any_width_and_number_of_rows(columns, rows):
    blocks = [Block("numeric" if i % 2 else "binary", f"x{i}", i, 1) for i in range(columns)]
    records = sample_records(make_networks("auto", blocks, 1), torch.ones(rows, 1), seeded())
    assert records.shape == (rows, columns)
    assert ((records >= 0) & (records <= 1)).all()


def test_weights_are_those_of_the_moment_and_nans_are_not_hidden():
    nets = trained_like(mixed_blocks(), 1)
    labels = torch.ones(64, 1)
    before = sample_records(nets, labels, seeded())
    assert torch.equal(sample_records(nets, labels, seeded()), before)
    with torch.no_grad():
        nets.autoencoder.decoder.columns[0].weight.mul_(-3.0)
    assert not torch.equal(sample_records(nets, labels, seeded()), before)
    with torch.no_grad():
        nets.autoencoder.decoder.columns[0].weight.fill_(math.nan)
    assert sample_records(nets, labels, seeded()).isnan().all()


def test_no_gradient_is_recorded():
    assert not sample_records(trained_like(mixed_blocks(), 1), torch.ones(3, 1), seeded()).requires_grad


def test_the_reference_back_end_and_other_presets_take_the_networks_own_draws(monkeypatch):
    nets, labels = trained_like(mixed_blocks(), 1), torch.ones(5, 1)
    monkeypatch.setenv("DPCGAN_BACKEND", "reference")
    assert torch.equal(sample_records(nets, labels, seeded()), nets.generate(labels, seeded()))
    monkeypatch.undo()
    published = make_networks("rdpcgan-uci", [Block("numeric", "x", 0, 179)], 1, seed=0).eval()
    none = torch.zeros(5, 0)
    assert torch.equal(sample_records(published, none, seeded()), published.generate(none, seeded()))
