"""Taps that read pixels, of which FlopCounterMode counts the operations on request."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator, Sequence

from fastseg._core.conv2d import live_taps

_counts = contextvars.ContextVar("counts_live_taps", default=False)


@contextlib.contextmanager
def count_live_taps() -> Iterator[None]:
    """Makes FlopCounterMode count, inside the block, taps that do not fall into padding alone.

    Outside it counts convolutions as torch's own, with all taps of every pixel, so that totals can
    be compared with those of other implementations. Inside it counts what a kernel that skips
    padding has to multiply: at rate 18 on a map of 33 x 33 that is 40 % for a 3x3 kernel. It holds
    for the thread or asynchronous task that enters the block.
    """
    token = _counts.set(True)
    try:
        yield
    finally:
        _counts.reset(token)


def counted_share(
    operations: int,
    size: Sequence[int],
    out_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> int:
    """Returns a convolution's operations, or those of its live taps where these are counted.

    Args:
        operations: of all taps of all pixels.
        size: (H, W) of the input.
        out_size: (h, w) of the output.
        kernel_size: (kh, kw).
        stride: (vertical, horizontal).
        padding: (vertical, horizontal).
        dilation: (vertical, horizontal).
    """
    if not _counts.get() or operations == 0:
        return operations
    axes = zip(size, kernel_size, stride, padding, dilation, strict=True)
    live = math.prod(live_taps(*axis) for axis in axes)
    return operations * live // (math.prod(out_size) * math.prod(kernel_size))
