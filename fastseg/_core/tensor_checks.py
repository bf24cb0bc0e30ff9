"""Checks of one tensor, with the error texts that all ops and public functions share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Dtypes that the ops compute in."""

STRIDED = torch.strided
"""Layout of dense tensors."""


def check_tensors(op: str, **arguments: Any) -> None:
    """Raises TypeError for a value that is no tensor, RuntimeError for one that is not dense.

    Args:
        op: the op's name, with which an error begins.
        arguments: the values by the names of the arguments.
    """
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
        check_dense(op, name, value)


def check_optional_tensors(op: str, **arguments: Any) -> None:
    """Checks the same as :func:`check_tensors` of all values that are not None."""
    for name, value in arguments.items():
        if value is None:
            continue
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor or None, got {type(value).__name__}")
        check_dense(op, name, value)


def check_dense(op: str, name: str, t: Tensor) -> None:
    """Raises unless the tensor is dense: neither sparse nor nested nor in a layout of oneDNN."""
    if t.is_nested or t.layout is not STRIDED:
        kind = "a nested one" if t.is_nested else f"layout {t.layout}"
        raise RuntimeError(f"{op}: {name} must be a dense tensor, got {kind}")


def check_float(op: str, name: str, t: Tensor) -> None:
    """Raises unless the tensor is dense and of one of FLOATS."""
    check_dense(op, name, t)
    torch._check(
        t.dtype in FLOATS,
        lambda: f"{op}: {name} must be float32, float64, float16 or bfloat16, got {t.dtype}",
    )


def check_float32(op: str, name: str, t: Tensor) -> None:
    """Raises unless the tensor is dense and float32."""
    check_dense(op, name, t)
    torch._check(t.dtype == torch.float32, lambda: f"{op}: {name} must be float32, got {t.dtype}")


def check_float32_or_64(op: str, name: str, t: Tensor) -> None:
    """Raises unless the tensor is dense and float32 or float64."""
    check_dense(op, name, t)
    torch._check(
        t.dtype in (torch.float32, torch.float64),
        lambda: f"{op}: {name} must be float32 or float64, got {t.dtype}",
    )


def check_device(op: str, name: str, t: Tensor, x_name: str, x: Tensor) -> None:
    """Raises unless the tensor is on the device of x."""
    torch._check(
        t.device == x.device,
        lambda: f"{op}: {x_name} and {name} must be on one device, got {x.device} and {t.device}",
    )


def check_alike(op: str, name: str, t: Tensor, x_name: str, x: Tensor) -> None:
    """Raises unless the tensor is dense, with the device and the dtype of x."""
    check_dense(op, name, t)
    check_device(op, name, t, x_name, x)
    torch._check(
        t.dtype == x.dtype,
        lambda: f"{op}: {name} must have {x_name}'s dtype {x.dtype}, got {t.dtype}",
    )


def check_vector(op: str, name: str, t: Tensor, length: int, x: Tensor) -> None:
    """Raises unless the tensor is (length,), a number per output channel, on the device of x."""
    check_float(op, name, t)
    torch._check(
        t.dim() == 1 and t.shape[0] == length,
        lambda: f"{op}: {name} must have the shape (Co,) = ({length},), got {tuple(t.shape)}",
    )
    check_device(op, name, t, "x", x)
