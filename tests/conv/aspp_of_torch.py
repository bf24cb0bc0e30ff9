"""ASPP as torchvision, segmentation_models_pytorch and mmsegmentation have it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_bn_relu(in_channels, out_channels, kernel_size=1, rate=1):
    padding = rate * (kernel_size // 2)
    conv = nn.Conv2d(
        in_channels, out_channels, kernel_size, padding=padding, dilation=rate, bias=False
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU())


def separable(in_channels, out_channels, rate):
    options = {"padding": rate, "dilation": rate, "groups": in_channels, "bias": False}
    depthwise = nn.Conv2d(in_channels, in_channels, 3, **options)
    pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    both = nn.Sequential(depthwise, pointwise)
    return nn.Sequential(both, nn.BatchNorm2d(out_channels), nn.ReLU())


def separable_with_two_batch_norms(in_channels, out_channels, rate):
    """Of mmsegmentation and of TensorFlow's v3+."""
    (depthwise, pointwise), *rest = separable(in_channels, out_channels, rate)
    first = nn.Sequential(depthwise, nn.BatchNorm2d(in_channels), nn.ReLU())
    return nn.Sequential(nn.Sequential(first, pointwise), *rest)


class ASPP(nn.Module):
    """Branches and image pooling, concatenated (the pooling first or last) and projected."""

    def __init__(
        self, in_channels, rates, out_channels, branch=None, project=1, pool=True, pool_first=False
    ):
        super().__init__()
        branch = branch or (lambda i, o, r: conv_bn_relu(i, o, 3, r))
        convs = [conv_bn_relu(in_channels, out_channels)]
        convs += [branch(in_channels, out_channels, rate) for rate in rates]
        if pool:
            average = nn.AdaptiveAvgPool2d(1)
            convs.append(nn.Sequential(average, *conv_bn_relu(in_channels, out_channels)))
        self.convs, self.pool, self.pool_first = nn.ModuleList(convs), pool, pool_first
        self.project = conv_bn_relu(len(convs) * out_channels, out_channels, project)

    def forward(self, x: Tensor) -> Tensor:
        maps = [conv(x) for conv in self.convs]
        if self.pool:
            maps[-1] = F.interpolate(maps[-1], x.shape[-2:], mode="bilinear")
        if self.pool_first:
            maps = [maps[-1], *maps[:-1]]
        return self.project(torch.cat(maps, 1))


def unsettle(module: nn.Module) -> nn.Module:
    """Batch norms as after a training."""
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, -1, 1.5)
            nn.init.normal_(m.bias)
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
    return module
