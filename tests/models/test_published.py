"""The published presets: layer sizes, parameter counts, and where BatchNorm may stand."""

import pytest
import torch
from torch import nn

from dpcgan_fast import PrivateStep
from dpcgan_fast.data.blocks import Block
from dpcgan_fast.engine import refuse_mixing_modules
from dpcgan_fast.errors import InputError
from dpcgan_fast.models import is_conditional, make_networks
from dpcgan_fast.models.published import CRITIC_CLAMP, MIMIC, UCI, PublishedNetworks


def blocks(length):
    return [Block("numeric", f"x{i}", i, 1) for i in range(length)]


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def shapes(stack, kind):
    """(in, out, kernel, stride, padding) of each convolution."""
    return [
        (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0])
        for m in stack.modules()
        if isinstance(m, kind)
    ]


@pytest.mark.parametrize(
    ("spec", "autoencoder", "generator", "critic"), [(UCI, 23_617, 43_913, 21_041), (MIMIC, 135_809, 44_037, 87_217)]
)
def test_parameter_counts(spec, autoencoder, generator, critic):
    nets = PublishedNetworks(spec)
    counts = parameters(nets.autoencoder), parameters(nets.generator), parameters(nets.critic)
    assert counts == (autoencoder, generator, critic)


def test_layer_sizes_of_the_uci_preset():
    nets = PublishedNetworks(UCI)
    assert shapes(nets.autoencoder, nn.Conv1d) == [
        (1, 4, 5, 2, 0), (4, 8, 5, 2, 0), (8, 16, 5, 3, 0), (16, 32, 5, 3, 0), (32, 64, 3, 1, 0)
    ]  # fmt: skip
    assert shapes(nets.autoencoder, nn.ConvTranspose1d) == [
        (64, 32, 5, 1, 0), (32, 16, 5, 4, 0), (16, 8, 7, 4, 0), (8, 1, 7, 2, 0)
    ]  # fmt: skip
    assert shapes(nets.generator, nn.ConvTranspose1d) == [
        (128, 64, 4, 1, 0), (64, 32, 4, 2, 1), (32, 16, 4, 2, 1), (16, 8, 4, 2, 1), (8, 1, 4, 2, 1)
    ]  # fmt: skip
    assert shapes(nets.critic, nn.Conv1d) == [
        (1, 16, 8, 4, 1), (16, 32, 8, 4, 1), (32, 64, 8, 4, 1), (64, 1, 2, 1, 0)
    ]  # fmt: skip


def test_layer_sizes_of_the_mimic_preset():
    nets = PublishedNetworks(MIMIC)
    assert shapes(nets.autoencoder, nn.Conv1d) == [
        (1, 4, 5, 2, 0), (4, 8, 5, 2, 0), (8, 16, 5, 3, 0), (16, 32, 5, 3, 0), (32, 64, 5, 3, 0), (64, 128, 8, 1, 0)
    ]  # fmt: skip
    assert shapes(nets.autoencoder, nn.ConvTranspose1d) == [
        (128, 64, 5, 1, 0), (64, 32, 5, 4, 0), (32, 16, 7, 4, 0), (16, 8, 7, 3, 0), (8, 4, 7, 2, 0), (4, 1, 3, 2, 0)
    ]  # fmt: skip
    assert shapes(nets.generator, nn.ConvTranspose1d)[-1] == (4, 1, 4, 2, 1)
    assert shapes(nets.critic, nn.Conv1d) == [
        (1, 16, 8, 4, 1), (16, 32, 8, 4, 1), (32, 64, 8, 4, 1), (64, 128, 8, 4, 1), (128, 1, 3, 1, 0)
    ]  # fmt: skip


@pytest.mark.parametrize(("part", "unseen"), [("critic", [175, 176, 177, 178]), ("encoder", [177, 178])])
def test_no_gradient_of_the_uci_preset_reaches_the_label_which_is_the_last_position(part, unseen):
    """Its strides leave out the last positions, as the published ones do: why it draws one class, see bench/README."""
    nets, records = PublishedNetworks(UCI), torch.rand(8, UCI.record_length, requires_grad=True)
    output = nets.critic(records) if part == "critic" else nets.autoencoder.stacks[0](records.unsqueeze(1))
    (gradient,) = torch.autograd.grad(output.sum(), records)
    assert (gradient == 0).all(0).nonzero().flatten().tolist() == unseen


def kinds(module):
    return [type(m).__name__ for m in module.modules() if not list(m.children())]


