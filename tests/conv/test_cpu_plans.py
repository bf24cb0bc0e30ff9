"""A call of atrous_conv2d on the CPU without the op between: the same, and only where it may be."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastseg
from fastseg._core import extension
from fastseg._core.conv2d import Conv2d, live_taps
from fastseg._core.library import CPU_PLANS
from fastseg.ops.conv.cpu_costs import COSTS
from fastseg.ops.conv.cpu_plan import has_one_live_tap, plan
from tests.conv.conv_cases import needs_kernel

pytestmark = needs_kernel("atrous_conv2d")


@pytest.fixture(autouse=True)
def forget():
    CPU_PLANS.clear()


def operands(channels=16, out_channels=24, kernel=3):
    torch.manual_seed(0)
    return torch.randn(2, channels, 9, 8), torch.randn(out_channels, channels, kernel, kernel)


def planned(x, weight, conv, activation=""):
    """The name of the kernel that is chosen for a map in channels_last."""
    chosen = plan(x, weight, conv, activation, bare=False)
    return chosen.keywords.get("channels_last", chosen).func.__name__


@pytest.mark.parametrize("channels", [24, 640])
def test_contiguous_planes_are_multiplied_as_they_lie(channels):
    """Whatever is chosen for channels_last, where oneDNN would have to turn the map twice."""
    x, weight = torch.randn(1, channels, 97, 98), torch.randn(40, channels, 1, 1)
    by_planes = torch.ops.fastseg.im2col_conv2d(
        x, weight, *(None,) * 4, (1, 1), (0, 0), (1, 1), 1, ""
    )
    y = fastseg.atrous_conv2d(x, weight, padding=0)
    assert y.is_contiguous()
    assert torch.equal(y, by_planes)
    wide = x.contiguous(memory_format=torch.channels_last)
    assert fastseg.atrous_conv2d(wide, weight, padding=0).is_contiguous(
        memory_format=torch.channels_last
    )


@pytest.mark.skipif(extension.simd_level() == "portable", reason="torch's is the faster one there")
@pytest.mark.parametrize(
    ("channels", "filters", "kernel", "stride", "groups"),
    [(3, 64, 7, 2, 1), (3, 16, 3, 2, 1), (3, 32, 3, 1, 1), (64, 64, 3, 2, 8), (24, 24, 5, 2, 1)],
)
def test_first_layers_large_kernels_and_groups(channels, filters, kernel, stride, groups):
    """Contiguous maps are not brought to channels_last for them."""
    x, weight = (
        torch.randn(1, channels, 65, 66),
        torch.randn(filters, channels // groups, *[kernel] * 2),
    )
    geometry = ((stride,) * 2, (kernel // 2,) * 2, (1, 1), groups)
    by_planes = torch.ops.fastseg.im2col_conv2d(x, weight, *(None,) * 4, *geometry, "")
    y = fastseg.atrous_conv2d(x, weight, stride=stride, groups=groups)
    assert torch.equal(y, by_planes)
    expected = F.conv2d(x.double(), weight.double(), None, *geometry)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.skipif("avx2" not in extension.available_simd_levels(), reason="measured with AVX2")
@pytest.mark.parametrize(
    ("channels", "filters", "size", "kernel", "geometry", "chosen"),
    [
        (3, 64, 33, 3, (1, 1, 1), "im2col_conv2d"),  # 0.7 of the time of oneDNN, called anew
        (3, 32, 65, 7, (2, 3, 1), "im2col_conv2d"),
        (16, 16, 17, 3, (1, 1, 1), "im2col_conv2d"),  # 0.6 of that of Winograd's kernel
        (32, 32, 65, 3, (1, 2, 2), "winograd_conv2d"),  # 0.75 of that of oneDNN
        (3, 16, 65, 3, (1, 1, 1), "onednn_conv2d"),
        (12, 24, 65, 3, (1, 1, 1), "onednn_conv2d"),
    ],
)
def test_choice_with_avx2(channels, filters, size, kernel, geometry, chosen):
    """In channels_last, with an activation; a call of oneDNN costs 85 microseconds on a Zen 3."""
    x, weight = torch.empty(1, channels, size, size), torch.empty(filters, channels, kernel, kernel)
    conv = Conv2d(*[(n, n) for n in geometry], 1)
    with extension.use_simd_level("avx2"):
        assert planned(x, weight, conv, "relu") == chosen


@pytest.mark.skipif("avx2" not in extension.available_simd_levels(), reason="measured with AVX2")
@pytest.mark.parametrize(
    ("channels", "kernel", "dilation", "by_torch"),
    [(32, 5, 1, True), (32, 7, 1, True), (16, 5, 1, False), (32, 3, 1, False), (32, 5, 2, False)],
)
def test_large_kernels_of_contiguous_maps_are_torchs(channels, kernel, dilation, by_torch):
    """oneDNN's other kernels, for dilated ones, have bits that depend on the number of threads."""
    x, weight = torch.empty(1, channels, 40, 40), torch.empty(32, channels, kernel, kernel)
    conv = Conv2d((1, 1), (kernel // 2 * dilation,) * 2, (dilation,) * 2, 1)
    with extension.use_simd_level("avx2"):
        chosen = plan(x, weight, conv, "relu", bare=False)
        planes = chosen.keywords.get("planes", chosen).func.__name__
        assert (planes == "planes_by_torch") is by_torch
        with torch.backends.mkldnn.flags(enabled=False):
            chosen = plan(x, weight, conv, "relu", bare=False)
            assert chosen.keywords.get("planes", chosen).func.__name__ != "planes_by_torch"


def test_the_plan_computes_what_the_op_does():
    x, weight = operands()
    scale, shift = torch.rand(2, 24)
    residual = torch.randn(2, 24, 9, 8)
    direct = fastseg.atrous_conv2d(
        x, weight, scale=scale, shift=shift, residual=residual, activation="relu"
    )
    assert len(CPU_PLANS) == 1
    geometry = ((1, 1), (1, 1), (1, 1), 1)
    op = torch.ops.fastseg.atrous_conv2d
    assert torch.equal(direct, op(x, weight, None, scale, shift, residual, *geometry, "relu"))


def test_arguments_that_cannot_be_hashed():
    x, weight = operands()
    expected = fastseg.atrous_conv2d(x, weight, dilation=(2, 1))
    assert torch.equal(fastseg.atrous_conv2d(x, weight, dilation=[2, 1]), expected)


def test_bad_input_is_refused_each_time():
    x, weight = operands()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="scale must have the shape"):
            fastseg.atrous_conv2d(x, weight, scale=torch.rand(23))
        with pytest.raises(RuntimeError, match="weight must have x's dtype"):
            fastseg.atrous_conv2d(x, weight.double())
        with pytest.raises(RuntimeError, match="activation must be one of"):
            fastseg.atrous_conv2d(x, weight, activation="tanh")
    assert not CPU_PLANS


def test_plans_are_of_a_level_of_simd():
    x, weight = operands(32, 32)
    for level in extension.available_simd_levels():
        with extension.use_simd_level(level):
            assert not CPU_PLANS
            fastseg.atrous_conv2d(x, weight)
            assert CPU_PLANS
    assert not CPU_PLANS


class Dispatched(TorchDispatchMode):
    """Notes the ops."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Called(TorchFunctionMode):
    """Notes the functions."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Dispatched, Called])
def test_modes_see_the_op(mode):
    x, weight = operands()
    fastseg.atrous_conv2d(x, weight)
    with mode() as seen:
        fastseg.atrous_conv2d(x, weight)
    assert [name for name in seen.names if "fastseg" in name and "atrous_conv2d" in name]


def test_a_gradient_asked_for_later():
    x, weight = operands()
    fastseg.atrous_conv2d(x, weight)
    weight.requires_grad_()
    fastseg.atrous_conv2d(x, weight).sum().backward()
    expected = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), weight)[0]
    torch.testing.assert_close(weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_negated_views():
    """Their memory holds the values with the other sign."""
    x, weight = operands()
    z = torch.complex(torch.zeros_like(weight), weight)
    expected = fastseg.atrous_conv2d(x, weight.clone())
    for w, sign in ((z.imag, 1), (z.conj().imag, -1), (z.imag, 1)):
        torch.testing.assert_close(fastseg.atrous_conv2d(x, w), sign * expected)


def test_autocast_still_casts():
    x, weight = operands()
    fastseg.atrous_conv2d(x, weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert fastseg.atrous_conv2d(x, weight).dtype == torch.bfloat16


@pytest.mark.skipif(extension.simd_level() != "avx512", reason="the choice measured for AVX-512")
def test_choice_by_size():
    point = Conv2d((1, 1), (0, 0), (1, 1), 1)
    weight = torch.empty(64, 64, 1, 1)
    assert planned(torch.empty(1, 64, 1, 1), weight, point) == "im2col_conv2d"
    assert planned(torch.empty(1, 64, 17, 17), weight, point) == "im2col_conv2d"
    assert planned(torch.empty(1, 64, 129, 129), weight, point) == "onednn_conv2d"
    each = Conv2d((1, 1), (2, 2), (1, 1), 64)
    taps = torch.empty(64, 1, 5, 5)
    assert planned(torch.empty(1, 64, 17, 17), taps, each) == "depthwise_conv2d"
    assert planned(torch.empty(1, 64, 129, 129), taps, each) == "onednn_conv2d"


@pytest.mark.parametrize(
    "geometry",
    [(9, 3, 1, 1, 1), (9, 3, 2, 1, 1), (10, 5, 3, 2, 2), (7, 3, 1, 6, 6), (4, 1, 2, 0, 1)],
)
def test_live_taps_are_counted(geometry):
    size, kernel, stride, padding, dilation = geometry
    ones = torch.ones(1, 1, size)
    taps = F.conv1d(ones, torch.ones(1, 1, kernel), None, stride, padding, dilation)
    assert live_taps(*geometry) == taps.sum()


@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (3, 1), (5, 3)], ids=str)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_one_live_tap(kernel, stride):
    """It is where the other taps' weights change nothing."""
    found = set()
    for size in ((1, 1), (2, 3), (4, 4), (5, 2)):
        for dilation in range(1, 7):
            padding = tuple(dilation * (k // 2) for k in kernel)
            conv = Conv2d((stride, stride), padding, (dilation, dilation), 1)
            x, weight = torch.empty(1, 1, *size), torch.ones(1, 1, *kernel)
            others = torch.ones_like(weight)
            others[..., kernel[0] // 2, kernel[1] // 2] = 0
            ones = torch.ones_like(x)
            expected = kernel != (1, 1) and not F.conv2d(ones, others, None, *conv[:3]).any()
            assert has_one_live_tap(x, weight, conv) == expected
            found.add(expected)
    assert found == {kernel != (1, 1), False}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_taps_in_the_padding_are_not_read(layout, dtype):
    """An ASPP's outer taps on a small map: 8 of 9 weights count for nothing."""
    x = torch.randn(2, 40, 9, 7, dtype=dtype)
    weight = torch.randn(24, 40, 3, 3, dtype=dtype).contiguous(memory_format=layout)
    scale, shift, residual = torch.rand(24), torch.randn(24), torch.randn(2, 24, 9, 7, dtype=dtype)
    options = {"scale": scale, "shift": shift, "residual": residual, "activation": "relu"}
    out = fastseg.atrous_conv2d(x, weight, dilation=12, **options)
    wide = {**options, "residual": residual.double()}
    expected = fastseg.atrous_conv2d(x.double(), weight.double(), dilation=12, **wide)
    bound = 0.05 if dtype is torch.bfloat16 else 1e-4
    torch.testing.assert_close(out.double(), expected, rtol=bound, atol=bound)
    weight[:, :, 0] = 9.0
    assert torch.equal(fastseg.atrous_conv2d(x, weight, dilation=12, **options), out)
    weight[:, :, 1, 1] = 9.0
    assert not torch.equal(fastseg.atrous_conv2d(x, weight, dilation=12, **options), out)


@pytest.mark.skipif(extension.simd_level() != "avx512", reason="the choice measured for AVX-512")
def test_weights_that_are_used_few_times_are_not_prepared():
    """To compare them with what was prepared would take longer than to multiply by them."""
    wide = torch.empty(256, 2048, 1, 1)
    point = Conv2d((1, 1), (0, 0), (1, 1), 1)
    same = Conv2d((1, 1), (1, 1), (1, 1), 1)
    assert planned(torch.empty(1, 2048, 1, 1), wide, point) == "im2col_conv2d"
    assert planned(torch.empty(1, 2048, 33, 33), wide, point) == "onednn_conv2d"
    taps = torch.empty(512, 512, 3, 3)
    assert planned(torch.empty(1, 512, 2, 2), taps, same) == "im2col_conv2d"
    assert planned(torch.empty(1, 512, 16, 16), taps, same) == "winograd_conv2d"


@pytest.mark.skipif(extension.simd_level() != "avx512", reason="the choice measured for AVX-512")
@pytest.mark.parametrize(
    ("channels", "out_channels", "size", "kernel"),
    [
        (184, 80, 17, "im2col_conv2d"),  # MobileNetV3's at 257 x 257: torch's own takes a product
        (960, 160, 17, "im2col_conv2d"),
        (160, 960, 17, "im2col_conv2d"),
        (40, 120, 33, "im2col_conv2d"),
        (24, 72, 65, "im2col_conv2d"),
        (112, 672, 8, "im2col_conv2d"),  # at 128 x 128
        (16, 64, 129, "onednn_conv2d"),  # wide outputs
        (112, 672, 33, "onednn_conv2d"),
        (2048, 256, 33, "onednn_conv2d"),
    ],
)
def test_choice_of_pointwise_convolutions(channels, out_channels, size, kernel):
    """On small maps a call of oneDNN, and the look at what was prepared, cost what it saves."""
    point = Conv2d((1, 1), (0, 0), (1, 1), 1)
    x, weight = torch.empty(1, channels, size, size), torch.empty(out_channels, channels, 1, 1)
    assert planned(x, weight, point) == kernel


def test_cost_of_im2col_is_that_of_its_faster_kernel():
    """Dot products for few pixels, panels for many; neither is ever charged for the other."""
    point = Conv2d((1, 1), (0, 0), (1, 1), 1)
    for costs in COSTS.values():
        dots = costs._replace(panel_output=math.inf)
        panels = costs._replace(gather_output=math.inf)
        for size, faster in ((1, dots), (33, panels)):
            shape, weight = (1, 64, size, size), (64, 64, 1, 1)
            assert costs.im2col(shape, weight, point) == faster.im2col(shape, weight, point)
            other = panels if faster is dots else dots
            assert other.im2col(shape, weight, point) > faster.im2col(shape, weight, point)
