"""Whether torch's settings give float32's last digits up for speed.

They are set in two ways: by torch.set_float32_matmul_precision and the flags allow_tf32, and by
fp32_precision of torch.backends and its parts. The getters of the first raise once both were used;
those of the second know what either has set.
"""

from __future__ import annotations

import torch

REDUCED = ("tf32", "bf16")

# torch.backends' own properties take ten times as long, and this is asked in every call.
_precision = torch._C._get_fp32_precision_getter


def reduced_on_cpu() -> bool:
    """For convolutions on the CPU: what is set for oneDNN's convolutions, else for its products.

    ``torch.set_float32_matmul_precision`` sets the second.
    """
    convolution = _precision("mkldnn", "conv")
    if convolution == "none":
        return _precision("mkldnn", "matmul") in REDUCED
    return convolution in REDUCED


def tf32_in_convolutions() -> bool:
    """For convolutions on NVIDIA GPUs; torch's default."""
    return _precision("cuda", "conv") == "tf32"


def tf32_in_products() -> bool:
    """For matrix products on NVIDIA GPUs."""
    return _precision("cuda", "matmul") == "tf32"
