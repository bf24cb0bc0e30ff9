"""What convolution kernels cost on the CPU, as measured: the data behind the choice of a kernel.

Medians on one thread of a Zen 5 (AVX-512; AVX2 by FASTSEG_SIMD and ONEDNN_MAX_CPU_ISA), torch 2.13
with oneDNN, float32, channels_last, over 3x3 kernels of 3 to 512 channels on maps of 4 x 4 to
360 x 480. benchmarks/results has what the choice then gains and loses on two threads.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class ConvCosts(NamedTuple):
    """Of one thread.

    Attributes:
        flops: of products on matrices that are large enough, operations a nanosecond.
        bytes: of weights that come from memory, bytes a nanosecond.
        transform: a product and channel, of the inputs and outputs, nanoseconds.
        overhead: of a call of oneDNN beyond one of ours, nanoseconds.
        depthwise_reach: the widest padding of oneDNN's own depthwise kernel in channels_last.
        depthwise_outputs: of 3x3 kernels, for fewer than which ours is the faster one.
    """

    flops: float
    bytes: float
    transform: float
    overhead: float
    depthwise_reach: int
    depthwise_outputs: float


COSTS = {
    "avx512": ConvCosts(280, 30, 0.12, 12_000, 6, math.inf),
    "avx2": ConvCosts(140, 30, 0.14, 12_000, 4, 1e6),
}
"""By SIMD level. The portable level has no multiply-add: oneDNN is faster everywhere."""
