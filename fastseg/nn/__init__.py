"""The ops as modules, with torch.nn's signatures and state_dict keys where it has the module."""

from fastseg.nn.aspp import ASPP, ASPPSum
from fastseg.nn.aspp_keys import convert_aspp_keys
from fastseg.nn.atrous_conv_bn_act import AtrousConvBNAct, SeparableAtrousConvBNAct
from fastseg.nn.batch_norm_relu_max_pool2d import BatchNormReLUMaxPool2d
from fastseg.nn.dense_crf import DenseCRF
from fastseg.nn.max_pool2d import MaxPool2d
from fastseg.nn.max_unpool2d import MaxUnpool2d
from fastseg.nn.upsample_losses import (
    UpsampleCrossEntropyLoss,
    UpsampleDiceLoss,
    UpsampleFocalLoss,
)

__all__ = [
    "ASPP",
    "ASPPSum",
    "AtrousConvBNAct",
    "BatchNormReLUMaxPool2d",
    "DenseCRF",
    "MaxPool2d",
    "MaxUnpool2d",
    "SeparableAtrousConvBNAct",
    "UpsampleCrossEntropyLoss",
    "UpsampleDiceLoss",
    "UpsampleFocalLoss",
    "convert_aspp_keys",
]
