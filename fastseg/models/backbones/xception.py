"""The backbone Xception-65 with DeepLab v3+'s changes.

Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017; Chen et al.,
"Encoder-Decoder with Atrous Separable Convolution", ECCV 2018, Figure 4: more blocks, strided
separable convolutions in place of pooling, batch norm after each depthwise convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.models._layers import ConvBNAct, he_init
from fastseg.models.backbones.dilation import dilated_stages

ENTRY = (128, 256, 728)
"""Channels of the entry flow's blocks."""

EXIT = ((728, 1024, 1024), (1536, 1536, 2048))
"""Channels of the exit flow's block and of the last three convolutions."""


class SeparableUnit(nn.Module):
    """A depthwise and a pointwise convolution, each with batch norm and its own activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        dilation: int,
        activations: tuple[str | None, str | None],
        eps: float,
    ):
        super().__init__()
        self.depthwise = ConvBNAct(
            in_channels,
            in_channels,
            3,
            stride=stride,
            dilation=dilation,
            groups=in_channels,
            activation=activations[0],
            eps=eps,
        )
        self.pointwise = ConvBNAct(in_channels, out_channels, 1, activation=activations[1], eps=eps)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Returns (N, Co, h, w) for x (N, Ci, H, W)."""
        return self.pointwise(self.depthwise(x), residual)


class XceptionBlock(nn.Module):
    """A block of three separable convolutions, a ReLU before each, to which the input is added.

    The input passes through a convolution where sizes or channels differ.

    Args:
        in_channels: number of input channels.
        widths: output channels of the three convolutions.
        stride: stride of the last convolution.
        dilation: rate of all three, before the factors.
        factors: factor of each convolution's rate.
        eps: number added to the variance in batch norms.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        stride: int,
        dilation: int,
        factors: Sequence[int],
        eps: float,
    ):
        super().__init__()
        first, second, last = widths
        # The ReLU of the second convolution ends the first; see inner for the third's.
        self.unit1 = SeparableUnit(
            in_channels, first, 1, dilation * factors[0], (None, "relu"), eps
        )
        self.unit2 = SeparableUnit(first, second, 1, dilation * factors[1], (None, None), eps)
        self.unit3 = SeparableUnit(second, last, stride, dilation * factors[2], (None, None), eps)
        self.shortcut = None
        if stride != 1 or in_channels != last:
            self.shortcut = ConvBNAct(in_channels, last, 1, stride=stride, activation=None, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, widths[-1], h, w) for x (N, Ci, H, W)."""
        return self.outer(self.inner(x), x)

    def inner(self, x: Tensor) -> Tensor:
        """Returns the features before the third ReLU, the second block's low-level features."""
        return self.unit2(self.unit1(F.relu(x)))

    def outer(self, y: Tensor, x: Tensor) -> Tensor:
        """Returns the block's output for its inner features y and its input x."""
        return self.unit3(F.relu(y), x if self.shortcut is None else self.shortcut(x))


class Xception65(nn.Module):
    """Features "low_level" of stride 4, "aux" of at most stride 16, "out" of the output stride.

    Args:
        output_stride: stride of the last features: 8, 16 or 32.
        dilation_style: "torchvision" or "paper", the block at which dilation begins; see
            :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        multi_grid: factors of the rates of the last three convolutions, such as (1, 2, 4).
        middle_blocks: number of blocks of the middle flow; 16 in Xception-65.
        width_mult: factor of all numbers of channels.
        eps: number added to the variance in batch norms; 1e-3 in TensorFlow's models.
        in_channels: number of the image's channels.

    Raises:
        ValueError: an output stride out of range, an unknown style, factors that are not three.
    """

    def __init__(
        self,
        *,
        output_stride: int = 16,
        dilation_style: str = "torchvision",
        multi_grid: Sequence[int] | None = None,
        middle_blocks: int = 16,
        width_mult: float = 1.0,
        eps: float = 1e-3,
        in_channels: int = 3,
    ):
        super().__init__()
        multi_grid = tuple(multi_grid or (1, 1, 1))
        if len(multi_grid) != 3:
            raise ValueError(f"multi_grid must have three factors, got {multi_grid}")

        def width(channels: int) -> int:
            return max(1, round(channels * width_mult))

        entry = [width(w) for w in ENTRY]
        exits = [[width(w) for w in widths] for widths in EXIT]
        self.conv1 = ConvBNAct(in_channels, width(32), 3, stride=2, eps=eps)
        self.conv2 = ConvBNAct(width(32), width(64), 3, eps=eps)
        stages = dilated_stages((2, 2, 2, 1, 2, 1), output_stride, dilation_style, input_stride=2)
        *entry_stages, middle, exit1, exit2 = stages

        channels = width(64)
        self.entry = nn.ModuleList()
        for out_channels, stage in zip(entry, entry_stages, strict=True):
            self.entry.append(
                XceptionBlock(
                    channels, (out_channels,) * 3, stage.stride, stage.first_dilation, (1,) * 3, eps
                )
            )
            channels = out_channels
        self.middle = nn.Sequential()
        for j in range(middle_blocks):
            dilation = middle.dilation if j else middle.first_dilation
            self.middle.append(XceptionBlock(channels, (channels,) * 3, 1, dilation, (1,) * 3, eps))
        self.exit = XceptionBlock(
            channels, exits[0], exit1.stride, exit1.first_dilation, (1,) * 3, eps
        )
        # The last three convolutions have no shortcut, and ReLU after every batch norm.
        self.last = nn.Sequential()
        channels = exits[0][-1]
        for out_channels, factor in zip(exits[1], multi_grid, strict=True):
            dilation = exit2.first_dilation * factor
            self.last.append(
                SeparableUnit(channels, out_channels, 1, dilation, ("relu", "relu"), eps)
            )
            channels = out_channels
        self.channels = {"low_level": entry[1], "aux": entry[2], "out": channels}
        he_init(self)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the features of an image (N, in_channels, H, W)."""
        first, second, third = self.entry
        x = first(self.conv2(self.conv1(x)))
        low_level = second.inner(x)
        aux = self.middle(third(second.outer(low_level, x)))
        return {"low_level": low_level, "aux": aux, "out": self.last(self.exit(aux))}


def xception65(**options: Any) -> Xception65:
    """Builds an :class:`Xception65`."""
    return Xception65(**options)
