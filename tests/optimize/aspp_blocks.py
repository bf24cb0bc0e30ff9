"""ASPP as others than torchvision write it, small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from tests.optimize.blocks import ConvModule


class SeparableConvModule(nn.Module):
    """mmsegmentation's: batch norm and activation after the depthwise convolution too."""

    def __init__(self, inputs: int, outputs: int, rate: int, act):
        super().__init__()
        self.depthwise_conv = ConvModule(inputs, inputs, 3, rate, inputs, act)
        self.pointwise_conv = ConvModule(inputs, outputs, 1, act=act)

    def forward(self, x):
        return self.pointwise_conv(self.depthwise_conv(x))


class ASPPModule(nn.ModuleList):
    """mmsegmentation's: the branches, whose forward returns a list."""

    def __init__(self, inputs: int, outputs: int, rates, separable: bool, act):
        super().__init__()
        for rate in rates:
            if rate > 1 and separable:
                self.append(SeparableConvModule(inputs, outputs, rate, act))
            else:
                self.append(ConvModule(inputs, outputs, 1 if rate == 1 else 3, rate, act=act))

    def forward(self, x):
        outputs = []
        for module in self:
            outputs.append(module(x))
        return outputs


def resize(x, size=None, scale_factor=None, mode="nearest", align_corners=None):
    return F.interpolate(x, size, scale_factor, mode, align_corners)


class ASPPHead(nn.Module):
    """mmsegmentation's DeepLab v3, and v3+ with low-level features: one forward for all."""

    def __init__(
        self, inputs=8, outputs=8, low=None, separable=False, act=nn.ReLU, rates=(1, 2, 4)
    ):
        super().__init__()
        self.image_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), ConvModule(inputs, outputs, 1, act=act)
        )
        self.aspp_modules = ASPPModule(inputs, outputs, rates, separable, act)
        self.bottleneck = ConvModule((len(rates) + 1) * outputs, outputs, 3, act=act)
        self.c1_bottleneck = None if low is None else ConvModule(low, 4, 1, act=act)
        if low is not None:
            self.sep_bottleneck = nn.Sequential(SeparableConvModule(outputs + 4, outputs, 1, act))
        self.dropout, self.conv_seg = nn.Dropout2d(0.0), nn.Conv2d(outputs, 5, 1)

    def _forward_feature(self, inputs):
        x = inputs[-1]
        outputs = [
            resize(self.image_pool(x), size=x.size()[2:], mode="bilinear", align_corners=False)
        ]
        outputs.extend(self.aspp_modules(x))
        outputs = torch.cat(outputs, dim=1)
        return self.bottleneck(outputs)

    def cls_seg(self, x):
        if self.dropout is not None:
            x = self.dropout(x)
        return self.conv_seg(x)

    def forward(self, inputs):
        y = self._forward_feature(inputs)
        if self.c1_bottleneck is not None:
            low = self.c1_bottleneck(inputs[0])
            y = resize(y, size=low.shape[2:], mode="bilinear", align_corners=False)
            y = self.sep_bottleneck(torch.cat([y, low], dim=1))
        return self.cls_seg(y)


class InlineASPP(nn.Module):
    """As in pytorch-deeplab-xception: the projection in the forward, the size from a branch."""

    def __init__(self, inputs=8, outputs=8, pool=True):
        super().__init__()
        self.aspp1 = _Atrous(inputs, outputs, 1, 1)
        self.aspp2 = _Atrous(inputs, outputs, 3, 2)
        self.aspp3 = _Atrous(inputs, outputs, 3, 4)
        self.global_avg_pool = nn.Sequential(
            nn.AdaptiveAvgPool2d((1, 1)),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )
        self.pool = pool
        self.conv1 = nn.Conv2d((3 + pool) * outputs, outputs, 1, bias=False)
        self.bn1, self.relu, self.dropout = nn.BatchNorm2d(outputs), nn.ReLU(), nn.Dropout(0.0)

    def forward(self, x):
        x1, x2, x3 = self.aspp1(x), self.aspp2(x), self.aspp3(x)
        if self.pool:
            x4 = self.global_avg_pool(x)
            x4 = F.interpolate(x4, size=x3.size()[2:], mode="bilinear", align_corners=True)
            x = torch.cat((x1, x2, x3, x4), dim=1)
        else:
            x = torch.cat((x1, x2, x3), dim=1)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.dropout(x)


class _Atrous(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, rate: int):
        super().__init__()
        padding = 0 if kernel == 1 else rate
        self.atrous_conv = nn.Conv2d(inputs, outputs, kernel, 1, padding, rate, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(outputs), nn.ReLU()

    def forward(self, x):
        return self.relu(self.bn(self.atrous_conv(x)))
