"""The ops of Winograd convolution against torch's convolution and their references."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastseg._core import extension
from fastseg import reference

ops = torch.ops.fastseg
SIZES = [
    (1, 1, 1, 1),
    (1, 2, 3, 1),
    (2, 3, 2, 2),
    (1, 4, 5, 1),
    (2, 6, 7, 2),
    (1, 33, 33, 6),
    (1, 33, 33, 12),
    (1, 33, 33, 18),
    (1, 9, 40, 1),
    (3, 17, 15, 3),
    (1, 16, 31, 1),
    (2, 5, 5, 9),
]
"""(N, H, W, dilation): lines of every length from 1 and every pair of pieces."""

EPILOGUE = (None, None, None, None)


def problem(n, h, w, dilation, channels=(17, 20), dtype=torch.float32):
    torch.manual_seed(h * 100 + w)
    x = torch.randn(n, channels[0], h, w).to(memory_format=torch.channels_last)
    weight = torch.randn(channels[1], channels[0], 3, 3)
    expected = F.conv2d(x.double(), weight.double(), padding=dilation, dilation=dilation)
    return x, weight, expected


def packed(weight, x, dilation, fast=False, adjoint=False):
    pair = (dilation, dilation) if isinstance(dilation, int) else dilation
    return ops.winograd_conv2d_weight(weight, tuple(x.shape[2:]), pair, fast, adjoint)


def error(actual, expected, largest=None):
    """The largest error, relative to the largest value; `largest`: of which tensor."""
    largest = expected if largest is None else largest
    return ((actual - expected).abs().max() / largest.abs().max().clamp(min=1e-30)).item()


@pytest.mark.parametrize("fast", [False, True], ids=("accurate", "fast"))
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_references_compute_the_convolution(size, fast):
    x, weight, expected = problem(*size)
    pair = (size[3], size[3])
    w = reference.winograd_conv2d_weight(weight.double(), size[1:3], pair, fast, False)
    actual = reference.winograd_conv2d(x.double(), w, weight.shape[0], pair, fast)
    assert error(actual, expected) < 1e-13


@pytest.mark.parametrize("fast", [False, True], ids=("accurate", "fast"))
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("level", extension.available_simd_levels())
def test_op_computes_the_convolution(level, size, fast):
    with extension.use_simd_level(level):
        x, weight, expected = problem(*size)
        dilation = (size[3], size[3])
        w = packed(weight, x, dilation, fast)
        torch.testing.assert_close(
            w, reference.winograd_conv2d_weight(weight, size[1:3], dilation, fast, False)
        )
        actual = ops.winograd_conv2d(x, w, weight.shape[0], *EPILOGUE, dilation, fast, "")
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert error(actual, expected) < (2e-5 if fast else 1e-6)


@pytest.mark.parametrize("fast", [False, True], ids=("accurate", "fast"))
@pytest.mark.parametrize(
    "channels", [(1, 1), (3, 33), (15, 7), (64, 16), (300, 17), (520, 40)], ids=str
)
def test_channels(channels, fast, simd_level):
    """Less than a register, one and several blocks of input channels, panels with lanes over."""
    x, weight, expected = problem(2, 6, 9, 2, channels)
    w = packed(weight, x, 2, fast)
    actual = ops.winograd_conv2d(x, w, channels[1], *EPILOGUE, (2, 2), fast, "")
    assert error(actual, expected) < (2e-5 if fast else 1e-6)


def test_dilations_of_each_axis():
    x, weight, _ = problem(1, 12, 20, 1)
    expected = F.conv2d(x.double(), weight.double(), padding=(5, 2), dilation=(5, 2))
    w = packed(weight, x, (5, 2))
    actual = ops.winograd_conv2d(x, w, 20, *EPILOGUE, (5, 2), False, "")
    assert error(actual, expected) < 1e-6


def test_adjoint_weights_give_the_gradient_of_x():
    _, weight, out = problem(2, 11, 8, 3)
    grad = torch.randn_like(out).float()
    expected = F.conv_transpose2d(grad.double(), weight.double(), padding=3, dilation=3)
    w = packed(weight, grad, 3, adjoint=True)
    actual = ops.winograd_conv2d(grad, w, weight.shape[1], *EPILOGUE, (3, 3), False, "")
    assert error(actual, expected) < 1e-6


@pytest.mark.parametrize("channels", [20, 5])
@pytest.mark.parametrize("activation", reference.ACTIVATION)
def test_epilogue(activation, channels, simd_level):
    x, weight, y = problem(2, 10, 9, 2, (17, channels))
    bias, scale, shift = torch.randn(3, channels)
    residual = torch.randn_like(y).float()
    y = reference.conv2d_epilogue(y, bias, scale, shift, residual, "")
    expected = reference.ACTIVATION[activation](y)
    w = packed(weight, x, 2)
    actual = ops.winograd_conv2d(
        x, w, channels, bias, scale.double(), shift, residual, (2, 2), False, activation
    )
    assert error(actual, expected, y) < 1e-6


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_nan_reaches_the_outputs_that_read_it_alone(size):
    x, weight, _ = problem(*size)
    n, h, w, dilation = size
    x[n - 1, 3, h // 2, w // 3] = torch.nan
    expected = F.conv2d(
        x.isnan().double(), torch.ones_like(weight).double(), padding=dilation, dilation=dilation
    )
    w = packed(weight, x, dilation)
    actual = ops.winograd_conv2d(x, w, 20, *EPILOGUE, (dilation, dilation), False, "")
    assert torch.equal(actual.isnan(), expected > 0)


def test_contiguous_images_and_their_outputs():
    x, weight, expected = problem(2, 7, 12, 2)
    w = packed(weight, x, 2)
    residual = torch.randn_like(expected).float()
    actual = ops.winograd_conv2d(
        x.contiguous(), w, 20, None, None, None, residual, (2, 2), False, ""
    )
    assert actual.is_contiguous()
    assert error(actual, expected + residual) < 1e-6


def test_any_number_of_threads_gives_the_same_bits():
    x, weight, _ = problem(2, 40, 37, 2, (80, 70))
    w = packed(weight, x, 2)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(ops.winograd_conv2d(x, w, 70, *EPILOGUE, (2, 2), False, "relu"))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_empty_batch():
    x, weight, _ = problem(1, 7, 7, 2)
    w = packed(weight, x, 2)
    actual = ops.winograd_conv2d(x[:0], w, 20, *EPILOGUE, (2, 2), False, "")
    assert actual.shape == (0, 20, 7, 7)


def test_opcheck():
    x, weight, _ = problem(2, 7, 8, 2)
    w = packed(weight, x, 2)
    bias = torch.randn(20)
    arguments = (x, w, 20, bias, None, bias, None, (2, 2), False, "relu")
    torch.library.opcheck(ops.winograd_conv2d.default, arguments)
    for adjoint in (False, True):
        torch.library.opcheck(
            ops.winograd_conv2d_weight.default, (weight, (7, 8), (2, 2), False, adjoint)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(1, 17, 7, 8, dtype=torch.float64)}, "x must be float32"),
        ({"x": torch.zeros(17, 7, 8)}, r"x must have the shape \(N, C, H, W\)"),
        ({"x": torch.zeros(1, 16, 7, 8)}, "weight must be winograd_conv2d_weight's"),
        ({"out_channels": 40}, "weight must be winograd_conv2d_weight's"),
        ({"dilation": (3, 2)}, "weight must be winograd_conv2d_weight's"),
        ({"dilation": (0, 2)}, "dilation must be at least 1"),
        ({"bias": torch.zeros(21)}, r"bias must have the shape \(Co,\) = \(20,\)"),
        ({"residual": torch.zeros(1, 20, 7, 9)}, "residual must have the output's shape"),
        ({"activation": "gelu"}, "activation must be one of"),
    ],
)
def test_bad_input(change, message):
    x, weight, _ = problem(1, 7, 8, 2)
    arguments = {
        "x": x,
        "weight": packed(weight, x, 2),
        "out_channels": 20,
        "bias": None,
        "scale": None,
        "shift": None,
        "residual": None,
        "dilation": (2, 2),
        "fast": False,
        "activation": "",
    }
    arguments |= change
    with pytest.raises(RuntimeError, match=message):
        ops.winograd_conv2d(*arguments.values())
    meta = [a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments.values()]
    with pytest.raises(RuntimeError, match=message):
        ops.winograd_conv2d(*meta)


def branches(layout=torch.channels_last):
    x = problem(2, 9, 13, 1)[0].to(memory_format=layout)
    weights = [torch.randn(c, 17, 3, 3) for c in (20, 16, 3)]
    dilations = [2, 5, 12]
    packs = [packed(w, x, d) for w, d in zip(weights, dilations, strict=True)]
    scale, shift = torch.randn(2, 39)
    return x, weights, packs, [20, 16, 3], scale, shift, dilations


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_branches_side_by_side(layout):
    x, weights, packs, channels, scale, shift, dilations = branches(layout)
    y = ops.winograd_branches(x, packs, channels, scale, shift, dilations, False, "silu")
    assert y.is_contiguous(memory_format=layout)
    maps = [
        F.conv2d(x.double(), w.double(), padding=d, dilation=d)
        for w, d in zip(weights, dilations, strict=True)
    ]
    z = reference.conv2d_epilogue(torch.cat(maps, 1), None, scale, shift, None, "")
    assert error(y, F.silu(z), z) < 1e-6
    plain = ops.winograd_branches(x, packs, channels, None, None, dilations, False, "")
    assert error(plain, torch.cat(maps, 1)) < 1e-6


def test_opcheck_of_branches():
    x, _, packs, *rest = branches()
    torch.library.opcheck(ops.winograd_branches.default, (x, packs, *rest, False, "relu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": []}, "as many, at least one each"),
        ({"dilations": [2, 5]}, "as many, at least one each"),
        (
            {"channels": [20, 16, 40], "scale": None, "shift": None},
            "weight must be winograd_conv2d_weight's",
        ),
        ({"dilations": [2, 5, 1]}, "weight must be winograd_conv2d_weight's"),
        ({"scale": torch.zeros(38)}, r"scale must have the shape \(Co,\) = \(39,\)"),
        ({"activation": "gelu"}, "activation must be one of"),
    ],
)
def test_bad_input_of_branches(change, message):
    x, _, packs, *rest = branches()
    names = ("x", "weights", "channels", "scale", "shift", "dilations", "fast", "activation")
    arguments = dict(zip(names, (x, packs, *rest, False, ""), strict=True)) | change
    with pytest.raises(RuntimeError, match=message):
        ops.winograd_branches(*arguments.values())
