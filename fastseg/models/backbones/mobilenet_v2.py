"""MobileNetV2 with dilation.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2. The
names are torchvision's, without its ``classifier``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.models._layers import BatchNorm2d, Conv2d, ConvBNAct, conv_bn_act, he_init
from fastseg.models.backbones.dilation import dilated_stages

# Expansion, output channels, blocks and stride of each stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, and a projection without activation.

    Args:
        in_channels: Ci.
        out_channels: Co; the input is added where it is as large as the output.
        stride: of the depthwise convolution.
        dilation: of the depthwise convolution.
        expansion: factor of the channels in between; without 1x1 convolution if 1.
        pad_input: whether the input is padded, before the expansion, and not what is expanded.
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
        """(N, Co, h, w) of x (N, Ci, H, W)."""
        *convolutions, projection, bn = self.conv
        y = F.pad(x, (self.padding,) * 4) if self.padding else x
        for convolution in convolutions:
            y = convolution(y)
        return conv_bn_act(y, projection, bn, residual=x if self.adds_input else None)


class MobileNetV2(nn.Module):
    """Features of strides 4 (low_level), 16 or the output stride (aux), the output stride (out).

    Args:
        output_stride: 8, 16 or 32.
        dilation_style: as in :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        width_mult: factor of all channels.
        round_nearest: what numbers of channels are multiples of.
        last_conv: whether the 1x1 convolution to 1280 channels, made for classification, is kept:
            TensorFlow's DeepLab has no use for it, segmentation_models_pytorch's has.
        pad_input: VainF's padding: blocks pad their input, before the expansion, whose batch norm
            makes other values of the zeros, and the first convolution does not pad.
        in_channels: of the image.

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
        ends = []  # of the stages: the number of features up to them, and their channels
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
            # As torchvision: a narrower network does not have a narrower last layer.
            last = _round_channels(LAST * max(1.0, width_mult), round_nearest)
            self.features.append(ConvBNAct(channels, last, 1, activation="relu6"))
            channels = last
        self._low_level, self._aux = ends[1][0], ends[4][0]
        self.channels = {"low_level": ends[1][1], "aux": ends[4][1], "out": channels}
        he_init(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """The features of an image (N, in_channels, H, W)."""
        found = {}
        for i, layer in enumerate(self.features, start=1):
            x = layer(x)
            if i == self._low_level:
                found["low_level"] = x
            elif i == self._aux:
                found["aux"] = x
        return {**found, "out": x}


def mobilenet_v2(**options: Any) -> MobileNetV2:
    """MobileNetV2: 3,504,872 parameters with its classifier; for the options see MobileNetV2."""
    return MobileNetV2(**options)


def _round_channels(channels: float, divisor: int) -> int:
    """The nearest multiple of the divisor that is not below 90 % of the channels."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
