"""Hand-written kernels for semantic segmentation, as torch ops for CPU and NVIDIA GPUs."""

from . import layers
from ._core.extension import CPU_MISSING, CUDA_MISSING
from ._core.pairwise import PairwiseBilateral, PairwiseFeatures, PairwiseGaussian
from .ops import (
    ASPPBranch,
    MeanField,
    PermutohedralLattice,
    aspp,
    atrous_conv2d,
    batch_norm_relu_max_pool2d,
    codes_to_indices,
    confusion_matrix,
    dense_crf,
    fold_batch_norm,
    indices_to_codes,
    max_pool2d,
    max_unpool2d,
    separable_atrous_conv2d,
)

__all__ = [
    "CPU_MISSING",
    "CUDA_MISSING",
    "ASPPBranch",
    "MeanField",
    "PairwiseBilateral",
    "PairwiseFeatures",
    "PairwiseGaussian",
    "PermutohedralLattice",
    "aspp",
    "atrous_conv2d",
    "batch_norm_relu_max_pool2d",
    "codes_to_indices",
    "confusion_matrix",
    "dense_crf",
    "fold_batch_norm",
    "indices_to_codes",
    "layers",
    "max_pool2d",
    "max_unpool2d",
    "separable_atrous_conv2d",
]
