"""Gathered rows of tables of codes: each is what the table says, and a damaged table is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpcgan_fast import ops
from dpcgan_fast.ops import _reference
from tests.conftest import examples


def table(records, columns, codes, most=6):
    """dense, starts and positions of a table; each record has up to `most` codes, which may repeat."""
    counts = torch.randint(0, most + 1 if codes else 1, (records,))
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    positions = torch.randint(0, max(codes, 1), (int(starts[-1]),), dtype=torch.int32)
    return torch.randn(records, columns), starts, positions


@settings(max_examples=examples(100))
@given(
    rows=st.sampled_from([0, 1, 5, 40]),
    records=st.integers(1, 30),
    columns=st.integers(0, 40),
    codes=st.integers(0, 300),
    most=st.sampled_from([0, 1, 6, 200]),
    place=st.sampled_from(["first", "middle", "last"]),
)
def test_rows_equal_the_reference(rows, records, columns, codes, most, place):
    dense, starts, positions = table(records, columns, codes, most)
    first_code = {"first": 0, "middle": columns // 2, "last": columns}[place]
    operands = torch.randint(0, records, (rows,)), dense, starts, positions, first_code
    got, expected = (torch.full((rows, columns + codes), math.nan) for _ in range(2))
    ops.gather_rows(got, *operands)
    _reference.gather_rows(expected, *operands)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_codes_lie_between_the_columns(monkeypatch, backend):
    monkeypatch.setenv("DPCGAN_BACKEND", backend)
    dense = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, math.nan]])
    starts, positions = torch.tensor([0, 0, 3]), torch.tensor([3, 0, 3], dtype=torch.int32)
    out = torch.full((3, 7), 9.0)
    ops.gather_rows(out, torch.tensor([1, 0, 1]), dense, starts, positions, 1)
    full, empty = [0.4, 1.0, 0.0, 0.0, 1.0, 0.5, math.nan], [0.1, 0.0, 0.0, 0.0, 0.0, 0.2, 0.3]
    assert torch.equal(out.nan_to_num(-1.0), torch.tensor([full, empty, full]).nan_to_num(-1.0))


def test_a_table_without_records_has_no_rows_to_give():
    out, none = torch.empty(0, 5), torch.zeros(0, dtype=torch.int64)
    operands = torch.zeros(0, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(0, dtype=torch.int32), 2
    ops.gather_rows(out, none, *operands)
    with pytest.raises(RuntimeError, match=r"expected rows in \[0, N\)"):
        ops.gather_rows(torch.empty(1, 5), torch.zeros(1, dtype=torch.int64), *operands)


def good_operands():
    """out, rows, dense, starts, positions and first_code; records 0, 1 and 2 have two codes, none and one of five."""
    starts, positions = torch.tensor([0, 2, 2, 3]), torch.tensor([4, 0, 2], dtype=torch.int32)
    return [torch.empty(2, 9), torch.tensor([2, 0]), torch.randn(3, 4), starts, positions, 1]


OUT, ROWS, DENSE, STARTS, POSITIONS, FIRST_CODE = range(6)


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (OUT, torch.empty(2, 9, dtype=torch.float64), "expected out to be contiguous, of 2 dimensions and type Float"),
        (OUT, torch.empty(9, 2).T, "expected out to be contiguous"),
        (OUT, torch.empty(18), "expected out to be contiguous, of 2 dimensions"),
        (OUT, torch.empty(2, 9, requires_grad=True), "expected out without requires_grad"),
        (OUT, torch.empty(3, 9), r"expected out \(B, F >= D\)"),
        (OUT, torch.empty(2, 3), r"expected out \(B, F >= D\)"),
        (ROWS, int32(2, 0), "expected rows to be contiguous, of 1 dimensions and type Long"),
        (ROWS, torch.tensor([2, 1, 0, 1])[::2], "expected rows to be contiguous"),
        (ROWS, torch.tensor([2, 3]), r"expected rows in \[0, N\)"),
        (ROWS, torch.tensor([-1, 0]), r"expected rows in \[0, N\)"),
        (DENSE, torch.randn(3, 4).double(), "expected dense to be contiguous, of 2 dimensions and type Float"),
        (DENSE, torch.randn(4, 3).T, "expected dense to be contiguous"),
        (DENSE, torch.randn(2, 4), r"starts \(N \+ 1,\)"),
        (DENSE, torch.randn(3, 4, requires_grad=True), "expected dense without requires_grad"),
        (STARTS, int32(0, 2, 2, 3), "expected starts to be contiguous, of 1 dimensions and type Long"),
        (STARTS, torch.tensor([0, 2, 2]), r"starts \(N \+ 1,\)"),
        (STARTS, torch.tensor([0, 2, 2, 4]), "expected starts that rise"),
        (STARTS, torch.tensor([0, 2, 2, 1 << 60]), "expected starts that rise"),
        (STARTS, torch.tensor([-1, 2, 2, 3]), "expected starts that rise"),
        (STARTS, torch.tensor([-(1 << 63), 2, 2, 3]), "expected starts that rise"),
        (STARTS, torch.tensor([0, 2, 3, 2]), "expected starts that rise"),
        (STARTS, torch.tensor([1 << 60, 2, 2, 3]), "expected starts that rise"),
        (POSITIONS, torch.tensor([4, 0, 2]), "expected positions to be contiguous, of 1 dimensions and type Int"),
        (POSITIONS, int32(4, 0, 0, 0, 2, 0)[::2], "expected positions to be contiguous"),
        (POSITIONS, int32(4, 5, 2), r"expected positions in \[0, 5\)"),
        (POSITIONS, int32(4, -1, 2), r"expected positions in \[0, 5\)"),
        (POSITIONS, int32(4, -(1 << 31), 2), r"expected positions in \[0, 5\)"),
        (POSITIONS, int32(4, (1 << 31) - 1, 2), r"expected positions in \[0, 5\)"),
        (FIRST_CODE, -1, r"expected first_code in \[0, 4\], got -1"),
        (FIRST_CODE, 5, r"expected first_code in \[0, 4\], got 5"),
    ],
)
def test_operands_that_do_not_fit_are_refused(place, value, message):
    operands = good_operands()
    ops.gather_rows(*operands)
    operands[place] = value
    with pytest.raises(RuntimeError, match=f"gather_rows: .*{message}"):
        ops.gather_rows(*operands)


def test_damage_is_found_many_rows_ahead_of_where_it_is_read():
    """Rows are on their way into the cache before they are checked."""
    dense, starts, positions = table(100, 4, 50)
    for bad in (1 << 62, -(1 << 62), -(1 << 63), (1 << 63) - 1):
        damaged = starts.clone()
        damaged[90] = bad
        with pytest.raises(RuntimeError, match="expected starts that rise"):
            ops.gather_rows(torch.empty(100, 54), torch.arange(100), dense, damaged, positions, 2)


def test_codes_of_a_table_without_room_for_any_are_refused():
    operands = good_operands()
    operands[OUT] = torch.empty(2, 4)
    with pytest.raises(RuntimeError, match=r"expected positions in \[0, 0\)"):
        ops.gather_rows(*operands)


def test_out_in_the_memory_of_an_operand_is_refused():
    operands = good_operands()
    memory = torch.randn(30)
    operands[DENSE], operands[OUT] = memory[:12].view(3, 4), memory[10:28].view(2, 9)
    with pytest.raises(RuntimeError, match="expected out in memory of its own"):
        ops.gather_rows(*operands)
