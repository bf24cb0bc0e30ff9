"""The network U-Net.

Ronneberger, Fischer, Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015. A contracting path of double convolutions and poolings, an expanding path that doubles
the size and concatenates the contracting path's features of that size (Figure 1).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.models._layers import Conv2d, ConvBNAct
from fastseg.models._model import FCNHead, SegmentationModel, finish
from fastseg.nn import DenseCRF

UPSAMPLINGS = ("transposed", "bilinear", "nearest")
PADDINGS = ("same", "valid")


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with an optional batch norm and a ReLU."""

    def __init__(
        self, in_channels: int, hidden: int, out_channels: int, padding: str, batch_norm: bool
    ):
        super().__init__()

        def conv(channels: int, width: int) -> nn.Module:
            if batch_norm:
                return ConvBNAct(channels, width, 3, padding=padding)
            return Conv2d(channels, width, 3, padding=1 if padding == "same" else 0)

        self.conv1 = conv(in_channels, hidden)
        self.conv2 = conv(hidden, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, h, w) for x (N, in_channels, H, W)."""
        for conv in (self.conv1, self.conv2):
            x = conv(x, "relu") if isinstance(conv, Conv2d) else conv(x)
        return x


class Up(nn.Module):
    """Upsampling by two, the skip beside it, a double convolution."""

    def __init__(
        self,
        below: int,
        skip: int,
        out_channels: int,
        upsampling: str,
        padding: str,
        batch_norm: bool,
    ):
        super().__init__()
        self.upsampling = upsampling
        self.padding = padding
        channels, hidden = below, out_channels
        if upsampling == "transposed":
            channels = skip
            self.up = nn.ConvTranspose2d(below, skip, 2, stride=2)
        elif upsampling == "bilinear":
            hidden = (skip + below) // 2
        self.conv = DoubleConv(skip + channels, hidden, out_channels, padding, batch_norm)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Returns the features of the skip's level, where x are those of the level below."""
        if self.upsampling == "transposed":
            x = self.up(x)
        elif self.upsampling == "bilinear":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(torch.cat(_same_size(skip, x, self.padding), 1))


def _same_size(skip: Tensor, x: Tensor, padding: str) -> tuple[Tensor, Tensor]:
    """Crops the skip after valid convolutions, or pads x after halving odd sizes, at the centre."""
    if (torch.compiler.is_exporting() or torch.jit.is_tracing()) and padding == "same":
        # A graph is for all sizes: it does not ask whether this one was odd.
        height, width = (skip.shape[axis] - x.shape[axis] for axis in (-2, -1))
        return skip, F.pad(x, (0, width, 0, height))
    for axis in (-2, -1):
        missing = skip.shape[axis] - x.shape[axis]
        before = abs(missing) // 2
        if missing > 1:
            skip = skip.narrow(axis, before, x.shape[axis])
        elif missing == 1:
            x = F.pad(x, (0, 1) if axis == -1 else (0, 0, 0, 1))
    return skip, x


