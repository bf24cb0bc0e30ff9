"""The backbone VGG16 for FCN and DeepLab v1 and v2: its convolutions.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR
2015, configuration D. The names are torchvision's ``features``; of its ``classifier``
:func:`vgg16_as_convolutions` makes the convolutions ``fc6`` and ``fc7``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastseg.models._layers import Conv2d, he_init

BLOCKS = (2, 2, 3, 3, 3)
"""Number of convolutions of each block."""

FACTORS = (1, 2, 4, 8, 8)
"""Factor of the first block's width for each block."""

FC_SIDE = 7
"""Side of the map that VGG16's first fully connected layer sees."""


class VGG16(nn.Module):
    """A backbone whose features are the outputs of the five poolings, "pool1" to "pool5".

    Args:
        output_stride: 32, or DeepLab's 8, where poolings are 3x3 with padding 1, the last two have
            stride 1, and the convolutions after the fourth have rate 2.
        in_channels: number of the image's channels.
        width: number of channels of the first block; 64 in the paper.

    Raises:
        ValueError: another output stride.
    """

    def __init__(
        self,
        *,
        output_stride: int = 32,
        in_channels: int = 3,
        width: int = 64,
    ):
        super().__init__()
        if output_stride not in (8, 32):
            raise ValueError(f"output_stride must be 8 or 32, got {output_stride!r}")
        self.dense = output_stride == 8
        self.features = nn.Sequential()
        channels = in_channels
        for i, (convolutions, factor) in enumerate(zip(BLOCKS, FACTORS, strict=True)):
            dilation = 2 if self.dense and i == 4 else 1
            for _ in range(convolutions):
                conv = Conv2d(channels, factor * width, 3, padding=dilation, dilation=dilation)
                # torchvision's numbers count the ReLU, which runs in the convolution.
                self.features.extend((conv, nn.Identity()))
                channels = factor * width
            # FCN and DeepLab pool as Caffe does: sizes are rounded up.
            self.features.append(
                nn.MaxPool2d(3, 1 if i > 2 else 2, padding=1, ceil_mode=True)
                if self.dense
                else nn.MaxPool2d(2, 2, ceil_mode=True)
            )
        self.channels = {"aux": 8 * width, "out": 8 * width}
        self.pool_channels = [factor * width for factor in FACTORS]
        he_init(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the pooled features of an image; "aux" and "out" are the last two."""
        found = {}
        for layer in self.features:
            if isinstance(layer, Conv2d):
                x = layer(x, "relu")
            elif isinstance(layer, nn.MaxPool2d):
                x = layer(x)
                found[f"pool{len(found) + 1}"] = x
        return {**found, "aux": found["pool4"], "out": found["pool5"]}


class FullyConvolutional(nn.Module):
    """VGG16's two fully connected layers as convolutions: fc6, ReLU, dropout, fc7, ReLU, dropout.

    Args:
        in_channels: number of the map's channels.
        channels: number of channels of both layers; 4096 in VGG16.
        kernel_size: kernel size of fc6; 7 in VGG16.
        dilation: rate of fc6.
        padding: padding of fc6; None keeps the map's size.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 4096,
        kernel_size: int = FC_SIDE,
        dilation: int = 1,
        padding: int | None = None,
    ):
        super().__init__()
        if padding is None:
            padding = dilation * (kernel_size - 1) // 2
        self.fc6 = Conv2d(in_channels, channels, kernel_size, padding=padding, dilation=dilation)
        self.fc7 = Conv2d(channels, channels, 1)
        self.dropout = nn.Dropout2d(0.5)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, channels, h, w) for x (N, in_channels, H, W)."""
        return self.dropout(self.fc7(self.dropout(self.fc6(x, "relu")), "relu"))


def vgg16_as_convolutions(
    state_dict: Mapping[str, Tensor], *, kernel_size: int = FC_SIDE, channels: int | None = None
) -> dict[str, Tensor]:
    """Converts the fully connected layers in weights of torchvision's vgg16 to convolutions.

    Long, Shelhamer, Darrell, CVPR 2015, section 3.1: a fully connected layer on a 7x7 map is a 7x7
    convolution. Chen et al. 2015 (arXiv 1412.7062), section 3.3, take fewer of its taps, evenly
    spread, and of its channels.

    Args:
        state_dict: a state_dict with ``features.*``, ``classifier.0.*`` and ``classifier.3.*``.
        kernel_size: kernel size of fc6: 7 takes all taps, DeepLab's 4 and 3 some of them.
        channels: number of channels of fc6 and fc7; default all.

    Returns:
        A state_dict of ``features.*``, ``fc6.{weight,bias}`` and ``fc7.{weight,bias}``.
    """
    converted = {key: t for key, t in state_dict.items() if key.startswith("features.")}
    weight6, weight7 = state_dict["classifier.0.weight"], state_dict["classifier.3.weight"]
    taps = torch.linspace(0, FC_SIDE - 1, kernel_size).round().long()
    total = weight6.shape[0]
    kept = torch.linspace(0, total - 1, channels or total).round().long()
    weight6 = weight6.unflatten(1, (-1, FC_SIDE, FC_SIDE))
    converted["fc6.weight"] = weight6[kept][:, :, taps][:, :, :, taps]
    converted["fc6.bias"] = state_dict["classifier.0.bias"][kept]
    converted["fc7.weight"] = weight7[kept][:, kept, None, None]
    converted["fc7.bias"] = state_dict["classifier.3.bias"][kept]
    return converted
