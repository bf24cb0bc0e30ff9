"""The checks of pydensecrf's arguments: what they become, or an error that says what is wrong."""

from __future__ import annotations

import math
import operator
from enum import IntEnum
from numbers import Real

import numpy as np


def buffer(name: str, array: object, dtype: type, ndim: int) -> np.ndarray:
    """The array, if it is one that pydensecrf takes; else an error says what is wrong with it.

    It is not converted, as by pydensecrf: what is converted silently is often a mistake. Unlike by
    it, read-only arrays are taken.
    """
    if not isinstance(array, np.ndarray):
        try:
            array = np.asarray(memoryview(array))
        except (TypeError, ValueError):
            raise TypeError(f"{name} must be an array, got {type(array).__name__}") from None
    if array.dtype != dtype:
        raise ValueError(
            f"{name}: Buffer dtype mismatch, expected {np.dtype(dtype)} but got {array.dtype}; "
            f"give {name}.astype(np.{np.dtype(dtype)})"
        )
    if array.ndim != ndim:
        raise ValueError(
            f"{name}: Buffer has wrong number of dimensions (expected {ndim}, got {array.ndim})"
        )
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} is not C-contiguous; give np.ascontiguousarray({name})")
    return array


def compatibility(compat: object, labels: int) -> np.ndarray:
    """The compatibility that the core takes: float32 (), (L,) or symmetric (L, L)."""
    if isinstance(compat, Real):
        compat = np.array(compat, np.float32)
    else:
        compat = buffer("compat", compat, np.float32, getattr(compat, "ndim", 1))
    if compat.ndim > 2:
        raise ValueError(f"compat of dimension >2 is not meaningful, got shape {compat.shape}")
    if compat.shape != (labels,) * compat.ndim:
        raise ValueError(
            f"compat must be a number, ({labels},) or ({labels}, {labels}), got {compat.shape}"
        )
    if not np.isfinite(compat).all():
        raise ValueError(f"compat must be finite, got {compat}")
    return np.float32(0.5) * (compat + compat.T) if compat.ndim == 2 else compat


def bandwidths(name: str, values: object, count: int) -> list[float]:
    """The bandwidths as a list of `count` positive numbers, of one number or of all."""
    if isinstance(values, Real):
        values = [values] * count
    try:
        if isinstance(values, str):
            raise TypeError  # its characters may be digits
        values = [float(v) for v in values]
    except TypeError:
        raise TypeError(f"{name} must be a number or {count} of them, got {values!r}") from None
    if len(values) != count:
        raise ValueError(f"{name} must be a number or {count} of them, got {values}")
    if not all(math.isfinite(v) and np.float32(v) > 0 for v in values):
        raise ValueError(f"{name} must be positive and finite, got {values}")
    return values


def index(name: str, value: object) -> int:
    """The value as an integer; a float may be one too, as h / 2 is."""
    try:
        return (
            int(value) if isinstance(value, Real) and value == int(value) else operator.index(value)
        )
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def count(name: str, value: object) -> int:
    """The value as a positive integer."""
    value = index(name, value)
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def member(name: str, value: object, kind: type[IntEnum]) -> IntEnum:
    """The member of an enumeration, or the one of that number."""
    try:
        return kind(value)
    except ValueError:
        members = ", ".join(f"{m.name} ({m.value})" for m in kind)
        raise ValueError(f"{name} must be one of {members}, got {value!r}") from None
