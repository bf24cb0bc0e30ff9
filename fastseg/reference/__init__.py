"""Every op in plain PyTorch, to read, for any device, dtype and layout.

The tests compare the compiled ops with these references, which run where no compiled op does.
"""

from fastseg._core.formulas import ACTIVATION, compute_dtype, conv2d_epilogue
from fastseg._core.permutohedral import PermutohedralTensors
from fastseg._core.winograd import PANEL, winograd_axis
from fastseg.reference.conv.aspp import aspp
from fastseg.reference.conv.atrous_conv2d import (
    atrous_conv2d,
    atrous_conv2d_input_grad,
    atrous_conv2d_weight_grad,
)
from fastseg.reference.conv.depthwise_conv2d import (
    depthwise_conv2d,
    depthwise_conv2d_input_grad,
    depthwise_conv2d_weight_grad,
)
from fastseg.reference.conv.winograd_conv2d import winograd_conv2d, winograd_conv2d_weight
from fastseg.reference.crf.bilateral_filter import bilateral_filter
from fastseg.reference.crf.dense_energy import dense_energy
from fastseg.reference.crf.exact_gaussian_filter import (
    exact_gaussian_blocks,
    exact_gaussian_filter,
    exact_gaussian_filter_backward,
)
from fastseg.reference.crf.lattice_mean_field import lattice_mean_field
from fastseg.reference.crf.mean_field import kl_divergence, mean_field
from fastseg.reference.crf.permutohedral_filter import (
    permutohedral_filter,
    permutohedral_filter_backward,
)
from fastseg.reference.crf.permutohedral_lattice import permutohedral_lattice
from fastseg.reference.crf.spatial_gaussian_filter import spatial_gaussian_filter
from fastseg.reference.head.confusion_matrix import confusion_matrix
from fastseg.reference.head.distance_transform import distance_transform
from fastseg.reference.head.upsample_argmax import (
    upsample,
    upsample_argmax,
    upsample_argmax_confidence,
)
from fastseg.reference.head.upsample_confusion_matrix import upsample_confusion_matrix
from fastseg.reference.head.upsample_cross_entropy import (
    upsample_cross_entropy,
    upsample_cross_entropy_backward,
)
from fastseg.reference.head.upsample_softmax_sums import (
    upsample_softmax_sums,
    upsample_softmax_sums_backward,
)
from fastseg.reference.pool.batch_norm_relu_max_pool2d import batch_norm_relu_max_pool2d
from fastseg.reference.pool.max_pool2d import max_pool2d, max_pool2d_backward
from fastseg.reference.pool.max_unpool2d import max_unpool2d, max_unpool2d_backward
from fastseg.reference.pool.pool_codes import (
    codes_to_indices,
    indices_to_codes,
    pack_codes,
    unpack_codes,
)
from fastseg.reference.refine.pixel_adaptive_refinement import (
    pixel_adaptive_refinement,
    pixel_adaptive_refinement_backward,
)

__all__ = [
    "ACTIVATION",
    "PANEL",
    "PermutohedralTensors",
    "aspp",
    "atrous_conv2d",
    "atrous_conv2d_input_grad",
    "atrous_conv2d_weight_grad",
    "batch_norm_relu_max_pool2d",
    "bilateral_filter",
    "codes_to_indices",
    "compute_dtype",
    "confusion_matrix",
    "conv2d_epilogue",
    "dense_energy",
    "depthwise_conv2d",
    "depthwise_conv2d_input_grad",
    "depthwise_conv2d_weight_grad",
    "distance_transform",
    "exact_gaussian_blocks",
    "exact_gaussian_filter",
    "exact_gaussian_filter_backward",
    "indices_to_codes",
    "kl_divergence",
    "lattice_mean_field",
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "mean_field",
    "pack_codes",
    "permutohedral_filter",
    "permutohedral_filter_backward",
    "permutohedral_lattice",
    "pixel_adaptive_refinement",
    "pixel_adaptive_refinement_backward",
    "spatial_gaussian_filter",
    "unpack_codes",
    "upsample",
    "upsample_argmax",
    "upsample_argmax_confidence",
    "upsample_confusion_matrix",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
    "upsample_softmax_sums",
    "upsample_softmax_sums_backward",
    "winograd_axis",
    "winograd_conv2d",
    "winograd_conv2d_weight",
]
