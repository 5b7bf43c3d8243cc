"""Clip factors, and clip-and-sum of materialised per-sample gradients."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpcgan_fast import ops
from dpcgan_fast.ops import _reference

kernels = torch.ops.dpcgan_fast


@given(
    st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=64),
    st.sampled_from([1e-3, 0.5, 1.0, 17.0]),
)
def test_clipped_norm_never_exceeds_max_grad_norm(norms, max_grad_norm):
    norms = torch.tensor([*norms, 0.0, max_grad_norm, math.nextafter(max_grad_norm, 9e9)], dtype=torch.float64)
    factor = ops.clip_factor(norms.square(), max_grad_norm)
    assert (norms * factor <= max_grad_norm).all()
    assert (factor <= 1).all()
    assert (factor[norms <= max_grad_norm * (1 - 2**-20)] == 1).all()
    torch.testing.assert_close(factor, _reference.clip_factor(norms.square(), max_grad_norm), rtol=1e-12, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_drops_the_unit(device, bad):
    sq_norm = torch.tensor([4.0, bad, 0.25], dtype=torch.float64, device=device)
    assert ops.clip_factor(sq_norm, 1.0).tolist() == pytest.approx([0.5, 0.0, 1.0], rel=1e-6)
    assert ops.clip_factor(sq_norm, math.inf).tolist() == [1.0, 0.0, 1.0]


def per_sample_grads(rows, dtype, device="cpu"):
    return [torch.randn(rows, *shape, dtype=dtype, device=device) for shape in ((3, 4, 5), (7,), (), (2100,))]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 2, 65])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.usefixtures("simd_level")
def test_clip_and_sum_equals_the_definition(device, dtype, rows, grouped):
    grads = per_sample_grads(rows, dtype, device)
    units = torch.randint(0, max(1, rows // 2), (rows,)).to(device) if grouped else None
    sums, norms = ops.clip_and_sum(grads, 30.0, units)
    ids = torch.arange(rows, device=device) if units is None else units
    expected = [torch.zeros(g.shape[1:], dtype=torch.float64, device=device) for g in grads]
    expected_norms = []
    for unit in ids.unique().tolist():
        unit_grads = [g[ids == unit].double().sum(0) for g in grads]
        norm = math.sqrt(sum(float(g.square().sum()) for g in unit_grads))
        expected_norms.append(norm)
        for total, g in zip(expected, unit_grads, strict=True):
            total += g * min(1.0, 30.0 * (1 - 2**-20) / norm)
    assert norms.tolist() == pytest.approx(expected_norms, rel=1e-6)
    for got, total, grad in zip(sums, expected, grads, strict=True):
        assert got.dtype == dtype
        assert got.shape == grad.shape[1:]
        torch.testing.assert_close(got.double(), total, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_elements_of_a_row_may_lie_in_any_order(device, grouped):
    stored = torch.randn(6, 4, 5, 3, device=device)
    units = torch.tensor([2, 1, 2, 1, 3, 2], device=device) if grouped else None
    for grad in (stored.movedim(-1, 1), stored[:, :, ::2].movedim(-1, 1), stored.transpose(0, 1)):
        of_rows = None if units is None else units[: len(grad)]
        sums, norms = ops.clip_and_sum([grad], 4.0, of_rows)
        expected, expected_norms = ops.clip_and_sum([grad.contiguous()], 4.0, of_rows)
        torch.testing.assert_close(sums[0], expected[0])
        torch.testing.assert_close(norms, expected_norms)


def test_norms_of_units_come_in_ascending_order_of_unit_id_also_where_each_has_one_row():
    grads = [torch.tensor([[3.0], [1.0], [2.0]])]
    _, norms = ops.clip_and_sum(grads, 1.0, torch.tensor([30, 10, 20]))
    assert norms.tolist() == [1.0, 2.0, 3.0]


def test_a_unit_that_is_not_finite_adds_exactly_zero_and_takes_its_other_rows_along():
    grads = [torch.ones(4, 3), torch.ones(4)]
    grads[0][1, 2] = math.nan
    sums, _ = ops.clip_and_sum(grads, math.inf, torch.tensor([5, 6, 6, 7]))
    assert sums[0].tolist() == [2.0, 2.0, 2.0]
    assert sums[1].tolist() == 2.0


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 7]), st.floats(1e-3, 1e6))
def test_removing_one_unit_moves_the_sum_by_at_most_max_grad_norm(seed, rows_per_unit, scale):
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(14, 6, generator=generator), torch.randn(14, 3, 2, generator=generator)]
    grads[0][:rows_per_unit] *= scale
    units = torch.arange(14) // rows_per_unit
    whole, _ = ops.clip_and_sum(grads, 0.7, units)
    without, _ = ops.clip_and_sum([g[units != 0] for g in grads], 0.7, units[units != 0])
    moved = math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in zip(whole, without, strict=True)))
    assert moved <= 0.7 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("grads", "max_grad_norm", "units", "message"),
    [
        ([], 1.0, None, "at least one per-sample gradient"),
        ([torch.ones(2)], 0.0, None, "Expected max_grad_norm > 0, got 0.0"),
        ([torch.ones(2)], math.nan, None, "Expected max_grad_norm > 0, got nan"),
        ([torch.ones(2)], 1.0, torch.tensor([1, 2, 3]), "got torch.int64 of another shape"),
        ([torch.ones(2)], 1.0, torch.tensor([1.0, 2.0]), "got torch.float32 of that shape"),
    ],
)
def test_bad_arguments_are_refused(grads, max_grad_norm, units, message):
    with pytest.raises(ValueError, match=message):
        ops.clip_and_sum(grads, max_grad_norm, units)


@pytest.mark.parametrize(
    ("grads", "message"),
    [
        ([torch.ones(2, 3), torch.ones(3, 3)], r"expected grads\[1\] with leading dimension 2, got \[3, 3\]"),
        ([torch.ones(2, 3), torch.ones(2, 3).double()], r"expected grads\[1\] of dtype Float, got Double"),
        ([torch.ones(2, 3).int()], "expected grads of dtype float32 or float64, got Int"),
        ([torch.tensor(1.0)], r"expected grads\[0\] of shape \(B, ...\), got a scalar"),
    ],
)
def test_gradients_that_do_not_belong_together_are_refused(grads, message):
    with pytest.raises(RuntimeError, match=message):
        kernels.rows_sq_norm(grads)


def test_rows_in_any_order_form_the_same_units():
    units = torch.tensor([9, 4, 9, 4, 4])
    groups = ops.group_units(units, 5)
    assert groups.unit_ids.tolist() == [4, 9]
    assert groups.unit_of_row.tolist() == [1, 0, 1, 0, 0]
    assert groups.row_order.tolist() == [1, 3, 4, 0, 2]
    assert groups.unit_offsets.tolist() == [0, 3, 5]


@pytest.mark.parametrize("valid", [-1, 0, 1, 2, 4, 2**40])
def test_units_from_the_count_on_get_factor_zero_whatever_they_hold(device, valid):
    sq_norm = torch.tensor([4.0, 0.0, math.nan, 0.25], dtype=torch.float64, device=device)
    count = torch.tensor(valid, device=device)
    every = ops.clip_factor(sq_norm, 1.0)
    got = ops.clip_factor(sq_norm, 1.0, count)
    kept = max(0, min(valid, 4))
    assert got.tolist() == every.tolist()[:kept] + [0.0] * (4 - kept)
    assert torch.equal(got, _reference.clip_factor(sq_norm, 1.0, count))


@pytest.mark.parametrize("wrong", [torch.tensor(2.0), torch.tensor([1, 2])])
def test_a_count_of_valid_units_must_be_one_int64(wrong):
    with pytest.raises(RuntimeError, match="clip_factor: expected valid to be one int64 on cpu"):
        ops.clip_factor(torch.ones(3, dtype=torch.float64), 1.0, wrong)


def test_sums_and_norms_may_stay_in_double():
    grads = per_sample_grads(9, torch.float32)
    sums, norms = ops.clip_and_sum(grads, 30.0, dtype=torch.float64)
    rounded, rounded_norms = ops.clip_and_sum(grads, 30.0)
    assert norms.dtype == torch.float64
    assert all(total.dtype == torch.float64 for total in sums)
    assert torch.equal(norms.float(), rounded_norms)
    assert all(torch.equal(total.float(), r) for total, r in zip(sums, rounded, strict=True))
    assert any(not torch.equal(total, r.double()) for total, r in zip(sums, rounded, strict=True))
