"""Checks of logits that an op upsamples, on which the ops, their fakes and references agree."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.tensor_checks import check_float

IDS = {torch.uint8: 255, torch.int16: 2**15 - 1, torch.int32: 2**31 - 1, torch.int64: 2**63 - 1}
"""Dtypes of class maps, and the largest id that each holds."""


def check_logits(op: str, logits: Tensor) -> None:
    """Raises unless logits are (N, C, h, w) with at least one class and pixel."""
    check_float(op, "logits", logits)
    torch._check(
        logits.dim() == 4 and all(n > 0 for n in logits.shape[1:]),
        lambda: (
            f"{op}: logits must have the shape (N, C, h, w) with at least one class and pixel, got "
            f"{tuple(logits.shape)}"
        ),
    )


def check_size(op: str, size: Sequence[int]) -> None:
    """Raises unless size is (H, W) with at least one pixel."""
    torch._check(
        len(size) == 2 and all(n > 0 for n in size),
        lambda: f"{op}: size must be (H, W) with at least one pixel, got {tuple(size)}",
    )


def check_ids(op: str, dtype: torch.dtype, classes: int) -> None:
    """Raises unless the dtype is one of IDS and holds the ids of so many classes."""
    torch._check(
        dtype in IDS, lambda: f"{op}: dtype must be uint8, int16, int32 or int64, got {dtype}"
    )
    torch._check(
        classes - 1 <= IDS[dtype],
        lambda: f"{op}: dtype {dtype} holds ids up to {IDS[dtype]}, logits have {classes} classes",
    )
