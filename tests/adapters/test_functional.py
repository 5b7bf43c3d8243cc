"""Clipped sums for torch.func code: against micro-batches in float64, on both paths."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, grad, vmap

from dpcgan_fast.adapters.functional import clip_and_aggregate, dp_grad
from dpcgan_fast.privacy import noise_key
from tests.adapters.losses import assert_near, clipped_by_rows, loss_of, squared_error, values_of
from tests.conftest import examples
from tests.engine.nets import CLIP_SHRINK, NETS, clipped_sum_by_microbatches, flat, row_losses


def linear(outputs=2, features=3, rows=7, dtype=torch.float32):
    params = {"weight": torch.randn(features, outputs, dtype=dtype), "bias": torch.randn(outputs, dtype=dtype)}
    return params, torch.randn(rows, features, dtype=dtype), torch.randn(rows, outputs, dtype=dtype)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("grouped", [False, True])
def test_both_paths_equal_micro_batches(name, grouped):
    build, shape = NETS[name]
    module = build()
    x = torch.randn(6, *shape)
    units = torch.tensor([4, 2, 4, 9, 2, 7]) if grouped else None
    params = values_of(module)
    expected = clipped_sum_by_microbatches(module, x, 0.5, units)
    for given_module, path in ((None, "vmap"), (module, "module")):
        sums, info = dp_grad(loss_of(module), max_grad_norm=0.5, module=given_module)(params, x, units=units)
        assert info.report.path == path, info.report
        assert_near(sums, expected)
        assert all(sums[key].dtype == value.dtype for key, value in params.items())
        torch.testing.assert_close(info.losses, row_losses(module(x)).detach(), rtol=1e-4, atol=1e-4)
        assert info.clip_factor.shape == (4 if grouped else 6,)


@given(
    st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 2, 5, None]),
    st.booleans(), st.sampled_from([0.01, 1.0, 100.0]),
)  # fmt: skip
@settings(max_examples=examples(25))
def test_sums_norms_and_losses_of_any_shape_and_chunk_equal_micro_batches(
    seed, rows, features, outputs, chunk_size, grouped, max_grad_norm
):
    torch.manual_seed(seed)
    params, x, y = linear(outputs, features, rows, torch.float64)
    units = torch.randint(0, 4, (rows,)) if grouped else None
    expected, norms = clipped_by_rows(squared_error, params, list(zip(x, y, strict=True)), max_grad_norm, units)
    sums, info = dp_grad(squared_error, max_grad_norm=max_grad_norm, chunk_size=chunk_size)(params, x, y, units=units)
    assert_near(sums, expected, 1e-9)
    factors = [min(1.0, max_grad_norm * CLIP_SHRINK / norm) for norm in norms]
    assert info.clip_factor.tolist() == pytest.approx(factors, rel=1e-8)
    torch.testing.assert_close(
        info.losses, torch.stack([squared_error(params, *row) for row in zip(x, y, strict=True)])
    )
    grads = vmap(grad(squared_error), in_dims=(None, 0, 0))(params, x, y)
    aggregated, got_norms = clip_and_aggregate(grads, max_grad_norm, units=units)
    assert_near(aggregated, expected, 1e-9)
    assert got_norms.tolist() == pytest.approx(norms, rel=1e-8)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 100])
@pytest.mark.parametrize("on_module", [False, True])
def test_chunks_add_up_to_the_same_sum(chunk_size, on_module):
    build, shape = NETS["conv critic"]
    module = build()
    x, units = torch.randn(7, *shape), torch.tensor([3, 1, 3, 3, 2, 1, 0])
    for given_units in (None, units):
        whole, whole_info = dp_grad(loss_of(module), max_grad_norm=0.5)(values_of(module), x, units=given_units)
        sums, info = dp_grad(
            loss_of(module), max_grad_norm=0.5, chunk_size=chunk_size, module=module if on_module else None
        )(values_of(module), x, units=given_units)
        assert info.report.path == ("module" if on_module else "vmap")
        assert_near(sums, whole)
        torch.testing.assert_close(info.losses, whole_info.losses, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(info.clip_factor, whole_info.clip_factor, rtol=1e-4, atol=1e-6)


def penalised(critic, functional):
    """-critic(x) + 10 (|d critic / dx| - 1)^2 of one row (arXiv 1704.00028)."""

    def with_nested_grad(params, x):
        def score(x):
            return functional_call(critic, params, (x.unsqueeze(0),)).sum()

        return -score(x) + 10 * (grad(score)(x).norm() - 1).square()

    def with_create_graph(params, x):
        x = x.clone().requires_grad_()
        score = functional_call(critic, params, (x.unsqueeze(0),)).sum()
        (slope,) = torch.autograd.grad(score, x, create_graph=True)
        return -score + 10 * (slope.norm() - 1).square()

    return with_nested_grad if functional else with_create_graph


@pytest.mark.parametrize("on_module", [False, True])
def test_gradient_penalties_equal_micro_batches_with_create_graph(on_module):
    critic = nn.Sequential(nn.Conv1d(1, 4, 5, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 8, 1))
    x, params = torch.randn(6, 1, 20), values_of(critic)
    expected, _ = clipped_by_rows(penalised(critic, False), params, list(x.unsqueeze(1)), 2.0)
    penalty = dp_grad(penalised(critic, True), max_grad_norm=2.0, chunk_size=4, module=critic if on_module else None)
    for _ in range(2):
        sums, info = penalty(params, x)
        assert info.report.path == "vmap"
        assert_near(sums, expected)
    assert ("as a gradient penalty does" in info.report.why) == on_module


@pytest.mark.parametrize("on_module", [False, True])
def test_without_a_bound_the_sum_is_that_of_plain_gradients(on_module):
    build, shape = NETS["conv critic"]
    module = build()
    x = torch.randn(5, *shape)
    with torch.no_grad():  # as around an update by hand
        sums, _ = dp_grad(loss_of(module), max_grad_norm=math.inf, module=module if on_module else None)(
            values_of(module), x
        )
    row_losses(module(x)).sum().backward()
    assert_near(sums, {name: p.grad for name, p in module.named_parameters()})


@pytest.mark.parametrize("on_module", [False, True])
def test_removing_one_unit_moves_the_sum_by_at_most_max_grad_norm(on_module):
    build, shape = NETS["conv critic"]
    module = build().double()
    params, max_grad_norm = values_of(module), 0.3
    x = torch.randn(9, *shape, dtype=torch.float64)
    x[0] *= 1e3
    units = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 5])
    of = dp_grad(loss_of(module), max_grad_norm=max_grad_norm, chunk_size=4, module=module if on_module else None)
    for ids in (torch.arange(9), units):
        whole, _ = of(params, x, units=ids)
        for unit in ids.unique():
            without, _ = of(params, x[ids != unit], units=ids[ids != unit])
            assert (flat(whole) - flat(without)).norm() <= max_grad_norm * (1 + 1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("on_module", [False, True])
def test_a_row_that_is_not_finite_adds_exactly_zero(on_module, bad):
    build, shape = NETS["conv critic"]
    module = build().double()
    x = torch.randn(5, *shape, dtype=torch.float64)
    x[2, 0, 7] = bad
    of = dp_grad(loss_of(module), max_grad_norm=0.5, chunk_size=1, module=module if on_module else None)
    params = values_of(module)
    whole, info = of(params, x)
    without, _ = of(params, x[torch.tensor([0, 1, 3, 4])])
    assert torch.equal(flat(whole), flat(without))
    assert info.clip_factor[2] == 0
    grads = {"a": torch.ones(3, 2), "b": torch.ones(3)}
    grads["b"][1] = bad
    sums, _ = clip_and_aggregate(grads, 10.0)
    assert sums["a"].tolist() == [2.0, 2.0]


@pytest.mark.parametrize("on_module", [False, True])
def test_an_empty_batch_gives_zeros_and_with_noise_noise_alone(on_module):
    module = nn.Sequential(nn.Linear(4, 300))
    given_module = module if on_module else None
    params, x = values_of(module), torch.zeros(0, 4)
    sums, info = dp_grad(loss_of(module), max_grad_norm=1.0, module=given_module)(params, x)
    assert [(name, s.shape) for name, s in sums.items()] == [(name, p.shape) for name, p in params.items()]
    assert not flat(sums).any()
    assert info.losses.shape == info.clip_factor.shape == (0,)
    noised, _ = dp_grad(loss_of(module), max_grad_norm=3.0, noise_multiplier=2.0, module=given_module)(params, x)
    assert flat(noised).std() == pytest.approx(6.0, rel=0.2)
    sums, norms = clip_and_aggregate({"a": torch.zeros(0, 3), "b": [torch.zeros(0)]}, 1.0)
    assert sums["a"].tolist() == [0.0, 0.0, 0.0]
    assert sums["b"][0].tolist() == 0.0
    assert norms.shape == (0,)


def test_noise_is_added_once_after_all_chunks_with_the_key_that_is_given():
    params, x, y = linear(40, 50, 6)
    quiet, _ = dp_grad(squared_error, max_grad_norm=0.5)(params, x, y)
    noises = []
    for chunk_size in (1, 6):
        noisy = dp_grad(
            squared_error, max_grad_norm=0.5, chunk_size=chunk_size, noise_multiplier=4.0, noise_key=noise_key(seed=3)
        )
        noises += [flat(noisy(params, x, y)[0]) - flat(quiet) for _ in range(2)]
    first, second, again, _ = noises
    assert first.std() == pytest.approx(2.0, rel=0.1)
    assert not torch.allclose(first, second)
    torch.testing.assert_close(first, again, rtol=0, atol=1e-5)
    grads = vmap(grad(squared_error), in_dims=(None, 0, 0))(params, x, y)
    sums, _ = clip_and_aggregate(grads, 0.5, noise_multiplier=4.0, noise_key=noise_key(seed=3))
    torch.testing.assert_close(flat(sums) - flat(quiet), first, rtol=0, atol=1e-5)


def test_trees_keep_their_structure_and_leaves_their_dtypes():
    tree = {"a": [torch.full((2, 3), 2.0), torch.full((2,), 1.0).bfloat16()], "b": (torch.full((2, 1), 3.0).double(),)}
    sums, norms = clip_and_aggregate(tree, math.inf)
    assert isinstance(sums["b"], tuple)
    assert [sums["a"][0].dtype, sums["a"][1].dtype, sums["b"][0].dtype] == [
        torch.float32,
        torch.bfloat16,
        torch.float64,
    ]
    assert [sums["a"][0].tolist(), sums["a"][1].tolist(), sums["b"][0].tolist()] == [[4.0] * 3, 2.0, [6.0]]
    assert norms.tolist() == pytest.approx([math.sqrt(4 * 3 + 1 + 9)] * 2)
    assert norms.dtype == torch.float64


def test_argnums_and_in_dims_are_those_of_torch_func():
    params, x, y = linear()

    def loss_fn(y, weight, x, bias):
        return squared_error({"weight": weight, "bias": bias}, x, y)

    (weight, bias), _ = dp_grad(loss_fn, max_grad_norm=0.5, argnums=(1, 3), in_dims=(0, None, 1, None))(
        y, params["weight"], x.T, params["bias"]
    )
    expected, _ = dp_grad(squared_error, max_grad_norm=0.5)(params, x, y)
    assert_near({"weight": weight, "bias": bias}, expected)


PARAMS, X, Y = linear()


@pytest.mark.parametrize(
    ("settings_", "args", "message"),
    [
        ({"max_grad_norm": 0.0}, (), "Expected max_grad_norm=0.0 >= 1e-12"),
        ({"max_grad_norm": -1.0}, (), "Expected max_grad_norm=-1.0 >= 1e-12"),
        ({"max_grad_norm": math.nan}, (), "Expected max_grad_norm=nan"),
        ({"max_grad_norm": math.inf, "noise_multiplier": 1.0}, (), "no noise covers what is unbounded"),
        ({"noise_multiplier": -1.0}, (), "Expected a finite noise_multiplier=-1.0 >= 0"),
        ({"chunk_size": 0}, (), "Expected chunk_size=0 >= 1"),
        ({"module": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))}, (), r"Module '1' \(BatchNorm1d\) mixes rows"),
        ({"argnums": 3}, (PARAMS, X, Y), "Expected argnums=3 to be places of the 3 arguments"),
        ({"in_dims": (None, 0)}, (PARAMS, X, Y), "one int or None for each of 3 arguments"),
        ({"in_dims": (0, 0, 0)}, (PARAMS, X, Y), "Expected .* to be None at argnums=0"),
        ({"in_dims": (None, None, None)}, (PARAMS, X, Y), "at least one argument with rows"),
        ({}, ({}, X, Y), "at least one tensor, got an empty tree"),
        ({}, ({**PARAMS, "steps": torch.tensor(3)}, X, Y), r"got torch.int64 at \['steps'\]. Keep counters"),
        ({}, (PARAMS, X, Y[:5]), r"args\[1\] and args\[2\] differ"),
        ({}, (PARAMS, X, 3.0), r"Expected args\[2\] to be a tensor with rows in dimension 0. Give in_dims with None"),
        ({}, (PARAMS, X, torch.tensor(3.0)), r"Expected args\[2\] to be a tensor with rows"),
    ],
)
def test_misuse_of_dp_grad_is_refused(settings_, args, message):
    with pytest.raises(ValueError, match=message):
        dp_grad(squared_error, **{"max_grad_norm": 1.0, **settings_})(*args)


@pytest.mark.parametrize("on_module", [False, True])
def test_a_loss_that_is_no_scalar_and_units_of_another_length_are_refused(on_module):
    module = nn.Sequential(nn.Linear(3, 2))
    given_module, params = module if on_module else None, values_of(module)

    def not_reduced(params, x):
        return functional_call(module, params, (x.unsqueeze(0),))

    with pytest.raises(ValueError, match=r"a tensor of shape \(\), got shape \(1, 2\). Reduce it"):
        dp_grad(not_reduced, max_grad_norm=1.0, module=given_module)(params, X)
    with pytest.raises(ValueError, match=r"a tensor of shape \(\), got tuple"):
        dp_grad(lambda params, x: (not_reduced(params, x), x), max_grad_norm=1.0, module=given_module)(params, X)
    with pytest.raises(ValueError, match=r"got torch\.int64 of another shape"):
        dp_grad(loss_of(module), max_grad_norm=1.0, module=given_module)(params, X, units=torch.arange(3))


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "at least one tensor, got an empty tree"),
        ({"a": torch.ones(2, 3), "b": torch.ones(3, 3)}, "have the B rows as their leading dimension"),
        ({"a": torch.ones(2, 3), "b": torch.tensor(1.0)}, "have the B rows as their leading dimension"),
        ({"a": {"b": torch.ones(2, 3).int()}}, r"got torch.int32 at \['a'\]\['b'\]"),
        ({"a": torch.ones(2, 3) + 0j}, "got torch.complex64"),
        ({"a": torch.ones(2), "b": None}, "got NoneType"),
    ],
)
def test_trees_that_are_no_per_sample_gradients_are_refused(tree, message):
    with pytest.raises(ValueError, match=message):
        clip_and_aggregate(tree, 1.0)


def test_misuse_of_clip_and_aggregate_is_refused():
    with pytest.raises(ValueError, match=r"Expected max_grad_norm=0\.0"):
        clip_and_aggregate({"a": torch.ones(2)}, 0.0)
    with pytest.raises(ValueError, match="of another shape"):
        clip_and_aggregate({"a": torch.ones(2)}, 1.0, units=torch.arange(3))
