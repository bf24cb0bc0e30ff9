"""fastseg::dense_conv2d_weight_grad against float64, at every instruction set of the CPU."""

from __future__ import annotations

import pytest
import torch

import fastseg  # noqa: F401
from fastseg import reference
from tests.conv.conv_cases import DENSE, GEOMETRIES, ConvCase, needs_kernel

op = torch.ops.fastseg.dense_conv2d_weight_grad
LAYOUTS = (torch.contiguous_format, torch.channels_last)
CASES = (
    *DENSE,
    *GEOMETRIES,
    ConvCase((1, 6, 13, 17), 5, (5, 5), dilation=(2, 3)),
    ConvCase((3, 17, 7, 9), 100, (5, 3), dilation=(3, 1), stride=(3, 4)),
    ConvCase((2, 3, 11, 5), 15, stride=(1, 40)),  # wider than a row
    ConvCase((1, 4, 1, 700), 3, dilation=(1, 5)),  # rows longer than a block of pixels
    ConvCase((9, 33, 4, 3), 29),  # blocks of pixels of several images
    ConvCase((2, 70, 20, 33), 300, dilation=(2, 2)),  # several tasks along every axis
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))


def tensors(case, layout=LAYOUTS[0]):
    """x and grad in float32."""
    x, grad = torch.randn(case.shape), torch.randn(case.out_shape)
    return x.contiguous(memory_format=layout), grad.contiguous(memory_format=layout)


def geometry(case):
    """What the op takes after its tensors."""
    return case.kernel, case.stride, case.pad, case.dilation


def expected_grad(x, grad, case):
    """In float64."""
    wide = x.double(), grad.double()
    return reference.atrous_conv2d_weight_grad(*wide, case.kernel, *case.geometry)


def assert_right(actual, expected):
    """To what sums of a few hundred products from zero lose, relative to the largest element."""
    assert actual.shape == expected.shape
    assert actual.dtype == torch.float32
    size = expected.abs().max().clamp(min=1e-30)
    assert ((actual - expected).abs().max() / size).item() < 1e-6


@pytest.mark.usefixtures("garbage_in_new_memory")
@each_layout
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_float64(case, layout, simd_level):
    x, grad = tensors(case, layout)
    actual = op(x, grad, *geometry(case))
    assert_right(actual, expected_grad(x, grad, case))
    assert actual.is_contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [1, 3, 14, 16, 17, 33, 100])
@pytest.mark.parametrize("out_channels", [1, 6, 15, 28, 100])
def test_channels(channels, out_channels, kernel, simd_level):
    """Panels and tiles with lanes and rows over."""
    case = ConvCase((2, channels, 6, 7), out_channels, (kernel, kernel), dilation=(2, 2))
    for layout in LAYOUTS:
        x, grad = tensors(case, layout)
        assert_right(op(x, grad, *geometry(case)), expected_grad(x, grad, case))


def test_any_strides(simd_level):
    case = ConvCase((2, 21, 9, 10), 18, dilation=(2, 3))
    x, grad = tensors(case)
    wide = torch.randn(2, 43, 20, 33)
    xs = (
        wide[:, 1:22, 4:13, 3:13],  # rows with gaps
        wide[:, 1:42:2, 2:20:2, 3:33:3],
        wide.to(memory_format=torch.channels_last)[:, 1:22, 4:13, 3:13],
        x.permute(2, 1, 3, 0).contiguous().permute(3, 1, 0, 2),
        x[:1].expand(2, -1, -1, -1),
        x[:, :1].expand(-1, 21, -1, -1),
        x[:, :, :, :1].expand(-1, -1, -1, 10),
    )
    grads = (
        grad,
        grad.to(memory_format=torch.channels_last),
        torch.randn(2, 40, 9, 10).to(memory_format=torch.channels_last)[:, 3:21],
        grad.transpose(2, 3).contiguous().transpose(2, 3),
        torch.randn(()).expand(case.out_shape),  # of a mean
    )
    for x in xs:
        for grad in grads:
            assert x.shape == case.shape
            assert grad.shape == case.out_shape
            assert_right(op(x, grad, *geometry(case)), expected_grad(x, grad, case))


