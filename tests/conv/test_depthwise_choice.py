"""Depthwise convolution on the CPU where its kernel depends on the layout of the maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg._core import extension
from fastseg._core.conv2d import Conv2d
from fastseg.ops.conv import cpu_depthwise_plan


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 1, 2), (5, 2, 1)]
)
def test_maps_of_a_network(kernel, stride, dilation, bare, layout):
    """Maps so large that kernels differ by layout: torch's own is one of them."""
    padding, channels = dilation * (kernel // 2), 160
    x = torch.randn(2, channels, 41, 43).contiguous(memory_format=layout)
    weight = torch.randn(channels, 1, kernel, kernel).contiguous(memory_format=layout)
    scale, shift = torch.rand(channels), torch.randn(channels)
    epilogue = {} if bare else {"scale": scale, "shift": shift, "activation": "relu"}
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": channels}
    for t in (x, weight):
        t.requires_grad_()

    def run(threads):
        torch.set_num_threads(threads)
        with torch.no_grad():
            y = fastseg.atrous_conv2d(x, weight, **geometry, **epilogue)
        z = fastseg.atrous_conv2d(x, weight, **geometry)
        return y, z, *torch.autograd.grad(z.square().sum(), (x, weight))

    found = run(1)
    assert found[0].is_contiguous(memory_format=layout)
    for threads in (2, 3):
        assert all(map(torch.equal, run(threads), found))
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    z = F.conv2d(*wide, None, **geometry)
    gradients = torch.autograd.grad(z.square().sum(), wide)
    y = z if bare else F.relu(z * scale[:, None, None] + shift[:, None, None])
    for actual, expected in zip(found, (y, z, *gradients), strict=True):
        assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.skipif(extension.simd_level() != "avx2", reason="the choice measured for AVX2")
def test_the_choice_follows_settings_of_the_run():
    """Which is remembered for each kind of map: torch's kernel is oneDNN's or none."""
    x = torch.empty(1, 16, 184, 184)
    conv = Conv2d((2, 2), (1, 1), (1, 1), 16)
    for _ in range(2):
        assert not cpu_depthwise_plan.owns_planes(x, (3, 3), conv)
        with torch.backends.mkldnn.flags(enabled=False):
            assert cpu_depthwise_plan.owns_planes(x, (3, 3), conv)
