"""Formulas of ops, references and modules: activations, epilogues and the precision of sums."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATION = {
    "": lambda y: y,
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
"""Activations by their names."""

ACTIVATION_IN_PLACE = {
    "relu": torch.relu_,
    "relu6": partial(F.relu6, inplace=True),
    "leaky_relu": partial(F.leaky_relu, inplace=True),
    "silu": partial(F.silu, inplace=True),
    "hardswish": partial(F.hardswish, inplace=True),
}
"""The same activations in place, except that of the name "", which is none."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of computations: float64 for float64, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def conv2d_epilogue(
    y: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """Returns ``act((y + bias) * scale + shift + residual)`` in y's dtype; None leaves a part out.

    Args:
        y: a convolution's output (N, C, H, W).
        bias: (C,) or None.
        scale: (C,) or None, the scale of a folded batch norm.
        shift: (C,) or None, the shift of a folded batch norm.
        residual: a tensor of y's shape, or None.
        activation: "", "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
    """
    if bias is not None:
        y = y + bias.to(y.dtype).view(-1, 1, 1)
    if scale is not None:
        y = y * scale.to(y.dtype).view(-1, 1, 1)
    if shift is not None:
        y = y + shift.to(y.dtype).view(-1, 1, 1)
    if residual is not None:
        y = y + residual.to(y.dtype)
    return ACTIVATION[activation](y)


def is_counted(target: Tensor, ignore_index: int) -> Tensor:
    """Returns where a target of integers or of bool is not to be ignored, bool, of its shape.

    torch wraps the number that it compares with: as uint8, -100 would be the class 156.
    """
    limits = torch.iinfo(torch.uint8 if target.dtype == torch.bool else target.dtype)
    if not limits.min <= ignore_index <= limits.max:
        return torch.ones_like(target, dtype=torch.bool)
    return target != ignore_index
