"""What a loop may do with Opacus's API that must not break what is accounted."""

import pytest
import torch
from opacus.distributed import DifferentiallyPrivateDistributedDataParallel
from opacus.schedulers import ExponentialGradClip
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpcgan_fast.adapters.opacus import (
    BatchMemoryManager,
    DPOptimizer,
    DPPerLayerOptimizer,
    GradSampleModule,
    PrivacyEngine,
)
from dpcgan_fast.engine.wrapped import refuse_wrapped_modules

LARGE = torch.full((1, 2), 1000.0)


def made(net, kind=DPOptimizer, max_grad_norm=1.0, **settings):
    module = GradSampleModule(net, loss_reduction="sum", **settings)
    optimizer = kind(
        torch.optim.SGD(net.parameters(), lr=1.0), noise_multiplier=1.0, max_grad_norm=max_grad_norm,
        expected_batch_size=1, loss_reduction="sum",
    )  # fmt: skip
    return module, optimizer


def line():
    return nn.Linear(2, 1, bias=False)


def norm_of_sums(optimizer):
    return float(torch.cat([optimizer._sums[p].flatten() for p in optimizer.params]).norm())


class TestGradientsThatAreNotOfThisStep:
    def test_those_of_frozen_layers_move_nothing(self):
        net = nn.Sequential(nn.Linear(2, 2, bias=False), line())
        module, optimizer = made(net)
        module.eval()
        module(LARGE).sum().backward()  # not recorded: it leaves its gradients in .grad
        module.train()
        net[0].requires_grad_(False)
        before = net[0].weight.clone()
        module(LARGE).sum().backward()
        optimizer.step()
        assert torch.equal(net[0].weight, before)

    def test_nor_do_they_where_all_layers_were_frozen_after_the_backward(self):
        net = line()
        module, optimizer = made(net, grad_samples=True)
        module(LARGE).sum().backward()
        net.requires_grad_(False)
        before = net.weight.clone()
        optimizer.step()
        assert torch.equal(net.weight, before)

    def test_no_sum_without_noise_stays_at_a_parameter(self):
        net = line()
        module, optimizer = made(net)
        module(LARGE).sum().backward()
        optimizer.step()
        assert net.weight.summed_grad is None

    def test_without_noise_it_stays_to_be_looked_at_until_gradients_are_cleared(self):
        net = line()
        module, optimizer = made(net)
        optimizer.noise_multiplier = 0.0
        module(LARGE).sum().backward()
        optimizer.step()
        torch.testing.assert_close(net.weight.summed_grad, LARGE / LARGE.norm())
        optimizer.zero_grad()
        assert net.weight.summed_grad is None


class TestMisspeltArguments:
    """Opacus drops them unsaid: what was meant is then not what is trained."""

    def given(self, method="make_private", **settings):
        net = line()
        loader = DataLoader(TensorDataset(torch.rand(8, 2)), batch_size=4)
        optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
        make = getattr(PrivacyEngine(accountant="rdp"), method)
        return make(module=net, optimizer=optimizer, data_loader=loader, max_grad_norm=1.0, **settings)

    @pytest.mark.parametrize(
        ("wrong", "meant"),
        [("noise_multiplyer", "noise_multiplier"), ("poisson_samplng", "poisson_sampling"), ("cliping", "clipping")],
    )
    def test_are_refused_with_the_nearest_that_there_is(self, wrong, meant):
        with pytest.raises(TypeError, match=f"argument '{wrong}'. Did you mean '{meant}'"):
            self.given(**{wrong: 1.0})
        with pytest.raises(TypeError, match=f"argument '{wrong}'"):
            self.given("make_private_with_epsilon", **{wrong: 1.0})

    def test_values_that_opacus_does_not_know_are_refused(self):
        with pytest.raises(ValueError, match=r"grad_sample_mode: 'ghosts'; known are \['hooks', "):
            self.given(noise_multiplier=1.0, grad_sample_mode="ghosts")

    def test_are_refused_by_the_optimizer(self):
        with pytest.raises(TypeError, match="loss_reducton"):
            made(line(), loss_reducton="sum")
        with pytest.raises(TypeError, match="loss_reducton"):
            DPOptimizer(
                torch.optim.SGD(line().parameters()), noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=1,
                loss_reducton="sum",
            )  # fmt: skip

    def test_settings_of_adaptive_clipping_need_adaptive_clipping(self):
        adaptive = {
            "target_unclipped_quantile": 0.5, "clipbound_learning_rate": 0.2, "max_clipbound": 8.0,
            "min_clipbound": 0.1, "unclipped_num_std": 9.0,
        }  # fmt: skip
        assert self.given(noise_multiplier=1.0, clipping="adaptive", **adaptive)[1].target_unclipped_quantile == 0.5
        with pytest.raises(TypeError, match="'target_unclipped_quantile'"):
            self.given(noise_multiplier=1.0, **adaptive)

    def test_settings_of_the_search_for_noise_are_taken_by_that_alone(self):
        budget = {"target_epsilon": 2.0, "target_delta": 1e-3, "epochs": 2}
        noise = [
            self.given("make_private_with_epsilon", epsilon_tolerance=tolerance, alphas=[1.2, 2, 8, 32], **budget)[1]
            for tolerance in (1e-3, 1.0)
        ]
        assert noise[0].noise_multiplier < noise[1].noise_multiplier
        with pytest.raises(TypeError, match="'epsilon_tolerance'"):
            self.given(noise_multiplier=1.0, epsilon_tolerance=1e-3)


