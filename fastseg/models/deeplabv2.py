"""The network DeepLab v2.

Chen, Papandreou, Kokkinos, Murphy, Yuille, "DeepLab: Semantic Image Segmentation with Deep
Convolutional Nets, Atrous Convolution, and Fully Connected CRFs", PAMI 2018 (arXiv 1606.00915).
Atrous spatial pyramid pooling: the sum of classifiers at several rates; optionally the maximum over
the image at several scales.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastseg.models._layers import ASPPSum, rescale, resize
from fastseg.models._model import BackboneModel, finish
from fastseg.models.backbones import VGG16, build_backbone
from fastseg.models.deeplabv1 import FieldOfView, VGGHead
from fastseg.nn import DenseCRF

VARIANTS = {"aspp_s": (2, 4, 8, 12), "aspp_l": (6, 12, 18, 24), "largefov": (12,)}
"""Rates of the branches, from section 4.1.2 and Table 3."""

FC_CHANNELS = 1024


class VGGPyramid(nn.ModuleList):
    """Branches on VGG16, each with its own fc6 of its rate, fc7 and scores: Figure 7 (b)."""

    def __init__(self, in_channels: int, num_classes: int, rates: Sequence[int], channels: int):
        super().__init__(
            VGGHead(in_channels, num_classes, FieldOfView(3, rate, channels)) for rate in rates
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of the branches' logits (N, num_classes, H, W)."""
        return sum(branch(x) for branch in self)


class DeepLabV2(BackboneModel):
    """A backbone and a pyramid, on the image at several scales; the largest score counts.

    Args:
        scales: factors of the image's size; the logits are as large as the largest scale's.
        **options: further arguments of :class:`~fastseg.models._model.BackboneModel`.
    """

    def __init__(self, *args: Any, scales: Sequence[float] = (1.0,), **options: Any):
        super().__init__(*args, **options)
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales must be positive numbers, got {scales!r}")
        self.scales = tuple(sorted(scales, reverse=True))

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Returns the largest logits "out" over the scales, and "aux" of the largest scale."""
        fused: dict[str, Tensor] = {}
        for scale in self.scales:
            scores = super().scores(rescale(x, scale, self.align_corners))
            if not fused:
                fused = scores
                continue
            out = resize(scores["out"], fused["out"].shape[-2:], self.align_corners)
            fused["out"] = torch.maximum(fused["out"], out)
        return fused


def deeplabv2(
    num_classes: int = 21,
    *,
    backbone: str = "resnet101",
    variant: str = "aspp_l",
    scales: Sequence[float] = (1.0,),
    aux: bool = False,
    dilation_style: str = "paper",
    align_corners: bool = False,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    in_channels: int = 3,
    fc_channels: int = FC_CHANNELS,
    backbone_options: Mapping[str, Any] | None = None,
) -> DeepLabV2:
    """Builds DeepLab v2, output stride 8. Chen et al., PAMI 2018.

    The paper's best is ``deeplabv2(scales=(0.5, 0.75, 1.0), crf="post")``. ResNets are those of its
    Caffe models: the first 1x1 convolution of a stage strides, and the stem's pooling rounds up.

    Args:
        num_classes: number of output channels.
        backbone: "vgg16", "resnet50" or "resnet101".
        variant: rates of the pyramid: "aspp_l" (6, 12, 18, 24), "aspp_s" (2, 4, 8, 12) or
            "largefov" (12).
        scales: factors of the image's size; the output is the largest score over all of them.
        aux: whether to add an auxiliary head; the output is then a dict.
        dilation_style: a ResNet's style, "torchvision" or "paper"; see
            :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        align_corners: how images and scores are resized; True in Caffe, False in kazuto1011's
            PyTorch model.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.
        in_channels: number of the image's channels.
        fc_channels: number of channels of fc6 and fc7 on VGG16.
        backbone_options: further keyword arguments of the backbone, by their names.

    Raises:
        ValueError: an unknown name, or an argument out of range.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {tuple(VARIANTS)}, got {variant!r}")
    rates = VARIANTS[variant]
    if backbone == "vgg16":
        options = {"output_stride": 8, "in_channels": in_channels, **(backbone_options or {})}
        features: nn.Module = VGG16(**options)
        head: nn.Module = VGGPyramid(features.channels["out"], num_classes, rates, fc_channels)
    elif backbone in ("resnet50", "resnet101"):
        features = build_backbone(
            backbone,
            backbone_options,
            output_stride=8,
            dilation_style=dilation_style,
            stride_in_1x1=True,
            ceil_pool=True,
            in_channels=in_channels,
        )
        head = ASPPSum(features.channels["out"], num_classes, rates)
    else:
        raise ValueError(f"backbone must be vgg16, resnet50 or resnet101, got {backbone!r}")
    model = DeepLabV2(
        features,
        head,
        num_classes,
        scales=scales,
        aux=aux,
        in_channels=in_channels,
        align_corners=align_corners,
    )
    return finish(model, crf=crf, backend=backend)
