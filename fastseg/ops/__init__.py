"""The ops: schema, fake, gradient and vmap rule of each, and its public function."""

from fastseg.ops.batch_norm_relu_max_pool2d import batch_norm_relu_max_pool2d, fold_batch_norm
from fastseg.ops.max_pool2d import max_pool2d
from fastseg.ops.max_unpool2d import max_unpool2d
from fastseg.ops.pool_codes import codes_to_indices, indices_to_codes

__all__ = [
    "batch_norm_relu_max_pool2d",
    "codes_to_indices",
    "fold_batch_norm",
    "indices_to_codes",
    "max_pool2d",
    "max_unpool2d",
]
