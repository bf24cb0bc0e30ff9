"""Every op in plain PyTorch: what it computes, readable, for any device, dtype and layout.

The compiled ops are tested against these, and these run where no compiled op does.
"""

from fastseg.reference.batch_norm_relu_max_pool2d import batch_norm_relu_max_pool2d
from fastseg.reference.max_pool2d import max_pool2d, max_pool2d_backward
from fastseg.reference.max_unpool2d import max_unpool2d, max_unpool2d_backward
from fastseg.reference.pool_codes import (
    codes_to_indices,
    indices_to_codes,
    pack_codes,
    unpack_codes,
)

__all__ = [
    "batch_norm_relu_max_pool2d",
    "codes_to_indices",
    "indices_to_codes",
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "pack_codes",
    "unpack_codes",
]
