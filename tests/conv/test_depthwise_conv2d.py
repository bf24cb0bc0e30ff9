"""Depthwise convolution and its gradients, the building blocks of the CPU, against references."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastseg import reference
from fastseg._core.conv2d import ACTIVATIONS
from tests.conv.conv_cases import (
    ConvCase,
    assert_close,
    double,
    expected_conv2d,
    needs_kernel,
    operands,
)
from tests.pool.pool_cases import FLOATS, LAYOUTS, assert_identical

ops = torch.ops.fastseg
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])


def case(shape, *others, **options):
    return ConvCase(shape, shape[1], *others, groups=shape[1], **options)


CASES = (
    # Channels: below four, half vectors, whole ones, several blocks of 256, remainders of all.
    case((2, 3, 9, 11)),
    case((1, 8, 12, 70), dilation=(2, 2)),
    case((2, 36, 13, 10), dilation=(3, 5)),
    case((1, 48, 33, 33), dilation=(6, 6)),
    case((1, 530, 11, 9), dilation=(4, 4)),
    # Columns: chains of one output, of eight and more, pairs and single ones.
    case((1, 16, 3, 40)),
    case((1, 17, 33, 33), dilation=(12, 12)),
    case((1, 5, 33, 35), dilation=(18, 18)),
    case((1, 16, 5, 7), dilation=(9, 9)),  # only the centre is live
    case((1, 4, 20, 7), dilation=(7, 7)),  # only the middle column is
    case((1, 19, 1, 1), dilation=(6, 6)),
    case((1, 2, 6, 6), dilation=(1 << 20, 1 << 20)),
    # Paddings.
    case((1, 20, 13, 14), padding=(0, 0), dilation=(4, 4)),
    case((1, 20, 9, 9), padding=(0, 0), dilation=(4, 4)),  # one window
    case((2, 6, 7, 8), padding=(6, 8), dilation=(3, 4)),
    case((1, 6, 10, 8), padding=(1, 5), dilation=(3, 4)),
    case((1, 18, 4, 5), padding=(18, 18), dilation=(9, 9)),  # outputs that read nothing
    # Strides.
    case((1, 24, 21, 70), stride=(2, 2)),
    case((2, 9, 21, 22), stride=(2, 2), dilation=(2, 2)),
    case((1, 21, 22, 35), stride=(2, 2), dilation=(3, 3)),
    case((1, 5, 24, 41), stride=(3, 4), dilation=(2, 6)),
    case((1, 7, 12, 30), stride=(1, 2), padding=(2, 0)),
    case((1, 18, 14, 30), stride=(2, 1), dilation=(1, 3)),
    # Kernels.
    case((2, 19, 11, 9), (1, 1)),
    case((1, 6, 9, 12), (1, 1), stride=(2, 3)),
    case((1, 37, 12, 24), (5, 5), dilation=(2, 1)),
    case((1, 16, 19, 22), (5, 3), dilation=(3, 4)),
    case((1, 5, 19, 22), (3, 7), dilation=(4, 2), padding=(3, 0)),
    case((1, 16, 9, 40), (1, 3), dilation=(1, 2)),
    case((1, 3, 40, 9), (7, 1), stride=(2, 1)),
    case((0, 4, 8, 8)),
)
each_case = pytest.mark.parametrize("c", CASES, ids=str)
LARGE = (case((3, 70, 65, 67), dilation=(5, 5)), case((1, 5, 300, 310), stride=(1, 2)))
"""More than one task, and bands of planes."""


def in_layout_of(x, y):
    """y is dense, and channels_last if x is."""
    return y.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def run(x, weight, c, bias=None, scale=None, shift=None, residual=None, activation=""):
    return ops.depthwise_conv2d(
        x, weight, bias, scale, shift, residual, *c.geometry[:3], activation
    )


def gradients(x, weight, grad, c):
    return (
        ops.depthwise_conv2d_input_grad(grad, weight, c.shape[2:], *c.geometry[:3]),
        ops.depthwise_conv2d_weight_grad(x, grad, c.kernel, *c.geometry[:3]),
    )


def expected_gradients(x, weight, grad, c):
    x, weight, grad = map(double, (x, weight, grad))
    return (
        reference.depthwise_conv2d_input_grad(grad, weight, c.shape[2:], *c.geometry[:3]),
        reference.depthwise_conv2d_weight_grad(x, grad, c.kernel, *c.geometry[:3]),
    )


def gradient_problem(c, dtype=torch.float32, layout=torch.contiguous_format):
    x, weight = c.tensors(dtype, layout)
    return x, weight, torch.randn(c.out_shape).to(dtype).contiguous(memory_format=layout)


@each_layout
@each_case
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_against_the_reference(c, layout, simd_level):
    for dtype in FLOATS:
        x, weight = c.tensors(dtype, layout)
        y = run(x, weight, c)
        expected, _ = expected_conv2d(x, weight, c)
        assert_close(y, expected)
        assert y.dtype == dtype
        assert in_layout_of(x, y)


@each_layout
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("c", [CASES[2], CASES[17], CASES[25]], ids=str)
def test_epilogue(c, activation, layout, simd_level):
    for dtype in FLOATS:
        x, weight = c.tensors(dtype, layout)
        parts = {k: t.to(dtype if k == "residual" else t.dtype) for k, t in operands(c).items()}
        for names in (("bias",), ("scale",), tuple(parts)):
            some = {k: parts[k] for k in names}
            expected, size = expected_conv2d(x, weight, c, activation, **some)
            assert_close(run(x, weight, c, **some, activation=activation), expected, size)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_from_zero(activation, simd_level):
    """Lanes of every kind: the exponential's ends, infinities and NaN."""
    values = [0.0, -0.0, 1e-30, 1, 3, -3, 6, 20, -20, 88, -88, 89, -89, 1e4, -1e4, 3e38, -3e38]
    x = torch.tensor([*values, torch.inf, -torch.inf, torch.nan]).view(1, 1, 4, 5)
    weight = torch.ones(1, 1, 1, 1)
    for dtype in (torch.float32, torch.float64):
        y = run(x.to(dtype), weight.to(dtype), case(x.shape, (1, 1)), activation=activation)
        expected = reference.ACTIVATION[activation](x.double()).to(dtype)
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-35, equal_nan=True)


