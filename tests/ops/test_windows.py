"""Per-sample gradients of convolutions in two and three dimensions, and the memory that they lie in."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpcgan_fast import ops
from dpcgan_fast.ops import WindowProblem, _spare

SIZES = st.tuples(*[st.integers(1, 9)] * 3)
SMALL = st.tuples(*[st.integers(1, 3)] * 3)
CONVOLUTIONS = {2: torch.nn.grad.conv2d_weight, 3: torch.nn.grad.conv3d_weight}


def positions_of(size, kernel, stride, padding, dilation):
    numbers = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers)


@settings(max_examples=60)
@given(
    dimensions=st.sampled_from([2, 3]), rows=st.integers(0, 3), size=SIZES, kernel=SMALL, stride=SMALL, dilation=SMALL,
    padding=st.tuples(*[st.integers(0, 2)] * 3), groups=st.sampled_from([1, 2]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_each_row_is_torchs_gradient_of_that_row(
    dimensions, rows, size, kernel, stride, dilation, padding, groups, dtype
):
    size, kernel, stride, padding, dilation = (x[:dimensions] for x in (size, kernel, stride, padding, dilation))
    positions = positions_of(size, kernel, stride, padding, dilation)
    assume(min(positions) > 0)
    x, g = torch.randn(rows, 2 * groups, *size, dtype=dtype), torch.randn(rows, 3 * groups, *positions, dtype=dtype)
    got = WindowProblem(kernel, stride, padding, dilation, groups).per_sample_grad(x, g)
    assert got.shape == (rows, 3 * groups, 2, *kernel)
    for row in range(rows):
        expected = CONVOLUTIONS[dimensions](
            x[row : row + 1].double(), got.shape[1:], g[row : row + 1].double(), stride, padding, dilation, groups
        )
        torch.testing.assert_close(got[row].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_row_is_rounded_alike_whichever_others_there_are():
    problem = WindowProblem((3, 3), (1, 1), (1, 1), (1, 1))
    x, g = torch.randn(9, 3, 16, 16), torch.randn(9, 8, 16, 16)
    every = problem.per_sample_grad(x, g)
    for rows in (slice(0, 1), slice(4, 9)):
        assert torch.equal(problem.per_sample_grad(x[rows], g[rows]), every[rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": (3,)}, "expected 2 numbers in kernel_size"),
        ({"groups": 2}, "expected groups to divide"),
        ({"padding": (0, 0)}, "reach beyond"),
        ({"out": torch.empty(2, 4, 3, 2, 2)}, "expected a contiguous out"),
    ],
)
def test_the_op_says_what_is_wrong(change, message):
    arguments = {
        "out": torch.empty(2, 4, 3, 3, 3), "x": torch.rand(2, 3, 5, 5), "g": torch.rand(2, 4, 5, 5),
        "kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, **change,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dpcgan_fast.window_per_sample_grad_(**arguments)


class TestSpareMemory:
    @pytest.fixture(autouse=True)
    def empty(self, monkeypatch):
        monkeypatch.setattr(_spare, "_spare", [])
        monkeypatch.setattr(_spare, "_lent", set())

    def test_what_is_given_back_serves_the_next_one_of_about_its_size(self):
        like = torch.empty(0)
        first = _spare.borrow((2**19,), like)
        address = first.data_ptr()
        ops.give_back([first])
        del first
        assert _spare.borrow((2**19 + 2**16,), like).data_ptr() == address

    def test_what_is_lent_serves_nobody_else(self):
        like = torch.empty(0)
        first = _spare.borrow((2**19,), like)
        assert _spare.borrow((2**19,), like).data_ptr() != first.data_ptr()

    def test_memory_of_others_is_not_kept(self):
        ops.give_back([torch.empty(2**20)])
        assert _spare._spare == []

    def test_memory_that_was_let_go_and_is_anothers_now_is_not_kept(self):
        like, addresses = torch.empty(0), set()
        for _ in range(50):
            lent = _spare.borrow((2**19,), like)
            addresses.add(lent.data_ptr())
            size = lent.untyped_storage().nbytes()
            del lent
            others = torch.empty(size, dtype=torch.uint8)
            ops.give_back([others])
            assert _spare._spare == []
            if others.data_ptr() in addresses:
                return
        pytest.skip("the allocator gave no address twice")

    def test_what_was_let_go_is_forgotten(self):
        for _ in range(3):
            _spare.borrow((2**19,), torch.empty(0))
        assert len(_spare._lent) == 1

    def test_no_more_is_kept_than_the_limit(self, monkeypatch):
        monkeypatch.setattr(_spare, "_MOST_BYTES", 2**22)
        blocks = [_spare.borrow((2**19,), torch.empty(0)) for _ in range(4)]
        ops.give_back(blocks)
        assert sum(block.numel() for block in _spare._spare) <= 2**22
        assert _spare._spare

    def test_types_and_shapes_are_those_asked_for(self):
        made = _spare.borrow((3, 2**18), torch.empty(0, dtype=torch.float64))
        assert (made.dtype, made.shape, made.is_contiguous()) == (torch.float64, (3, 2**18), True)
