"""The op of convolution as one matrix product against torch's convolution and its reference."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F

from fastseg._core import extension
from fastseg import reference
from fastseg._core.conv2d import ACTIVATIONS, Conv2d
from fastseg.ops.conv.cpu_plan import suits_planes
from tests.conv.conv_cases import needs_kernel

ops = torch.ops.fastseg
CASES = [
    # (N, Ci, H, W), Co, kernel, stride, padding, dilation
    ((1, 16, 8, 8), 16, (1, 1), 1, 0, 1),
    ((2, 3, 17, 15), 20, (3, 3), 2, 1, 1),  # the first convolution of a network
    ((1, 70, 9, 11), 33, (3, 3), 1, 2, 2),  # rows longer than a block, panels with lanes over
    ((3, 600, 1, 1), 40, (1, 1), 1, 0, 1),  # squeeze and excitation
    ((1, 256, 5, 5), 17, (1, 1), 1, 0, 1),  # a block exactly
    ((1, 5, 7, 9), 1, (5, 3), (2, 1), (4, 0), (1, 3)),
    ((1, 1, 4, 4), 3, (1, 1), 2, 0, 1),
    ((2, 24, 40, 41), 65, (1, 1), 1, 0, 1),  # several tasks
    ((1, 300, 11, 12), 40, (1, 1), 1, 0, 1),  # panels of several blocks
    ((2, 40, 12, 13), 33, (3, 3), 1, 2, 2),  # a tap's channels in two blocks
    ((1, 7, 6, 6), 18, (1, 1), 1, 0, 1),  # panels of fewer steps than a register has lanes
    ((0, 8, 5, 5), 16, (3, 3), 1, 1, 1),
]


PLANES = [
    ((1, 700, 4, 4), 500, (1, 1), 1, 0, 1),  # fewer panels than threads
    ((2, 40, 40, 41), 65, (1, 1), 1, 0, 1),
    ((2, 24, 40, 41), 48, (3, 3), 2, 1, 1),
    ((2, 24, 40, 41), 48, (5, 5), 1, 2, 1, 8),  # with outputs between two rows
]


def pairs(*values):
    """Two integers each."""
    return [(v, v) if isinstance(v, int) else v for v in values]


def problem(shape, out_channels, kernel, *geometry):
    """Operands of a case and what its convolution is, in float64."""
    torch.manual_seed(sum(shape))
    *geometry, groups = (*geometry, 1) if len(geometry) == 3 else geometry
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(out_channels, shape[1] // groups, *kernel)
    geometry = [*pairs(*geometry), groups]
    return x, weight, geometry, F.conv2d(x.double(), weight.double(), None, *geometry)


def convolve(x, weight, geometry, epilogue=(None,) * 4, activation=""):
    return ops.im2col_conv2d(x, weight, *epilogue, *geometry, activation)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("level", extension.available_simd_levels())
def test_computes_the_convolution(level, case):
    x, weight, geometry, expected = problem(*case)
    with extension.use_simd_level(level):
        y = convolve(x, weight, geometry)
        contiguous = convolve(x.contiguous(), weight, geometry)
        by_taps = weight.contiguous(memory_format=torch.channels_last)
        others = [by_taps, torch.stack([weight, weight], -1)[..., 0], weight.flip(0).flip(0)]
        close = [convolve(x, w, geometry) for w in others]
    assert y.is_contiguous(memory_format=torch.channels_last) or 1 in y.shape
    assert contiguous.is_contiguous()
    for z in (y, contiguous, *close):
        assert z.shape == expected.shape
        if len(x):
            assert (z - expected).abs().max() <= 1e-6 * expected.abs().max()


@pytest.mark.parametrize("seed", range(12))
def test_any_size(seed):
    """Pixels, depths and channels on both sides of each kernel's ends."""
    rng = random.Random(seed)
    for _ in range(8):
        kernel = (rng.choice((1, 1, 3)), rng.choice((1, 1, 3)))
        size = (rng.randint(3, 19), rng.randint(3, 19))
        channels = rng.choice((1, 3, 15, 16, 17, 127, 128, 129, 201, 260))
        out_channels = rng.choice((1, 4, 15, 16, 17, 31, 32, 33, 48, 65))
        stride, padding = rng.choice((1, 1, 2)), tuple(rng.choice((0, k // 2)) for k in kernel)
        case = ((rng.randint(1, 2), channels, *size), out_channels, kernel, stride, padding, 1)
        x, weight, geometry, expected = problem(*case)
        for y in (convolve(x, weight, geometry), convolve(x.contiguous(), weight, geometry)):
            assert (y - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max()), case


@pytest.mark.parametrize("level", extension.available_simd_levels())
def test_planes_of_any_size(level):
    """Pixels and filters on both sides of a tile's ends, depths beyond a block."""
    rng = random.Random(0)
    with extension.use_simd_level(level):
        for _ in range(60):
            size = rng.choice(((1, 2), (4, 4), (3, 5), (5, 13), (8, 8), (7, 19), (1, 129)))
            channels, out_channels = rng.choice((1, 17, 511, 513, 1030)), rng.randint(1, 40)
            case = ((rng.randint(1, 3), channels, *size), out_channels, (1, 1), 1, 0, 1)
            assert_planes_close(case)


@pytest.mark.parametrize("level", extension.available_simd_levels())
def test_planes_in_phases(level):
    """Each axis with a kernel, stride, padding and dilation of its own, rows whole and cut."""
    rng = random.Random(0)
    with extension.use_simd_level(level):
        for _ in range(120):
            axes = []
            for _ in range(2):
                taps, stride, dilation = rng.choice((1, 3, 5)), rng.randint(1, 4), rng.randint(1, 3)
                reach = dilation * (taps - 1)
                padding = rng.choice((0, reach // 2, rng.randint(0, reach)))
                size = rng.randint(max(1, reach + 1 - 2 * padding), 24)
                axes.append((size, taps, stride, padding, dilation))
            size, kernel, *geometry = zip(*axes, strict=True)
            as_planes = suits_planes(size, kernel, Conv2d(*geometry, 1))
            groups = rng.choice((1, 2, 3)) if as_planes else 1
            channels, filters = rng.choice((1, 2, 15, 33)), rng.choice((1, 2, 7, 16, 43))
            shape = (rng.randint(1, 2), groups * channels, *size)
            case = (shape, groups * filters, kernel, *geometry, groups)
            assert_planes_close(case)


def assert_planes_close(case):
    x, weight, geometry, expected = problem(*case)
    y = convolve(x.contiguous(), weight, geometry)
    assert y.is_contiguous()
    # The few outputs of a small case may all be smaller than what they are sums of.
    size = max(weight[0].numel() ** 0.5, expected.abs().max())
    assert (y - expected).abs().max() <= 1e-6 * size, case


@needs_kernel("im2col_conv2d")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_groups(layout):
    """Contiguous ones as they lie; others are brought into that layout."""
    x, weight, geometry, expected = problem((2, 12, 9, 14), 18, (3, 3), 2, 1, 1, 3)
    y = convolve(x.contiguous(memory_format=layout), weight, geometry)
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, expected.float(), rtol=1e-5, atol=1e-5)
    groups = zip(x.contiguous().chunk(3, 1), weight.chunk(3), strict=True)
    alone = [convolve(part, w, [*geometry[:3], 1]) for part, w in groups]
    torch.testing.assert_close(torch.cat(alone, 1), y, rtol=1e-5, atol=1e-5)


@needs_kernel("im2col_conv2d")
def test_padding_is_not_copied():
    """A rate of 2^29 has planes that no memory holds; their taps are found to read nothing."""
    x, weight = torch.randn(1, 4, 9, 9), torch.randn(6, 4, 3, 3)
    far = (1 << 29,) * 2
    y = convolve(x, weight, ((1, 1), far, far, 1))
    torch.testing.assert_close(y, F.conv2d(x, weight[..., 1:2, 1:2]), rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="groups must be 1 where outputs are fewer than 6 or"):
        convolve(x, weight[:, :2], ((1, 1), far, far, 2))


@pytest.mark.parametrize("level", extension.available_simd_levels())
def test_few_pixels(level):
    """Pixels and filters on both sides of a register's and a tile's ends, depths beyond a block."""
    rng = random.Random(0)
    with extension.use_simd_level(level):
        for pixels in (1, 2, 3, 5, 6, 7, 8, 9, 15, 16, 17, 23, 24, 25, 31, 32, 33, 49, 99, 100):
            for channels in (1, 9, 127, 129, 260):
                case = ((1, channels, 1, pixels), rng.randint(1, 50), (1, 1), 1, 0, 1)
                x, weight, geometry, expected = problem(*case)
                y = convolve(x, weight, geometry)
                size = max(channels**0.5, expected.abs().max())
                assert (y - expected).abs().max() <= 1e-6 * size, case
                torch.set_num_threads(1)
                assert torch.equal(convolve(x, weight, geometry), y), case
                torch.set_num_threads(2)


@needs_kernel("im2col_conv2d")
def test_planes_that_are_not_finite():
    """A pixel's NaN and infinity stay within its outputs."""
    x, weight, geometry, _ = problem((1, 30, 5, 7), 20, (1, 1), 1, 0, 1)
    x = x.contiguous()
    x[0, 3, 2, 4], x[0, 29, 4, 6] = torch.nan, torch.inf
    y = convolve(x, weight, geometry)
    assert y[0, :, 2, 4].isnan().all()
    assert y[0, :, 4, 6].isinf().all()
    assert y.isfinite().all(1).sum() == 5 * 7 - 2


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("level", extension.available_simd_levels())
@pytest.mark.parametrize("kernel", ["panels", "dots", "planes", "phases"])
def test_epilogue(kernel, level, activation):
    shape = (2, 9, 3, 4) if kernel == "dots" else (2, 9, 6, 7)
    taps, padding = ((1, 1), 0) if kernel == "planes" else ((3, 3), 1)
    x, weight, geometry, y = problem(shape, 37, taps, 1, padding, 1)
    x = x.contiguous() if kernel in ("planes", "phases") else x
    bias, scale, shift = torch.randn(3, 37)
    residual = torch.randn(y.shape)
    epilogue = (bias, scale, shift, residual)
    with extension.use_simd_level(level):
        actual = convolve(x, weight, geometry, epilogue, activation)
    expected = reference.conv2d_epilogue(y, *(t.double() for t in epilogue), activation)
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-5)


@needs_kernel("im2col_conv2d")
def test_bits_do_not_depend_on_threads():
    before = torch.get_num_threads()
    for case in (CASES[2], *CASES[7:10], ((1, 320, 6, 6), 512, (3, 3), 1, 1, 1), *PLANES):
        x, weight, geometry, _ = problem(*case)
        for given in (x, x.contiguous()):
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(convolve(given, weight, geometry))
            torch.set_num_threads(before)
            assert all(torch.equal(r, results[0]) for r in results)


@pytest.mark.parametrize("shape", [(1, 4, 6, 6), (1, 4, 4, 4)], ids=["panels", "dots"])
def test_nan_and_infinity(shape):
    x, weight, geometry, _ = problem(shape, 5, (3, 3), 1, 1, 1)
    x[0, 2, 1, 1] = float("nan")
    y = convolve(x, weight, geometry, activation="relu")
    assert torch.equal(y.isnan()[0, 0], F.max_pool2d(x[:, 2:3].isnan().float(), 3, 1, 1)[0, 0] > 0)


def test_opcheck():
    x, weight, geometry, _ = problem((2, 3, 9, 8), 5, (3, 3), 2, 1, 1)
    vector = torch.randn(5)
    arguments = (x, weight, vector, None, vector, None, *geometry, "relu")
    torch.library.opcheck(ops.im2col_conv2d.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(4, 9, 8)}, "x must have the shape"),
        ({0: torch.randn(1, 4, 9, 8).double()}, "x must be float32"),
        ({0: torch.randn(1, 5, 9, 8)}, "5"),
        ({1: torch.randn(5, 4, 3)}, "weight must have the shape"),
        ({1: torch.randn(5, 4, 3, 3).double()}, "weight must have x's dtype"),
        ({1: torch.randn(5, 4, 2, 3)}, "odd kernel height and width"),
        ({2: torch.randn(6)}, "bias must have the shape"),
        ({5: torch.randn(1, 5, 9, 9)}, "residual must have the output's shape"),
        ({6: (0, 1)}, "stride must be at least 1"),
        ({7: (3, 1)}, "padding must not be larger"),
        ({0: torch.randn(1, 4, 1, 1), 7: (0, 0)}, "too small"),
        ({9: 0}, "groups"),
        ({9: 3}, "groups"),
        ({1: torch.randn(5, 2, 3, 3), 9: 2}, "groups"),
        ({10: "tanh"}, "activation must be one of"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_bad_input(change, message):
    arguments = [torch.randn(1, 4, 9, 8), torch.randn(5, 4, 3, 3), None, None, None, None]
    arguments += [(1, 1), (1, 1), (1, 1), 1, ""]
    for at, value in change.items():
        arguments[at] = value
    with pytest.raises(RuntimeError, match=message):
        ops.im2col_conv2d(*arguments)
    with pytest.raises(RuntimeError, match=message):
        ops.im2col_conv2d(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
