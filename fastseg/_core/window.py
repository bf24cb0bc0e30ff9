"""Arguments of a sliding window, which convolutions and poolings share: one integer or two."""

from __future__ import annotations

from collections.abc import Sequence

import torch

LIMIT = 1 << 30
"""Upper bound that strides, paddings and dilations must stay below."""

Ints = int | Sequence[int]
"""One integer for both axes, or (vertical, horizontal)."""


def pair(op: str, name: str, value: Ints) -> tuple[int, int]:
    """Returns one integer or two as (vertical, horizontal).

    Args:
        op: the op's name, with which an error begins.
        name: the argument's name in an error.
        value: one integer, or a sequence of one or two.

    Raises:
        TypeError: it is neither.
        RuntimeError: the sequence has another length.
    """
    if isinstance(value, int):
        return (value, value)
    if hasattr(value, "__index__"):  # an integer of numpy's
        return (value.__index__(),) * 2
    if not hasattr(value, "__iter__"):
        raise TypeError(f"{op}: {name} must be one integer or two, got {value!r}")
    values = tuple(value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2:
        torch._check(False, lambda: f"{op}: {name} must be one integer or two, got {value!r}")
    return values
