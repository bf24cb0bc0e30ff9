"""The networks SegNet and SegNet-Basic.

Badrinarayanan, Kendall, Cipolla, "SegNet: A Deep Convolutional Encoder-Decoder Architecture for
Image Segmentation", PAMI 2017. Each 2x2 max pooling of the encoder remembers where its maxima
were, and the decoder puts its values back there: no learned upsampling.

The backends run the same weights. "fastseg" fuses convolutions with what follows them, and batch
norm, ReLU and pooling, in evaluation, and remembers a position in one byte; "torch" is plain
PyTorch with int64 indices.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.models._layers import BatchNorm2d, Conv2d, conv_bn_act
from fastseg.models._model import FCNHead, SegmentationModel, finish
from fastseg.nn import BatchNormReLUMaxPool2d, DenseCRF, MaxUnpool2d


class SegNet(SegmentationModel):
    """An encoder of pooled stages and a decoder that unpools with the encoder's positions.

    Input: float (N, in_channels, H, W) with H and W at least ``2**stages``, odd sizes included.
    Output: logits (N, num_classes, H, W).

    Args:
        encoder: output channels of the convolutions of each stage, from full resolution down.
        decoder: output channels of the convolutions of each stage, from the lowest resolution up;
            batch norm follows each of them.
        num_classes: number of output channels.
        kernel_size: side of the square convolution kernels, odd.
        classifier_kernel_size: side of the kernel of the last convolution, which has a bias and no
            batch norm.
        decoder_relu: whether a ReLU follows each batch norm of the decoder.
        in_channels: number of input channels.
        aux: whether to add an auxiliary head on the lowest features; the output is then a dict.
        backend: "fastseg" or "torch"; both have the same ``state_dict`` keys.

    Raises:
        ValueError: an argument out of range; an input of the wrong shape or smaller than
            ``2**stages``.
    """

    def __init__(
        self,
        encoder: Sequence[Sequence[int]],
        decoder: Sequence[Sequence[int]],
        num_classes: int,
        *,
        kernel_size: int,
        classifier_kernel_size: int,
        decoder_relu: bool,
        in_channels: int = 3,
        aux: bool = False,
        backend: str = "fastseg",
    ) -> None:
        super().__init__(num_classes, in_channels=in_channels)
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}")
        if backend not in _POOLING:
            raise ValueError(f"backend must be one of {tuple(_POOLING)}, got {backend!r}")
        pool, unpool = _POOLING[backend]
        self.encoder = nn.ModuleList()
        channels = in_channels
        for widths in encoder:
            self.encoder.append(_EncoderStage(channels, widths, kernel_size, pool))
            channels = widths[-1]
        self.decoder = nn.ModuleList()
        for widths in decoder:
            self.decoder.append(_DecoderStage(channels, widths, kernel_size, decoder_relu, unpool))
            channels = widths[-1]
        self.classifier = Conv2d(
            channels, num_classes, classifier_kernel_size, padding=classifier_kernel_size // 2
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if aux:
            self.aux_classifier = FCNHead(encoder[-1][-1], num_classes)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Returns logits "out" at the input's size, "aux" at that of the lowest features."""
        smallest = 2 ** len(self.encoder)
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"x must be at least {smallest}x{smallest} pixels, for it is halved "
                f"{len(self.encoder)} times; got {x.shape[2]}x{x.shape[3]}"
            )
        pooled = []
        for stage in self.encoder:
            x, positions, size = stage(x)
            pooled.append((positions, size))
        scores = {} if self.aux_classifier is None else {"aux": self.aux_classifier(x)}
        for stage in self.decoder:
            x = stage(x, *pooled.pop())
        return {"out": self.classifier(x), **scores}


class _EncoderStage(nn.Module):
    """Convolutions with batch norm and ReLU, then a 2x2 max pooling."""

    def __init__(
        self, channels: int, widths: Sequence[int], kernel_size: int, pool: type[nn.Module]
    ) -> None:
        super().__init__()
        *inner, last = widths
        self.convolutions = _Convolutions(channels, inner, kernel_size, relu=True, bare=last)
        self.pool = pool(last)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, torch.Size]:
        x = self.convolutions(x)
        values, positions = self.pool(x)
        return values, positions, x.shape[2:]