def test_activations_and_norms_stand_where_the_paper_has_them():
    nets = PublishedNetworks(UCI)
    encoder, decoder = nets.autoencoder.stacks
    norm, leaky = "GroupNorm", "LeakyReLU"
    assert kinds(encoder) == ["Conv1d", leaky, *["Conv1d", norm, leaky] * 3, "Conv1d", "ReLU"]
    up = "ConvTranspose1d"
    assert kinds(decoder) == [up, leaky, *[up, norm, leaky] * 2, up, "Sigmoid"]
    assert kinds(nets.generator) == [*[up, "BatchNorm1d", leaky] * 4, up, "ReLU"]
    assert kinds(nets.critic) == ["Conv1d", leaky, *["Conv1d", norm, leaky] * 2, "Conv1d"]
    mimic = PublishedNetworks(MIMIC)
    assert kinds(mimic.autoencoder.stacks[0])[-1] == "Tanh"
    assert kinds(mimic.autoencoder.stacks[1]) == [up, "ReLU", *[up, norm, "ReLU"] * 4, up, "Sigmoid"]
    assert kinds(mimic.generator)[-1] == "Tanh"
    assert "Sigmoid" not in kinds(mimic.critic), "a Wasserstein critic is not bounded"


@pytest.mark.parametrize("spec", [UCI, MIMIC])
def test_group_norms_have_the_stated_groups(spec):
    nets = PublishedNetworks(spec)
    for module in (*nets.autoencoder.modules(), *nets.critic.modules()):
        if isinstance(module, nn.GroupNorm):
            assert module.num_groups == max(1, min(8, module.num_channels // 4))
            assert module.eps == 1e-5
    for module in nets.generator.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert (module.eps, module.momentum) == (1e-4, 0.01)


@pytest.mark.parametrize("spec", [UCI, MIMIC])
def test_batch_norm_stands_in_the_generator_alone(spec):
    nets = PublishedNetworks(spec)
    refuse_mixing_modules(nets.autoencoder)
    refuse_mixing_modules(nets.critic)
    with pytest.raises(ValueError, match="mixes rows"):
        refuse_mixing_modules(nets.generator)


@pytest.mark.parametrize(("preset", "length"), [("rdpcgan-uci", 179), ("rdpcgan-mimic", 1071)])
def test_shapes_from_records_to_records(preset, length):
    nets = make_networks(preset, blocks(length), 1)
    randomness = torch.Generator().manual_seed(0)
    records, labels = torch.rand(3, length), torch.zeros(3, 0)
    output = nets.autoencoder(records, labels, nets.autoencoder_noise(3, randomness))
    assert output.shape == (3, length)
    assert nets.autoencoder_loss(output, records).shape == (3,)
    assert nets.critic(records, labels).shape == (3,)
    fakes = nets.generate(labels, randomness)
    assert fakes.shape == (3, length)
    assert ((fakes >= 0) & (fakes <= 1)).all()
    assert not is_conditional(preset)


def test_the_losses_are_summed_over_features():
    uci, mimic = PublishedNetworks(UCI), PublishedNetworks(MIMIC)
    half = torch.full((2, 10), 0.5)
    assert uci.autoencoder_loss(half, torch.ones(2, 10)).tolist() == pytest.approx([2.5, 2.5])
    assert mimic.autoencoder_loss(half, torch.ones(2, 10)).tolist() == pytest.approx([6.931472, 6.931472])


@pytest.mark.parametrize("momentum", [0.0, 0.9], ids=["one pass", "the optimizer's own step"])
def test_a_step_clamps_convolution_weights_and_biases_only(momentum):
    nets = PublishedNetworks(UCI)
    for parameter in nets.critic.parameters():
        nn.init.constant_(parameter, 5.0)
    optimizer = torch.optim.SGD(nets.critic.parameters(), 1e-3, momentum=momentum, nesterov=momentum > 0)
    step = PrivateStep(nets.critic, optimizer, 1.0, 1.0, 1.0, clamp=nets.critic_clamp)
    step.step()  # an empty batch: noise alone
    for module in nets.critic.modules():
        if isinstance(module, nn.Conv1d):
            assert module.weight.abs().max() <= CRITIC_CLAMP
            assert module.bias.abs().max() <= CRITIC_CLAMP
        elif isinstance(module, nn.GroupNorm):
            assert (module.weight - 5.0).abs().max() < 0.1


def test_a_clamp_of_parameters_that_the_step_does_not_train_is_refused():
    nets = PublishedNetworks(UCI)
    optimizer = torch.optim.SGD(nets.critic.parameters(), 1e-3)
    with pytest.raises(ValueError, match="clamp"):
        PrivateStep(nets.critic, optimizer, 1.0, 1.0, 1.0, clamp={nn.Parameter(torch.ones(1)): 1.0})


@pytest.mark.parametrize("preset", ["rdpcgan-uci", "rdpcgan-mimic"])
def test_a_record_of_another_length_is_refused(preset):
    with pytest.raises(InputError, match=r"takes records of length .* but the schema gives 20"):
        make_networks(preset, blocks(20), 1)


@pytest.mark.parametrize("spec", [UCI, MIMIC])
def test_decoding_is_the_autoencoders_own_second_half_with_its_activation(spec):
    """Records that are sampled take the path that was trained."""
    nets = PublishedNetworks(spec)
    records, labels = torch.rand(3, spec.record_length), torch.zeros(3, 0)
    codes = nets.autoencoder.stacks[0](records.unsqueeze(1))
    decoded = nets.decode(codes, labels, torch.Generator())
    assert torch.equal(decoded, nets.autoencoder(records, labels))
