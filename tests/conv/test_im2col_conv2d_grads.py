"""fastseg::im2col_conv2d_input_grad and _weight_grad against float64, at every SIMD level."""

from __future__ import annotations

import math

import pytest
import torch

import fastseg  # noqa: F401
from fastseg import reference
from tests.conv.conv_cases import DENSE, GEOMETRIES, ConvCase, needs_kernel

ops = torch.ops.fastseg
LAYOUTS = (torch.contiguous_format, torch.channels_last)
CASES = (
    *DENSE,
    *GEOMETRIES,
    ConvCase((2, 24, 9, 10), 40, dilation=(2, 1), groups=4),
    ConvCase((3, 8, 7, 9), 8, (5, 3), stride=(3, 4), groups=8),
    ConvCase((2, 3, 11, 5), 15, stride=(1, 40)),  # wider than a row
    ConvCase((1, 3, 1, 1300), 3, dilation=(1, 5)),  # rows longer than a stretch of pixels
    ConvCase((9, 33, 4, 3), 29, stride=(2, 1)),
    ConvCase((1, 70, 40, 33), 300, stride=(2, 2)),  # several tasks along every axis
    ConvCase((5, 100, 12, 11), 20, stride=(2, 2)),  # many channels of a task
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def tensors(case, layout=LAYOUTS[0]):
    """x, weight and grad in float32."""
    made = (torch.randn(s) for s in (case.shape, case.weight_shape, case.out_shape))
    return [t.contiguous(memory_format=layout) for t in made]


def input_grad(grad, weight, case):
    return ops.im2col_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry)


def weight_grad(x, grad, case):
    return ops.im2col_conv2d_weight_grad(x, grad, case.kernel, *case.geometry)


def expected_grads(x, weight, grad, case):
    """In float64."""
    x, weight, grad = x.double(), weight.double(), grad.double()
    return (
        reference.atrous_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry),
        reference.atrous_conv2d_weight_grad(x, grad, case.kernel, *case.geometry),
    )


def assert_right(actual, expected):
    """To what sums of a few hundred products from zero lose, relative to the largest element."""
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    size = expected.abs().max().clamp(min=1e-30) if expected.numel() else 1
    assert actual.sub(expected).abs().div(size).lt(1e-6).all()


@pytest.mark.usefixtures("garbage_in_new_memory")
@each_layout
@each_case
def test_matches_float64(case, layout, simd_level):
    x, weight, grad = tensors(case, layout)
    actual = input_grad(grad, weight, case), weight_grad(x, grad, case)
    for result, expected, like in zip(
        actual, expected_grads(x, weight, grad, case), (grad, x), strict=True
    ):
        assert_right(result, expected)
        assert result.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(like))


@pytest.mark.parametrize("channels", [1, 2, 3, 7, 8, 17, 33])
@pytest.mark.parametrize("out_channels", [1, 2, 5, 6, 7, 15, 28, 65])
def test_channels(channels, out_channels, simd_level):
    """Tiles with lanes, rows and columns over."""
    for case in (
        ConvCase((2, channels, 6, 7), out_channels, stride=(2, 1)),
        ConvCase((1, 2 * channels, 5, 3), 2 * out_channels, (1, 3), groups=2),
    ):
        for layout in LAYOUTS:
            x, weight, grad = tensors(case, layout)
            expected = expected_grads(x, weight, grad, case)
            assert_right(input_grad(grad, weight, case), expected[0])
            assert_right(weight_grad(x, grad, case), expected[1])


def test_any_strides(simd_level):
    case = ConvCase((2, 6, 9, 10), 8, dilation=(2, 3), stride=(2, 2), groups=2)
    x, weight, grad = tensors(case)
    wide = torch.randn(2, 43, 20, 33)
    xs = (
        wide[:, 1:7, 4:13, 3:13],  # rows with gaps
        wide[:, 1:12:2, 2:20:2, 3:33:3],
        wide.to(memory_format=torch.channels_last)[:, 1:7, 4:13, 3:13],
        x[:1].expand(2, -1, -1, -1),
        x[:, :1].expand(-1, 6, -1, -1),
    )
    weights = (
        weight,
        weight.to(memory_format=torch.channels_last),
        torch.randn(8, 3, 6, 6)[:, :, ::2, ::2],
        weight[:1].expand(8, -1, -1, -1),
    )
    grads = (
        grad,
        grad.to(memory_format=torch.channels_last),
        torch.randn(2, 40, *case.out_shape[2:]).to(memory_format=torch.channels_last)[:, 3:11],
        grad.transpose(2, 3).contiguous().transpose(2, 3),
        torch.randn(()).expand(case.out_shape),  # of a mean
    )
    for g in grads:
        for other in xs:
            assert_right(weight_grad(other, g, case), expected_grads(other, weight, g, case)[1])
        for other in weights:
            assert_right(input_grad(g, other, case), expected_grads(x, other, g, case)[0])


@needs_kernel("im2col_conv2d_input_grad", "im2col_conv2d_weight_grad")
@each_layout
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_what_is_not_finite_reaches_what_reads_it(value, layout, simd_level):
    """And no other channel, though they share vectors; in padding it is multiplied by zero."""
    for case in (
        ConvCase((2, 5, 9, 10), 6, stride=(2, 3)),
        ConvCase((1, 6, 9, 10), 6, dilation=(4, 4), groups=2),
    ):
        x, weight, grad = tensors(case, layout)
        grad[-1, 2, -1, -1] = value
        read = torch.zeros(case.out_shape)
        read[-1, 2, -1, -1] = 1
        reads = expected_grads(torch.ones_like(x), torch.ones_like(weight), read, case)
        assert torch.equal(~input_grad(grad, weight, case).isfinite(), reads[0] > 0)
        actual = ~weight_grad(x, grad, case).isfinite()
        assert actual[reads[1] > 0].all()
        assert not actual[[o for o in range(len(actual)) if o != 2]].any()
        x[0, 1, 0, 0] = value
        read = torch.zeros(case.shape)
        read[0, 1, 0, 0] = 1
        taps = expected_grads(read, weight, torch.ones(case.out_shape), case)[1]
        finite = torch.ones_like(grad)
        assert torch.equal(~weight_grad(x, finite, case).isfinite(), taps > 0)


