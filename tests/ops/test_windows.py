"""Per-sample gradients of convolutions in two and three dimensions, and the memory that they lie in."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dpcgan_fast import ops
from dpcgan_fast.bench.memory import peak_tensor_bytes
from dpcgan_fast.ops import WindowLayer, WindowProblem, _spare
from tests.conftest import at_simd_level, available_simd_levels, examples

SIZES = st.tuples(*[st.integers(1, 9)] * 3)
ZERO = torch.zeros(1, dtype=torch.float64)
SMALL = st.tuples(*[st.integers(1, 4)] * 3)
CONVOLUTIONS = {2: torch.nn.grad.conv2d_weight, 3: torch.nn.grad.conv3d_weight}


def positions_of(size, kernel, stride, padding, dilation):
    numbers = zip(size, kernel, stride, padding, dilation, strict=True)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in numbers)


@st.composite
def window_cases(draw):
    """A problem in two or three dimensions with its operands, in either dtype."""
    dimensions = draw(st.sampled_from([2, 3]))
    size, kernel, stride, dilation = (draw(sizes)[:dimensions] for sizes in (SIZES, SMALL, SMALL, SMALL))
    padding = draw(st.tuples(*[st.integers(0, 2)] * 3))[:dimensions]
    positions = positions_of(size, kernel, stride, padding, dilation)
    assume(min(positions) > 0)
    rows, groups = draw(st.integers(0, 3)), draw(st.sampled_from([1, 2]))
    inputs, outputs = groups * draw(st.sampled_from([1, 2, 9, 17])), groups * draw(st.sampled_from([1, 3, 9]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    x, g = torch.randn(rows, inputs, *size, dtype=dtype), torch.randn(rows, outputs, *positions, dtype=dtype)
    return WindowProblem(kernel, stride, padding, dilation, groups), x, g


def gradients_by_torch(problem, x, g):
    """In double, a row at a time."""
    shape = (g.shape[1], x.shape[1] // problem.groups, *problem.kernel_size)
    gradient = CONVOLUTIONS[len(problem.kernel_size)]
    geometry = problem.stride, problem.padding, problem.dilation, problem.groups
    rows = [gradient(a[None].double(), shape, b[None].double(), *geometry) for a, b in zip(x, g, strict=True)]
    return torch.stack(rows) if rows else torch.zeros(0, *shape, dtype=torch.float64)


@settings(max_examples=examples(100))
@given(case=window_cases(), level=st.sampled_from(available_simd_levels()))
def test_each_row_is_torchs_gradient_of_that_row(case, level):
    problem, x, g = case
    with at_simd_level(level):
        formed = problem.formed(x, g, bias=True)
    got, sq_norm = formed.weight, formed.sq_norm
    expected = gradients_by_torch(problem, x, g)
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
    squares = (part.double().flatten(1).square().sum(1) for part in (got, formed.bias))
    torch.testing.assert_close(sq_norm, sum(squares), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(formed.bias.double(), g.double().flatten(2).sum(2), rtol=1e-5, atol=1e-5)


@settings(max_examples=examples(40))
@given(case=window_cases())
def test_copied_windows_give_the_same(case):
    problem, x, g = case
    expected = gradients_by_torch(problem, x, g)
    factor = torch.rand(x.shape[0], dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DPCGAN_BACKEND", "reference")
        formed = problem.formed(x, g, bias=True)
        total, norms = problem.weighted_grad(x, g, factor), problem.sq_norm(x, g, "direct")
    assert formed.bias is None
    assert formed.sq_norm is None
    torch.testing.assert_close(formed.weight.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms, expected.flatten(1).square().sum(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(total, torch.einsum("n,n...->...", factor, expected), rtol=1e-4, atol=1e-5)


@st.composite
def layer_cases(draw):
    """Up to three layers for one clipped sum, some with a bias, and what other layers add to the norms."""
    cases = draw(st.lists(window_cases(), min_size=1, max_size=3))
    dtype, rows = cases[0][1].dtype, draw(st.integers(0, 5))
    layers = []
    for problem, x, g in cases:
        sides = (torch.randn(rows, *side.shape[1:], dtype=dtype) for side in (x, g))
        layers.append(WindowLayer(problem, *sides, bias=draw(st.booleans())))
    return layers, torch.rand(rows, dtype=torch.float64)


@settings(max_examples=examples(80))
@given(case=layer_cases(), level=st.sampled_from(available_simd_levels()), clip=st.sampled_from([0.5, 20.0, math.inf]))
def test_what_is_clipped_in_the_cache_is_what_would_be_stored(case, level, clip):
    layers, others = case
    with at_simd_level(level):
        clipped = ops.windows_clipped_sum(layers, others, clip, scale=3)
        stored = [layer.problem.formed(layer.x, layer.g, layer.bias) for layer in layers]
    norms = sum((layer.sq_norm for layer in stored), others.clone())
    torch.testing.assert_close(clipped.factor, ops.clip_factor(norms, clip), rtol=1e-14, atol=0.0)
    assert len(clipped.weights) == len(clipped.biases) == len(layers)
    for layer, formed, weight, bias in zip(layers, stored, clipped.weights, clipped.biases, strict=True):
        expected = 3 * torch.einsum("n,n...->...", clipped.factor, formed.weight.double())
        torch.testing.assert_close(weight, expected, rtol=1e-12, atol=1e-12)
        if layer.bias:
            torch.testing.assert_close(bias, 3 * clipped.factor @ formed.bias.double(), rtol=1e-12, atol=1e-12)
        else:
            assert bias.shape == (0,)


def layers_of(x, g, bias=True):
    return [WindowLayer(WindowProblem((3, 3), (1, 1), (1, 1), (1, 1)), x, g, bias)]


SCALES = st.sampled_from([0.0, 1e-42, 1e-20, 1e-6, 1.0, 1e9, 1e19, math.inf])


@settings(max_examples=examples(60))
@given(
    case=layer_cases(), level=st.sampled_from(available_simd_levels()), clip=st.sampled_from([1e-12, 0.3, 1e6]),
    scales=st.lists(SCALES, min_size=5, max_size=5),
)  # fmt: skip
def test_no_row_moves_the_clipped_sum_by_more_than_the_bound_whatever_it_holds(case, level, clip, scales):
    layers, others = case
    rows = len(others)
    of_row = torch.tensor(scales[:rows], dtype=torch.float64)
    x = [layer.x * of_row.view(-1, *[1] * (layer.x.dim() - 1)).to(layer.x.dtype) for layer in layers]

    def clipped_sum(kept):
        own = [WindowLayer(of.problem, side[kept], of.g[kept], of.bias) for of, side in zip(layers, x, strict=True)]
        clipped = ops.windows_clipped_sum(own, others[kept], clip)
        return clipped.factor, torch.cat([part.flatten() for part in (*clipped.weights, *clipped.biases)])

    with at_simd_level(level):
        factor, total = clipped_sum(torch.ones(rows, dtype=torch.bool))
        for row in range(rows):
            left = torch.arange(rows) != row
            moved = float((total - clipped_sum(left)[1]).square().sum() + factor[row].square() * others[row])
            assert moved <= (clip * (1 + 1e-6)) ** 2


def test_memory_of_the_sums_is_seen_by_who_measures_memory():
    """A worker's sums in double, what it returns, and a row's gradients in single precision."""
    x, g = torch.randn(1, 64, 2, 2), torch.randn(1, 128, 2, 2)
    peak = peak_tensor_bytes(lambda: lambda: ops.windows_clipped_sum(layers_of(x, g, bias=False), ZERO, 1.0))
    assert peak >= (8 + 8 + 4) * 64 * 128 * 9


@pytest.mark.parametrize("threads", [1, 2])
def test_each_row_adds_itself_whichever_thread_it_is_given_to(threads):
    x, g = torch.randn(301, 3, 6, 6), torch.randn(301, 8, 6, 6)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = ops.windows_clipped_sum(layers_of(x, g), torch.zeros(301).double(), 0.7)
    finally:
        torch.set_num_threads(before)
    rows = [ops.windows_clipped_sum(layers_of(x[n : n + 1], g[n : n + 1]), torch.zeros(1).double(), 0.7)
            for n in range(301)]  # fmt: skip
    assert torch.equal(got.factor, torch.cat([row.factor for row in rows]))
    torch.testing.assert_close(got.weights[0], sum(row.weights[0] for row in rows), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.biases[0], sum(row.biases[0] for row in rows), rtol=1e-12, atol=1e-12)


def test_rows_of_factor_zero_are_not_read():
    problem = WindowProblem((3, 3), (1, 1), (1, 1), (1, 1))
    x, g = torch.randn(40, 3, 6, 6), torch.randn(40, 8, 6, 6)
    factor = torch.arange(40, dtype=torch.float64) % 3
    expected = problem.weighted_grad(x, g, factor)
    x[factor == 0] = math.nan
    assert torch.equal(problem.weighted_grad(x, g, factor), expected)


@pytest.mark.parametrize("spoiled", ["layer", "others"])
def test_a_row_that_is_not_finite_adds_nothing(spoiled):
    x, g, others = torch.randn(40, 3, 6, 6), torch.randn(40, 8, 6, 6), torch.rand(40).double()
    finite = torch.arange(40) % 3 != 0
    expected = ops.windows_clipped_sum(layers_of(x[finite], g[finite]), others[finite], 0.5)
    (g if spoiled == "layer" else others)[~finite] = math.nan
    got = ops.windows_clipped_sum(layers_of(x, g), others, 0.5)
    assert torch.equal(got.factor[finite], expected.factor)
    assert not got.factor[~finite].any()
    torch.testing.assert_close(got.weights[0], expected.weights[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.biases[0], expected.biases[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("empty", ["rows", "inputs", "outputs"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_nothing_to_form_is_nothing(empty, dilation):
    rows, inputs, outputs = (0 if name == empty else 3 for name in ("rows", "inputs", "outputs"))
    problem = WindowProblem((3, 3), (1, 1), (1, 1), (1, dilation))
    x, g = torch.randn(rows, inputs, 6, 6), torch.randn(rows, outputs, 6, 8 - 2 * dilation)
    formed = problem.formed(x, g, bias=True)
    assert formed.weight.shape == (rows, outputs, inputs, 3, 3)
    assert problem.formed(x, g).sq_norm.tolist() == [0.0] * rows
    torch.testing.assert_close(formed.bias, g.sum((2, 3)))
    torch.testing.assert_close(formed.sq_norm, formed.bias.double().square().sum(1))
    clipped = ops.windows_clipped_sum([WindowLayer(problem, x, g, bias=False)], torch.zeros(rows).double(), 1.0)
    assert clipped.factor.tolist() == [1.0] * rows
    assert clipped.weights[0].shape == (outputs, inputs, 3, 3)
    assert not clipped.weights[0].any()


def test_windows_without_a_position_have_no_gradient():
    layer = layers_of(torch.randn(3, 2, 1, 1), torch.randn(3, 4, 0, 1))
    clipped = ops.windows_clipped_sum(layer, torch.zeros(3).double(), 1.0)
    assert clipped.factor.tolist() == [1.0] * 3
    assert not clipped.weights[0].any()
    assert not clipped.biases[0].any()


def test_a_row_that_is_not_finite_has_no_finite_norm_and_changes_no_other():
    problem = WindowProblem((3, 3), (1, 1), (1, 1), (1, 1))
    x, g = torch.randn(5, 3, 6, 6), torch.randn(5, 8, 6, 6)
    expected = problem.formed(x, g)
    x[2, 1, 3, 3] = math.inf
    got = problem.formed(x, g)
    others = torch.arange(5) != 2
    assert not got.sq_norm[2].isfinite()
    assert torch.equal(got.weight[others], expected.weight[others])
    assert torch.equal(got.sq_norm[others], expected.sq_norm[others])


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_a_row_is_rounded_alike_whichever_others_there_are(monkeypatch, backend):
    monkeypatch.setenv("DPCGAN_BACKEND", backend)
    problem = WindowProblem((3, 3), (1, 1), (1, 1), (1, 1))
    x, g = torch.randn(9, 3, 16, 16), torch.randn(9, 8, 16, 16)
    every = problem.formed(x, g).weight
    for rows in (slice(0, 1), slice(4, 9)):
        assert torch.equal(problem.formed(x[rows], g[rows]).weight, every[rows])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel_size": (3,)}, "expected 2 numbers in kernel_size"),
        ({"groups": 2}, "expected groups to divide"),
        ({"padding": (0, 0)}, "reach beyond"),
        ({"padding": (2**31 - 1, 2**31 - 1)}, "more elements than can be counted"),
        ({"out": torch.empty(2, 4, 3, 2, 3)}, "expected a contiguous out"),
        ({"sq_norm": torch.empty(2)}, "expected a contiguous sq_norm"),
        ({"bias": torch.empty(2, 3)}, "expected a contiguous bias"),
    ],
)
def test_the_op_says_what_is_wrong(change, message):
    arguments = {
        "out": torch.empty(2, 4, 3, 3, 3), "sq_norm": torch.zeros(2).double(), "bias": None,
        "x": torch.rand(2, 3, 5, 5), "g": torch.rand(2, 4, 5, 5),
        "kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1, **change,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dpcgan_fast.window_per_sample_grad_(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"g": []}, "expected one g for each x"),
        ({"geometry": [3, 3, 1, 1]}, "expected 10 numbers in geometry for layer 0, got 4"),
        ({"geometry": [3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 7]}, "1 numbers of geometry are left"),
        ({"geometry": [3, 3, 1, 1, 0, 0, 1, 1, 1, 1]}, "reach beyond"),
        ({"geometry": [3, 3, 1, 1, 2**31 - 1, 2**31 - 1, 1, 1, 1, 1]}, "more elements than can be counted"),
        ({"x": [torch.rand(5)], "g": [torch.rand(5)]}, "expected x .B, C, ...."),
        ({"others_sq_norm": torch.zeros(2)}, "expected others_sq_norm to be a contiguous float64 vector"),
        ({"others_sq_norm": torch.zeros(3).double()}, "of shape .2,.*got shape .3"),
        ({"max_grad_norm": 0.0}, "expected max_grad_norm > 0"),
        (
            {"x": [torch.rand(rows, 3, 5, 5) for rows in (2, 4)], "g": [torch.rand(rows, 4, 5, 5) for rows in (2, 4)],
             "geometry": [3, 3, 1, 1, 1, 1, 1, 1, 1, 1] * 2},
            "layers of the same rows",
        ),
    ],
)  # fmt: skip
def test_the_clipped_sum_says_what_is_wrong(change, message):
    arguments = {
        "x": [torch.rand(2, 3, 5, 5)], "g": [torch.rand(2, 4, 5, 5)], "geometry": [3, 3, 1, 1, 1, 1, 1, 1, 1, 1],
        "others_sq_norm": torch.zeros(2).double(), "max_grad_norm": 1.0, "scale": 1.0, **change,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=message):
        torch.ops.dpcgan_fast.windows_clipped_sum(**arguments)


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
        _spare.drop_spare()
        assert _spare._spare == []

    def test_types_and_shapes_are_those_asked_for(self):
        made = _spare.borrow((3, 2**18), torch.empty(0, dtype=torch.float64))
        assert (made.dtype, made.shape, made.is_contiguous()) == (torch.float64, (3, 2**18), True)
