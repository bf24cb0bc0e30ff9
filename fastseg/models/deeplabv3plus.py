"""The network DeepLab v3+.

Chen, Zhu, Papandreou, Schroff, Adam, "Encoder-Decoder with Atrous Separable Convolution for
Semantic Image Segmentation", ECCV 2018 (arXiv 1802.02611). DeepLab v3 as encoder, and a decoder
that sharpens borders with low-level features of stride 4 (Figure 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.models._layers import ASPP, Conv2d, ConvBNAct, SeparableConvBNAct, resize
from fastseg.models._model import BackboneModel, finish
from fastseg.models.backbones import build_backbone
from fastseg.models.deeplabv3 import default_rates
from fastseg.nn import DenseCRF


class Decoder(nn.Module):
    """Decoder: the ASPP at the low-level features' size, concatenated with them and convolved.

    Args:
        in_channels: number of channels of the encoder's features.
        low_level_channels: number of channels of the low-level features.
        num_classes: number of output channels.
        atrous_rates: rates of the ASPP.
        channels: number of channels of the ASPP and of the 3x3 convolutions.
        projected: number of channels to which the low-level features are reduced; 48 in Table 1.
        decoder_convs: number of 3x3 convolutions after the concatenation; 2 in Table 2.
        separable: whether 3x3 convolutions are separable, which the paper calls "SC".
        depthwise_batch_norm: whether batch norm and ReLU follow the depthwise convolutions too.
        aspp_conv: whether a 3x3 convolution follows the ASPP.
        project_kernel_size: kernel size of the ASPP's projection.
        align_corners: how the ASPP's output is resized, with corners aligned or not.
    """

    def __init__(
        self,
        in_channels: int,
        low_level_channels: int,
        num_classes: int,
        atrous_rates: Sequence[int],
        *,
        channels: int = 256,
        projected: int = 48,
        decoder_convs: int = 2,
        separable: bool = True,
        depthwise_batch_norm: bool = False,
        aspp_conv: bool = False,
        project_kernel_size: int = 1,
        align_corners: bool = False,
    ):
        super().__init__()

        def conv(width: int) -> nn.Module:
            if separable:
                return SeparableConvBNAct(
                    width, channels, depthwise_batch_norm=depthwise_batch_norm
                )
            return ConvBNAct(width, channels)

        self.align_corners = align_corners
        self.aspp = ASPP(
            in_channels,
            atrous_rates,
            channels,
            separable=separable,
            depthwise_batch_norm=depthwise_batch_norm,
            project_kernel_size=project_kernel_size,
        )
        self.aspp_conv = conv(channels) if aspp_conv else None
        self.project = ConvBNAct(low_level_channels, projected, 1)
        widths = [channels + projected] + [channels] * (decoder_convs - 1)
        self.convs = nn.Sequential(*(conv(width) for width in widths[:decoder_convs]))
        self.score = Conv2d(channels if decoder_convs else widths[0], num_classes, 1)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Returns logits (N, num_classes, h, w) of the size of the features "low_level"."""
        low_level = self.project(features["low_level"])
        x = self.aspp(features["out"])
        if self.aspp_conv is not None:
            x = self.aspp_conv(x)
        x = resize(x, low_level.shape[-2:], self.align_corners)
        return self.score(self.convs(torch.cat((x, low_level), 1)))


class DeepLabV3Plus(BackboneModel):
    """A backbone, and a decoder of its low-level and last features as its classifier."""

    def classify(self, features: dict[str, Tensor]) -> Tensor:
        """Returns the logits at the low-level features' size."""
        return self.classifier(features)


def deeplabv3plus(
    num_classes: int = 21,
    *,
    backbone: str = "resnet50",
    output_stride: int = 16,
    atrous_rates: Sequence[int] | None = None,
    multi_grid: Sequence[int] | None = None,
    aux: bool = False,
    dilation_style: str = "torchvision",
    align_corners: bool = False,
    separable: bool = True,
    depthwise_batch_norm: bool = False,
    decoder_convs: int = 2,
    aspp_conv: bool = False,
    aspp_channels: int = 256,
    project_kernel_size: int = 1,
    low_level_channels: int = 48,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    in_channels: int = 3,
    backbone_options: Mapping[str, Any] | None = None,
) -> DeepLabV3Plus:
    """Builds DeepLab v3+. Chen et al., ECCV 2018, arXiv 1802.02611.

    The defaults are the paper's decoder. Those of VainF, segmentation_models_pytorch and
    mmsegmentation differ: :func:`fastseg.from_checkpoint` knows how.

    Args:
        num_classes: number of output channels.
        backbone: "resnet50", "resnet101", "mobilenet_v2" or "xception65".
        output_stride: stride of the encoder's last features: 8, 16 or 32.
        atrous_rates: rates of the ASPP; default (12, 24, 36) at output stride 8, (6, 12, 18) at 16.
        multi_grid: three factors of the rates in the backbone's last stage; default 1.
        aux: whether to add an auxiliary head on the stage before the last; the output is then a
            dict.
        dilation_style: "torchvision" or "paper", the block at which dilation begins; see
            :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        align_corners: how features and scores are resized, with corners aligned or not.
        separable: whether the 3x3 convolutions of ASPP and decoder are separable.
        depthwise_batch_norm: whether batch norm and ReLU follow the depthwise convolutions too,
            which they do in TensorFlow and mmsegmentation.
        decoder_convs: number of 3x3 convolutions of the decoder.
        aspp_conv: whether a 3x3 convolution follows the ASPP.
        aspp_channels: number of channels of the ASPP and of the decoder's convolutions.
        project_kernel_size: kernel size of the ASPP's projection: 3 in mmsegmentation.
        low_level_channels: number of channels to which the low-level features are reduced.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.
        in_channels: number of the image's channels.
        backbone_options: further keyword arguments of the backbone, by their names.

    Raises:
        ValueError: an unknown name, or an argument out of range.
        TypeError: multi_grid with MobileNetV2, whose last stage has one block.
    """
    encoder = build_backbone(
        backbone,
        backbone_options,
        output_stride=output_stride,
        dilation_style=dilation_style,
        multi_grid=multi_grid,
        in_channels=in_channels,
    )
    decoder = Decoder(
        encoder.channels["out"],
        encoder.channels["low_level"],
        num_classes,
        default_rates(output_stride) if atrous_rates is None else atrous_rates,
        channels=aspp_channels,
        projected=low_level_channels,
        decoder_convs=decoder_convs,
        separable=separable,
        depthwise_batch_norm=depthwise_batch_norm,
        aspp_conv=aspp_conv,
        project_kernel_size=project_kernel_size,
        align_corners=align_corners,
    )
    model = DeepLabV3Plus(
        encoder, decoder, num_classes, aux=aux, in_channels=in_channels, align_corners=align_corners
    )
    return finish(model, crf=crf, backend=backend)