class UNet(SegmentationModel):
    """A network of ``depth`` halvings and as many doublings around a bottom.

    Args:
        num_classes: number of output channels.
        depth: number of halvings; 4 in the paper.
        width: number of channels of the first level, doubled at each halving; 64 in the paper.
        upsampling: "transposed", a 2x2 convolution that halves the channels (the paper);
            "bilinear", where the convolutions before and after it halve them (milesial's U-Net);
            "nearest", where they are not halved before the concatenation.
        padding: "same", for an output of the input's size; "valid", the paper's, for one that
            loses what the convolutions cannot see: 388 pixels of 572.
        batch_norm: whether batch norm follows each 3x3 convolution, which then has no bias.
        dropout: probability of dropping a channel at the bottom, in training.
        aux: whether to add an auxiliary head on the bottom.
        in_channels: number of the image's channels.

    Raises:
        ValueError: an argument out of range, or an image that is too small.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        depth: int = 4,
        width: int = 64,
        upsampling: str = "transposed",
        padding: str = "same",
        batch_norm: bool = True,
        dropout: float = 0.0,
        aux: bool = False,
        in_channels: int = 3,
    ):
        super().__init__(num_classes, in_channels=in_channels)
        if depth < 1 or width < 1:
            raise ValueError(f"depth and width must be positive, got {depth} and {width}")
        if upsampling not in UPSAMPLINGS:
            raise ValueError(f"upsampling must be one of {UPSAMPLINGS}, got {upsampling!r}")
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {PADDINGS}, got {padding!r}")
        self.padding = padding
        widths = [width << i for i in range(depth + 1)]
        if upsampling == "bilinear":
            widths[-1] //= 2
        self.down = nn.ModuleList(
            DoubleConv(channels, out, out, padding, batch_norm)
            for channels, out in zip([in_channels, *widths], widths, strict=False)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.up = nn.ModuleList()
        below = widths[-1]
        for i in reversed(range(depth)):
            out = widths[i] // 2 if upsampling == "bilinear" and i > 0 else widths[i]
            self.up.append(Up(below, widths[i], out, upsampling, padding, batch_norm))
            below = out
        self.classifier = Conv2d(width, num_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if aux:
            self.aux_classifier = FCNHead(widths[-1], num_classes)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Returns logits "out" at the first level's resolution, "aux" at the bottom's."""
        self._check_size(x)
        *levels, bottom = self.down
        skips = []
        for level in levels:
            x = level(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.dropout(bottom(x))
        scores = {} if self.aux_classifier is None else {"aux": self.aux_classifier(x)}
        for up in self.up:
            x = up(x, skips.pop())
        return {"out": self.classifier(x), **scores}

    def at_input_size(self, scores: Tensor, size: torch.Size) -> Tensor:
        """Resizes the scores to the image, unless valid convolutions left its border out."""
        return scores if self.padding == "valid" else super().at_input_size(scores, size)

    def _check_size(self, x: Tensor) -> None:
        """Raises a ValueError unless every level of the network has pixels."""
        smallest, depth = 1, len(self.up)
        if self.padding == "valid":
            for _ in range(depth):  # the level below is doubled
                smallest = (smallest + 4 + 1) // 2
            smallest += 4
            for _ in range(depth):
                smallest = 2 * smallest + 4
        else:
            smallest <<= depth
        if min(x.shape[-2:]) < smallest:
            raise ValueError(
                f"x must be at least {smallest}x{smallest} pixels, for it is halved {depth} times;"
                f" got {x.shape[2]}x{x.shape[3]}"
            )


def unet(
    num_classes: int = 2,
    *,
    depth: int = 4,
    width: int = 64,
    upsampling: str = "transposed",
    padding: str = "same",
    batch_norm: bool = True,
    dropout: float = 0.0,
    aux: bool = False,
    in_channels: int = 3,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
) -> UNet:
    """Builds U-Net. Ronneberger, Fischer, Brox, MICCAI 2015.

    The paper's network is ``unet(2, padding="valid", batch_norm=False, in_channels=1)``, 31.03 M
    parameters; milesial's is ``unet(2)`` or ``unet(2, upsampling="bilinear")``.

    Args:
        num_classes: number of output channels.
        depth: number of halvings.
        width: number of channels of the first level.
        upsampling: "transposed", "bilinear" or "nearest"; see :class:`UNet`.
        padding: "same" or "valid"; see :class:`UNet`.
        batch_norm: whether batch norm follows each convolution.
        dropout: probability of dropping a channel at the bottom, in training.
        aux: whether to add an auxiliary head; the output is then a dict.
        in_channels: number of the image's channels.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`. It needs an
            image of three channels and padding "same".
        backend: "fastseg" or "torch", whose ops run the layers.
    """
    if crf is not None and padding == "valid":
        raise ValueError('crf needs logits of the image\'s size: padding must be "same"')
    model = UNet(
        num_classes,
        depth=depth,
        width=width,
        upsampling=upsampling,
        padding=padding,
        batch_norm=batch_norm,
        dropout=dropout,
        aux=aux,
        in_channels=in_channels,
    )
    return finish(model, crf=crf, backend=backend)