@needs_kernel("im2col_conv2d_input_grad", "im2col_conv2d_weight_grad")
@each_layout
@pytest.mark.parametrize("case", [CASES[0], *CASES[-7:]], ids=str)
def test_the_number_of_threads_changes_no_bit(case, layout):
    x, weight, grad = tensors(case, layout)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append((input_grad(grad, weight, case), weight_grad(x, grad, case)))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


def test_long_sums_are_accurate(simd_level):
    """All terms of one sign: one running sum over 40,000 pixels would lose much more."""
    case = ConvCase((1, 3, 200, 200), 300, (1, 1))
    x, weight, grad = (t.abs() for t in tensors(case))
    expected = expected_grads(x, weight, grad, case)
    assert_right(input_grad(grad, weight, case), expected[0])
    assert_right(weight_grad(x, grad, case), expected[1])


@each_layout
@pytest.mark.parametrize("case", [CASES[0], DENSE[-1], GEOMETRIES[5], CASES[-7]], ids=str)
def test_opcheck(case, layout):
    x, weight, grad = tensors(case, layout)
    size, kernel = list(case.shape[2:]), list(case.kernel)
    torch.library.opcheck(
        ops.im2col_conv2d_input_grad.default, (grad, weight, size, *case.geometry)
    )
    torch.library.opcheck(ops.im2col_conv2d_weight_grad.default, (x, grad, kernel, *case.geometry))


X, WEIGHT, GRAD = (1, 4, 9, 8), (6, 2, 3, 3), (1, 6, 9, 8)
GEOMETRY = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 2}
ODD = "must have an odd kernel height and width"
OF_BOTH = (
    ({"grad": (3, 9, 8)}, r"grad must have the shape \(N, C, H, W\)"),
    ({"grad": (1, 0, 9, 8)}, "grad must not be empty but for the batch"),
    ({"grad": (1, 6, 9, 7)}, r"grad must have the output's shape \(1, 6, 9, 8\)"),
    ({"stride": (0, 1)}, "stride must be at least 1"),
    ({"dilation": (1, 1 << 30)}, "dilation must be at least 1 and below 2"),
    ({"padding": (-1, 1)}, "padding must not be negative"),
    ({"padding": (3, 1)}, "padding must not be larger than the kernel's reach"),
    ({"padding": (0, 0), "dilation": (5, 1)}, "of 9 x 8 is too small for a kernel"),
    ({"groups": 0}, "groups must be at least 1, got 0"),
)
OF_X = (
    *OF_BOTH,
    ({"x": (4, 9, 8)}, r"x must have the shape \(N, C, H, W\)"),
    ({"x": (1, 0, 9, 8)}, "x must not be empty but for the batch"),
    ({"x": torch.zeros(X).double()}, "x must be float32"),
    ({"grad": torch.zeros(GRAD).half()}, "grad must have x's dtype"),
    ({"grad": (2, 6, 9, 8)}, r"grad must have the output's shape \(1, 6, 9, 8\)"),
    ({"groups": 3}, "groups = 3 must divide the 4 channels of x"),
    ({"groups": 4}, "groups = 4 must divide the 6 channels of grad"),
    ({"kernel_size": (3, 4)}, ODD),
    ({"kernel_size": (-1, 3)}, ODD),
)
OF_WEIGHT = (
    *OF_BOTH,
    ({"grad": torch.zeros(GRAD).double()}, "grad must be float32"),
    ({"weight": torch.zeros(WEIGHT).half()}, "weight must have grad's dtype"),
    ({"weight": (6, 2, 3)}, r"weight must have the shape \(Co, Ci / groups, kh, kw\)"),
    ({"weight": (5, 2, 3, 3)}, "weight must have the shape .* with the 6 channels of grad"),
    ({"weight": (6, 0, 3, 3)}, r"weight must have the shape \(Co, Ci / groups, kh, kw\)"),
    ({"weight": (6, 2, 2, 3)}, ODD),
    ({"groups": 4}, "groups = 4 must divide the 6 channels of grad"),
    ({"input_size": (0, 8)}, "input_size of 0 x 8 is too small|grad must have the output's shape"),
)


def refuses(op, good, change, message, device):
    def made(value):
        is_shape = isinstance(value, tuple) and len(value) > 2
        return torch.zeros(value) if is_shape else value

    arguments = map(made, (good | GEOMETRY | change).values())
    arguments = [v.to(device) if isinstance(v, torch.Tensor) else v for v in arguments]
    with pytest.raises(RuntimeError, match=f"{op._qualified_op_name}: .*({message})"):
        op(*arguments)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("change", "message"), OF_X, ids=range(len(OF_X)))
def test_bad_input_of_the_weights_gradient(change, message, device):
    good = {"x": X, "grad": GRAD, "kernel_size": (3, 3)}
    refuses(ops.im2col_conv2d_weight_grad, good, change, message, device)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("change", "message"), OF_WEIGHT, ids=range(len(OF_WEIGHT)))
def test_bad_input_of_the_inputs_gradient(change, message, device):
    good = {"grad": GRAD, "weight": WEIGHT, "input_size": (9, 8)}
    refuses(ops.im2col_conv2d_input_grad, good, change, message, device)
