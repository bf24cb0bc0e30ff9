"""The backbone MobileNetV2 with dilation.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2. The
names are torchvision's, without its ``classifier``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.models._layers import BatchNorm2d, Conv2d, ConvBNAct, conv_bn_act, he_init
from fastseg.models.backbones.dilation import dilated_stages

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, output channels, blocks and stride of each stage."""

STEM, LAST = 32, 1280
"""Numbers of channels of the first and the last convolution."""


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, and a projection without activation.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels. The input is added where its shape is the output's.
        stride: stride of the depthwise convolution.
        dilation: rate of the depthwise convolution.
        expansion: factor of the channels in between; 1 leaves the first 1x1 convolution out.
        pad_input: whether the padding comes before the expansion, not after it.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        expansion: int,
        pad_input: bool,
    ):
        super().__init__()
        hidden = in_channels * expansion
        self.adds_input = stride == 1 and in_channels == out_channels
        self.padding = dilation if pad_input else 0
        self.conv = nn.Sequential()
        if expansion != 1:
            self.conv.append(ConvBNAct(in_channels, hidden, 1, activation="relu6"))
        self.conv.append(
            ConvBNAct(
                hidden,
                hidden,
                3,
                stride=stride,
                padding=0 if pad_input else "same",
                dilation=dilation,
                groups=hidden,
                activation="relu6",
            )
        )
        self.conv.append(Conv2d(hidden, out_channels, 1, bias=False))
        self.conv.append(BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, Co, h, w) for x (N, Ci, H, W)."""
        *convolutions, projection, bn = self.conv
        y = F.pad(x, (self.padding,) * 4) if self.padding else x
        for convolution in convolutions:
            y = convolution(y)
        return conv_bn_act(y, projection, bn, residual=x if self.adds_input else None)


class MobileNetV2(nn.Module):
    """Features "low_level" of stride 4, "aux" of at most stride 16, "out" of the output stride.

    Args:
        output_stride: stride of the last features: 8, 16 or 32.
        dilation_style: "torchvision" or "paper", the block at which dilation begins; see
            :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        width_mult: factor of all numbers of channels.
        round_nearest: divisor of all numbers of channels.
        last_conv: whether the 1x1 convolution to 1280 channels, made for classification, is kept:
            TensorFlow's DeepLab leaves it out, segmentation_models_pytorch's does not.
        pad_input: whether the padding is VainF's: blocks pad their input before the expansion,
            whose batch norm makes other values of the zeros, and the first convolution does not
            pad.
        in_channels: number of the image's channels.

    Raises:
        ValueError: an output stride out of range, an unknown style.
    """

    def __init__(
        self,
        *,
        output_stride: int = 16,
        dilation_style: str = "torchvision",
        width_mult: float = 1.0,
        round_nearest: int = 8,
        last_conv: bool = False,
        pad_input: bool = False,
        in_channels: int = 3,
    ):
        super().__init__()
        strides = [stride for *_, stride in STAGES]
        stages = dilated_stages(strides, output_stride, dilation_style, input_stride=2)
        channels = _round_channels(STEM * width_mult, round_nearest)
        self.features = nn.Sequential(
            ConvBNAct(
                in_channels,
                channels,
                3,
                stride=2,
                padding=0 if pad_input else "same",
                activation="relu6",
            )
        )
        ends = []  # each stage's number of features up to its end, and its channels
        dilation = 1
        for (expansion, width, blocks, _), stage in zip(STAGES, stages, strict=True):
            width = _round_channels(width * width_mult, round_nearest)
            for j in range(blocks):
                stride = stage.stride if j == 0 else 1
                dilation = stage.first_dilation if j == 0 else stage.dilation
                self.features.append(
                    InvertedResidual(channels, width, stride, dilation, expansion, pad_input)
                )
                channels = width
            ends.append((len(self.features), channels))
        if last_conv:
            # In torchvision, too, a narrower network has no narrower last layer.
            last = _round_channels(LAST * max(1.0, width_mult), round_nearest)
            self.features.append(ConvBNAct(channels, last, 1, activation="relu6"))
            channels = last
        self._low_level, self._aux = ends[1][0], ends[4][0]
        self.channels = {"low_level": ends[1][1], "aux": ends[4][1], "out": channels}
        he_init(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the features of an image (N, in_channels, H, W)."""
        found = {}
        for i, layer in enumerate(self.features, start=1):
            x = layer(x)
            if i == self._low_level:
                found["low_level"] = x
            elif i == self._aux:
                found["aux"] = x
        return {**found, "out": x}


def mobilenet_v2(**options: Any) -> MobileNetV2:
    """Builds a :class:`MobileNetV2`, of 3,504,872 parameters with its classifier."""
    return MobileNetV2(**options)


def _round_channels(channels: float, divisor: int) -> int:
    """Returns the nearest multiple of the divisor that is not below 90 % of the channels."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
