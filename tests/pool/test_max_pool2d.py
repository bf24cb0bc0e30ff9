"""fastseg.max_pool2d beside torch's: values, positions, strides, gradients, what is saved."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg import reference
from tests.pool.pool_cases import (
    CASES,
    FLOATS,
    LAYOUTS,
    STRIDES,
    PoolCase,
    assert_identical,
    assert_layout,
    finite_values,
    in_layout,
    one_thread,
    special_values,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))

# The kernels do at most 1024 windows of a row, or channels of a window, at once.
LONG_CASES = (
    PoolCase((1, 2, 2, 2 * 1029)),
    PoolCase((1, 1, 3, 1027), (3, 3), (1, 1), (1, 1)),
    PoolCase((1, 1, 3, 2055), (3, 3), (2, 2), (1, 1)),
    PoolCase((1, 1030, 2, 3)),
)
# 256 taps in one row or one window of 16 x 16, and the smallest planes.
EDGE_CASES = (
    PoolCase((2, 3, 1, 1), (3, 3), (2, 2), (1, 1)),
    PoolCase((1, 3, 1, 9), (1, 2), (1, 2)),
    PoolCase((1, 3, 9, 1), (2, 1), (2, 1)),
    PoolCase((1, 2, 5, 300), (1, 256), (1, 7), (0, 128)),
    PoolCase((1, 2, 16, 16), (16, 16), (16, 16)),
    PoolCase((1, 17, 6, 7), (3, 3), (2, 2), (0, 0), ceil_mode=True),
)
ALL_CASES = (*CASES, *LONG_CASES, *EDGE_CASES)
each_case = pytest.mark.parametrize("case", ALL_CASES, ids=str)


@one_thread()
def torch_pool(x, case):
    return F.max_pool2d(x, *case.window, case.ceil_mode, return_indices=True)


def check(x, case, pool=fastseg.max_pool2d, layout=None):
    """Strides are torch's or, given a layout, any that have it: 1x1 planes leave a choice."""
    values, codes = pool(x, *case.window, case.ceil_mode)
    expected, indices = torch_pool(x, case)
    assert_identical(values, expected)
    assert codes.dtype == torch.uint8
    assert_identical(fastseg.codes_to_indices(codes, x.shape, *case.window), indices)
    if layout is not None:
        assert_layout(values, layout)
        assert_layout(codes, layout)
    elif x.numel() > 0:
        assert values.stride() == codes.stride() == expected.stride()


def test_the_garbage_is_there():
    for size in (2000, 1_000_000):
        assert torch.equal(torch.empty(size, dtype=torch.uint8), torch.full((size,), 0xFE).byte())


@each_layout
@each_dtype
@each_case
def test_values_positions_and_strides_are_torchs(case, dtype, layout, simd_level):
    check(special_values(case.shape, dtype, layout), case)


@each_layout
@each_dtype
@each_case
def test_the_reference_is_torchs(case, dtype, layout):
    check(special_values(case.shape, dtype, layout), case, reference.max_pool2d, layout)


@pytest.mark.parametrize(
    "kernel",
    [
        ((2, 2), (2, 2), (0, 0)),
        ((3, 3), (2, 2), (1, 1)),
        ((3, 3), (1, 1), (1, 1)),
        ((2, 2), (1, 1), (0, 0)),
    ],
)
@each_dtype
def test_every_width_and_channel_count(kernel, dtype, simd_level):
    for n in range(2, 41):
        check(special_values((1, 2, 3, n), dtype, LAYOUTS[0], n), PoolCase((), *kernel))
        check(special_values((1, n, 3, 5), dtype, LAYOUTS[1], n), PoolCase((), *kernel))


@pytest.mark.parametrize("case", [PoolCase(()), PoolCase((), (3, 3), (2, 2), (1, 1))], ids=str)
@pytest.mark.parametrize("kind", STRIDES)
def test_strides_of_the_input(kind, case, simd_level):
    for dtype in FLOATS:
        check(in_layout(special_values((2, 6, 6, 7), dtype, LAYOUTS[0]), kind), case)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64], ids=str
)
def test_integers(dtype):
    x = torch.randint(0, 6, (2, 3, 7, 9)).to(dtype)
    if dtype.is_signed:
        x = (x - 3).to(dtype)
        x[0, 0] = torch.iinfo(dtype).min
    for case in (PoolCase(()), PoolCase((), (3, 3), (2, 2), (1, 1), ceil_mode=True)):
        for layout in LAYOUTS:
            check(x.contiguous(memory_format=layout), case)


