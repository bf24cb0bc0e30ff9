"""The ops: schema, fake, gradient and vmap rule of each, and its public function."""

from fastseg._when_imported import when_imported
from fastseg.ops import atrous_conv2d_grad as _atrous_conv2d_grad  # noqa: F401
from fastseg.ops import dense_conv2d_weight_grad as _dense_conv2d_weight_grad  # noqa: F401
from fastseg.ops import depthwise_conv2d as _depthwise_conv2d  # noqa: F401
from fastseg.ops import im2col_conv2d as _im2col_conv2d  # noqa: F401
from fastseg.ops import image_layout as _image_layout  # noqa: F401
from fastseg.ops import lattice_mean_field as _lattice_mean_field  # noqa: F401
from fastseg.ops import winograd_conv2d as _winograd_conv2d  # noqa: F401
from fastseg.ops.aspp import ASPPBranch, aspp
from fastseg.ops.atrous_conv2d import atrous_conv2d
from fastseg.ops.batch_norm_relu_max_pool2d import batch_norm_relu_max_pool2d, fold_batch_norm
from fastseg.ops.dense_crf import MeanField, dense_crf
from fastseg.ops.exact_gaussian_filter import exact_gaussian_filter
from fastseg.ops.max_pool2d import max_pool2d
from fastseg.ops.max_unpool2d import max_unpool2d
from fastseg.ops.permutohedral_lattice import PermutohedralLattice
from fastseg.ops.pool_codes import codes_to_indices, indices_to_codes
from fastseg.ops.separable_atrous_conv2d import separable_atrous_conv2d
from fastseg.ops.spatial_gaussian_filter import spatial_gaussian_filter

__all__ = [
    "ASPPBranch",
    "MeanField",
    "PermutohedralLattice",
    "aspp",
    "atrous_conv2d",
    "batch_norm_relu_max_pool2d",
    "codes_to_indices",
    "dense_crf",
    "exact_gaussian_filter",
    "fold_batch_norm",
    "indices_to_codes",
    "max_pool2d",
    "max_unpool2d",
    "separable_atrous_conv2d",
    "spatial_gaussian_filter",
]


def _register_flops() -> None:
    from fastseg.ops import _flops  # noqa: F401  only then: it imports torch's counter, and Triton


when_imported("torch.utils.flop_counter", _register_flops)
