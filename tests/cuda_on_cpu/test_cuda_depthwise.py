"""CUDA kernels of depthwise convolution, run on the CPU (tests/cuda_on_cpu), and the reference."""

from __future__ import annotations

import pytest
import torch

from fastseg import reference
from tests.conv.conv_cases import ConvCase
from tests.cuda_on_cpu.build import cuda_home
from tests.pool.pool_cases import misaligned

ops = torch.ops.fastseg_cuda_on_cpu

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
# Relative to the largest value: half a unit in the last place of the dtype, and of sums in float32.
BOUNDS = {torch.float64: 1e-14, torch.float32: 5e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def depthwise(shape, *geometry, **named) -> ConvCase:
    return ConvCase(shape, shape[1], *geometry, **named, groups=shape[1])


SQUARE = [
    (depthwise((2, 8, 11, 13)), "relu"),
    (depthwise((1, 24, 13, 10), dilation=(6, 6)), "relu6"),
    (depthwise((1, 8, 33, 33), dilation=(12, 12)), ""),
    (depthwise((1, 8, 33, 33), dilation=(18, 18)), "hardswish"),
    (depthwise((1, 8, 5, 7), dilation=(9, 8)), "silu"),  # over the map
    (depthwise((2, 72, 5, 26), dilation=(4, 1)), "relu"),  # packs, columns that fill no block
    (depthwise((1, 16, 1, 6), dilation=(2, 3)), "relu"),
    (depthwise((2, 8, 12, 9), (5, 5), (2, 2)), "leaky_relu"),
    (depthwise((1, 4, 20, 19), (5, 5), (7, 1)), "relu"),
    (depthwise((2, 6, 20, 19), (7, 7)), "silu"),
    (depthwise((1, 2, 20, 9), (7, 7), (2, 3)), "relu"),
    (depthwise((1, 4, 3, 2), (7, 7)), "relu"),  # maps smaller than a tile's margins
    (depthwise((1, 8, 1, 1), (5, 5)), "relu"),
    (depthwise((1, 1, 120, 110), dilation=(2, 2)), "relu"),  # planes beyond shared memory
    (depthwise((1, 1, 120, 110), dilation=(50, 300)), "relu"),
]
ANY = [
    (depthwise((2, 6, 13, 20), dilation=(1, 2), stride=(2, 3)), "relu"),
    (depthwise((1, 3, 19, 22), (3, 5), (3, 4), (2, 2)), "hardswish"),
    (depthwise((1, 70, 9, 10), (3, 1), (2, 1), padding=(0, 0)), "relu"),
    (depthwise((1, 35, 12, 9), (1, 1)), "relu"),
    (depthwise((1, 3, 12, 9), (9, 9)), "silu"),
    (depthwise((2, 7, 11, 13), dilation=(3, 3)), "relu"),  # channels that make no packs
    (depthwise((1, 8, 11, 13), dilation=(3, 3), padding=(2, 2)), "relu"),  # a smaller output
    (depthwise((1, 3, 21, 30), stride=(2, 2)), "relu6"),
]
# In float64 no kernel is for squares alone.
CASES = [
    (*case, dtype)
    for case in SQUARE + ANY
    for dtype in BOUNDS
    if dtype != torch.float64 or case in (SQUARE[1], *ANY)
]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_case = pytest.mark.parametrize(("case", "activation", "dtype"), CASES, ids=str)


def operands(case: ConvCase, dtype, layout):
    """x, weight, the three vectors of different dtypes, residual and grad."""
    x, residual, grad = (
        torch.randn(size).to(dtype).contiguous(memory_format=layout)
        for size in (case.shape, case.out_shape, case.out_shape)
    )
    vectors = [torch.randn(case.groups).to(d) for d in (dtype, torch.float64, torch.float16)]
    return x, torch.randn(case.weight_shape).to(dtype), vectors, residual, grad


def assert_near(actual, expected, dtype):
    """Within the rounding of one sum and one result."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=BOUNDS[dtype] * largest)


def derivatives(case, grad, x, weight):
    return torch.ops.aten.convolution_backward(
        *(t.double() for t in (grad, x, weight)),
        *(None, *case.geometry[:3], False, (0, 0), case.groups, (True, True, False)),
    )


@each_case
@each_layout
def test_convolution(case, activation, layout, dtype):
    x, weight, vectors, residual, _ = operands(case, dtype, layout)
    wide = [t.double() for t in (x, weight, *vectors)]
    for more in (residual, None):
        last = more if more is None else more.double()
        arguments = (*case.geometry[:3], activation)
        expected = reference.depthwise_conv2d(*wide, last, *arguments)
        out = ops.depthwise_conv2d(x, weight, *vectors, more, *arguments)
        assert_near(out, expected, dtype)
        assert out.is_contiguous(memory_format=layout)
    bare = [None] * 4
    out = ops.depthwise_conv2d(x, weight, *bare, *case.geometry[:3], "")
    assert_near(out, reference.depthwise_conv2d(*wide[:2], *bare, *case.geometry[:3], ""), dtype)


@each_case
@each_layout
def test_gradients(case, activation, layout, dtype):
    x, weight, _, _, grad = operands(case, dtype, layout)
    by_x, by_weight, _ = derivatives(case, grad, x, weight)
    out = ops.depthwise_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry[:3])
    assert_near(out, by_x, dtype)
    assert out.is_contiguous(memory_format=layout)
    arguments = (x, grad, case.kernel, *case.geometry[:3])
    out = ops.depthwise_conv2d_weight_grad(*arguments)
    assert_near(out, by_weight, dtype)
    assert torch.equal(out, ops.depthwise_conv2d_weight_grad(*arguments))


@each_layout
@pytest.mark.parametrize("offset", [1, 3, 4])
def test_tensors_that_begin_anywhere(layout, offset):
    """Of x, the weight, the residual and grad each in turn: packs and vectors are not aligned."""
    case, dtype = depthwise((1, 16, 9, 11), dilation=(2, 2)), torch.float16
    x, weight, vectors, residual, grad = operands(case, dtype, layout)
    wide = [t.double() for t in (x, weight, *vectors, residual)]
    expected = reference.depthwise_conv2d(*wide, *case.geometry[:3], "relu")
    by_x, by_weight, _ = derivatives(case, grad, x, weight)
    for i in range(4):
        a, b, c, d = (
            misaligned(t, offset) if i == j else t
            for j, t in enumerate((x, weight, residual, grad))
        )
        out = ops.depthwise_conv2d(a, b, *vectors, c, *case.geometry[:3], "relu")
        assert_near(out, expected, dtype)
        out = ops.depthwise_conv2d_input_grad(d, b, case.shape[2:], *case.geometry[:3])
        assert_near(out, by_x, dtype)
        assert_near(
            ops.depthwise_conv2d_weight_grad(a, d, case.kernel, *case.geometry[:3]),
            by_weight,
            dtype,
        )


@each_layout
@pytest.mark.parametrize("case", [SQUARE[1][0], SQUARE[7][0], ANY[0][0]], ids=str)
def test_nan_and_infinity_reach_exactly_what_reads_them(case, layout):
    x, weight, _, _, grad = operands(case, torch.float32, layout)
    x[0, 1, 0, 2] = grad[0, 0, 0, 1] = torch.nan
    x[0, 0, -1, -1] = grad[0, 1, -1, 0] = torch.inf
    bare = [None] * 4
    pairs = (
        (
            ops.depthwise_conv2d(x, weight, *bare, *case.geometry[:3], ""),
            reference.depthwise_conv2d(x, weight, *bare, *case.geometry[:3], ""),
        ),
        (
            ops.depthwise_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry[:3]),
            reference.depthwise_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry[:3]),
        ),
        (
            ops.depthwise_conv2d_weight_grad(x, grad, case.kernel, *case.geometry[:3]),
            reference.depthwise_conv2d_weight_grad(x, grad, case.kernel, *case.geometry[:3]),
        ),
    )
    for actual, expected in pairs:
        assert expected.isnan().any()
        assert not expected.isnan().all()
        torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(264, 16, 14, 92), (264, 8, 16, 164)], ids=str)
def test_tiles_of_more_than_48_kilobytes(shape):
    """With what a block knows of its rows and columns; kernels must ask for so much."""
    x, weight = torch.randn(shape).bfloat16(), torch.randn(shape[1], 1, 3, 3).bfloat16()
    x = x.contiguous(memory_format=torch.channels_last)
    others = [None] * 4, [[1, 1]] * 3
    out = ops.depthwise_conv2d(x, weight, *others[0], *others[1], "")
    expected = reference.depthwise_conv2d(x.double(), weight.double(), *others[0], *others[1], "")
    assert_near(out, expected, torch.bfloat16)


def test_more_images_than_a_grid_has_rows():
    x, weight = torch.randn(70000, 1, 1, 1), torch.randn(1, 1, 3, 3)
    out = ops.depthwise_conv2d(x, weight, *[None] * 4, [2, 2], [1, 1], [1, 1], "")
    torch.testing.assert_close(out, x * weight[:, :, 1:2, 1:2])


@each_layout
def test_no_images(layout):
    x = torch.empty(0, 8, 5, 6).contiguous(memory_format=layout)
    weight, geometry = torch.randn(8, 1, 3, 3), ([1, 1], [1, 1], [1, 1])
    assert ops.depthwise_conv2d(x, weight, *[None] * 4, *geometry, "").shape == x.shape
    assert ops.depthwise_conv2d_input_grad(x, weight, [5, 6], *geometry).shape == x.shape
    out = ops.depthwise_conv2d_weight_grad(x, x, [3, 3], *geometry)
    assert torch.equal(out, torch.zeros(8, 1, 3, 3))


def test_more_elements_than_kernels_count():
    x = torch.empty(0, 1 << 20, 32, 32)
    with pytest.raises(RuntimeError, match="on CUDA, the elements of an image must be below"):
        ops.depthwise_conv2d_weight_grad(x, x, [3, 3], [1, 1], [1, 1], [1, 1])