def test_ties_zeros_and_nan_by_hand(simd_level):
    nan, inf = math.nan, math.inf
    windows = [
        ([1, 1, 1, 1], 0),  # the first of equals
        ([0, 1, 1, 0], 1),
        ([-0.0, 0.0, 0.0, -0.0], 0),  # zeros are equal
        ([nan, 5, nan, 7], 2),  # the last NaN
        ([inf, nan, inf, 0], 1),
        ([-inf, -inf, -inf, -inf], 0),
        ([-inf, -inf, -3e38, -inf], 2),
    ]
    for layout in LAYOUTS:
        x = torch.tensor([w for w, _ in windows], dtype=torch.float32).view(1, -1, 2, 2)
        x = x.repeat(1, 3, 1, 9).contiguous(memory_format=layout)  # vectors and their rests
        values, codes = fastseg.max_pool2d(x, 2)
        for channel, (window, code) in enumerate(windows * 3):
            expected = torch.full((1, 9), float(window[code]))
            assert_identical(values[0, channel], expected)
            assert codes[0, channel].tolist() == [[code] * 9]


def test_arguments_as_torch_takes_them():
    x = torch.randn(1, 2, 9, 8)
    for window in ((2,), ([3],), ((2, 3), None), (3, 2, 1), (3, [2], (1, 0), 2), (2, None, 1)):
        for options in ({}, {"ceil_mode": True}):
            expected, indices = F.max_pool2d(x, *window, **options, return_indices=True)
            values, codes = fastseg.max_pool2d(x, *window, **options)
            assert_identical(values, expected)
            assert_identical(fastseg.codes_to_indices(codes, x.shape, *window), indices)


# Gradients.


@one_thread()
def gradient(pool, x, case, grad):
    leaf = x.detach().requires_grad_()
    values, _ = pool(leaf, case)
    return torch.autograd.grad(values, leaf, grad.view_as(values))[0]


def fastseg_pool(x, case):
    return fastseg.max_pool2d(x, *case.window, case.ceil_mode)


def overlaps(case):
    spans = zip(case.kernel_size, case.stride, case.dilation, strict=True)
    return any(d * (k - 1) + 1 > s for k, s, d in spans)


@each_layout
@each_dtype
@each_case
def test_gradients_are_torchs(case, dtype, layout, simd_level):
    """Bit for bit; where windows overlap the gradients are numbers whose sums are exact."""
    x = special_values(case.shape, dtype, layout)
    shape = torch_pool(x, case)[0].shape
    grad = torch.randint(-3, 4, shape).to(dtype) / 2
    if not overlaps(case):
        grad = special_values(shape, dtype, layout, seed=1)
    expected = gradient(torch_pool, x, case, grad)
    actual = gradient(fastseg_pool, x, case, grad)
    assert_identical(actual, expected)
    if x.numel() > 0:
        assert actual.stride() == expected.stride()


@each_layout
@each_dtype
def test_overlapping_gradients_are_summed_in_float(dtype, layout, simd_level):
    case = PoolCase((2, 5, 12, 13), (3, 3), (1, 1), (1, 1))
    x = finite_values(case.shape, dtype, layout)
    grad = finite_values(case.shape, dtype, layout, seed=1)
    actual = gradient(fastseg_pool, x, case, grad)
    codes = fastseg_pool(x, case)[1]
    expected = reference.max_pool2d_backward(grad, codes, x.shape[-2:], *case.window)
    assert_identical(actual, expected)
    tolerance = {} if dtype.itemsize >= 4 else {"rtol": 4 * torch.finfo(dtype).eps, "atol": 1e-2}
    torch.testing.assert_close(actual, gradient(torch_pool, x, case, grad), **tolerance)


# Planes over which dilated taps jump: some windows, or all, lie in the padding with every tap.
JUMP_CASES = (
    PoolCase((2, 9, 3, 3), (2, 2), (1, 1), (1, 1), (4, 4)),
    PoolCase((2, 9, 3, 3), (2, 2), (1, 1), (2, 2), (4, 4)),
    PoolCase((1, 3, 2, 12), (2, 3), (1, 2), (1, 1), (3, 2)),
    PoolCase((1, 1, 11, 1), (3, 2), (2, 1), (1, 2), (1, 3)),
)


