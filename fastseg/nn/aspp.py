"""Atrous spatial pyramid pooling as modules."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fastseg.nn.atrous_conv_bn_act import (
    AtrousConvBNAct,
    ConvBatchNorm,
    SeparableAtrousConvBNAct,
)
from fastseg.ops.conv.aspp import ASPPBranch, aspp
from fastseg.ops.conv.aspp_projection import image_pooling, project_maps, project_pooled


class _ImagePooling(ConvBatchNorm):
    """The pooled branch: average over each map, convolution, batch norm and ReLU, (N, C, 1, 1)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.AdaptiveAvgPool2d(1),  # it only counts, for torchvision's keys
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
            activation="relu",
        )

    def forward(self, x: Tensor) -> Tensor:
        folded = self.folded()
        if folded is None:
            return self.normalize(image_pooling(x, ASPPBranch(self[1].weight), None))
        return image_pooling(x, ASPPBranch(self[1].weight, *folded), self.activation)


class ASPP(nn.Module):
    """ASPP of DeepLab v3 and v3+: convolutions at several rates, image pooling, a projection.

    The state_dict is torchvision's: ``convs.0.{0,1}`` for the 1x1 convolution and its batch norm,
    ``convs.i.{0,1}`` for those at rate i, ``convs.4.{1,2}`` for those of the pooling, and
    ``project.{0,1}``. Separable branches have segmentation_models_pytorch's ``convs.i.0.{0,1}``.
    :func:`fastseg.nn.convert_aspp_keys` converts the keys of other projects. The results are
    torchvision's up to rounding. In evaluation the module is one call of :func:`fastseg.aspp`; in
    training, too, nothing is concatenated.

    Args:
        in_channels: number of input channels.
        atrous_rates: rates of the 3x3 convolutions, any number of them.
        out_channels: number of channels of each branch and of the projection.
        separable: whether the 3x3 convolutions are separable, which they are in v3+.
        depthwise_batch_norm: whether batch norm and ReLU follow the depthwise convolutions too,
            which they do in TensorFlow's v3+ and mmsegmentation; the keys are then
            ``convs.i.0.0.{0,1}``.
        dropout: probability of dropout after the projection, in training.
        image_pooling: whether there is a branch for the average over each map.
        project_kernel_size: kernel size of the projection; 3 in mmsegmentation.
    """

    def __init__(
        self,
        in_channels: int,
        atrous_rates: Sequence[int],
        out_channels: int = 256,
        *,
        separable: bool = False,
        depthwise_batch_norm: bool = False,
        dropout: float = 0.5,
        image_pooling: bool = True,
        project_kernel_size: int = 1,
    ):
        super().__init__()

        def branch(rate: int) -> ConvBatchNorm:
            if not separable:
                return AtrousConvBNAct(in_channels, out_channels, 3, dilation=rate)
            return SeparableAtrousConvBNAct(
                in_channels,
                out_channels,
                3,
                dilation=rate,
                depthwise_batch_norm=depthwise_batch_norm,
            )

        convs = [AtrousConvBNAct(in_channels, out_channels, 1), *map(branch, atrous_rates)]
        if image_pooling:
            convs.append(_ImagePooling(in_channels, out_channels))
        self.convs = nn.ModuleList(convs)
        self.project = AtrousConvBNAct(len(convs) * out_channels, out_channels, project_kernel_size)
        self.dropout = nn.Dropout(dropout)
        self.image_pooling = image_pooling

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, H, W) for x (N, Ci, H, W)."""
        modules = (*self.convs, self.project)
        folded = [_branch(m) for m in modules]
        if any(branch is None for branch in folded):
            return self.dropout(self._by_branch(x))
        *branches, project = folded
        pool = branches.pop() if self.image_pooling else None
        return self.dropout(aspp(x, branches, project, pool=pool))

    def _by_branch(self, x: Tensor) -> Tensor:
        """Computes the branches one by one, where a batch norm uses the batch's statistics."""
        weight, branches, residual = self.project[0].weight, [*self.convs], None
        if self.image_pooling:
            pooled = branches.pop()(x)
            n = weight.shape[1] - pooled.shape[1]
            residual = project_pooled(pooled, weight[:, n:], None, x.shape[-2:])
            weight = weight[:, :n]
        maps = (branch(x) for branch in branches)
        return self.project.normalize(project_maps(maps, weight, residual=residual))


def _branch(module: ConvBatchNorm) -> ASPPBranch | None:
    """Returns a module as a branch with folded batch norms; None if one uses the batch's."""
    conv, folded = module[-2], module.folded()
    if folded is None:
        return None
    if not isinstance(module, SeparableAtrousConvBNAct):
        return ASPPBranch(conv.weight, *folded, conv.dilation[0])
    depthwise, pointwise = conv
    if not isinstance(depthwise, AtrousConvBNAct):
        return ASPPBranch(pointwise.weight, *folded, depthwise.dilation[0], depthwise.weight)
    first = depthwise.folded()
    if first is None:
        return None
    conv = depthwise[0]
    return ASPPBranch(
        pointwise.weight, *folded, conv.dilation[0], conv.weight, *first, depthwise.activation
    )


class ASPPSum(nn.Module):
    """ASPP of DeepLab v2: the sum of 3x3 convolutions at several rates, each with a bias.

    The state_dict is that of kazuto1011's DeepLab v2: ``c0.weight``, ``c0.bias``, ``c1.weight``...
    Like the paper's last layers, weights begin normal with deviation 0.01 and biases 0.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels, the classes in a network's last layer.
        atrous_rates: rates of the convolutions, any number of them.
    """

    def __init__(self, in_channels: int, out_channels: int, atrous_rates: Sequence[int]):
        super().__init__()
        for i, rate in enumerate(atrous_rates):
            conv = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
            self.add_module(f"c{i}", conv)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, Co, H, W) for x (N, Ci, H, W)."""
        branches = [
            ASPPBranch(conv.weight, shift=conv.bias, dilation=conv.dilation[0])
            for conv in self.children()
        ]
        return aspp(x, branches, activation=None)
