"""The choice of the hardest pixels among those of all processes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.train.processes import global_sum

HALF = 16
"""Bits that are told apart at a time: two exchanges of 65536 counts find a float32."""


def number_of_all(values: Tensor, k: int) -> float:
    """Returns the value number k, from 0 on, in the order of all processes' values, exactly.

    Args:
        values: this process's values, float32, not negative, perhaps infinite; of any shape.
        k: less than the number of values of all processes.
    """
    # Bits of floats that are not negative have the order of the floats.
    bits = values.detach().float().flatten().view(torch.int32)
    found = 0
    for shift in (HALF, 0):
        digit = bits >> shift & ((1 << HALF) - 1)
        ends = global_sum(torch.bincount(digit, minlength=1 << HALF)).cumsum(0)
        place = int(torch.searchsorted(ends, k, right=True))
        k -= int(ends[place - 1]) if place else 0
        bits = bits[digit == place]
        found |= place << shift
    return torch.tensor(found, dtype=torch.int32).view(torch.float32).item()


def raised_threshold(p: Tensor, counted: Tensor, threshold: float, least: int) -> float:
    """Returns the threshold below which the pixels of all processes count for OHEM.

    It is the one of :func:`fastseg.upsample_ohem_cross_entropy` for the whole batch: the given one,
    or the probability number ``least`` where that is larger.

    Args:
        p: probabilities of the targets, float32 (N, H, W), infinite where a pixel is left out.
        counted: whether a pixel is not left out, (N, H, W).
        threshold: the least threshold.
        least: pixels that count at least, from all processes.
    """
    pixels = int(global_sum(counted.sum()))
    if not pixels:
        return threshold
    return max(threshold, number_of_all(p, min(least, pixels - 1)))
