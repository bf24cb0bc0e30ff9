"""The ops. Each has a schema, a fake, a gradient and a vmap rule, and a public function."""

from fastseg._core.library import NAMES as _NAMES
from fastseg._core.onnx_export import refuse_in_torchscript as _refuse_in_torchscript
from fastseg._core.when_imported import when_imported as _when_imported
from fastseg.ops.conv.aspp import ASPPBranch, aspp
from fastseg.ops.conv.atrous_conv2d import atrous_conv2d
from fastseg.ops.conv.live_taps import count_live_taps
from fastseg.ops.conv.separable_atrous_conv2d import separable_atrous_conv2d
from fastseg.ops.crf.bilateral_filter import bilateral_filter
from fastseg.ops.crf.dense_crf import MeanField, dense_crf
from fastseg.ops.crf.dense_energy import dense_energy
from fastseg.ops.crf.exact_gaussian_filter import exact_gaussian_filter
from fastseg.ops.crf.permutohedral_lattice import PermutohedralLattice
from fastseg.ops.crf.spatial_gaussian_filter import spatial_gaussian_filter
from fastseg.ops.crf.unary import unary_from_labels, unary_from_logits, unary_from_softmax
from fastseg.ops.head.confusion_matrix import confusion_matrix
from fastseg.ops.head.distance_transform import distance_transform
from fastseg.ops.head.upsample_argmax import upsample_argmax
from fastseg.ops.head.upsample_confusion_matrix import upsample_confusion_matrix
from fastseg.ops.head.upsample_cross_entropy import upsample_cross_entropy
from fastseg.ops.head.upsample_dice_loss import upsample_dice_loss
from fastseg.ops.head.upsample_focal_loss import (
    upsample_focal_loss,
    upsample_ohem_cross_entropy,
)
from fastseg.ops.pool.batch_norm_relu_max_pool2d import batch_norm_relu_max_pool2d, fold_batch_norm
from fastseg.ops.pool.max_pool2d import max_pool2d
from fastseg.ops.pool.max_unpool2d import max_unpool2d
from fastseg.ops.pool.pool_codes import codes_to_indices, indices_to_codes
from fastseg.ops.refine.pixel_adaptive_refinement import pixel_adaptive_refinement

__all__ = [
    "ASPPBranch",
    "MeanField",
    "PermutohedralLattice",
    "aspp",
    "atrous_conv2d",
    "batch_norm_relu_max_pool2d",
    "bilateral_filter",
    "codes_to_indices",
    "confusion_matrix",
    "count_live_taps",
    "dense_crf",
    "dense_energy",
    "distance_transform",
    "exact_gaussian_filter",
    "fold_batch_norm",
    "indices_to_codes",
    "max_pool2d",
    "max_unpool2d",
    "pixel_adaptive_refinement",
    "separable_atrous_conv2d",
    "spatial_gaussian_filter",
    "unary_from_labels",
    "unary_from_logits",
    "unary_from_softmax",
    "upsample_argmax",
    "upsample_confusion_matrix",
    "upsample_cross_entropy",
    "upsample_dice_loss",
    "upsample_focal_loss",
    "upsample_ohem_cross_entropy",
]


def _register_flops() -> None:
    # This import waits: it imports torch's counter, which imports Triton.
    from fastseg.ops.conv import flops  # noqa: F401


_when_imported("torch.utils.flop_counter", _register_flops)
_refuse_in_torchscript(_NAMES)
