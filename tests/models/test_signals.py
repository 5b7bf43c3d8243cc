"""Networks for records that are one signal: which records have them, and strength and shape apart."""

import math

import pytest
import torch

from dpcgan_fast.data.blocks import Block
from dpcgan_fast.data.encoding import RecordCodec
from dpcgan_fast.data.schema import LEAST_SIGNAL
from dpcgan_fast.engine import PrivateStep, refuse_mixing_modules
from dpcgan_fast.models import AutoNetworks, make_networks
from dpcgan_fast.models.signals import SHAPE_DIM, SignalNetworks, strengths_of
from tests.tables import make_schema, schema_values, signal_schema

LENGTHS = [LEAST_SIGNAL, 33, 178, 187, 1000]


def signal(length):
    return [Block("numeric", f"X{i}", i, 1, sample=True) for i in range(length)]


def networks_of(length=40, classes=2):
    made = make_networks("auto", signal(length), classes, seed=0)
    assert isinstance(made, SignalNetworks)
    return made


def labels_of(rows, classes=2):
    return torch.eye(classes)[torch.arange(rows) % classes]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def levels_of(records):
    """Logarithms of the strengths, for bounds of which half the width is 1."""
    return strengths_of(2 * records.detach() - 1)[0].log().squeeze(1)


class TestWhichRecords:
    def networks(self, schema):
        codec = RecordCodec(schema)
        return type(make_networks("auto", codec.blocks, codec.n_classes))

    @pytest.mark.parametrize("samples", [LEAST_SIGNAL, 178])
    def test_one_signal_and_its_label(self, samples):
        assert self.networks(signal_schema(samples)) is SignalNetworks

    def test_one_signal_alone(self):
        signals = [{"name": "eeg", "columns": ["X1", "...", "X40"], "bounds": [0, 1]}]
        assert self.networks(make_schema(label=None, columns=[], signals=signals)) is SignalNetworks

    def test_not_a_signal_that_is_short(self):
        assert self.networks(signal_schema(LEAST_SIGNAL - 1)) is AutoNetworks

    def test_not_a_signal_beside_a_column(self):
        signals = [{"name": "eeg", "columns": ["X1", "...", "X40"], "bounds": [0, 1]}]
        assert self.networks(make_schema(signals=signals)) is AutoNetworks

    def test_not_two_signals(self):
        names = [["X1", "...", "X40"], ["Z1", "...", "Z40"]]
        signals = [{"name": own[0], "columns": own, "bounds": [0, 1]} for own in names]
        columns = [schema_values()["columns"][-1]]
        assert self.networks(make_schema(columns=columns, signals=signals)) is AutoNetworks


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_any_length_and_number_of_classes(length, classes):
    nets, labels = networks_of(length, classes), labels_of(3, classes)
    records = nets.generate(labels, seeded())
    assert records.shape == (3, length)
    assert ((records >= 0) & (records <= 1)).all()
    assert nets.critic(records, labels).shape == (3,)
    losses = nets.autoencoder_loss(nets.autoencoder(records, labels, nets.autoencoder_noise(3, seeded())), records)
    assert losses.shape == (3,)
    assert losses.isfinite().all()


def test_no_module_that_sees_data_mixes_rows_and_every_layer_has_a_rule():
    nets, records, labels, noise = networks_of(), torch.rand(5, 40), labels_of(5), torch.randn(5, SHAPE_DIM)
    for module, loss in (
        (nets.autoencoder, lambda step: nets.autoencoder_loss(step(records, labels, noise), records)),
        (nets.critic, lambda step: step(records, labels)),
    ):
        refuse_mixing_modules(module)
        step = PrivateStep(module, torch.optim.SGD(module.parameters(), 0.1), 1.0, 1.0, 5.0)
        step.backward(loss(step))
        assert "torch.func" not in str(step.last)


def test_strength_and_shape_are_a_record_taken_apart():
    values = torch.randn(6, 40) * torch.logspace(-2, 0, 6).unsqueeze(1)
    strengths, shapes = strengths_of(values)
    assert torch.allclose(strengths * shapes, values)
    assert torch.allclose(shapes.square().mean(1), torch.ones(6), atol=2e-3)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_a_flat_record_has_finite_losses_and_gradients(value):
    nets, records, labels = networks_of(), torch.full((2, 40), value), labels_of(2)
    records.requires_grad_()
    nets.critic(records, labels).sum().backward()
    assert records.grad is not None
    assert records.grad.isfinite().all()
    output = nets.autoencoder(records, labels, torch.zeros(2, SHAPE_DIM))
    nets.autoencoder_loss(output, records).sum().backward()
    assert all(p.grad.isfinite().all() for p in (*nets.autoencoder.parameters(), *nets.critic.parameters())
               if p.grad is not None)  # fmt: skip


def test_first_records_are_spread_about_the_middle_of_the_range_of_strengths_whatever_the_label():
    """Half the width of the bounds over 400, up to half the width: public."""
    nets, rows = networks_of(), 4000
    levels = levels_of(nets.generate(labels_of(rows), seeded()))
    for own in (levels[::2], levels[1::2]):
        assert float(own.mean()) == pytest.approx(-math.log(400) / 2, abs=0.1)
        assert float(own.std()) == pytest.approx(math.log(400) / 6, rel=0.1)


def test_the_label_moves_the_strength_by_its_own_distribution():
    nets, rows = networks_of(), 4000
    with torch.no_grad():
        # (mean, logarithm of the deviation) x K
        nets.autoencoder.decoder.level.weight.copy_(torch.tensor([[0.0, 0.5], [0.0, -1.0]]))
    levels = levels_of(nets.generate(labels_of(rows), seeded()))
    assert float(levels[1::2].mean() - levels[::2].mean()) == pytest.approx(0.5 * math.log(400) / 2, abs=0.1)
    assert float(levels[1::2].std()) == pytest.approx(float(levels[::2].std()) / math.e, rel=0.1)


def test_the_autoencoder_learns_the_strengths_of_each_label():
    nets, labels = networks_of(), labels_of(256)
    wanted = torch.tensor([-5.0, -2.0])
    values = torch.randn(256, 40, generator=seeded()) * torch.exp(labels @ wanted).unsqueeze(1)
    records = (values.clamp(-1, 1) + 1) / 2
    optimizer = torch.optim.Adam(nets.autoencoder.parameters(), 2e-2)
    for _ in range(150):
        optimizer.zero_grad()
        output = nets.autoencoder(records, labels, nets.autoencoder_noise(256, seeded()))
        nets.autoencoder_loss(output, records).mean().backward()
        optimizer.step()
    drawn = levels_of(nets.generate(labels, seeded(1)))
    assert float(drawn[::2].mean()) == pytest.approx(-5.0, abs=0.3)
    assert float(drawn[1::2].mean()) == pytest.approx(-2.0, abs=0.3)


def test_records_of_one_label_and_code_differ_by_noise():
    """A classifier tells rows without it from real ones at once."""
    nets = networks_of()
    codes, labels = torch.zeros(2, 1 + SHAPE_DIM), torch.eye(2)[[0, 0]]
    first, second = nets.decode(codes, labels, seeded())
    assert not torch.allclose(first, second)
    assert float(levels_of(first.unsqueeze(0))) == pytest.approx(float(levels_of(second.unsqueeze(0))), abs=1e-3)
