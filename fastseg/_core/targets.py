"""Checks of what losses know of the pixels, on which the ops, their fakes and references agree."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastseg._core.formulas import compute_dtype, is_counted
from fastseg._core.logits import check_logits
from fastseg._core.tensor_checks import (
    check_dense,
    check_device,
    check_float,
    check_optional_tensors,
    check_tensors,
)

TARGETS = (torch.int64, torch.int32, torch.uint8)
"""Dtypes of targets."""

REDUCTIONS = ("none", "mean", "sum")
"""Ways to reduce a loss."""


def check_loss(
    op: str, logits: Tensor, target: Tensor, reduction: str, **factors: Tensor | None
) -> None:
    """Raises unless a loss's public function can take its arguments.

    Args:
        op: the function, with which errors begin.
        logits: (N, C, h, w).
        target: (N, H, W).
        reduction: one of REDUCTIONS.
        factors: optional floating-point tensors by their names.
    """
    if reduction not in REDUCTIONS:
        raise RuntimeError(f'{op}: reduction must be "none", "mean" or "sum", got "{reduction}"')
    if is_dynamo_compiling():
        return  # which cannot trace such checks; the ops' fakes have them
    check_tensors(op, logits=logits, target=target)
    check_optional_tensors(op, **factors)
    check_target(op, logits, target)
    for name, t in factors.items():
        if t is not None:
            check_float(op, name, t)
            check_device(op, name, t, "logits", logits)


def check_class_factor(op: str, name: str, factor: Tensor, count: int) -> None:
    """Raises unless there is a number for each of so many classes that count."""
    if factor.dim() != 1 or factor.shape[0] != count:
        raise RuntimeError(
            f"{op}: {name} must have the shape ({count},) of the classes, got {tuple(factor.shape)}"
        )


def check_target(op: str, logits: Tensor, target: Tensor) -> None:
    """Raises unless logits are (N, C, h, w) and target is (N, H, W) with at least one pixel."""
    check_logits(op, logits)
    check_dense(op, "target", target)
    torch._check(
        target.dtype in TARGETS,
        lambda: f"{op}: target must be int64, int32 or uint8, got {target.dtype}",
    )
    torch._check(
        target.dim() == 3 and all(n > 0 for n in target.shape[1:]),
        lambda: (
            f"{op}: target must have the shape (N, H, W) with at least one pixel, got "
            f"{tuple(target.shape)}"
        ),
    )
    torch._check(
        target.shape[0] == logits.shape[0],
        lambda: (
            f"{op}: target must have the shape (N, H, W) with N = {logits.shape[0]} of logits, got "
            f"{tuple(target.shape)}"
        ),
    )
    check_device(op, "target", target, "logits", logits)


def check_loss_dtype(op: str, name: str, t: Tensor, logits: Tensor) -> None:
    """Raises unless t is dense, on the device of logits and of the dtype that they compute in."""
    check_dense(op, name, t)
    dtype = compute_dtype(logits.dtype)
    torch._check(
        t.dtype == dtype,
        lambda: f"{op}: {name} must be {dtype} for logits of {logits.dtype}, got {t.dtype}",
    )
    check_device(op, name, t, "logits", logits)


def check_class_weight(op: str, weight: Tensor | None, logits: Tensor) -> None:
    """Raises unless weight is None or has a number for each class."""
    if weight is None:
        return
    torch._check(
        weight.dim() == 1 and weight.shape[0] == logits.shape[1],
        lambda: (
            f"{op}: weight must have the shape (C,) = ({logits.shape[1]},), got "
            f"{tuple(weight.shape)}"
        ),
    )
    check_loss_dtype(op, "weight", weight, logits)


def check_pixels(op: str, name: str, t: Tensor | None, target: Tensor, logits: Tensor) -> None:
    """Raises unless t is None or has a number for each pixel of the target."""
    if t is None:
        return
    torch._check(
        t.shape == target.shape,
        lambda: (
            f"{op}: {name} must have the target's shape {tuple(target.shape)}, got {tuple(t.shape)}"
        ),
    )
    check_loss_dtype(op, name, t, logits)


def check_target_values(op: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """Raises where a target is no class; on a GPU the op that reads it does, on the device."""
    if target.device.type != "cpu":
        return
    bad = target[is_counted(target, ignore_index) & ((target < 0) | (target >= classes))]
    if bad.numel():
        raise RuntimeError(
            f"{op}: target must lie in [0, {classes - 1}] or be ignore_index = {ignore_index}, got "
            f"{int(bad[0])}"
        )
