"""Blocks as other people write them, small."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class BasicBlock(nn.Module):
    """torchvision's: one ReLU for both places, the residual in place."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class InvertedResidual(nn.Module):
    """torchvision's MobileNetV2: Sequentials in a Sequential, an addition of the input."""

    def __init__(self, channels: int, expanded: int):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Sequential(
                nn.Conv2d(channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), nn.ReLU6()
            ),
            nn.Sequential(
                nn.Conv2d(expanded, expanded, 3, 1, 2, 2, expanded, bias=False),
                nn.BatchNorm2d(expanded),
                nn.ReLU6(),
            ),
            nn.Conv2d(expanded, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x):
        return x + self.conv(x)


class ConvModule(nn.Module):
    """mmsegmentation's: an order of names, a property for the norm, switches with defaults."""

    order = ("conv", "norm", "act")

    def __init__(self, inputs: int, outputs: int, kernel=3, rate=1, groups=1, act=nn.LeakyReLU):
        super().__init__()
        padding = rate * (kernel // 2)
        self.conv = nn.Conv2d(inputs, outputs, kernel, 1, padding, rate, groups, bias=False)
        self.add_module("bn", nn.BatchNorm2d(outputs))
        self.activate = act(inplace=True)

    @property
    def norm(self):
        return getattr(self, "bn")  # noqa: B009

    def forward(self, x, activate=True, norm=True):
        for layer in self.order:
            if layer == "conv":
                x = self.conv(x)
            elif layer == "norm" and norm:
                x = self.norm(x)
            elif layer == "act" and activate:
                x = self.activate(x)
        return x


class ASPPPooling(nn.Sequential):
    def __init__(self, inputs: int, outputs: int):
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(inputs, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, x):
        size = x.shape[-2:]
        for module in self:
            x = module(x)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class ASPP(nn.Module):
    """torchvision's; separable as segmentation_models_pytorch has it."""

    def __init__(self, inputs: int, outputs: int, rates=(2, 4), separable: bool = False):
        super().__init__()
        convs = [_conv_bn_relu(nn.Conv2d(inputs, outputs, 1, bias=False))]
        for rate in rates:
            if separable:
                conv = nn.Sequential(
                    nn.Conv2d(inputs, inputs, 3, 1, rate, rate, inputs, bias=False),
                    nn.Conv2d(inputs, outputs, 1, bias=False),
                )
            else:
                conv = nn.Conv2d(inputs, outputs, 3, 1, rate, rate, bias=True)
            convs.append(nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU()))
        convs.append(ASPPPooling(inputs, outputs))
        self.convs = nn.ModuleList(convs)
        self.project = nn.Sequential(
            *_conv_bn_relu(nn.Conv2d(len(convs) * outputs, outputs, 1, bias=False)),
            nn.Dropout(0.0),
        )

    def forward(self, x):
        outputs = []
        for conv in self.convs:
            outputs.append(conv(x))
        return self.project(torch.cat(outputs, dim=1))


class SegNet(nn.Module):
    """As public ones are written: modules for pooling and unpooling, indices in variables."""

    def __init__(self, classes: int = 5, width: int = 8):
        super().__init__()
        self.enc1 = _conv_bn_relu(nn.Conv2d(3, width, 3, padding=1))
        self.enc2 = _conv_bn_relu(nn.Conv2d(width, width, 3, padding=1))
        self.dec2 = _conv_bn_relu(nn.Conv2d(width, width, 3, padding=1))
        self.dec1 = nn.Conv2d(width, classes, 3, padding=1)
        self.pool = nn.MaxPool2d(2, stride=2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2, stride=2)

    def forward(self, x):
        x = self.enc1(x)
        size1 = x.size()
        x, indices1 = self.pool(x)
        x = self.enc2(x)
        size2 = x.size()
        x, indices2 = self.pool(x)
        x = self.dec2(self.unpool(x, indices2, output_size=size2))
        return self.dec1(self.unpool(x, indices1, output_size=size1))


def _conv_bn_relu(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU(inplace=True))