@each_layout
@each_case
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_gradients(c, layout, simd_level):
    for dtype in FLOATS:
        problem = gradient_problem(c, dtype, layout)
        actual = gradients(*problem, c)
        for a, e in zip(actual, expected_gradients(*problem, c), strict=True):
            assert_close(a, e)
            assert a.dtype == dtype
        assert in_layout_of(problem[2], actual[0])
        assert actual[1].is_contiguous()


def layouts_of(t):
    """The same values in other strides."""
    n, ch, h, w = t.shape
    yield t.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)
    yield t.transpose(2, 3).contiguous().transpose(2, 3)
    wide = torch.full((n, ch + 2, h + 1, 2 * w), torch.nan, dtype=t.dtype)
    for layout in LAYOUTS:
        sliced = wide.clone(memory_format=layout)[:, 1:-1, 1:, ::2]
        yield sliced.copy_(t)


def test_strides():
    c = CASES[2]
    x, weight, grad = gradient_problem(c)
    residual = torch.randn(c.out_shape)
    y, expected = run(x, weight, c, residual=residual), gradients(x, weight, grad, c)
    others = map(layouts_of, (x, weight, grad, residual))
    for x_, w, g, r in zip(*others, strict=True):
        assert_close(run(x_, w, c, residual=r), y.double())
        for a, e in zip(gradients(x_, w, g, c), expected, strict=True):
            assert_close(a, e.double())
    for t in (torch.randn(1, 36, 1, 1), torch.randn(2, 1, 13, 10)):
        x = t.expand(c.shape)
        assert_close(run(x, weight, c), expected_conv2d(x, weight, c)[0])
        assert_close(gradients(x, weight, grad, c)[1], expected_gradients(x, weight, grad, c)[1])


