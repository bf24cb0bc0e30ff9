"""The backbones ResNet-50 and ResNet-101 with dilation.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016. The names are
torchvision's, without its classifier ``fc``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.models._layers import BatchNorm2d, Conv2d, ConvBNAct, conv_bn_act, he_init
from fastseg.models.backbones.dilation import dilated_stages

EXPANSION = 4
"""Factor from a block's width to its number of outputs."""


class Bottleneck(nn.Module):
    """A block of a 1x1, a 3x3 and a 1x1 convolution, to which the input is added.

    Args:
        in_channels: number of input channels.
        width: number of channels of the 3x3 convolution; the block has 4 times as many outputs.
        stride: stride of the 3x3 convolution.
        dilation: rate of the 3x3 convolution.
        stride_in_1x1: whether the first 1x1 convolution strides instead.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, dilation: int, stride_in_1x1: bool
    ):
        super().__init__()
        out_channels = EXPANSION * width
        strides = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = Conv2d(in_channels, width, 1, strides[0], bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = Conv2d(width, width, 3, strides[1], dilation, dilation, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.conv3 = Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            projection = Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 4 width, h, w) for x (N, Ci, H, W)."""
        identity = x if self.downsample is None else conv_bn_act(x, *self.downsample)
        y = conv_bn_act(x, self.conv1, self.bn1, "relu")
        y = conv_bn_act(y, self.conv2, self.bn2, "relu")
        return conv_bn_act(y, self.conv3, self.bn3, "relu", residual=identity)


class ResNet(nn.Module):
    """Features "low_level" of stride 4, "aux" of at most stride 16, "out" of the output stride.

    Args:
        layers: number of blocks of each of the four stages.
        output_stride: stride of the last features: 8, 16 or 32.
        dilation_style: "torchvision" or "paper", the block at which dilation begins; see
            :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        multi_grid: factor of each block's rate in the last stage, such as DeepLab v3's (1, 2, 4).
        stride_in_1x1: whether the first 1x1 convolution of a stage strides, which it does in the
            paper and the Caffe models of DeepLab v2, or the 3x3 convolution, as torchvision has it.
        ceil_pool: whether the stem's pooling rounds sizes up, which it does in Caffe.
        deep_stem: whether three 3x3 convolutions replace the stem's 7x7, which they do in
            mmsegmentation; they are ``stem.{0,1,2}``, in place of ``conv1`` and ``bn1`` (He et al.
            2019, arXiv 1812.01187).
        in_channels: number of the image's channels.
        width: number of channels of the stem; 64 in the paper.

    Raises:
        ValueError: arguments that do not fit each other.
    """

    def __init__(
        self,
        layers: Sequence[int],
        *,
        output_stride: int = 8,
        dilation_style: str = "torchvision",
        multi_grid: Sequence[int] | None = None,
        stride_in_1x1: bool = False,
        ceil_pool: bool = False,
        deep_stem: bool = False,
        in_channels: int = 3,
        width: int = 64,
    ):
        super().__init__()
        multi_grid = tuple(multi_grid or (1,) * layers[-1])
        if len(multi_grid) != layers[-1]:
            raise ValueError(
                f"multi_grid must have a factor for each of the {layers[-1]} blocks of the last"
                f" stage, got {multi_grid}"
            )
        self.deep_stem = deep_stem
        if deep_stem:
            self.stem = nn.Sequential(
                ConvBNAct(in_channels, width // 2, 3, stride=2),
                ConvBNAct(width // 2, width // 2, 3),
                ConvBNAct(width // 2, width, 3),
            )
        else:
            self.conv1 = Conv2d(in_channels, width, 7, 2, 3, bias=False)
            self.bn1 = BatchNorm2d(width)
        self.ceil_pool = ceil_pool
        channels = width
        stages = dilated_stages((1, 2, 2, 2), output_stride, dilation_style, input_stride=4)
        for i, (blocks, stage) in enumerate(zip(layers, stages, strict=True)):
            dilations = [stage.first_dilation] + [stage.dilation] * (blocks - 1)
            if i == len(stages) - 1:
                dilations = [d * factor for d, factor in zip(dilations, multi_grid, strict=True)]
            layer = nn.Sequential()
            for j, dilation in enumerate(dilations):
                stride = stage.stride if j == 0 else 1
                layer.append(Bottleneck(channels, width << i, stride, dilation, stride_in_1x1))
                channels = EXPANSION * (width << i)
            self.add_module(f"layer{i + 1}", layer)
        self.channels = {
            "low_level": EXPANSION * width,
            "aux": EXPANSION * width * 4,
            "out": EXPANSION * width * 8,
        }
        he_init(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the features of an image (N, in_channels, H, W)."""
        x = self.stem(x) if self.deep_stem else conv_bn_act(x, self.conv1, self.bn1, "relu")
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=self.ceil_pool)
        low_level = self.layer1(x)
        aux = self.layer3(self.layer2(low_level))
        return {"low_level": low_level, "aux": aux, "out": self.layer4(aux)}


def resnet50(**options: Any) -> ResNet:
    """Builds ResNet-50, a :class:`ResNet` of 25,557,032 parameters with its classifier."""
    return ResNet(**{"layers": (3, 4, 6, 3), **options})


def resnet101(**options: Any) -> ResNet:
    """Builds ResNet-101, a :class:`ResNet` of 44,549,160 parameters with its classifier."""
    return ResNet(**{"layers": (3, 4, 23, 3), **options})
