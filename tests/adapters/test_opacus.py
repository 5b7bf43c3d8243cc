"""Opacus's loops with the import changed: the same steps, the same epsilon, and the bound on what a row adds."""

import math

import opacus
import pytest
import torch
from opacus.schedulers import StepNoise
from torch import nn

from dpcgan_fast.adapters.opacus import BatchMemoryManager, DPOptimizer, GradSampleModule, PrivacyEngine
from dpcgan_fast.adapters.opacus.batches import SecurePoissonBatches
from tests.adapters.loops import BATCH, NETS, ROWS, data, net, private, train, vector

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Opacus warns of its own noise and hooks
CLIP = 0.3


def bounds(module, clipping):
    return [0.1] * len(list(module.parameters())) if clipping == "per_layer" else CLIP


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("clipping", ["flat", "per_layer"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_epoch_moves_the_parameters_as_opacus_does(name, clipping, reduction):
    moved = []
    for engine in (PrivacyEngine(), opacus.PrivacyEngine()):
        module = net(name)
        made = private(
            engine, module, clipping=clipping, max_grad_norm=bounds(module, clipping), loss_reduction=reduction
        )
        train(*made, reduction)
        moved.append(vector(module) - vector(net(name)))
    assert moved[1].norm() > 1e-3
    torch.testing.assert_close(*moved, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("accountant", ["rdp", "gdp", "prv"])
def test_epsilon_is_that_of_opacus(accountant):
    spent = []
    for kind in (PrivacyEngine, opacus.PrivacyEngine):
        engine = kind(accountant=accountant)
        train(*private(engine, net(), noise_multiplier=1.3, poisson_sampling=True))
        spent.append(engine.get_epsilon(1e-5))
    assert spent[0] == spent[1] > 0


def test_make_private_with_epsilon_finds_opacuss_noise():
    found = []
    for engine in (PrivacyEngine(), opacus.PrivacyEngine()):
        module = net()
        _, optimizer, _ = engine.make_private_with_epsilon(
            module=module, optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
            data_loader=torch.utils.data.DataLoader(data(), batch_size=BATCH), target_epsilon=3.0, target_delta=1e-5,
            epochs=2, max_grad_norm=CLIP,
        )  # fmt: skip
        found.append(optimizer.noise_multiplier)
    assert found[0] == found[1]


def test_virtual_batches_are_one_batch():
    """A mean over a part has the part's own rows, so each row is scaled by them."""
    whole, parts = net(), net()
    train(*private(PrivacyEngine(), whole))
    module, optimizer, loader = private(PrivacyEngine(), parts)
    with BatchMemoryManager(data_loader=loader, max_physical_batch_size=5, optimizer=optimizer) as pieces:
        train(module, optimizer, pieces)
    torch.testing.assert_close(vector(parts), vector(whole), rtol=1e-5, atol=1e-6)


def test_removing_a_row_moves_the_sum_by_at_most_the_bound():
    module = GradSampleModule(net(), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=CLIP, expected_batch_size=1,
        loss_reduction="sum",
    )  # fmt: skip
    x, y = data().tensors
    x = 100 * x

    def clipped_sum(rows):
        optimizer.zero_grad()
        nn.CrossEntropyLoss(reduction="sum")(module(x[rows]), y[rows]).backward()
        optimizer.clip_and_accumulate()
        return torch.cat([optimizer._sums[p].flatten() for p in module.parameters()])

    every = clipped_sum(list(range(ROWS)))
    for out in range(0, ROWS, 5):
        rest = clipped_sum([row for row in range(ROWS) if row != out])
        assert (every - rest).norm() <= CLIP * (1 + 1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_noise_has_the_standard_deviation_that_is_accounted(reduction):
    module = GradSampleModule(nn.Linear(400, 500), loss_reduction=reduction)
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=1.5, max_grad_norm=2.0, expected_batch_size=8,
        loss_reduction=reduction,
    )  # fmt: skip
    before = vector(module)
    module(torch.rand(4, 400)).sum().mul(0.0).backward()
    optimizer.step()
    std = 1.5 * 2.0 / (8 if reduction == "mean" else 1)
    noise = (vector(module) - before) / std
    assert float(noise.std()) == pytest.approx(1.0, abs=0.01)  # 200,500 draws: six standard errors
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.014)


def test_noise_is_secret_unless_a_generator_is_given():
    def noise(seed):
        torch.manual_seed(7)
        module = net()
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        train(*private(PrivacyEngine(), module, noise_multiplier=1.0, noise_generator=generator))
        return vector(module)

    assert not torch.equal(noise(None), noise(None)), "the global seed must not decide it"
    assert torch.equal(noise(3), noise(3))
    assert not torch.equal(noise(3), noise(4))


@pytest.mark.parametrize("generator", [torch.Generator(), torch.default_generator], ids=["own", "torch's"])
def test_a_generator_may_be_seeded_until_noise_is_first_drawn(generator):
    def noise():
        module = net()
        made = private(PrivacyEngine(), module, noise_multiplier=1.0, noise_generator=generator)
        generator.manual_seed(3)
        train(*made)
        return vector(module)

    assert torch.equal(noise(), noise())


def test_poisson_draws_are_secret_unless_a_generator_is_given():
    def draws(seed):
        torch.manual_seed(7)
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        _, _, loader = private(
            PrivacyEngine(), net(), noise_multiplier=1.0, poisson_sampling=True,
            noise_generator=generator,
        )  # fmt: skip
        torch.manual_seed(7)
        return [*loader.batch_sampler, *loader.batch_sampler]

    assert draws(None) != draws(None), "the global seed must not decide them"
    assert draws(3) == draws(3)
    once = draws(None)
    assert len({tuple(batch) for batch in once}) == len(once), "an epoch does not repeat another"


def test_secure_draws_have_the_sample_rate():
    sampler = SecurePoissonBatches(10_000, 0.1, 20)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 20
    taken = sum(len(batch) for batch in batches)
    assert taken == pytest.approx(20_000, abs=6 * math.sqrt(20 * 10_000 * 0.1 * 0.9))
    assert all(0 <= row < 10_000 for batch in batches for row in batch)


def test_an_empty_batch_is_a_step_of_noise():
    module, optimizer, _ = private(PrivacyEngine(), net(), noise_multiplier=1.0)
    before = vector(module)
    x, y = data().tensors
    nn.CrossEntropyLoss(reduction="sum")(module(x[:0]), y[:0]).backward()
    optimizer.step()
    assert bool((vector(module) != before).all())


def test_checkpoints_go_on_where_they_were(tmp_path):
    engine = PrivacyEngine()
    module, optimizer, loader = private(engine, net(), noise_multiplier=1.0)
    train(module, optimizer, loader)
    engine.save_checkpoint(path=tmp_path / "checkpoint", module=module, optimizer=optimizer)
    again = PrivacyEngine()
    other, other_optimizer, _ = private(again, net(), noise_multiplier=1.0)
    again.load_checkpoint(path=tmp_path / "checkpoint", module=other, optimizer=other_optimizer)
    assert torch.equal(vector(other), vector(module))
    assert again.get_epsilon(1e-5) == engine.get_epsilon(1e-5)


def test_schedulers_of_opacus_move_the_noise():
    module, optimizer, loader = private(PrivacyEngine(), net(), noise_multiplier=2.0)
    scheduler = StepNoise(optimizer, step_size=1, gamma=0.5)
    train(module, optimizer, loader)
    scheduler.step()
    assert optimizer.noise_multiplier == 1.0


class TestAdaptiveClipping:
    SETTINGS = {  # noqa: RUF012
        "clipping": "adaptive", "target_unclipped_quantile": 0.5, "clipbound_learning_rate": 0.5,
        "max_clipbound": 100.0, "min_clipbound": 1e-3, "unclipped_num_std": 5.0,
    }  # fmt: skip

    def test_the_bound_moves_to_the_quantile(self):
        module, optimizer, loader = private(PrivacyEngine(), net(), max_grad_norm=1e-2, **self.SETTINGS)
        for _ in range(20):
            train(module, optimizer, loader)
        assert 0.05 < optimizer.max_grad_norm < 100

    def test_the_share_is_over_the_public_batch_size(self):
        module, optimizer, _ = private(PrivacyEngine(), net(), max_grad_norm=50.0, **self.SETTINGS)
        x, y = data().tensors
        nn.CrossEntropyLoss()(module(x[:4]), y[:4]).backward()
        optimizer.step()
        share = 0.5 + (4 - 4 / 2) / BATCH  # all four rows are below the bound
        assert optimizer.max_grad_norm == pytest.approx(50 * math.exp(-0.5 * (share - 0.5)))

    def test_gradients_get_the_noise_that_the_count_leaves(self):
        _, optimizer, _ = private(PrivacyEngine(), net(), noise_multiplier=1.0, max_grad_norm=2.0, **self.SETTINGS)
        assert optimizer._noise_std() == pytest.approx(2.0 / math.sqrt(1 - 1 / 100))


def test_per_sample_gradients_are_there_for_code_that_reads_them():
    ours, theirs = GradSampleModule(net(), grad_samples=True), opacus.GradSampleModule(net())
    x, y = data().tensors
    for module in (ours, theirs):
        nn.CrossEntropyLoss()(module(x), y).backward()
    for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(own.grad_sample, other.grad_sample, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_a_module_may_stay_unwrapped(name):
    wrapped, plain = net(name), net(name)
    train(*private(PrivacyEngine(), wrapped))
    hooks, optimizer, loader = private(PrivacyEngine(), plain, wrap_model=False)
    train(plain, optimizer, loader)
    torch.testing.assert_close(vector(plain), vector(wrapped))
    hooks.cleanup()
    assert "forward" not in vars(plain)
    optimizer.original_optimizer.zero_grad()
    plain(data().tensors[0]).sum().backward()
    assert all(p.grad is not None for p in plain.parameters())


def test_a_trained_parameter_that_the_optimizer_lacks_is_refused():
    module, optimizer, loader = private(PrivacyEngine(), net())
    optimizer.original_optimizer.param_groups[0]["params"].pop()
    with pytest.raises(ValueError, match="Freeze it, or add it"):
        train(module, optimizer, loader)
    assert optimizer._sums == {}, "given again, rows that are in the sums would count twice"


@pytest.mark.parametrize("noise_multiplier", [-1.0, math.nan, math.inf])
@pytest.mark.parametrize("clipping", ["flat", "adaptive"])
def test_noise_multipliers_that_would_pass_for_none_are_refused(noise_multiplier, clipping):
    settings = TestAdaptiveClipping.SETTINGS if clipping == "adaptive" else {}
    with pytest.raises(ValueError, match=f"Expected a finite noise_multiplier={noise_multiplier} >= 0"):
        private(PrivacyEngine(), net(), noise_multiplier=noise_multiplier, **settings)
    module, optimizer, loader = private(PrivacyEngine(), net(), noise_multiplier=1.0, **settings)
    optimizer.noise_multiplier = noise_multiplier  # as a scheduler sets it
    before = vector(module)
    with pytest.raises(ValueError, match="Expected a finite noise_multiplier"):
        train(module, optimizer, loader)
    assert torch.equal(vector(module), before)


def test_one_bound_for_all_parameters_is_no_per_layer_clipping():
    with pytest.raises(ValueError, match=r"one bound a trained parameter, got 0\.3"):
        private(PrivacyEngine(), net(), clipping="per_layer", max_grad_norm=0.3)


def test_a_forward_in_eval_mode_is_said_to_be_missing():
    module, optimizer, loader = private(PrivacyEngine(), net())
    module.eval()
    with pytest.raises(ValueError, match="Call the model in train mode"):
        train(module, optimizer, loader)


def test_layers_may_be_frozen_between_steps():
    module, optimizer, loader = private(PrivacyEngine(), net())
    train(module, optimizer, loader)
    first = next(module.parameters())
    first.requires_grad_(False)
    before = first.detach().clone()
    train(module, optimizer, loader)
    assert torch.equal(first, before)


def test_evaluation_and_no_grad_run_the_module_as_it_is():
    module, _, _ = private(PrivacyEngine(), net())
    x = data().tensors[0]
    with torch.no_grad():
        assert torch.equal(module(x), module._module(x))
    module.eval()
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    assert module.waiting == 0


def assert_sums_of_opacus(build, x, batch_first):
    """That the clipped sum over the rows of x is Opacus's."""
    sums = []
    for wrap, optimize in (
        (GradSampleModule, DPOptimizer),
        (opacus.GradSampleModule, opacus.optimizers.DPOptimizer),
    ):
        module = wrap(build(), batch_first=batch_first, loss_reduction="sum")
        optimizer = optimize(
            torch.optim.SGD(module.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=CLIP,
            expected_batch_size=6, loss_reduction="sum",
        )  # fmt: skip
        module(x).square().sum().backward()
        optimizer.clip_and_accumulate()
        sums.append(torch.cat([p.summed_grad.flatten() for p in module.parameters()]))
    torch.testing.assert_close(*sums, rtol=1e-4, atol=1e-5)


class Pair(nn.Module):
    """A layer of one's own without a rule, over sequences whose rows come second, (T, B, F)."""

    def __init__(self):
        super().__init__()
        self.mix, self.bias = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(4))

    def forward(self, x):
        return torch.cumsum(x @ self.mix, 0) + self.bias


@pytest.mark.parametrize("length", [3, 6])
def test_rows_may_be_the_second_dimension(length):
    """Also where there are as many positions as rows, so that no shape tells which is which."""

    def build():
        torch.manual_seed(4)
        return nn.Sequential(nn.Embedding(9, 4), Pair(), nn.LayerNorm(4), nn.Linear(4, 2))

    tokens = torch.randint(0, 9, (length, 6))
    assert_sums_of_opacus(build, tokens, batch_first=False)


@pytest.mark.parametrize("kind", [opacus.layers.DPLSTM, opacus.layers.DPGRU, opacus.layers.DPRNN])
@pytest.mark.parametrize("batch_first", [True, False])
def test_opacuss_recurrent_layers(kind, batch_first):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(5)
            self.inner, self.out = kind(4, 5, num_layers=2, batch_first=batch_first), nn.Linear(5, 2)

        def forward(self, x):
            return self.out(self.inner(x)[0])

    x = torch.randn(6, 3, 4) if batch_first else torch.randn(3, 6, 4)
    assert_sums_of_opacus(Last, x, batch_first)