def padded_pool(x, case):
    """torch's pooling of a plane that has the padding as its own elements, which are smaller."""
    kernel, stride, (ph, pw), dilation = case.window
    x = F.pad(x, (pw, pw, ph, ph), value=-math.inf)
    return F.max_pool2d(x, kernel, stride, 0, dilation, return_indices=True)


@each_layout
@each_dtype
@pytest.mark.parametrize("case", JUMP_CASES, ids=str)
def test_a_window_of_padding_alone_passes_no_gradient(case, dtype, layout, simd_level):
    x = finite_values(case.shape, dtype, layout)
    values, codes = fastseg_pool(x, case)
    assert_identical(values, padded_pool(x, case)[0])
    assert values.isinf().any()
    grad = torch.randint(-3, 4, values.shape).to(dtype) / 2
    actual = gradient(fastseg_pool, x, case, grad)
    assert_identical(actual, gradient(padded_pool, x, case, grad))
    assert_layout(actual, layout)
    with pytest.raises(RuntimeError, match="codes hold a code outside its window or the plane"):
        fastseg.codes_to_indices(codes, x.shape, *case.window)


def test_gradient_of_other_strides_than_the_codes():
    x = torch.randn(2, 4, 6, 8)
    for layout in LAYOUTS:
        x = x.contiguous(memory_format=layout)
        grad = torch.randn(2, 4, 4, 3).transpose(-1, -2)
        expected = gradient(torch_pool, x, PoolCase(()), grad.contiguous())
        leaf = x.clone().requires_grad_()
        assert_identical(
            torch.autograd.grad(fastseg.max_pool2d(leaf, 2)[0], leaf, grad)[0], expected
        )
        values = fastseg.max_pool2d(leaf, 2)[0]
        one = torch.ones(()).expand_as(values)  # what sum() hands back
        assert torch.autograd.grad(values, leaf, one)[0].sum() == values.numel()


# Shapes for gradcheck: codes packed along W and along C, with and without a rest.
GRADCHECK_CASES = (
    PoolCase((1, 3, 4, 10)),
    PoolCase((2, 1, 4, 6)),
    PoolCase((1, 5, 2, 8)),
    PoolCase((1, 3, 5, 7), ceil_mode=True),
    PoolCase((1, 2, 5, 6), (3, 3), (2, 2), (1, 1)),
    PoolCase((1, 2, 6, 5), (2, 2), (1, 2), (1, 0), (2, 1)),
    PoolCase((1, 2, 3, 3), (2, 2), (1, 1), (2, 2), (4, 4)),  # some windows lie in the padding
)
each_gradcheck_case = pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)


def distinct(shape, layout=LAYOUTS[0]):
    """A float64 leaf whose values are far apart."""
    x = torch.randperm(math.prod(shape)).double().view(shape).contiguous(memory_format=layout)
    return x.requires_grad_()


@each_layout
@each_gradcheck_case
def test_gradcheck(case, layout):
    x = distinct(case.shape, layout)

    def values(x):
        return fastseg_pool(x, case)[0].clamp(min=-1.0)  # -infinity has no differences

    assert torch.autograd.gradcheck(values, x)
    assert torch.autograd.gradgradcheck(values, x)


@each_layout
def test_codes_carry_no_gradient(layout):
    values, codes = fastseg.max_pool2d(distinct((1, 2, 4, 4), layout), 2)
    assert values.requires_grad
    assert not codes.requires_grad


def saved_by(function):
    """The tensors that autograd keeps for the backward of function()."""
    saved = []

    def pack(t):
        saved.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return saved


@each_layout
def test_2x2_windows_save_a_quarter_of_a_byte(layout):
    x = torch.randn(2, 8, 16, 32).contiguous(memory_format=layout).requires_grad_()
    (saved,) = saved_by(lambda: fastseg.max_pool2d(x, 2))
    indices = F.max_pool2d(x, 2, return_indices=True)[1]
    assert saved.dtype == torch.uint8
    assert 32 * saved.untyped_storage().nbytes() == indices.untyped_storage().nbytes()


def test_other_windows_save_a_byte():
    x = torch.randn(2, 8, 16, 32, requires_grad=True)
    (saved,) = saved_by(lambda: fastseg.max_pool2d(x, 3, 2, 1))
    assert 8 * saved.untyped_storage().nbytes() == 8 * 2 * 8 * 8 * 16


def test_nothing_is_saved_without_a_gradient():
    x = torch.randn(1, 2, 4, 4)
    assert saved_by(lambda: fastseg.max_pool2d(x, 2)) == []
