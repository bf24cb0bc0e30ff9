"""Cases for benchmarks of atrous convolution: torch's modules and ours with the same weights."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastseg
from fastseg._core.conv2d import live_taps as live_on_axis

LAST = torch.channels_last
GRADIENTS = ("input", "weight")


class ConvBNReLU(nn.Sequential):
    """A convolution, batch norm and ReLU, in the way of torch's users."""

    def __init__(self, in_channels, out_channels, kernel=3, stride=1, dilation=1, groups=1):
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel, stride, padding, dilation, groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class ImagePooling(nn.Sequential):
    """torchvision's pooled branch of ASPP."""

    def __init__(self, in_channels, out_channels):
        super().__init__(nn.AdaptiveAvgPool2d(1), *ConvBNReLU(in_channels, out_channels, 1))

    def forward(self, x):
        y = super().forward(x)
        return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """torchvision's ASPP, or with `separable` that of DeepLab v3+."""

    def __init__(self, in_channels, rates, out_channels=256, separable=False):
        super().__init__()
        convs = [ConvBNReLU(in_channels, out_channels, 1)]
        for rate in rates:
            if separable:
                depthwise = nn.Conv2d(
                    in_channels, in_channels, 3, 1, rate, rate, in_channels, bias=False
                )
                _, bn, relu = ConvBNReLU(in_channels, out_channels, 1)
                pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
                convs.append(nn.Sequential(nn.Sequential(depthwise, pointwise), bn, relu))
            else:
                convs.append(ConvBNReLU(in_channels, out_channels, dilation=rate))
        convs.append(ImagePooling(in_channels, out_channels))
        self.convs = nn.ModuleList(convs)
        self.project = ConvBNReLU(len(convs) * out_channels, out_channels, 1)

    def forward(self, x):
        return self.project(torch.cat([conv(x) for conv in self.convs], 1))


class ASPPSum(nn.Module):
    """DeepLab v2's ASPP."""

    def __init__(self, in_channels, out_channels, rates):
        super().__init__()
        for i, rate in enumerate(rates):
            self.add_module(
                f"c{i}", nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)
            )

    def forward(self, x):
        return sum(conv(x) for conv in self.children())


def randomize(module: nn.Module) -> nn.Module:
    """Gives batch norms the statistics of a trained network; returns the module in evaluation."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias, std=0.1)
            nn.init.normal_(m.running_mean, std=0.1)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return module.eval()


def live_taps(height: int, width: int, kernel: int, stride: int, dilation: int) -> int:
    """Returns the number of taps that read a pixel, over all outputs of one map."""
    axis = (kernel, stride, dilation * (kernel // 2), dilation)
    return live_on_axis(height, *axis) * live_on_axis(width, *axis)


def flops_of(module: nn.Module, x: Tensor) -> float:
    """Returns the operations of a module's convolutions, without taps in the padding."""
    total = 0.0

    def count(conv, inputs, output):
        nonlocal total
        n, c, h, w = inputs[0].shape
        pairs = conv.out_channels * c // conv.groups
        taps = live_taps(h, w, conv.kernel_size[0], conv.stride[0], conv.dilation[0])
        total += 2 * n * pairs * taps

    convs = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    hooks = [m.register_forward_hook(count) for m in convs]
    module(x)
    for hook in hooks:
        hook.remove()
    return total


class Pair(NamedTuple):
    """Two modules in evaluation, with one state.

    Attributes:
        op: the op that they compute.
        title: a text with the sizes.
        shape: the input's shape (N, C, H, W).
        theirs: torch's module.
        ours: fastseg's module.
    """

    op: str
    title: str
    shape: tuple[int, int, int, int]
    theirs: nn.Module
    ours: nn.Module


def _pair(op, title, shape, theirs, ours) -> Pair:
    ours.load_state_dict(randomize(theirs).state_dict())
    return Pair(op, title, shape, theirs, ours.eval())


def sizes(shape, out_channels) -> str:
    """Returns a text with a convolution's sizes."""
    return f"{'x'.join(map(str, shape))} -> {out_channels}"


def conv(shape, out_channels, kernel=3, stride=1, dilation=1, groups=1) -> Pair:
    """Returns modules of convolution, batch norm and ReLU."""
    arguments = (shape[1], out_channels, kernel)
    theirs = ConvBNReLU(*arguments, stride, dilation, groups)
    ours = fastseg.nn.AtrousConvBNAct(*arguments, stride=stride, dilation=dilation, groups=groups)
    title = f"{sizes(shape, out_channels)}, {kernel}x{kernel}, rate {dilation}"
    title += f", stride {stride}" * (stride > 1) + f", groups {groups}" * (groups > 1)
    depthwise = groups == shape[1] and groups > 1
    return _pair("depthwise_conv2d" if depthwise else "atrous_conv2d", title, shape, theirs, ours)


def aspp(shape, rates, separable=False) -> Pair:
    """Returns whole ASPPs, torchvision's or DeepLab v3+'s, without dropout."""
    theirs = ASPP(shape[1], rates, separable=separable)
    ours = fastseg.nn.ASPP(shape[1], rates, separable=separable, dropout=0.0)
    title = f"{sizes(shape, 256)}, rates {rates}" + ", separable" * separable
    return _pair("aspp", title, shape, theirs, ours)


def aspp_sum(shape, out_channels, rates) -> Pair:
    """Returns ASPPs of DeepLab v2."""
    theirs, ours = (make(shape[1], out_channels, rates) for make in (ASPPSum, fastseg.nn.ASPPSum))
    title = f"{sizes(shape, out_channels)}, rates {rates}, summed"
    return _pair("aspp", title, shape, theirs, ours)


def gpu_randn(shape, dtype: torch.dtype) -> Tensor:
    """Returns normal numbers in channels_last on the GPU."""
    return torch.randn(shape, device="cuda").to(dtype, memory_format=LAST)


def torch_gradient(x, grad, weight, dilation: int, which: str) -> Tensor:
    """Returns torch's gradient, one of GRADIENTS, of a convolution that keeps the size."""
    padding = [dilation * (k // 2) for k in weight.shape[2:]]
    groups = x.shape[1] // weight.shape[1]
    mask = (which == "input", which == "weight", False)
    gradients = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), padding, (dilation,) * 2, False, (0, 0), groups, mask
    )
    return gradients[mask.index(True)]


def our_gradient(x, grad, weight, dilation: int, which: str) -> Tensor:
    """Returns the gradient of `torch_gradient` by fastseg's ops."""
    padding = [dilation * (k // 2) for k in weight.shape[2:]]
    geometry = ((1, 1), padding, (dilation,) * 2, x.shape[1] // weight.shape[1])
    if which == "input":
        op = torch.ops.fastseg.atrous_conv2d_input_grad
        return op(grad, weight, x.shape[2:], *geometry)
    return torch.ops.fastseg.atrous_conv2d_weight_grad(x, grad, weight.shape[2:], *geometry)
