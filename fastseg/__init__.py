"""Hand-written kernels for semantic segmentation, as torch ops for CPU and NVIDIA GPUs."""

# This import is the first: it handles Ctrl-C while a command of fastseg imports the rest.
from fastseg._core import startup as _startup  # noqa: F401
from fastseg import nn
from fastseg._core.extension import warn as _warn
from fastseg._core.pairwise import PairwiseBilateral, PairwiseFeatures, PairwiseGaussian
from fastseg._core.version import __version__
from fastseg.compat import old_paths as _old_paths
from fastseg.ops import (
    ASPPBranch,
    MeanField,
    PermutohedralLattice,
    aspp,
    atrous_conv2d,
    batch_norm_relu_max_pool2d,
    codes_to_indices,
    confusion_matrix,
    dense_crf,
    distance_transform,
    fold_batch_norm,
    indices_to_codes,
    max_pool2d,
    max_unpool2d,
    pixel_adaptive_refinement,
    separable_atrous_conv2d,
    unary_from_labels,
    unary_from_logits,
    unary_from_softmax,
    upsample_argmax,
    upsample_confusion_matrix,
    upsample_cross_entropy,
    upsample_dice_loss,
    upsample_focal_loss,
    upsample_ohem_cross_entropy,
)
from fastseg.ops.memory import empty_cache
from fastseg.optimize import optimize_, restore_
from fastseg.zoo import from_checkpoint, load_backbone, load_checkpoint

_warn()
_old_paths.keep()

__all__ = [
    "ASPPBranch",
    "MeanField",
    "PairwiseBilateral",
    "PairwiseFeatures",
    "PairwiseGaussian",
    "PermutohedralLattice",
    "__version__",
    "aspp",
    "atrous_conv2d",
    "batch_norm_relu_max_pool2d",
    "codes_to_indices",
    "confusion_matrix",
    "dense_crf",
    "distance_transform",
    "empty_cache",
    "fold_batch_norm",
    "from_checkpoint",
    "indices_to_codes",
    "load_backbone",
    "load_checkpoint",
    "max_pool2d",
    "max_unpool2d",
    "nn",
    "optimize_",
    "pixel_adaptive_refinement",
    "restore_",
    "separable_atrous_conv2d",
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
