"""fastseg.batch_norm_relu_max_pool2d beside the three ops in a row."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg import reference
from fastseg.reference.pool.batch_norm_relu_max_pool2d import batch_norm_relu
from tests.pool.pool_cases import (
    CASES,
    FLOATS,
    LAYOUTS,
    PoolCase,
    assert_identical,
    assert_layout,
    one_thread,
    special_values,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
ALL_CASES = (*CASES, PoolCase((1, 2, 2, 2 * 1029)), PoolCase((1, 1030, 2, 3)))
each_case = pytest.mark.parametrize("case", ALL_CASES, ids=str)


def affine(channels, dtype=torch.float32):
    """Scales of both signs and zero; with half-integer inputs x * scale + shift is exact."""
    channel = torch.arange(channels)
    return (channel % 5 - 2).to(dtype) / 2, (channel % 3 - 1).to(dtype) / 4


@one_thread()
def unfused(x, scale, shift, case):
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(wide) * scale.to(wide)[:, None, None] + shift.to(wide)[:, None, None]
    return F.max_pool2d(y.to(x.dtype).relu(), *case.window, case.ceil_mode, return_indices=True)


@each_layout
@each_dtype
@each_case
def test_exact_numbers_give_the_unfused_values_and_codes(case, dtype, layout, simd_level):
    """With NaN, infinities, both zeros, ties and negative scales."""
    x = special_values(case.shape, dtype, layout)
    scale, shift = affine(case.shape[1])
    expected, indices = unfused(x, scale, shift, case)
    arguments = (x, scale, shift, *case.window, case.ceil_mode)
    for function in (fastseg.batch_norm_relu_max_pool2d, reference.batch_norm_relu_max_pool2d):
        values, codes = function(*arguments)
        assert_identical(values, expected)
        assert_identical(fastseg.codes_to_indices(codes, x.shape, *case.window), indices)
        assert_layout(values, layout)
        assert_layout(codes, layout)


@each_layout
@pytest.mark.parametrize("window", [(2,), (3, 2, 1)], ids=str)
def test_close_to_batch_norm_relu_and_max_pool(window, layout, simd_level):
    x = torch.randn(2, 19, 10, 21).contiguous(memory_format=layout)
    weight, bias, mean = torch.randn(19), torch.randn(19), torch.randn(19)
    var = torch.rand(19) + 0.1
    y = F.batch_norm(x, mean, var, weight, bias).relu()
    expected, indices = F.max_pool2d(y, *window, return_indices=True)
    scale, shift = fastseg.fold_batch_norm(weight, bias, mean, var)
    values, codes = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, *window)
    # Few ulp of the largest term of the sum: x * scale and shift may cancel.
    largest = (x.abs().amax() * scale.abs().amax() + shift.abs().amax()).item()
    tolerance = 4 * torch.finfo(torch.float32).eps * largest
    torch.testing.assert_close(values, expected, rtol=0, atol=tolerance)
    # Another position only if its value is as large but for rounding.
    picked = y.flatten(-2).gather(-1, fastseg.codes_to_indices(codes, x.shape, *window).flatten(-2))
    torch.testing.assert_close(picked.view_as(values), expected, rtol=0, atol=2 * tolerance)
    moved = fastseg.codes_to_indices(codes, x.shape, *window) != indices
    assert moved.float().mean() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bits_compute_in_float32(dtype, simd_level):
    """With a scale and a shift that the dtype cannot hold; the result is rounded once."""
    x = torch.randn(1, 20, 6, 34).to(dtype)
    scale, shift = torch.rand(20) + 1 + 2**-13, torch.rand(20) * 2**-6 - 2**-13
    y = (x.double() * scale.double()[:, None, None] + shift.double()[:, None, None]).relu()
    expected = F.max_pool2d(y, 2)
    values, _ = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, 2)
    assert values.dtype == dtype
    # Half an ulp of the dtype, and float32's rounding before it.
    error = (values.double() - expected).abs()
    assert (error <= expected * torch.finfo(dtype).eps * 0.5001 + 1e-6).all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("scale_dtype", FLOATS, ids=str)
def test_scale_and_shift_of_any_floating_point_dtype(dtype, scale_dtype, simd_level):
    x = special_values((1, 5, 6, 7), dtype, LAYOUTS[0])
    scale, shift = affine(5)
    expected = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, 2)
    strided = torch.stack((shift, scale), 1).to(scale_dtype)
    actual = fastseg.batch_norm_relu_max_pool2d(x, strided[:, 1], strided[:, 0], 2)
    for a, b in zip(actual, expected, strict=True):
        assert_identical(a, b)


def test_by_hand(simd_level):
    nan, inf = math.nan, math.inf
    rows = [  # window, scale, shift -> value, code
        ([1, 2, 3, 4], 1, 0, 4, 3),
        ([1, 2, 3, 4], -1, 5, 4, 0),
        ([1, 2, 3, 4], -1, 0, 0, 0),  # all cut off: a tie of zeros
        ([1, nan, nan, 9], 1, 0, nan, 2),
        ([1, 2, 3, 4], nan, 0, nan, 3),
        ([inf, 1, 1, 1], 0, 0, nan, 0),
        ([-inf, 1, 2, 0], -1, 0, inf, 0),
        ([5, 5, 7, 7], 0, 3, 3, 0),
    ]
    for layout in LAYOUTS:
        x = torch.tensor([r[0] for r in rows], dtype=torch.float32).view(1, -1, 2, 2)
        x = x.repeat(1, 1, 1, 9).contiguous(memory_format=layout)
        scale, shift = (torch.tensor([float(r[k]) for r in rows]) for k in (1, 2))
        values, codes = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, 2)
        for channel, (*_, value, code) in enumerate(rows):
            assert_identical(values[0, channel], torch.full((1, 9), float(value)))
            assert codes[0, channel].tolist() == [[code] * 9]


def test_padding_is_not_shifted(simd_level):
    """Padding never wins, not even where shift alone is larger than every element."""
    x = torch.full((1, 3, 3, 3), -2.0)
    values, codes = fastseg.batch_norm_relu_max_pool2d(
        x, torch.ones(3), torch.full((3,), 5.0), 3, 1, 1
    )
    assert (values == 3).all()
    fastseg.codes_to_indices(codes, (3, 3), 3, 1, 1)  # raises where a code names padding


def test_3d_and_strided_inputs(simd_level):
    x = special_values((2, 6, 8, 10), torch.float32, LAYOUTS[0])
    scale, shift = affine(6)
    for view in (x[0], x.transpose(-1, -2), x[:, :, ::2, 1:], x[:1].expand(3, -1, -1, -1)):
        expected, indices = unfused(view, scale, shift, PoolCase(()))
        values, codes = fastseg.batch_norm_relu_max_pool2d(view, scale, shift, 2)
        assert_identical(values, expected)
        assert_identical(fastseg.codes_to_indices(codes, view.shape, 2), indices)
        assert values.stride() == expected.stride()


def test_fold_batch_norm():
    mean, var = torch.randn(4).double(), torch.rand(4).double() + 0.1
    weight, bias = torch.randn(4).double(), torch.randn(4).double()
    x = torch.randn(2, 4, 3, 3).double()
    for w, b in ((weight, bias), (None, None), (weight, None), (None, bias)):
        scale, shift = fastseg.fold_batch_norm(w, b, mean, var, 1e-3)
        expected = F.batch_norm(x, mean, var, w, b, eps=1e-3)
        torch.testing.assert_close(x * scale[:, None, None] + shift[:, None, None], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_statistics_fold_in_float32(dtype):
    mean, bias = torch.randn(4).to(dtype), torch.randn(4).to(dtype)
    weight, var = torch.randn(4).to(dtype), torch.full((4,), 3e-6, dtype=dtype)
    statistics = (weight, bias, mean, var)
    folded = fastseg.fold_batch_norm(*statistics)
    expected = fastseg.fold_batch_norm(*(t.double() for t in statistics))
    for ours, exact in zip(folded, expected, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, exact.float())


# Gradients.

GRADCHECK_CASES = (
    PoolCase((2, 3, 4, 6)),
    PoolCase((1, 5, 4, 10)),
    PoolCase((2, 1, 4, 6)),
    PoolCase((1, 3, 5, 7), ceil_mode=True),
    PoolCase((1, 2, 5, 6), (3, 3), (2, 2), (1, 1)),
)


@each_layout
@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)
def test_gradcheck(case, layout):
    count = math.prod(case.shape)
    x = torch.randperm(count).double().view(case.shape) / 7 - count / 14
    x = x.contiguous(memory_format=layout).requires_grad_()
    channel = torch.arange(case.shape[1]).double()
    scale = ((-1) ** channel * (0.5 + channel / 3)).requires_grad_()
    shift = (channel / 11 + 0.013).requires_grad_()
    y = x * scale[:, None, None] + shift[:, None, None]
    assert y.abs().min() > 1e-3  # no kink of relu within the step of the differences

    def values(x, scale, shift):
        window = (*case.window, case.ceil_mode)
        return fastseg.batch_norm_relu_max_pool2d(x, scale, shift, *window)[0]

    assert torch.autograd.gradcheck(values, (x, scale, shift))
    assert torch.autograd.gradgradcheck(values, (x, scale, shift))


@each_layout
@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize("wanted", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)], ids=str)
def test_gradients_are_those_of_the_chain(wanted, dims, layout, simd_level):
    x = torch.randn(2, 5, 8, 10).contiguous(memory_format=layout)
    x = x if dims == 4 else x[0]
    tensors = [x, torch.randn(5), torch.randn(5)]
    for t, needs in zip(tensors, wanted, strict=True):
        t.requires_grad_(bool(needs))
    leaves = [t for t in tensors if t.requires_grad]
    case = PoolCase((), (3, 3), (2, 2), (1, 1))
    for c in (PoolCase(()), case):
        theirs = unfused(*tensors, c)[0]
        ours = fastseg.batch_norm_relu_max_pool2d(*tensors, *c.window)[0]
        grad = torch.randn_like(theirs)
        expected = torch.autograd.grad(theirs, leaves, grad)
        actual = torch.autograd.grad(ours, leaves, grad)
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@each_layout
def test_a_window_of_padding_alone_passes_no_gradient(layout):
    """Its dilated taps jump over the plane; torch has no such padding but as elements."""
    x = torch.randn(2, 5, 3, 4).contiguous(memory_format=layout)
    tensors = [t.requires_grad_() for t in (x, torch.randn(5), torch.randn(5))]
    y = F.pad(batch_norm_relu(*tensors), (2, 2, 2, 2), value=-math.inf)
    theirs = F.max_pool2d(y, 2, 1, 0, 4)
    ours = fastseg.batch_norm_relu_max_pool2d(*tensors, 2, 1, 2, 4)[0]
    assert theirs.isinf().any()
    assert theirs.isfinite().any()
    grad = torch.randn_like(theirs)
    expected = torch.autograd.grad(theirs, tensors, grad)
    actual = torch.autograd.grad(ours, tensors, grad)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sixteen_bit_gradients_sum_in_float32(dtype):
    x = torch.rand(1, 1, 64, 64).to(dtype).requires_grad_()
    scale, shift = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    values, codes = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, 2)
    values.sum().backward()
    assert shift.grad.item() == 32 * 32  # a sum in 16 bits stops at 256 in bfloat16
    assert x.grad.dtype == dtype
    picked = x.detach().flatten().float()[fastseg.codes_to_indices(codes, (64, 64), 2).flatten()]
    torch.testing.assert_close(scale.grad, picked.sum()[None])


def test_a_nan_passes_no_gradient_where_relu_cuts():
    x = torch.tensor([[[[-1.0, -2.0, 1.0, 2.0]]]]).expand(1, 1, 2, 4).contiguous().requires_grad_()
    values, _ = fastseg.batch_norm_relu_max_pool2d(x, torch.ones(1), torch.zeros(1), 2)
    values.backward(torch.tensor([[[[math.nan, 3.0]]]]))
    assert x.grad.tolist() == [[[[0, 0, 0, 3], [0, 0, 0, 0]]]]


@each_layout
def test_values_may_be_written_to_before_the_gradient(layout):
    """As those of torch's pooling, which keeps no values."""
    x = torch.randn(2, 5, 8, 10).contiguous(memory_format=layout)
    tensors = [t.requires_grad_() for t in (x, torch.randn(5), torch.randn(5))]
    theirs = unfused(*tensors, PoolCase(()))[0]
    ours = fastseg.batch_norm_relu_max_pool2d(*tensors, 2)[0]
    gradients = [torch.autograd.grad(y.mul_(-3).add_(1).sum(), tensors) for y in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)
