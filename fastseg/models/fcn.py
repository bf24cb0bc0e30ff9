"""Fully convolutional networks (FCN).

Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015. The
fully connected layers of VGG16 become convolutions, a 1x1 convolution scores the classes, and
deconvolutions bring the scores back to the image's size; finer strides add the scores of earlier
poolings on the way (Figure 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastseg.models._layers import Conv2d
from fastseg.models._model import BackboneModel, FCNHead, SegmentationModel, finish
from fastseg.models.backbones import VGG16, build_backbone
from fastseg.models.backbones.vgg import FullyConvolutional
from fastseg.nn import DenseCRF

PADDING = 100
"""Padding in pixels, by which fc6 sees a whole map even of the smallest image."""

IMAGE_OFFSET = {32: 19, 16: 27, 8: 31}
"""Pixels from the corner of the upsampled scores to that of the image, by the stride."""

SKIP_OFFSET = {"pool4": 5, "pool3": 9}
"""Pixels from the corner of a skip's scores to that of the scores so far, by the skip."""

SKIPS: dict[int, tuple[str, ...]] = {32: (), 16: ("pool4",), 8: ("pool4", "pool3")}
"""Poolings whose scores are added, by the stride."""


class FCN(SegmentationModel):
    """FCN-32s, 16s or 8s on VGG16, with the padding and cropping of the authors' Caffe models.

    Args:
        num_classes: number of output channels.
        stride: stride of the finest scores: 32, 16 or 8.
        learnt: whether the deconvolutions, which begin bilinear, are learnt. In the paper all but
            the last one are.
        aux: whether to add an auxiliary head on the fourth pooling.
        fc_channels: number of channels of fc6 and fc7.
        in_channels: number of the image's channels.
        width: number of channels of VGG16's first block.
    """

    def __init__(
        self,
        num_classes: int,
        stride: int,
        *,
        learnt: bool = True,
        aux: bool = False,
        fc_channels: int = 4096,
        in_channels: int = 3,
        width: int = 64,
    ):
        super().__init__(num_classes, in_channels=in_channels)
        self.stride = stride
        self.backbone = VGG16(in_channels=in_channels, width=width)
        channels = dict(
            zip(("pool3", "pool4", "pool5"), self.backbone.pool_channels[2:], strict=True)
        )
        self.fc = FullyConvolutional(channels["pool5"], fc_channels, padding=0)
        self.score = Conv2d(fc_channels, num_classes, 1)
        self.skip_scores, self.upsample = nn.ModuleDict(), nn.ModuleList()
        for name in SKIPS[stride]:
            self.skip_scores[name] = Conv2d(channels[name], num_classes, 1)
            self.upsample.append(deconvolution(num_classes, 2, learnt=learnt))
        self.upsample.append(deconvolution(num_classes, stride, learnt=learnt))
        for layer in (self.score, *self.skip_scores.values()):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if aux:
            self.aux_classifier = FCNHead(channels["pool4"], num_classes)

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """Returns logits "out" at the image's size, "aux" at the fourth pooling's."""
        # The first convolution adds one pixel of padding.
        features = self.backbone(F.pad(x, (PADDING - 1,) * 4))
        *skip_upsamples, to_image = self.upsample
        y = self.score(self.fc(features["pool5"]))
        for (name, score), upsample in zip(self.skip_scores.items(), skip_upsamples, strict=True):
            y = upsample(y)
            y = y + crop(score(features[name]), SKIP_OFFSET[name], y.shape[-2:])
        scores = {"out": crop(to_image(y), IMAGE_OFFSET[self.stride], x.shape[-2:])}
        if self.aux_classifier is not None:
            aux = self.aux_classifier(features["aux"])
            scores["aux"] = self._without_padding(aux, x.shape[-2:])
        return scores

    def _without_padding(self, scores: Tensor, size: torch.Size) -> Tensor:
        """Crops scores of the padded image, stride 16, to those of the image."""
        margin = (PADDING - 1) // 16
        return scores[..., margin : margin - (-size[0] // 16), margin : margin - (-size[1] // 16)]


def bilinear_kernel(channels: int, stride: int) -> Tensor:
    """Returns the kernel (channels, channels, 2 stride, 2 stride) of bilinear interpolation."""
    side = 2 * stride
    weights = 1 - (torch.arange(side) - (side - 1) / 2).abs() / stride
    return torch.einsum("ij,h,w->ijhw", torch.eye(channels), weights, weights)


def deconvolution(channels: int, stride: int, *, learnt: bool) -> nn.ConvTranspose2d:
    """Returns a deconvolution that upsamples by the stride, bilinear before any training."""
    conv = nn.ConvTranspose2d(channels, channels, 2 * stride, stride, bias=False)
    conv.weight = nn.Parameter(bilinear_kernel(channels, stride), requires_grad=learnt)
    return conv


def crop(x: Tensor, offset: int, size: torch.Size) -> Tensor:
    """Returns the part of x (N, C, h, w) of one size that begins at the offset on both axes."""
    return x[..., offset : offset + size[0], offset : offset + size[1]]


def _fcn_vgg16(num_classes, stride, crf, backend, options) -> FCN:
    return finish(FCN(num_classes, stride, **options), crf=crf, backend=backend)


def fcn32s(
    num_classes: int = 21,
    *,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    **options: Any,
) -> FCN:
    """Builds FCN-32s on VGG16: scores at stride 32, one deconvolution. Long et al., CVPR 2015.

    It has 134.3 M parameters for 21 classes (the paper's Table 1), with 21 x 21 deconvolutions of
    64x64.

    Args:
        num_classes: number of output channels.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.
        **options: arguments of :class:`FCN`: learnt, aux, fc_channels, in_channels, width.
    """
    return _fcn_vgg16(num_classes, 32, crf, backend, options)


def fcn16s(
    num_classes: int = 21,
    *,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    **options: Any,
) -> FCN:
    """Builds FCN-16s: :func:`fcn32s`, whose arguments it has, with the fourth pooling's scores."""
    return _fcn_vgg16(num_classes, 16, crf, backend, options)


def fcn8s(
    num_classes: int = 21,
    *,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    **options: Any,
) -> FCN:
    """Builds FCN-8s: :func:`fcn16s`, whose arguments it has, with the third pooling's scores."""
    return _fcn_vgg16(num_classes, 8, crf, backend, options)


def fcn(
    num_classes: int = 21,
    *,
    backbone: str = "resnet50",
    aux: bool = False,
    output_stride: int = 8,
    dilation_style: str = "torchvision",
    align_corners: bool = False,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    in_channels: int = 3,
    backbone_options: Mapping[str, Any] | None = None,
) -> BackboneModel:
    """Builds torchvision's FCN on a dilated ResNet, with the keys of its fcn_resnet50 and 101.

    Args:
        num_classes: number of output channels.
        backbone: "resnet50", "resnet101", "mobilenet_v2" or "xception65".
        aux: whether to add an auxiliary head; the output is then a dict.
        output_stride: stride of the last features: 8, 16 or 32.
        dilation_style: "torchvision" or "paper", the block at which dilation begins; see
            :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        align_corners: how the scores are resized to the image, with corners aligned or not.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.
        in_channels: number of the image's channels.
        backbone_options: further keyword arguments of the backbone, by their names.
    """
    features = build_backbone(
        backbone,
        backbone_options,
        output_stride=output_stride,
        dilation_style=dilation_style,
        in_channels=in_channels,
    )
    head = FCNHead(features.channels["out"], num_classes)
    model = BackboneModel(
        features, head, num_classes, aux=aux, in_channels=in_channels, align_corners=align_corners
    )
    return finish(model, crf=crf, backend=backend)