@needs_kernel("dense_conv2d_weight_grad")
@each_layout
@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
@pytest.mark.parametrize("of", ["x", "grad"])
def test_values_that_are_not_finite_reach_the_taps_that_read_them(of, value, layout, simd_level):
    """And no neighbouring channel or tap, though they share vectors."""
    for case in (
        ConvCase((2, 21, 9, 10), 19, dilation=(4, 4)),
        ConvCase((1, 5, 9, 10), 4, stride=(2, 3)),
    ):
        x, grad = tensors(case, layout)
        target = x if of == "x" else grad
        target[0, 1, 0, 2] = value
        target[-1, 3, -1, -1] = value
        actual, expected = op(x, grad, *geometry(case)), expected_grad(x, grad, case)
        assert not expected.isfinite().all()
        assert expected.isfinite().any()
        assert torch.equal(actual.isfinite(), expected.isfinite())
        assert torch.equal(actual.isnan(), expected.isnan())


@needs_kernel("dense_conv2d_weight_grad")
@each_layout
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[-1]], ids=str)
def test_the_number_of_threads_changes_no_bit(case, layout):
    x, grad = tensors(case, layout)
    results = []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append(op(x, grad, *geometry(case)))
    for result in results[1:]:
        assert torch.equal(result, results[0])


@pytest.mark.parametrize("size", [(200, 200), (1, 40000)], ids=str)
def test_long_sums_are_accurate(size, simd_level):
    """All terms of one sign: one running sum over 40,000 pixels would lose much more."""
    case = ConvCase((1, 3, *size), 2)
    x, grad = (t.abs() for t in tensors(case))
    assert_right(op(x, grad, *geometry(case)), expected_grad(x, grad, case))


@each_layout
@pytest.mark.parametrize("case", [CASES[0], DENSE[6], DENSE[-1], GEOMETRIES[0]], ids=str)
def test_opcheck(case, layout):
    torch.library.opcheck(op.default, (*tensors(case, layout), *geometry(case)))


def test_one_integer_for_both_axes():
    case = ConvCase((1, 4, 9, 8), 3, dilation=(2, 2))
    x, grad = tensors(case)
    assert torch.equal(op(x, grad, 3, 1, 2, 2), op(x, grad, *geometry(case)))


BAD = [  # (change, message)
    ({"x": torch.zeros(4, 9, 8)}, r"x must have the shape \(N, C, H, W\)"),
    ({"grad": torch.zeros(3, 9, 8)}, r"grad must have the shape \(N, C, H, W\)"),
    ({"x": torch.zeros(1, 0, 9, 8)}, "x must not be empty but for the batch"),
    ({"grad": torch.zeros(1, 0, 9, 8)}, "grad must not be empty but for the batch"),
    ({"x": torch.zeros(1, 4, 9, 8).double()}, "x must be float32"),
    ({"grad": torch.zeros(1, 3, 9, 8).half()}, "grad must have x's dtype"),
    ({"grad": torch.zeros(1, 3, 9, 7)}, r"grad must have the output's shape \(1, 3, 9, 8\)"),
    ({"grad": torch.zeros(2, 3, 9, 8)}, r"grad must have the output's shape \(1, 3, 9, 8\)"),
    ({"kernel_size": (3, 4)}, "must have an odd kernel height and width"),
    ({"kernel_size": (-1, 3)}, "weight must have an odd kernel height and width"),
    ({"stride": (0, 1)}, "stride must be at least 1"),
    ({"dilation": (1, 1 << 30)}, "dilation must be at least 1 and below 2"),
    ({"padding": (-1, 1)}, "padding must not be negative"),
    ({"padding": (3, 1)}, "padding must not be larger than the kernel's reach"),
    ({"padding": (0, 0), "dilation": (5, 1)}, "x of 9 x 8 is too small for a kernel"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("change", "message"), BAD, ids=range(len(BAD)))
def test_bad_input(change, message, device):
    good = {
        "x": torch.zeros(1, 4, 9, 8),
        "grad": torch.zeros(1, 3, 9, 8),
        "kernel_size": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
    }
    arguments = {
        k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in (good | change).items()
    }
    with pytest.raises(RuntimeError, match=f"fastseg::dense_conv2d_weight_grad: .*{message}"):
        op(*arguments.values())
