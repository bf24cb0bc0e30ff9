"""What convolution kernels cost on the CPU, as measured: the data behind the choice of a kernel.

Medians on one thread of a Zen 5 (AVX-512; AVX2 by FASTSEG_SIMD and ONEDNN_MAX_CPU_ISA), torch 2.13
with oneDNN, float32, channels_last, over 3x3 kernels of 3 to 512 channels on maps of 4 x 4 to
360 x 480; what concerns im2col and fingerprints on an Emerald Rapids, from 16 to 2048 channels on
maps of 1 x 1 to 24 x 24, in proportion to its products. benchmarks/results has what the choice then
gains and loses on two threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fastseg._core.conv2d import Conv2d
from fastseg._core.winograd import winograd_axis


class ConvCosts(NamedTuple):
    """Costs of one thread.

    Attributes:
        flops: operations a nanosecond of products on matrices that are large enough.
        bytes: bytes a nanosecond of weights that come from memory.
        look_up: nanoseconds to find what was prepared from weights.
        fingerprint: bytes a nanosecond of weights that are compared with what was prepared.
        transform: nanoseconds that Winograd's inputs and outputs take for a product and a channel.
        overhead: nanoseconds of a call of oneDNN beyond one of ours.
        preparing: nanoseconds that Winograd's form of a weight takes, of each number of the kernel.
        gather: nanoseconds of im2col for a pixel, for a tap of a pixel and for an output.
        im2col_flops: operations a nanosecond of its products, whose weights lie as they are given.
        im2col_depth: the depth of a product at which these take twice as long, out of the cache.
        depthwise_reach: the widest padding of oneDNN's own depthwise kernel in channels_last.
        depthwise_outputs: number of outputs of 3x3 kernels below which ours is the faster one.
    """

    flops: float
    bytes: float
    look_up: float
    fingerprint: float
    transform: float
    overhead: float
    preparing: float
    gather: tuple[float, float, float]
    im2col_flops: float
    im2col_depth: float
    depthwise_reach: int
    depthwise_outputs: float

    def winograd(
        self, shape: Sequence[int], out_channels: int, dilation: Sequence[int], fast: bool
    ) -> float:
        """Nanoseconds of Winograd's pieces with prepared weights.

        Args:
            shape: (N, Ci, H, W) of x.
            out_channels: Co.
            dilation: also the padding.
            fast: whether F(4, 3) is admitted.
        """
        n, channels, *size = shape
        axes = [winograd_axis(s, d, fast) for s, d in zip(size, dilation, strict=True)]
        products = n * axes[0].products * axes[1].products
        slots = len(axes[0].rows) * len(axes[1].rows)
        pairs = channels * out_channels
        computing = products * (2 * pairs / self.flops + self.transform * (channels + out_channels))
        return computing + slots * pairs * 4 / self.bytes

    def onednn(
        self, shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d, rate: float
    ) -> float:
        """Nanoseconds of oneDNN with prepared weights; it leaves out taps that are padding.

        Args:
            shape: (N, Ci, H, W) of x.
            weight_shape: (Co, Ci / groups, kh, kw).
            conv: the geometry.
            rate: of its products, from those in float32.
        """
        live = shape[0]
        for size, kernel, *axis in zip(shape[2:], weight_shape[2:], *conv[:3], strict=True):
            live *= live_taps(size, kernel, *axis)
        weights = math.prod(weight_shape)
        pairs = weight_shape[0] * weight_shape[1]
        return live * 2 * pairs / (self.flops * rate) + weights * 4 / self.bytes / rate

    def im2col(self, shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d) -> float:
        """Nanoseconds of one matrix product with the weights as they are; arguments as above."""
        pixels = shape[0] * math.prod(conv.output_size(shape[2:], weight_shape[2:]))
        taps, weights = math.prod(weight_shape[2:]), math.prod(weight_shape)
        pixel, tap, output = self.gather
        gathering = pixels * (pixel + tap * taps + output * weight_shape[0])
        slower = 1 + taps * weight_shape[1] / self.im2col_depth
        computing = 2 * pixels * weights / self.im2col_flops * slower
        return gathering + computing + weights * 4 / self.bytes

    def training(
        self, shape: Sequence[int], out_channels: int, dilation: Sequence[int], fast: bool
    ) -> float:
        """Nanoseconds that Winograd saves a step beside oneDNN, forward and backward, or less.

        Its weights are other ones in each step. The gradient of the input is a convolution of the
        same size, and that of the weight about as fast as oneDNN's.
        """
        conv = Conv2d((1, 1), dilation, dilation, 1)
        theirs = self.onednn(shape, (out_channels, shape[1], 3, 3), conv, 1)
        ours = self.winograd(shape, out_channels, dilation, fast)
        weights = out_channels * shape[1] * 9
        return 2 * (theirs - ours - self.preparing * weights)

    def comparing(self, weight_shape: Sequence[int]) -> float:
        """Nanoseconds to see that weights are those that were prepared."""
        return self.look_up + math.prod(weight_shape) * 4 / self.fingerprint


def live_taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Number of pairs of an output and a tap along an axis that read a pixel, not padding."""
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    live = 0
    for tap in range(kernel):
        shift = padding - tap * dilation  # output o reads the pixel o * stride - shift
        first = max(0, -(-shift // stride))
        live += max(0, min(outputs, (size - 1 + shift) // stride + 1) - first)
    return live


COSTS = {
    "avx512": ConvCosts(
        280, 30, 4_000, 25, 0.12, 16_000, 1.4, (6, 3, 0.7), 260, 16_000, 6, math.inf
    ),
    "avx2": ConvCosts(140, 30, 4_000, 25, 0.14, 16_000, 1.4, (6, 3, 1.4), 120, 16_000, 4, 1e6),
}
"""By SIMD level. The portable level has no multiply-add: oneDNN is faster everywhere."""

GRADIENT_OVERHEAD = 200_000
"""Nanoseconds that the Python of an op's gradient takes beyond that of torch's convolution."""
