"""The network DeepLab v1.

Chen, Papandreou, Kokkinos, Murphy, Yuille, "Semantic Image Segmentation with Deep Convolutional
Nets and Fully Connected CRFs", ICLR 2015 (arXiv 1412.7062). VGG16 whose last two poolings do not
stride: the convolutions after them have holes, and the fully connected layers see their field of
view through a rate of their own (Table 2).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from fastseg.models._layers import Conv2d
from fastseg.models._model import BackboneModel, finish
from fastseg.models.backbones import VGG16
from fastseg.models.backbones.vgg import FullyConvolutional
from fastseg.nn import DenseCRF


class FieldOfView(NamedTuple):
    """The first fully connected layer as a convolution.

    Attributes:
        kernel_size: kernel size of the layer.
        dilation: rate of the layer, the paper's "input stride".
        channels: number of channels of both fully connected layers.
    """

    kernel_size: int
    dilation: int
    channels: int


VARIANTS = {
    "7x7": FieldOfView(7, 4, 4096),
    "4x4_small": FieldOfView(4, 4, 4096),
    "4x4": FieldOfView(4, 8, 4096),
    "largefov": FieldOfView(3, 12, 1024),
}


class VGGHead(nn.Sequential):
    """The layers fc6 and fc7 and the classes' scores, on VGG16's last pooling."""

    def __init__(self, in_channels: int, num_classes: int, fov: FieldOfView):
        score = Conv2d(fov.channels, num_classes, 1)
        nn.init.normal_(score.weight, std=0.01)
        nn.init.zeros_(score.bias)
        fc = FullyConvolutional(in_channels, fov.channels, fov.kernel_size, fov.dilation)
        super().__init__(fc, score)


def deeplabv1(
    num_classes: int = 21,
    *,
    variant: str = "largefov",
    aux: bool = False,
    align_corners: bool = False,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    fc_channels: int | None = None,
    in_channels: int = 3,
    width: int = 64,
) -> BackboneModel:
    """Builds DeepLab v1 on VGG16, output stride 8. Chen et al., ICLR 2015, Table 2.

    ``build_model("deeplabv1", 21, crf="post")`` is the paper's DeepLab-CRF-LargeFOV.

    Args:
        num_classes: number of output channels.
        variant: the field of view: "largefov" (3x3, rate 12; 20.5 M parameters with 21 classes),
            "4x4" (rate 8, 65.1 M), "4x4_small" (rate 4, the paper's first, 65.1 M) or "7x7" (rate
            4, 134.3 M).
        aux: whether to add an auxiliary head on the fourth pooling; the output is then a dict.
        align_corners: how the scores are resized to the image; True in Caffe.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.
        fc_channels: number of channels of fc6 and fc7; default the variant's.
        in_channels: number of the image's channels.
        width: number of channels of VGG16's first block.

    Raises:
        ValueError: an unknown variant, crf or backend.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {tuple(VARIANTS)}, got {variant!r}")
    fov = VARIANTS[variant]
    if fc_channels is not None:
        fov = fov._replace(channels=fc_channels)
    backbone = VGG16(output_stride=8, in_channels=in_channels, width=width)
    model = BackboneModel(
        backbone,
        VGGHead(backbone.channels["out"], num_classes, fov),
        num_classes,
        aux=aux,
        in_channels=in_channels,
        align_corners=align_corners,
    )
    return finish(model, crf=crf, backend=backend)
