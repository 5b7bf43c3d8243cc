"""A WGAN in Opacus's API: a critic and a generator, several backward passes, what each is charged for; and misuse."""

import opacus
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpcgan_fast.adapters.opacus import DPOptimizer, GradSampleModule, PrivacyEngine
from tests.adapters.loops import vector
from tests.engine.nets import clipped_sum_by_microbatches

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Opacus warns of its own noise and hooks
CLIP, BATCH = 0.3, 8


def critic():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv1d(1, 6, 4, 2), nn.GroupNorm(2, 6), nn.LeakyReLU(0.2), nn.Conv1d(6, 1, 4), nn.Flatten())


def generator():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(3, 10), nn.Unflatten(1, (1, 10)))


def rows(count, seed):
    return torch.rand(count, 1, 10, generator=torch.Generator().manual_seed(seed))


def wrapped(noise_multiplier=0.0):
    module = GradSampleModule(critic())
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=noise_multiplier, max_grad_norm=CLIP,
        expected_batch_size=BATCH,
    )  # fmt: skip
    return module, optimizer


def microbatch_sum(x, sign):
    """The clipped sum over rows of the critic's gradients, by micro-batches in double."""
    total = clipped_sum_by_microbatches(critic(), x, CLIP)
    return sign * torch.cat([part.flatten() for part in total.values()])


def taken(optimizer, module):
    optimizer.clip_and_accumulate()
    sums = torch.cat([optimizer._sums[p].flatten() for p in module.parameters()])
    optimizer.zero_grad()
    return sums


def test_each_backward_pass_is_a_batch_of_its_own():
    module, optimizer = wrapped()
    real, fake = rows(BATCH, 0), rows(5, 1)
    (-module(real).mean()).backward()
    module(fake).mean().backward()
    expected = microbatch_sum(real, -1) + microbatch_sum(fake, 1)
    torch.testing.assert_close(taken(optimizer, module), expected, rtol=1e-4, atol=1e-6)


def test_forwards_of_one_loss_are_the_same_rows_and_add_before_they_are_clipped():
    module, optimizer = wrapped()
    real, fake = rows(BATCH, 0), rows(BATCH, 1)
    (module(fake).mean() - module(real).mean()).backward()
    theirs = opacus.GradSampleModule(critic())
    other = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(theirs.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=CLIP,
        expected_batch_size=BATCH,
    )  # fmt: skip
    (theirs(fake).mean() - theirs(real).mean()).backward()
    other.clip_and_accumulate()
    expected = torch.cat([p.summed_grad.flatten() for p in theirs.parameters()]).double()
    torch.testing.assert_close(taken(optimizer, module), expected, rtol=1e-4, atol=1e-6)


def test_forwards_of_different_numbers_of_rows_share_no_loss():
    module, _ = wrapped()
    with pytest.raises(ValueError, match="different numbers of rows"):
        (module(rows(4, 1)).mean() - module(rows(5, 0)).mean()).backward()


