"""Convolutions that pad as TensorFlow does, in classes as timm and EfficientNet have for it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg


class Conv2dSame(nn.Conv2d):
    """As timm's: the padding follows from the map's size."""

    def forward(self, x):
        sides = []
        for axis in (1, 0):
            size, stride = x.shape[2 + axis], self.stride[axis]
            reach = (self.kernel_size[axis] - 1) * self.dilation[axis] + 1
            total = max((math.ceil(size / stride) - 1) * stride + reach - size, 0)
            sides += [total // 2, total - total // 2]
        x = F.pad(x, sides)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Conv2dStaticSamePadding(nn.Conv2d):
    """As EfficientNet's: a child pads, as was decided when it was made."""

    def __init__(self, *arguments, sides, **options):
        super().__init__(*arguments, **options)
        self.stride = [*self.stride]
        self.static_padding = nn.ZeroPad2d(sides) if any(sides) else nn.Identity()

    def forward(self, x):
        x = self.static_padding(x)
        padding = self.padding
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


Conv2dSame.__module__ = "timm.layers.conv2d_same"
Conv2dStaticSamePadding.__module__ = "segmentation_models_pytorch.encoders._efficientnet"

CONVOLUTIONS = {
    "by size": lambda: Conv2dSame(8, 8, 3),
    "by size, stride 2": lambda: Conv2dSame(8, 8, 3, stride=2, groups=8),
    "by size, 5x5, stride 2": lambda: Conv2dSame(8, 8, 5, stride=2, bias=False),
    "by size, dilated": lambda: Conv2dSame(8, 8, (3, 5), dilation=(2, 1)),
    "fixed": lambda: Conv2dStaticSamePadding(8, 8, 3, sides=(1, 1, 1, 1)),
    "fixed, uneven": lambda: Conv2dStaticSamePadding(8, 8, 3, stride=2, sides=(0, 1, 0, 1)),
    "fixed, uneven in height": lambda: Conv2dStaticSamePadding(8, 8, 5, sides=(2, 2, 1, 3)),
    "fixed, dilated later": lambda: Conv2dStaticSamePadding(
        8, 8, 3, sides=(0, 0, 0, 0), padding=2, dilation=2
    ),
    "fixed, twice": lambda: Conv2dStaticSamePadding(8, 8, 3, sides=(0, 1, 0, 1), padding=(1, 0)),
    "fixed, none": lambda: Conv2dStaticSamePadding(8, 8, 1, sides=(0, 0, 0, 0)),
}


def block(conv: nn.Module) -> nn.Sequential:
    bn = nn.BatchNorm2d(8)
    bn.running_mean.normal_()
    bn.running_var.uniform_(0.5, 2)
    return nn.Sequential(conv, bn, nn.SiLU(), nn.Conv2d(8, 4, 1)).eval()


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("size", [(12, 12), (13, 9), (5, 14)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_it_computes_what_it_did(name, size, mode):
    torch.manual_seed(0)
    model = block(CONVOLUTIONS[name]())
    x = torch.randn(2, 8, *size)
    expected = model(x)
    report = fastseg.optimize_(model, mode=mode)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    if mode == "infer":
        assert "left" not in str(report).splitlines()[1:], str(report)
        assert str(report).startswith("fastseg.optimize_, mode infer: 2 swapped, 0 left")
    fastseg.restore_(model)
    assert type(model[0]) in (Conv2dSame, Conv2dStaticSamePadding)
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("sides", [(0, 0, 0, 0), (0, 2, 1, 1), (2, 2, 2, 2)], ids=str)
@pytest.mark.parametrize("replaced", [False, True])
def test_another_padding_is_computed(sides, replaced):
    model = block(CONVOLUTIONS["fixed"]())
    fastseg.optimize_(model, mode="infer")
    if replaced:
        model[0].static_padding = nn.ZeroPad2d(sides)
    else:
        model[0].static_padding.padding = sides
    x = torch.randn(1, 8, 10, 11)
    with torch.no_grad():
        out = model(x)
        fastseg.restore_(model)
        torch.testing.assert_close(out, model(x))


def test_a_padding_that_is_no_zeros_is_left():
    conv = CONVOLUTIONS["fixed"]()
    conv.static_padding = nn.ReflectionPad2d(1)
    assert "pads in a way of its own" in str(fastseg.optimize_(block(conv), mode="infer"))


def test_a_class_of_another_package_is_left():
    class Conv2dSame(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    conv = Conv2dSame(8, 8, 3, padding=1)
    assert "a class of its own" in str(fastseg.optimize_(block(conv), mode="infer"))
