"""The ops as modules, with torch.nn's signatures and state_dict keys where it has the module."""

from fastseg.nn.aspp import ASPP, ASPPSum
from fastseg.nn.aspp_keys import convert_aspp_keys
from fastseg.nn.atrous_conv_bn_act import AtrousConvBNAct, SeparableAtrousConvBNAct
from fastseg.nn.batch_norm_relu_max_pool2d import BatchNormReLUMaxPool2d
from fastseg.nn.boundary_loss import BoundaryLoss
from fastseg.nn.dense_crf import DenseCRF
from fastseg.nn.dense_energy_loss import DenseEnergyLoss
from fastseg.nn.hausdorff_dt_loss import HausdorffDTLoss
from fastseg.nn.max_pool2d import MaxPool2d
from fastseg.nn.max_unpool2d import MaxUnpool2d
from fastseg.nn.pixel_adaptive_refinement import PixelAdaptiveRefinement
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
    "BoundaryLoss",
    "DenseCRF",
    "DenseEnergyLoss",
    "HausdorffDTLoss",
    "MaxPool2d",
    "MaxUnpool2d",
    "PixelAdaptiveRefinement",
    "SeparableAtrousConvBNAct",
    "UpsampleCrossEntropyLoss",
    "UpsampleDiceLoss",
    "UpsampleFocalLoss",
    "convert_aspp_keys",
]