def test_the_generator_learns_through_the_critic_as_in_plain_pytorch():
    module, optimizer = wrapped()
    own, plain = generator(), generator()
    latent = torch.rand(4, 3)
    (-module(own(latent)).mean()).backward()
    (-critic()(plain(latent)).mean()).backward()
    for a, b in zip(own.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert all(p.grad is None for p in module.parameters())
    optimizer.zero_grad()
    assert module.waiting == 0, "what the generator's pass left is dropped"


def test_a_frozen_critic_is_only_passed_through():
    module, _ = wrapped()
    module.requires_grad_(False)
    own = generator()
    module(own(torch.rand(4, 3))).mean().backward()
    assert module.waiting == 0
    assert all(p.grad is not None for p in own.parameters())


def train_wgan(engine, mark_fakes=False, steps=6, **settings):
    """A WGAN as users write it for Opacus; the critic is the only part that is private."""
    module, made = critic(), generator()
    loader = DataLoader(TensorDataset(rows(40, 0)), batch_size=BATCH)
    module, optimizer, loader = engine.make_private(
        module=module, optimizer=torch.optim.RMSprop(module.parameters(), lr=1e-3), data_loader=loader,
        noise_multiplier=1.0, max_grad_norm=CLIP, **settings,
    )  # fmt: skip
    generator_optimizer = torch.optim.RMSprop(made.parameters(), lr=1e-3)
    left = steps
    while left > 0:
        for (real,) in loader:
            left -= 1
            optimizer.zero_grad()
            (-module(real).sum() / max(len(real), 1)).backward()
            fake = made(torch.randn(BATCH, 3)).detach()
            if mark_fakes:
                with module.public_rows():
                    scores = module(fake)
            else:
                scores = module(fake)
            scores.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            generator_optimizer.zero_grad()
            (-module(made(torch.randn(BATCH, 3))).mean()).backward()
            generator_optimizer.step()
    return module, made


@pytest.mark.parametrize("poisson_sampling", [True, False])
def test_a_wgan_trains_with_several_backward_passes_a_step(poisson_sampling):
    module, made = train_wgan(PrivacyEngine(), poisson_sampling=poisson_sampling)
    assert (vector(module) - vector(critic())).norm() > 1e-3
    assert (vector(made) - vector(generator())).norm() > 1e-4
    assert bool(torch.isfinite(vector(module)).all())


def test_opacus_itself_refuses_it():
    with pytest.raises(ValueError, match="Poisson sampling is not compatible"):
        train_wgan(opacus.PrivacyEngine(), poisson_sampling=True)


def test_two_private_passes_are_charged_as_twice_the_sensitivity_and_marked_fakes_as_none():
    twice, once = PrivacyEngine(accountant="rdp"), PrivacyEngine(accountant="rdp")
    train_wgan(twice, steps=5)
    train_wgan(once, mark_fakes=True, steps=5)
    assert {noise for noise, _, _ in twice.accountant.history} == {0.5}
    assert {noise for noise, _, _ in once.accountant.history} == {1.0}
    assert twice.get_epsilon(1e-5) > once.get_epsilon(1e-5)


def test_marked_rows_are_clipped_averaged_and_get_no_noise():
    module, optimizer = wrapped()
    real, fake = rows(BATCH, 0), rows(5, 1)
    before = vector(module).double()
    (-module(real).mean()).backward()
    with module.public_rows():
        scores = module(fake)
    scores.mean().backward()
    optimizer.step()
    expected = microbatch_sum(real, -1) / BATCH + microbatch_sum(fake, 1) / 5
    torch.testing.assert_close(before - vector(module).double(), expected, rtol=1e-3, atol=1e-6)


def test_removing_a_row_moves_a_marked_gans_sum_by_at_most_the_bound():
    module, optimizer = wrapped()
    real = 50 * rows(BATCH, 0)

    def total(kept):
        (-module(kept).sum() / len(kept)).backward()
        with module.public_rows():
            scores = module(rows(5, 1))
        scores.mean().backward()
        return taken(optimizer, module)

    every = total(real)
    for out in range(BATCH):
        assert (every - total(torch.cat([real[:out], real[out + 1 :]]))).norm() <= CLIP * (1 + 1e-6)


class TestMisuse:
    def test_a_second_backward_through_a_forward(self):
        module, _ = wrapped()
        loss = module(rows(4, 0)).mean()
        loss.backward(retain_graph=True)
        with pytest.raises(ValueError, match="second backward through the same forward"):
            loss.backward()

    def test_a_module_that_mixes_rows(self):
        with pytest.raises(ValueError, match="GroupNorm"):
            GradSampleModule(nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2)), strict=False)

    def test_a_parameter_used_outside_of_the_wrapped_module(self):
        module, _ = wrapped()
        loss = module(rows(4, 0)).mean() + module._module[0].weight.square().sum()
        with pytest.raises(ValueError, match=r"'0.weight' was used outside"):
            loss.backward()

    def test_a_parameter_that_moved_between_backward_and_step(self):
        module, optimizer = wrapped()
        module(rows(4, 0)).mean().backward()
        with torch.no_grad():
            module._module[0].weight.mul_(2)
        with pytest.raises(ValueError, match="changed between backward and step"):
            optimizer.step()

    def test_an_input_that_changed_between_forward_and_backward(self):
        module, optimizer = wrapped()
        x = rows(4, 0)
        loss = module(x).mean()
        x.mul_(2)
        loss.backward()
        with pytest.raises(ValueError, match="changed in place"):
            optimizer.step()

    def test_rows_that_the_module_loses_on_the_way(self):
        class Halved(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(10, 1)

            def forward(self, x):
                return self.inner(x.flatten(1)[::2])

        with pytest.raises(ValueError, match="mixes rows"):
            GradSampleModule(Halved())(rows(8, 0))

    def test_a_step_without_a_backward(self):
        with pytest.raises(ValueError, match="not initialized"):
            wrapped()[1].step()

    def test_gradients_that_were_not_cleared(self):
        module, optimizer = wrapped()
        module(rows(4, 0)).mean().backward()
        optimizer.step()
        module(rows(4, 0)).mean().backward()
        with pytest.raises(ValueError, match="zero_grad"):
            optimizer.step()

    def test_a_gradient_penalty(self):
        module, _ = wrapped()
        x = rows(4, 0).requires_grad_()
        with pytest.raises(ValueError, match="dp_grad"):
            torch.autograd.grad(module(x).sum(), x, create_graph=True)

    def test_a_compiled_module(self):
        with pytest.raises(ValueError, match="compiled"):
            GradSampleModule(torch.compile(critic()))

    def test_a_module_that_opacus_has_wrapped(self):
        module = opacus.GradSampleModule(critic())
        with pytest.raises(ValueError, match=r"vanilla nn\.Module"):
            PrivacyEngine().make_private(
                module=module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=1.0,
                data_loader=DataLoader(TensorDataset(rows(8, 0)), batch_size=4), max_grad_norm=1.0,
            )  # fmt: skip
