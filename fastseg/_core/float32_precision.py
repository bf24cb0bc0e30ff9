"""torch's settings for the precision of float32, which may trade its last digits for speed.

torch has two interfaces: torch.set_float32_matmul_precision with the flags allow_tf32, and
fp32_precision of torch.backends and its parts. The getters of the first raise once both have been
used; those of the second know what either has set.
"""

from __future__ import annotations

import torch

REDUCED = ("tf32", "bf16")
"""Settings that are less precise than float32."""

# torch.backends' own properties take ten times as long, and every call asks.
_precision = torch._C._get_fp32_precision_getter


def reduced_on_cpu() -> bool:
    """Whether convolutions on the CPU may be less precise.

    The setting for oneDNN's convolutions counts; without one that for its products, which
    ``torch.set_float32_matmul_precision`` sets.
    """
    convolution = _precision("mkldnn", "conv")
    if convolution == "none":
        return _precision("mkldnn", "matmul") in REDUCED
    return convolution in REDUCED


def tf32_in_convolutions() -> bool:
    """Whether convolutions on NVIDIA GPUs may use TF32, which is torch's default."""
    return _precision("cuda", "conv") == "tf32"


def tf32_in_products() -> bool:
    """Whether matrix products on NVIDIA GPUs may use TF32."""
    return _precision("cuda", "matmul") == "tf32"
