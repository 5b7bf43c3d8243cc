"""The published networks by our recipe: which sizes are the published ones, and what each module sees."""

import pytest
import torch
from torch import nn

from dpcgan_fast.bench.paper.recipe import RecipeNetworks, make_recipe
from dpcgan_fast.data.blocks import Block
from dpcgan_fast.engine import PrivateStep, refuse_mixing_modules
from dpcgan_fast.models.published import UCI, PublishedNetworks
from dpcgan_fast.models.signals import STRENGTH_BINS, strengths_of

LENGTH = UCI.record_length - 1


def networks_of(classes=2, length=LENGTH, seed=0):
    return make_recipe("auto", [Block("numeric", f"X{i}", i, 1, sample=True) for i in range(length)], classes, seed)


def labels_of(rows, classes=2):
    return torch.eye(classes)[torch.arange(rows) % classes]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def sizes(module):
    """Shapes of the weights of convolutions."""
    kinds = (nn.Conv1d, nn.ConvTranspose1d)
    return [tuple(m.weight.shape) for m in module.modules() if isinstance(m, kinds)]


def test_convolutions_have_the_published_sizes_and_the_critic_a_score_for_each_class():
    ours, published = networks_of(classes=3), PublishedNetworks(UCI)
    assert sizes(ours.generator.stack) == sizes(published.generator)
    assert sizes(ours.autoencoder.trunk) == sizes(published.autoencoder.stacks[0])
    assert sizes(ours.autoencoder.decoder.stack) == sizes(published.decoder)
    *convolutions, (scores, *inputs) = sizes(published.critic)
    assert sizes(ours.critic.stack) == [*convolutions, (3 * scores, *inputs)]


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_records_and_losses_of_any_number_of_classes(classes):
    nets, labels = networks_of(classes), labels_of(6, classes)
    records = nets.generate(labels, seeded())
    assert records.shape == (6, LENGTH)
    assert ((records >= 0) & (records <= 1)).all()
    assert nets.critic(records, labels).shape == (6,)
    output = nets.autoencoder(records, labels, nets.autoencoder_noise(6, seeded()))
    assert nets.autoencoder_loss(output, records).isfinite().all()


def test_the_critic_never_mixes_rows_and_every_layer_has_a_rule():
    critic = networks_of().critic
    refuse_mixing_modules(critic)
    step = PrivateStep(critic, torch.optim.SGD(critic.parameters(), 0.1), 1.0, 1.0, 5.0)
    step.backward(step(torch.rand(5, LENGTH), labels_of(5)))
    assert "torch.func" not in str(step.last)


def test_the_critic_scores_a_record_by_its_label_which_the_published_one_cannot():
    """The label of the published record is its last position, and its strides leave out the last four."""
    nets, records = networks_of(), torch.rand(8, LENGTH)
    assert not torch.equal(nets.critic(records, labels_of(8)), nets.critic(records, labels_of(8).flip(1)))
    published = torch.rand(8, UCI.record_length, requires_grad=True)
    PublishedNetworks(UCI).critic(published).sum().backward()
    assert published.grad is not None
    unseen = (published.grad == 0).all(0).nonzero().flatten().tolist()
    assert unseen == [175, 176, 177, 178]


def test_the_critic_has_no_opinion_of_strengths_at_first_and_one_for_each_class_later():
    nets, labels = networks_of(), labels_of(8)
    weak = 0.5 + 0.1 * (torch.rand(8, LENGTH, generator=seeded()) - 0.5)
    strong = 0.5 + 5 * (weak - 0.5)
    scores = nets.critic(weak, labels)
    assert torch.allclose(nets.critic(strong, labels), scores, atol=1e-3)
    with torch.no_grad():
        nets.critic.strength.weight[1] = torch.linspace(-1, 1, STRENGTH_BINS)
    change = nets.critic(strong, labels) - nets.critic(weak, labels)
    assert (change[1::2] > 0.1).all()
    assert (change[::2].abs() < 1e-3).all()


def test_a_label_moves_strengths_and_shapes_of_its_rows_alone():
    nets = networks_of().eval()
    with torch.no_grad():
        nets.autoencoder.decoder.level.weight[0, 1] = 0.5
        one, other = (nets.generate(torch.eye(2)[[0, which]], seeded()) for which in (0, 1))
    assert torch.equal(one[0], other[0])
    (weak, shape), (strong, other_shape) = strengths_of(2 * one[1:] - 1), strengths_of(2 * other[1:] - 1)
    assert float(strong) > 2 * float(weak)
    assert float((shape - other_shape).abs().max()) > 1e-3


def test_networks_follow_from_their_seed_and_leave_torchs_random_state_alone():
    before = torch.get_rng_state()
    first, again, other = networks_of(seed=0), networks_of(seed=0), networks_of(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [torch.cat([p.flatten() for p in nets.parameters()]) for nets in (first, again, other)]
    assert isinstance(first, RecipeNetworks)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
