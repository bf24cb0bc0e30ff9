"""The network DeepLab v3.

Chen, Papandreou, Schroff, Adam, "Rethinking Atrous Convolution for Semantic Image Segmentation",
2017 (arXiv 1706.05587). A backbone at output stride 8 or 16 with a multi-grid of rates in its last
stage, and ASPP with image pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fastseg.models._layers import ASPP, BatchNorm2d, Conv2d, conv_bn_act
from fastseg.models._model import BackboneModel, finish
from fastseg.models.backbones import build_backbone
from fastseg.nn import DenseCRF

ATROUS_RATES = {8: (12, 24, 36), 16: (6, 12, 18), 32: (3, 6, 9)}
"""Rates by the output stride; section 3.3 doubles them at stride 8."""


def default_rates(output_stride: int) -> tuple[int, ...]:
    """Returns the rates at an output stride.

    Raises:
        ValueError: a stride that a backbone may have, and that no rates are known for.
    """
    if output_stride not in ATROUS_RATES:
        raise ValueError(
            f"output_stride must be one of {tuple(ATROUS_RATES)} unless atrous_rates are given, "
            f"got {output_stride}"
        )
    return ATROUS_RATES[output_stride]


class DeepLabHead(nn.Sequential):
    """torchvision's head: ASPP, a 3x3 convolution and the classes, with keys 0, 1, 2 and 4.

    Without the 3x3 convolution, which TensorFlow's DeepLab does not have, 0 is the ASPP and 1 the
    classes.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        atrous_rates: Sequence[int],
        *,
        channels: int = 256,
        head_conv: bool = True,
        separable: bool = False,
        project_kernel_size: int = 1,
    ):
        super().__init__(
            ASPP(
                in_channels,
                atrous_rates,
                channels,
                separable=separable,
                project_kernel_size=project_kernel_size,
            )
        )
        if head_conv:
            self.append(Conv2d(channels, channels, 3, padding=1, bias=False))
            self.append(BatchNorm2d(channels))
            self.append(nn.Identity())  # the ReLU, which runs with the batch norm
        self.append(Conv2d(channels, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, num_classes, H, W) for x (N, in_channels, H, W)."""
        aspp, *between, classify = self
        x = aspp(x)
        if between:
            conv, bn, _ = between
            x = conv_bn_act(x, conv, bn, "relu")
        return classify(x)


def deeplabv3(
    num_classes: int = 21,
    *,
    backbone: str = "resnet50",
    output_stride: int = 8,
    atrous_rates: Sequence[int] | None = None,
    multi_grid: Sequence[int] | None = None,
    aux: bool = False,
    dilation_style: str = "torchvision",
    align_corners: bool = False,
    head_conv: bool | None = None,
    separable: bool = False,
    aspp_channels: int = 256,
    project_kernel_size: int = 1,
    crf: str | DenseCRF | None = None,
    backend: str = "fastseg",
    in_channels: int = 3,
    backbone_options: Mapping[str, Any] | None = None,
) -> BackboneModel:
    """Builds DeepLab v3. Chen et al. 2017, arXiv 1706.05587.

    The default is torchvision's deeplabv3_resnet50, with its keys and outputs (39,638,869
    parameters). The paper's is
    ``deeplabv3(backbone="resnet101", output_stride=16, multi_grid=(1, 2, 4))``; TensorFlow's for
    phones ``deeplabv3(backbone="mobilenet_v2", output_stride=16, atrous_rates=(),
    align_corners=True)`` (2.11 M parameters).

    Args:
        num_classes: number of output channels.
        backbone: "resnet50", "resnet101", "mobilenet_v2" or "xception65".
        output_stride: stride of the last features: 8, 16 or 32.
        atrous_rates: rates of the ASPP; default (12, 24, 36) at output stride 8, (6, 12, 18) at 16.
        multi_grid: three factors of the rates in the backbone's last stage; default 1.
        aux: whether to add an auxiliary head on the stage before the last; the output is then a
            dict.
        dilation_style: "torchvision" or "paper", the block at which dilation begins; see
            :func:`~fastseg.models.backbones.dilation.dilated_stages`.
        align_corners: how the scores are resized to the image: False in torchvision, True in
            TensorFlow and segmentation_models_pytorch.
        head_conv: whether a 3x3 convolution follows the ASPP, which is so in torchvision; default:
            if there are atrous rates.
        separable: whether the ASPP's 3x3 convolutions are separable.
        aspp_channels: number of channels of each branch of the ASPP and of the layers after it.
        project_kernel_size: kernel size of the ASPP's projection: 3 in mmsegmentation, without
            head_conv.
        crf: None, "post", "layer" or a DenseCRF; see :func:`fastseg.models.finish`.
        backend: "fastseg" or "torch", whose ops run the layers.
        in_channels: number of the image's channels.
        backbone_options: further keyword arguments of the backbone, by their names.

    Raises:
        ValueError: an unknown name, or an argument out of range.
        TypeError: multi_grid with MobileNetV2, whose last stage has one block.
    """
    features = build_backbone(
        backbone,
        backbone_options,
        output_stride=output_stride,
        dilation_style=dilation_style,
        multi_grid=multi_grid,
        in_channels=in_channels,
    )
    if atrous_rates is None:
        atrous_rates = default_rates(output_stride)
    head = DeepLabHead(
        features.channels["out"],
        num_classes,
        atrous_rates,
        channels=aspp_channels,
        head_conv=len(atrous_rates) > 0 if head_conv is None else head_conv,
        separable=separable,
        project_kernel_size=project_kernel_size,
    )
    model = BackboneModel(
        features, head, num_classes, aux=aux, in_channels=in_channels, align_corners=align_corners
    )
    return finish(model, crf=crf, backend=backend)
