"""fastseg: hand-written kernels for semantic segmentation, as torch ops for CPU and NVIDIA GPUs."""

# First of all: it handles Ctrl-C while a command of fastseg imports the rest.
from fastseg import _startup  # noqa: F401  isort: skip

from importlib.metadata import PackageNotFoundError, version

from fastseg.ops import (
    ASPPBranch,
    MeanField,
    PermutohedralLattice,
    aspp,
    atrous_conv2d,
    batch_norm_relu_max_pool2d,
    codes_to_indices,
    dense_crf,
    fold_batch_norm,
    indices_to_codes,
    max_pool2d,
    max_unpool2d,
    separable_atrous_conv2d,
)
from fastseg.pairwise import PairwiseBilateral, PairwiseFeatures, PairwiseGaussian

# Loads the compiled libraries, whose kernels belong to the ops defined above.
from fastseg import _extension  # noqa: F401  isort: skip
from fastseg import nn  # isort: skip
from fastseg._memory import empty_cache  # isort: skip
from fastseg.optimize import optimize_, restore_  # isort: skip
from fastseg.zoo import from_checkpoint, load_backbone, load_checkpoint  # isort: skip

try:
    __version__ = version("fastseg-kernels") or "0+unknown"  # None of damaged metadata
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"

__all__ = [
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
    "dense_crf",
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
    "restore_",
    "separable_atrous_conv2d",
]
