"""CUDA kernels of depthwise convolution, run on the CPU (tests/cuda_on_cpu), and the reference."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import SANITIZE
from tests.cuda_on_cpu.sanitized import assert_sanitized

ops = torch.ops.fastseg_cuda_on_cpu

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
# Relative to the largest value: half a unit in the last place of the dtype, and of sums in float32.
BOUNDS = {torch.float64: 1e-14, torch.float32: 5e-7, torch.float16: 5e-4, torch.bfloat16: 4e-3}
LAYOUTS = (torch.contiguous_format, torch.channels_last)


class Case(NamedTuple):
    """A convolution; its padding is "same" unless it is given."""

    shape: tuple[int, int, int, int]
    kernel: tuple[int, int] = (3, 3)
    dilation: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    pad: tuple[int, int] | None = None
    activation: str = "relu"

    @property
    def padding(self) -> tuple[int, int]:
        same = tuple(d * (k - 1) // 2 for d, k in zip(self.dilation, self.kernel, strict=True))
        return self.pad or same

    @property
    def geometry(self):
        return self.stride, self.padding, self.dilation

    @property
    def output(self) -> tuple[int, int, int, int]:
        axes = zip(self.shape[2:], self.kernel, *self.geometry, strict=True)
        return *self.shape[:2], *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)


SQUARE = [
    Case((2, 8, 11, 13)),
    Case((1, 24, 13, 10), dilation=(6, 6), activation="relu6"),
    Case((1, 8, 33, 33), dilation=(12, 12), activation=""),
    Case((1, 8, 33, 33), dilation=(18, 18), activation="hardswish"),
    Case((1, 8, 5, 7), dilation=(9, 8), activation="silu"),  # over the map
    Case((2, 72, 5, 26), dilation=(4, 1)),  # packs and columns that fill no block
    Case((1, 16, 1, 6), dilation=(2, 3)),
    Case((2, 8, 12, 9), (5, 5), (2, 2), activation="leaky_relu"),
    Case((1, 4, 20, 19), (5, 5), (7, 1)),
    Case((2, 6, 20, 19), (7, 7), activation="silu"),
    Case((1, 2, 20, 9), (7, 7), (2, 3)),
    Case((1, 4, 3, 2), (7, 7)),  # maps smaller than a tile's margins
    Case((1, 8, 1, 1), (5, 5)),
    Case((1, 1, 120, 110), dilation=(2, 2)),  # planes that do not fit shared memory
    Case((1, 1, 120, 110), dilation=(50, 300)),
]
ANY = [
    Case((2, 6, 13, 20), dilation=(1, 2), stride=(2, 3)),
    Case((1, 3, 19, 22), (3, 5), (3, 4), (2, 2), activation="hardswish"),
    Case((1, 70, 9, 10), (3, 1), (2, 1), pad=(0, 0)),
    Case((1, 35, 12, 9), (1, 1)),
    Case((1, 3, 12, 9), (9, 9), activation="silu"),
    Case((2, 7, 11, 13), dilation=(3, 3)),  # channels that make no packs
    Case((1, 8, 11, 13), dilation=(3, 3), pad=(2, 2)),  # a smaller output
    Case((1, 3, 21, 30), stride=(2, 2), activation="relu6"),
]
CASES = [(case, dtype) for case in SQUARE + ANY for dtype in BOUNDS]
# In float64 no kernel is for squares alone.
CASES = [
    (case, dtype) for case, dtype in CASES if dtype != torch.float64 or case in (SQUARE[1], *ANY)
]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_case = pytest.mark.parametrize(("case", "dtype"), CASES, ids=str)


def operands(case: Case, dtype, layout):
    """x, weight, the three vectors of different dtypes, residual and grad."""
    x, residual, grad = (
        torch.randn(size).to(dtype).contiguous(memory_format=layout)
        for size in (case.shape, case.output, case.output)
    )
    channels = case.shape[1]
    vectors = [torch.randn(channels).to(d) for d in (dtype, torch.float64, torch.float16)]
    return x, torch.randn(channels, 1, *case.kernel).to(dtype), vectors, residual, grad


def assert_near(actual, expected, dtype):
    """Within the rounding of one sum and one result."""
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    largest = expected.abs().max().item()
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=BOUNDS[dtype] * largest)


def derivatives(case, grad, x, weight):
    return torch.ops.aten.convolution_backward(
        *(t.double() for t in (grad, x, weight)),
        *(None, *case.geometry, False, (0, 0), case.shape[1], (True, True, False)),
    )


@each_case
@each_layout
def test_convolution(case, layout, dtype):
    x, weight, vectors, residual, _ = operands(case, dtype, layout)
    wide = [t.double() for t in (x, weight, *vectors)]
    for more in (residual, None):
        last = more if more is None else more.double()
        arguments = (*case.geometry, case.activation)
        expected = reference.depthwise_conv2d(*wide, last, *arguments)
        out = ops.depthwise_conv2d(x, weight, *vectors, more, *arguments)
        assert_near(out, expected, dtype)
        assert out.is_contiguous(memory_format=layout)
    bare = [None] * 4
    out = ops.depthwise_conv2d(x, weight, *bare, *case.geometry, "")
    assert_near(out, reference.depthwise_conv2d(*wide[:2], *bare, *case.geometry, ""), dtype)


@each_case
@each_layout
def test_gradients(case, layout, dtype):
    x, weight, _, _, grad = operands(case, dtype, layout)
    by_x, by_weight, _ = derivatives(case, grad, x, weight)
    out = ops.depthwise_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry)
    assert_near(out, by_x, dtype)
    assert out.is_contiguous(memory_format=layout)
    arguments = (x, grad, case.kernel, *case.geometry)
    out = ops.depthwise_conv2d_weight_grad(*arguments)
    assert_near(out, by_weight, dtype)
    assert torch.equal(out, ops.depthwise_conv2d_weight_grad(*arguments))


@each_layout
@pytest.mark.parametrize("offset", [1, 3, 4])
def test_tensors_that_begin_anywhere(layout, offset):
    """Of x, the weight, the residual and grad each in turn: packs and vectors are not aligned."""

    def moved(t):
        flat = torch.empty(t.numel() + offset, dtype=t.dtype)[offset:]
        return flat.as_strided(t.shape, t.stride()).copy_(t)

    case, dtype = Case((1, 16, 9, 11), dilation=(2, 2)), torch.float16
    x, weight, vectors, residual, grad = operands(case, dtype, layout)
    wide = [t.double() for t in (x, weight, *vectors, residual)]
    expected = reference.depthwise_conv2d(*wide, *case.geometry, "relu")
    by_x, by_weight, _ = derivatives(case, grad, x, weight)
    for i in range(4):
        a, b, c, d = (moved(t) if i == j else t for j, t in enumerate((x, weight, residual, grad)))
        out = ops.depthwise_conv2d(a, b, *vectors, c, *case.geometry, "relu")
        assert_near(out, expected, dtype)
        out = ops.depthwise_conv2d_input_grad(d, b, case.shape[2:], *case.geometry)
        assert_near(out, by_x, dtype)
        assert_near(
            ops.depthwise_conv2d_weight_grad(a, d, case.kernel, *case.geometry), by_weight, dtype
        )


@each_layout
@pytest.mark.parametrize("case", [SQUARE[1], SQUARE[7], ANY[0]], ids=str)
def test_nan_and_infinity_reach_exactly_what_reads_them(case, layout):
    x, weight, _, _, grad = operands(case, torch.float32, layout)
    x[0, 1, 0, 2] = grad[0, 0, 0, 1] = torch.nan
    x[0, 0, -1, -1] = grad[0, 1, -1, 0] = torch.inf
    bare = [None] * 4
    pairs = (
        (
            ops.depthwise_conv2d(x, weight, *bare, *case.geometry, ""),
            reference.depthwise_conv2d(x, weight, *bare, *case.geometry, ""),
        ),
        (
            ops.depthwise_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry),
            reference.depthwise_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry),
        ),
        (
            ops.depthwise_conv2d_weight_grad(x, grad, case.kernel, *case.geometry),
            reference.depthwise_conv2d_weight_grad(x, grad, case.kernel, *case.geometry),
        ),
    )
    for actual, expected in pairs:
        assert expected.isnan().any()
        assert not expected.isnan().all()
        torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


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


@pytest.mark.skipif(SANITIZE, reason="this is the inner run")
def test_under_address_sanitizer(order):
    assert_sanitized(order, __file__, "forward and (torch.float16 or begin_anywhere)")