def test_rows_given_again_after_an_error_count_once(monkeypatch):
    module, optimizer = made(line())
    take, calls = DPOptimizer._take, []

    def fails_at_the_second(self, batch):
        calls.append(batch)
        if len(calls) == 2:
            raise MemoryError
        take(self, batch)

    monkeypatch.setattr(DPOptimizer, "_take", fails_at_the_second)
    optimizer.signal_skip_step(do_skip=True)
    for _ in range(2):
        module(LARGE).sum().backward()
    with pytest.raises(MemoryError):
        optimizer.step()
    assert optimizer._step_skip_queue == [], "later parts must not be taken for this one"
    module(LARGE).sum().backward()
    optimizer.clip_and_accumulate()
    assert norm_of_sums(optimizer) <= 1 + 1e-6


def test_a_batch_left_half_way_does_not_enter_the_next():
    rows = torch.cat([LARGE, torch.zeros(7, 2)])
    module, optimizer = made(line())
    for parts in (1, 4):
        with BatchMemoryManager(
            data_loader=DataLoader(TensorDataset(rows), batch_size=8), max_physical_batch_size=2, optimizer=optimizer
        ) as loader:
            for part, (x,) in zip(range(parts), loader, strict=False):
                module(x).sum().backward()
                if part == 3:
                    optimizer.clip_and_accumulate()
                    assert norm_of_sums(optimizer) <= 1 + 1e-6
                    break
                optimizer.step()
                optimizer.zero_grad()


def test_a_step_over_several_poisson_draws_is_refused():
    module, optimizer = made(line())
    module.forbid_grad_accumulation()
    optimizer.signal_skip_step(do_skip=True)
    module(LARGE).sum().backward()
    with pytest.raises(ValueError, match="several Poisson draws"):
        optimizer.step()


def test_where_noise_fails_nothing_without_noise_stays(monkeypatch):
    module, optimizer = made(line())
    optimizer.signal_skip_step(do_skip=True)
    module(LARGE).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    module(LARGE).sum().backward()
    optimizer.signal_skip_step(do_skip=False)
    assert all(parameter.summed_grad is not None for parameter in optimizer.params)

    def fails(*_: object):
        raise MemoryError

    monkeypatch.setattr("dpcgan_fast.adapters.opacus.optimizer.noisy_gradients", fails)
    with pytest.raises(MemoryError):
        optimizer.step()
    assert all(parameter.grad is None and parameter.summed_grad is None for parameter in optimizer.params)


class TestClippingNormsThatMove:
    def test_bounds_of_parameters_move_with_the_norm_that_noise_is_for(self):
        module, optimizer = made(nn.Linear(2, 1), DPPerLayerOptimizer, [1.0, 2.0])
        ExponentialGradClip(optimizer, gamma=0.1).step()
        module(LARGE).sum().backward()
        optimizer.clip_and_accumulate()
        assert norm_of_sums(optimizer) <= optimizer._noise_std() * (1 + 1e-6)

    def test_noise_is_for_the_largest_of_the_parts(self):
        module, optimizer = made(line())
        optimizer.signal_skip_step(do_skip=True)
        module(LARGE).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        optimizer.max_grad_norm = 0.01
        module(0 * LARGE).sum().backward()
        optimizer.clip_and_accumulate()
        assert optimizer._noise_std() == 1.0
        optimizer.add_noise()
        assert optimizer._noise_std() == 0.01


class TestSecureMode:
    def loader(self, **settings):
        net = line()
        return PrivacyEngine(secure_mode=True).make_private(
            module=net, optimizer=torch.optim.SGD(net.parameters(), lr=1.0), noise_multiplier=1.0, max_grad_norm=1.0,
            data_loader=DataLoader(TensorDataset(torch.arange(200.0)[:, None]), batch_size=20), **settings,
        )[2]  # fmt: skip

    def test_a_seed_for_the_noise_is_refused(self):
        with pytest.raises(ValueError, match="prohibited in secure mode"):
            self.loader(noise_generator=torch.Generator())


def test_opacuss_distributed_wrapper_is_refused():
    wrapper = DifferentiallyPrivateDistributedDataParallel.__new__(DifferentiallyPrivateDistributedDataParallel)
    nn.Module.__init__(wrapper)
    with pytest.raises(ValueError, match="One process"):
        refuse_wrapped_modules(wrapper)


def test_rows_in_second_place_are_not_mistaken_where_features_are_as_many():
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 4, bias=False)

        def forward(self, x):  # (T, B, 4): rows lead in what the head is given
            return self.head(x.mean(0))

    module = GradSampleModule(Pooled(), loss_reduction="sum", batch_first=False)
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=4
    )
    module(torch.ones(2, 4, 4)).sum().backward()
    with pytest.raises(ValueError, match="rows are the second"):
        optimizer.step()


def test_a_parameter_that_nothing_reached_may_lie_channels_last():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)

        def forward(self, x):
            return self.used(x)

    net = Half().to(memory_format=torch.channels_last)
    module, optimizer = made(net)
    before = net.spare.weight.clone()
    module(torch.rand(3, 2, 5, 5)).sum().backward()
    optimizer.step()
    assert bool((net.spare.weight != before).all())


def test_a_module_that_mixes_rows_is_found_where_it_takes_the_place_of_another_later():
    net = nn.Sequential(nn.Linear(2, 2), nn.Identity(), nn.Linear(2, 1))
    module, _ = made(net)
    module(torch.rand(4, 2))
    net[1] = nn.BatchNorm1d(2, affine=False, track_running_stats=False)
    with pytest.raises(ValueError, match="mixes rows"):
        module(torch.rand(4, 2))