@each_layout
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("c", [CASES[1], CASES[7], CASES[17], CASES[21], CASES[25]], ids=str)
def test_what_is_not_finite_reaches_what_reads_it_alone(c, value, layout, simd_level):
    x, weight, grad = gradient_problem(c, layout=layout)
    live = torch.zeros(c.shape)
    for t in (x, live):
        t[0, c.shape[1] // 2, c.shape[2] // 2, c.shape[3] // 3] = value
        t[-1, 0, 0, 0] = value
    reading = expected_conv2d(live, torch.ones_like(weight), c)[0]
    reads = ~reading.isfinite()
    assert torch.equal(~run(x, weight, c).isfinite(), reads)
    by_weight = gradients(x, weight, torch.ones_like(grad), c)[1]
    expected = expected_gradients(live, weight, torch.ones_like(grad), c)[1]
    assert torch.equal(~by_weight.isfinite(), ~expected.isfinite())
    # A gradient that is not finite, and a weight: padding does not make 0 * inf of it.
    grad[0, 0, 0, 0] = value
    by_x = gradients(x, weight, grad, c)[0]
    assert torch.equal(by_x.isfinite(), expected_gradients(x, weight, grad, c)[0].isfinite())
    x, _, _ = gradient_problem(c, layout=layout)
    weight[:, :, 0, 0] = value
    rows, columns = (
        torch.arange(n) * s >= p for n, s, p in zip(c.out_shape[2:], c.stride, c.pad, strict=True)
    )
    tap = rows[:, None] & columns
    assert torch.equal(~run(x, weight, c).isfinite(), tap.expand(c.out_shape))


@each_layout
@each_dtype
@pytest.mark.parametrize("c", LARGE, ids=str)
@needs_kernel("depthwise_conv2d")
def test_results_do_not_depend_on_the_number_of_threads(c, dtype, layout):
    x, weight, grad = gradient_problem(c, dtype, layout)
    expected = None
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        actual = [run(x, weight, c, activation="silu"), *gradients(x, weight, grad, c)]
        expected = expected or actual
        for a, e in zip(actual, expected, strict=True):
            assert_identical(a, e)
    assert_close(actual[0], *expected_conv2d(x, weight, c, "silu"))
    for a, e in zip(actual[1:], expected_gradients(x, weight, grad, c), strict=True):
        assert_close(a, e)


@each_layout
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_outputs_that_outgrow_the_caches(layout, simd_level):
    c = case((1, 528, 128, 129), dilation=(8, 8))
    x, weight = c.tensors(torch.float32, layout)
    y = run(x, weight, c)
    assert y.nbytes >= 32 << 20
    parts = zip(x.split(264, 1), weight.split(264), y.split(264, 1), strict=True)
    for part_x, part_weight, part in parts:  # which do not
        assert torch.equal(run(part_x, part_weight, c), part)
    few = case((1, 3, *c.shape[2:]), dilation=(8, 8))
    assert_close(y[:, 255:258], expected_conv2d(x[:, 255:258], weight[255:258], few)[0])


@each_layout
def test_weight_gradients_of_long_sums_keep_their_digits(layout, simd_level):
    """A product of 1 a pixel: a single chain of float32 sums would stop at 2^24."""
    c = case((1, 1, 4200, 4100))
    x = torch.ones(c.shape).contiguous(memory_format=layout)
    grad = ops.depthwise_conv2d_weight_grad(x, x, c.kernel, *c.geometry[:3])
    expected = torch.tensor([4199.0, 4200, 4199])[:, None] * torch.tensor([4099.0, 4100, 4099])
    torch.testing.assert_close(grad[0, 0], expected, rtol=1e-7, atol=0)


@each_layout
@pytest.mark.parametrize("c", [CASES[0], CASES[18]], ids=str)
def test_opcheck(c, layout):
    x, weight, grad = gradient_problem(c, layout=layout)
    parts = operands(c, torch.float32).values()
    geometry = c.geometry[:3]
    torch.library.opcheck(ops.depthwise_conv2d.default, (x, weight, *parts, *geometry, "relu"))
    arguments = (grad, weight, c.shape[2:], *geometry)
    torch.library.opcheck(ops.depthwise_conv2d_input_grad.default, arguments)
    arguments = (x, grad, c.kernel, *geometry)
    torch.library.opcheck(ops.depthwise_conv2d_weight_grad.default, arguments)


def forward(x=(1, 3, 8, 9), weight=(3, 1, 3, 3), geometry=(1, 1, 1), activation="", **parts):
    x, weight = (t if isinstance(t, torch.Tensor) else torch.zeros(t) for t in (x, weight))
    parts = [parts.get(k) for k in ("bias", "scale", "shift", "residual")]
    return ops.depthwise_conv2d(x, weight, *parts, *geometry, activation)


def input_grad(grad=(1, 3, 8, 9), weight=(3, 1, 3, 3), size=(8, 9), geometry=(1, 1, 1)):
    grad, weight = torch.zeros(grad), torch.zeros(weight)
    return ops.depthwise_conv2d_input_grad(grad, weight, size, *geometry)


def weight_grad(x=(1, 3, 8, 9), grad=(1, 3, 8, 9), kernel=3, geometry=(1, 1, 1), dtype=None):
    x, grad = torch.zeros(x), torch.zeros(grad, dtype=dtype)
    return ops.depthwise_conv2d_weight_grad(x, grad, kernel, *geometry)


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


BAD = {
    "x of rank 3": (lambda: forward(x=(3, 8, 9)), r"x must have the shape \(N, C, H, W\), got"),
    "x empty": (lambda: forward(x=(1, 3, 0, 9)), "x must not be empty but for the batch"),
    "x integer": (lambda: forward(x=zeros(1, 3, 8, 9, dtype=torch.int32)), "x must be float32"),
    "weight of rank 3": (lambda: forward(weight=(3, 3, 3)), r"weight must have .* \(C, 1, kh, kw"),
    "weight's channels": (lambda: forward(weight=(4, 1, 3, 3)), "weight must .* 3 channels of x"),
    "weight's depth": (lambda: forward(weight=(3, 3, 3, 3)), "weight must .* 3 channels of x"),
    "weight's dtype": (
        lambda: forward(weight=zeros(3, 1, 3, 3, dtype=torch.float64)),
        "weight must have x's dtype",
    ),
    "even kernel": (lambda: forward(weight=(3, 1, 3, 2)), r"odd kernel .* got \(3, 2\)"),
    "stride": (lambda: forward(geometry=((1, 0), 1, 1)), r"stride must be at least 1 .*\(1, 0\)"),
    "huge stride": (lambda: forward(geometry=(1 << 30, 1, 1)), "stride must be .* below 2.30"),
    "dilation": (lambda: forward(geometry=(1, 0, 0)), "dilation must be at least 1"),
    "negative padding": (
        lambda: forward(geometry=(1, (-1, 0), 1)),
        r"not be negative, .*\(-1, 0\)",
    ),
    "padding": (lambda: forward(geometry=(1, (2, 3), 1)), r"larger than .* \(2, 2\), got \(2, 3\)"),
    "small x": (lambda: forward(geometry=(1, 0, 4)), "x of 8 x 9 is too small for a kernel of"),
    "bias": (lambda: forward(bias=zeros(4)), r"bias must .* \(Co,\) = \(3,\), got \(4"),
    "scale": (lambda: forward(scale=zeros(3, 1)), r"scale must .* got \(3, 1\)"),
    "shift": (lambda: forward(shift=zeros(3, dtype=torch.int64)), "shift must be float32"),
    "residual": (lambda: forward(residual=zeros(1, 3, 8, 8)), "residual must have the output's"),
    "residual's dtype": (
        lambda: forward(residual=zeros(1, 3, 8, 9, dtype=torch.float16)),
        "residual must have x's dtype",
    ),
    "activation": (lambda: forward(activation="tanh"), "activation must be one of .* got 'tanh'"),
    "grad of rank 3": (lambda: input_grad(grad=(3, 8, 9)), "grad must have the shape"),
    "grad's channels": (lambda: input_grad(weight=(2, 1, 3, 3)), "weight must .* channels of grad"),
    "input_size": (lambda: input_grad(size=(9, 9)), r"grad must have .* \(1, 3, 9, 9\), got"),
    "small input_size": (
        lambda: input_grad(size=(2, 9), geometry=(1, 0, 1)),
        "input_size of 2 x 9 is too small",
    ),
    "grad's shape": (lambda: weight_grad(grad=(1, 3, 8, 8)), "grad must have the output's shape"),
    "grad's dtype": (lambda: weight_grad(dtype=torch.float64), "grad must have x's dtype"),
    "even kernel_size": (lambda: weight_grad(kernel=(3, 4)), "odd kernel"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    function, message = BAD[name]
    with pytest.raises(RuntimeError, match=message):
        function()
    with FakeTensorMode(), pytest.raises(RuntimeError, match=message):
        function()