class _DecoderStage(nn.Module):
    """A 2x2 max unpooling, then convolutions with batch norm."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        kernel_size: int,
        relu: bool,
        unpool: type[nn.Module],
    ) -> None:
        super().__init__()
        self.unpool = unpool(2)
        self.convolutions = _Convolutions(channels, widths, kernel_size, relu)

    def forward(self, x: Tensor, positions: Tensor, size: Sequence[int]) -> Tensor:
        return self.convolutions(self.unpool(x, positions, output_size=size))


class _TorchBatchNormReLUMaxPool2d(nn.BatchNorm2d):
    """The "torch" backend's batch norm, ReLU and 2x2 max pooling, with torch's int64 indices."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.max_pool2d(F.relu(super().forward(x)), 2, return_indices=True)


_POOLING = {
    "fastseg": (BatchNormReLUMaxPool2d, MaxUnpool2d),
    "torch": (_TorchBatchNormReLUMaxPool2d, nn.MaxUnpool2d),
}
"""Modules of each backend: batch norm, ReLU and 2x2 max pooling in one, and unpooling."""


class _Convolutions(nn.Sequential):
    """Convolutions, each with batch norm and perhaps a ReLU; perhaps a bare one at the end.

    Args:
        channels: number of input channels.
        widths: output channels of the convolutions with batch norm.
        kernel_size: odd kernel size of all convolutions.
        relu: whether a ReLU follows each batch norm.
        bare: output channels of the last convolution, without batch norm; None for none.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        kernel_size: int,
        relu: bool,
        bare: int | None = None,
    ) -> None:
        super().__init__()
        self._activation = "relu" if relu else None
        for width in widths:
            self.append(self._convolution(channels, width, kernel_size))
            self.append(BatchNorm2d(width))
            if relu:
                self.append(nn.Identity())  # the ReLU, which runs with the batch norm
            channels = width
        if bare is not None:
            self.append(self._convolution(channels, bare, kernel_size))

    @staticmethod
    def _convolution(channels: int, width: int, kernel_size: int) -> Conv2d:
        # The batch norm that follows, here or in the pooling, removes any bias.
        return Conv2d(channels, width, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        layers = [layer for layer in self if not isinstance(layer, nn.Identity)]
        for conv, bn in zip_longest(layers[::2], layers[1::2]):
            x = conv(x) if bn is None else conv_bn_act(x, conv, bn, self._activation)
        return x


def segnet(
    num_classes: int = 11,
    *,
    aux: bool = False,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
) -> SegNet:
    """Builds SegNet: the 13 convolutions of VGG16 as encoder, and their mirror as decoder.

    Kept from the paper: 3x3 convolutions with batch norm and ReLU in encoder and decoder, five 2x2
    poolings whose positions drive the unpoolings, a last 3x3 convolution to the classes with
    neither. Changed: convolutions before batch norm have no bias, which batch norm would cancel;
    weights start from He initialisation instead of VGG16's.

    Args:
        num_classes: number of output channels.
        aux: whether to add an auxiliary head on the lowest features; the output is then a dict.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.

    Returns:
        A ``SegNet`` for RGB input of at least 32x32 pixels.
    """
    model = SegNet(
        encoder=[(64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3],
        decoder=[(512,) * 3, (512, 512, 256), (256, 256, 128), (128, 64), (64,)],
        num_classes=num_classes,
        kernel_size=3,
        classifier_kernel_size=3,
        decoder_relu=True,
        aux=aux,
        backend=backend,
    )
    return finish(model, crf=crf, backend=backend)


def segnet_basic(
    num_classes: int = 11,
    *,
    width: int = 64,
    kernel_size: int = 7,
    aux: bool = False,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
) -> SegNet:
    """Builds SegNet-Basic: four encoder and four decoder stages of one convolution each.

    Kept from the paper: as many channels in every stage, 7x7 convolutions with batch norm, ReLU in
    the encoder only, a 1x1 convolution to the classes, He initialisation. Changed: no local
    response normalisation of the input, which the authors' Caffe model starts with (give it
    normalised images); no bias before batch norm; width and kernel size are free.

    Args:
        num_classes: number of output channels.
        width: number of channels of every stage.
        kernel_size: side of the convolution kernels, odd.
        aux: whether to add an auxiliary head on the lowest features; the output is then a dict.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.

    Returns:
        A ``SegNet`` for RGB input of at least 16x16 pixels.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    model = SegNet(
        encoder=[(width,)] * 4,
        decoder=[(width,)] * 4,
        num_classes=num_classes,
        kernel_size=kernel_size,
        classifier_kernel_size=1,
        decoder_relu=False,
        aux=aux,
        backend=backend,
    )
    return finish(model, crf=crf, backend=backend)
