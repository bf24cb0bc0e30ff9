"""The model of what convolution kernels cost on the CPU; cpu_costs.py has what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fastseg._core.conv2d import Conv2d, live_taps
from fastseg._core.winograd import winograd_axis

ROW_CHANNELS = 16
"""Number of channels below which im2col copies a row of neighbouring taps in one piece, whatever
the weight's layout (``kFewChannels`` of im2col_conv2d.cpp)."""

WINOGRAD_CHANNELS = 8
"""Number of input channels as which Winograd's kernel takes fewer of them."""


def output_pixels(shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d) -> int:
    """Returns the number of pixels of all outputs of x (N, Ci, H, W) and a weight."""
    return shape[0] * math.prod(conv.output_size(shape[2:], weight_shape[2:]))


class ConvCosts(NamedTuple):
    """Costs on one thread at one SIMD level.

    Attributes:
        flops: operations per nanosecond of matrix products that are large enough.
        bytes: bytes per nanosecond of weights that come from memory.
        look_up: nanoseconds to find what was prepared from a weight.
        fingerprint: bytes per nanosecond of a weight that is compared with what was prepared, and
            is in no near cache, as in a network.
        transform: nanoseconds of Winograd's transforms per product and channel.
        overhead: nanoseconds that a call of oneDNN with a prepared weight takes longer than a call
            of our kernel: on a Zen 5 16,000 where it is called again at once and 35,000 after
            others have used the cache, on a Zen 3 with AVX2 85,000, beside products that take 1.35
            times as long as is assumed here.
        turned_overhead: the same where planes are compared with others, which may be torch's.
        preparing: nanoseconds per number of a weight to bring it into Winograd's form.
        gather_pixel: nanoseconds of im2col per output pixel.
        gather_tap: nanoseconds of im2col per tap of an output pixel, or row of taps that are copied
            in one piece.
        gather_output: nanoseconds of im2col per output where the weight is not packed.
        panel_output: nanoseconds per output that im2col takes longer than oneDNN where it packs the
            weight.
        im2col_flops: operations per nanosecond of im2col's product, which reads the weight as it
            is.
        im2col_depth: depth of such a sum at which it takes twice as long, out of the cache.
        planes_flops: operations per nanosecond of im2col's product with contiguous planes. Not
            measured with AVX-512, where it is taken for slower than it should be.
        planes_copy: nanoseconds per output pixel and depth of that product to copy what it reads;
            half of those to pad a number of x.
        planes_output: nanoseconds per output of it.
        following: nanoseconds per output of torch's batch norm and ReLU in evaluation.
        turning: nanoseconds per number of a contiguous map that is brought to channels_last or
            back.
        depthwise_reach: widest padding that oneDNN's depthwise kernel for channels_last takes; for
            wider ones another kernel runs, which takes 10 to 50 times as long.
        depthwise_outputs: number of outputs below which our 3x3 depthwise kernel is faster than
            oneDNN's: with AVX2 as many as the second-level cache holds, with AVX-512 any number.
        depthwise_planes: number of products from which torch's convolution is the faster one for
            contiguous maps, which oneDNN brings into blocks of channels: 0.5 to 0.9 of the time of
            our way through channels_last, measured on an AMD Zen 3. Infinite where not measured.
    """

    flops: float
    bytes: float
    look_up: float
    fingerprint: float
    transform: float
    overhead: float
    turned_overhead: float
    preparing: float
    gather_pixel: float
    gather_tap: float
    gather_output: float
    panel_output: float
    im2col_flops: float
    im2col_depth: float
    planes_flops: float
    planes_copy: float
    planes_output: float
    following: float
    turning: float
    depthwise_reach: int
    depthwise_outputs: float
    depthwise_planes: float

    def winograd(
        self, shape: Sequence[int], out_channels: int, dilation: Sequence[int], fast: bool
    ) -> float:
        """Returns the nanoseconds of Winograd's kernel with a prepared weight.

        Args:
            shape: (N, Ci, H, W) of x.
            out_channels: number of output channels.
            dilation: (vertical, horizontal), which is the padding too.
            fast: whether F(4, 3) is admitted.
        """
        n, channels, *size = shape
        axes = [winograd_axis(s, d, fast) for s, d in zip(size, dilation, strict=True)]
        products = n * axes[0].products * axes[1].products
        slots = len(axes[0].rows) * len(axes[1].rows)
        channels = max(channels, WINOGRAD_CHANNELS)
        pairs = channels * out_channels
        computing = products * (2 * pairs / self.flops + self.transform * (channels + out_channels))
        return computing + slots * pairs * 4 / self.bytes

    def onednn(
        self, shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d, rate: float
    ) -> float:
        """Returns the nanoseconds of oneDNN with a prepared weight; it skips taps in the padding.

        Args:
            shape: (N, Ci, H, W) of x.
            weight_shape: (Co, Ci / groups, kh, kw).
            conv: the geometry.
            rate: speed of oneDNN's products in x's dtype, as a multiple of float32's.
        """
        live = shape[0]
        for size, kernel, *axis in zip(shape[2:], weight_shape[2:], *conv[:3], strict=True):
            live *= live_taps(size, kernel, *axis)
        weights = math.prod(weight_shape)
        pairs = weight_shape[0] * weight_shape[1]
        return live * 2 * pairs / (self.flops * rate) + weights * 4 / self.bytes / rate

    def im2col(self, shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d) -> float:
        """Returns the nanoseconds of one matrix product with a weight that is not prepared.

        It is the smaller of two costs: of a product with the weight as it is, for few pixels,
        and of a product with the weight in panels, into which each call packs it.

        Args:
            shape: (N, Ci, H, W) of x.
            weight_shape: (Co, Ci, kh, kw).
            conv: the geometry.
        """
        pixels = output_pixels(shape, weight_shape, conv)
        taps, weights = math.prod(weight_shape[2:]), math.prod(weight_shape)
        neighbours = conv.dilation[1] == 1 and weight_shape[1] < ROW_CHANNELS
        pieces = weight_shape[2] if neighbours else taps
        gathering = pixels * (self.gather_pixel + self.gather_tap * pieces)
        outputs = pixels * weight_shape[0]
        multiplying = 2 * pixels * weights / self.im2col_flops
        reading = weights * 4 / self.bytes
        slower = 1 + taps * weight_shape[1] / self.im2col_depth
        dots = gathering + self.gather_output * outputs + multiplying * slower + reading
        copying = gathering if taps > 1 else 0  # one tap's row is a piece of x
        panels = copying + self.panel_output * outputs + multiplying + 2 * reading
        return min(dots, panels)

    def planes(self, shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d) -> float:
        """Returns the nanoseconds of im2col's product with contiguous planes.

        Args:
            shape: (N, Ci, H, W) of x.
            weight_shape: (Co, Ci, kh, kw).
            conv: the geometry.
        """
        pixels = output_pixels(shape, weight_shape, conv)
        depth = math.prod(weight_shape[1:])
        multiplying = pixels * weight_shape[0] * (2 * depth / self.planes_flops)
        copies = pixels * depth * conv.groups + 2 * math.prod(shape)
        finishing = pixels * weight_shape[0] * self.planes_output
        return multiplying + copies * self.planes_copy + finishing

    def by_channels_last(
        self, shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d
    ) -> float:
        """Returns the nanoseconds of oneDNN for contiguous maps, which are turned and turned back.

        Args:
            shape: (N, Ci, H, W) of x.
            weight_shape: (Co, Ci, kh, kw).
            conv: the geometry.
        """
        pixels = output_pixels(shape, weight_shape, conv)
        numbers = math.prod(shape) + pixels * weight_shape[0]
        turning = self.turned_overhead + numbers * self.turning
        return self.onednn(shape, weight_shape, conv, 1) + turning

    def in_blocks(self, shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d) -> float:
        """Returns the nanoseconds of torch's convolution, batch norm and ReLU of contiguous maps.

        Args:
            shape: (N, Ci, H, W) of x.
            weight_shape: (Co, Ci, kh, kw).
            conv: the geometry.
        """
        passes = output_pixels(shape, weight_shape, conv) * weight_shape[0] * self.following
        return self.onednn(shape, weight_shape, conv, 1) + passes + self.turned_overhead / 2

    def training(
        self, shape: Sequence[int], out_channels: int, dilation: Sequence[int], fast: bool
    ) -> float:
        """Returns the nanoseconds that Winograd's kernel saves per training step, at the least.

        Each step has a new weight, which must be prepared. The gradient of the input is a
        convolution of the same size; the gradient of the weight is about as fast as oneDNN's.

        Args:
            shape: (N, Ci, H, W) of x.
            out_channels: number of output channels.
            dilation: (vertical, horizontal), which is the padding too.
            fast: whether F(4, 3) is admitted.
        """
        conv = Conv2d((1, 1), dilation, dilation, 1)
        theirs = self.onednn(shape, (out_channels, shape[1], 3, 3), conv, 1)
        ours = self.winograd(shape, out_channels, dilation, fast)
        weights = out_channels * shape[1] * 9
        return 2 * (theirs - ours - self.preparing * weights)

    def comparing(self, weight_shape: Sequence[int]) -> float:
        """Returns the nanoseconds to see that a weight is the one that was prepared."""
        return self.look_up + math.prod(weight_shape) * 4 / self.fingerprint
