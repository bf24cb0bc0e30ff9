"""Measured costs of the convolution kernels on the CPU: the data behind the choice of a kernel.

Unless a constant says otherwise, costs are medians on one thread of an AMD Zen 5 with torch 2.13
and its oneDNN, float32, channels_last, over 3x3 kernels of 3 to 512 channels on maps of 4 x 4 to
360 x 480. The AVX2 figures are of the same processor with FASTSEG_SIMD and ONEDNN_MAX_CPU_ISA set.
The costs of im2col and of fingerprints were measured on an Intel Emerald Rapids, with 16 to 2048
channels on maps of 1 x 1 to 65 x 65, and scaled by the speed of products on both; so were those of
planes, on an AMD Zen 3 with AVX2, with 3 to 256 channels on maps of 14 x 14 to 224 x 224. What
calls cost beside products with AVX2 was fitted there to 3 to 512 channels on maps of 5 x 5 to 129 x
129, where other choices than before took 0.88 of the time (geometric mean of 69).
benchmarks/results has what the choice gains and loses on two threads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from fastseg._core.conv2d import Conv2d, live_taps
from fastseg._core.winograd import winograd_axis


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


COSTS = {
    "avx512": ConvCosts(
        flops=280,
        bytes=30,
        look_up=4_000,
        fingerprint=15,
        transform=0.12,
        overhead=24_000,
        turned_overhead=24_000,
        preparing=1.4,
        gather_pixel=6,
        gather_tap=3,
        gather_output=0.7,
        panel_output=0.06,
        im2col_flops=260,
        im2col_depth=16_000,
        planes_flops=220,
        planes_copy=0.07,
        planes_output=0.3,
        following=0.25,
        turning=0.4,
        depthwise_reach=6,
        depthwise_outputs=math.inf,
        depthwise_planes=math.inf,
    ),
    "avx2": ConvCosts(
        flops=140,
        bytes=30,
        look_up=12_000,
        fingerprint=15,
        transform=0.28,
        overhead=64_000,
        turned_overhead=16_000,
        preparing=1.4,
        gather_pixel=6,
        gather_tap=3,
        gather_output=1.4,
        panel_output=0.33,
        im2col_flops=120,
        im2col_depth=16_000,
        planes_flops=150,
        planes_copy=0.07,
        planes_output=0.3,
        following=0.25,
        turning=0.6,
        depthwise_reach=4,
        depthwise_outputs=1e6,
        depthwise_planes=1e6,
    ),
}
"""Costs by SIMD level. The portable level has no multiply-add, so that oneDNN always wins there."""

ROW_CHANNELS = 16
"""Number of channels below which im2col copies a row of neighbouring taps in one piece, whatever
the weight's layout (``kFewChannels`` of im2col_conv2d.cpp)."""

WINOGRAD_CHANNELS = 8
"""Number of input channels as which Winograd's kernel takes fewer of them."""

GRADIENT_OVERHEAD = 200_000
"""Nanoseconds that an op's gradient in Python takes longer than that of torch's convolution."""

NATIVE_RATE = 2
"""Speed of oneDNN's products in 16-bit floats where :func:`is_native` holds, as a multiple of
float32's: measured on AMD's Zen 4 and 5. With Intel's vector instructions alone, on an Emerald
Rapids, 16 bits took twice as long as float32."""

DEPTHWISE_BYTES = 1 << 25
"""Bytes of x from which our 3x3 depthwise kernel is the faster one again with AVX2, because no
cache holds x. Below them, down to ``depthwise_outputs``, oneDNN's is 10 to 35 % faster."""

DEPTHWISE_PRODUCTS = 2_000_000
"""Number of products below which our depthwise kernel is the faster one for other sizes than 3x3.
oneDNN's is 10 to 35 % faster, but its call takes longer, the more so within a network."""

DEPTHWISE_PIXELS = 1600
"""Number of pixels of a contiguous map from which a 3x3 depthwise convolution of stride 1, and its
gradients, are about as fast in that layout, and soon faster. On smaller ones, and at other strides,
that takes 1.1 to 6 times as long as through channels_last; at rate 2 up to 1.6 times until 3000
pixels. Measured on an AMD Zen 3 with AVX2, at rates 1, 2 and 6, on maps of 4 x 4 to 129 x 129.
Other kernels take 3 to 20 times as long."""

STRIDED_BYTES = 2 << 20
"""Bytes of contiguous x from which torch's 3x3 depthwise convolution with a stride and an epilogue
is faster than ours through channels_last, on an AMD Zen 3 with AVX2."""

EPILOGUE_OUTPUTS = 100_000
"""Number of outputs up to which an epilogue in place, three passes over them, takes less time than
to look a prepared weight up: 50 microseconds within a network, on an AMD Zen 3."""

FUSED_OUTPUTS = 2
"""Number of outputs per element of x from which oneDNN fuses a ReLU: its ReLU turns NaN into 0, so
that x must be searched for NaN first, which costs a pass over x and saves one over the output."""

BLOCK_CHANNELS = 16
"""Number of input channels, of a group if there are some, up to which torch's convolution, batch
norm and ReLU take longer than planes: with AVX2 1.1 to 3.3 times as long in groups, on maps of 17 x
17 to 65 x 65, and 1.0 to 1.7 times in one group of 3."""

GROUP_GRADIENT_CHANNELS = 8
"""Number of a group's output channels up to which the input's gradient of a grouped convolution of
contiguous maps takes torch longer than planes: 1.04 to 6 times as long with AVX2. With more of them
it takes torch 0.7 to 0.9 of that time."""

PLANES_CHANNELS = 2
"""Number of input and output channels of a group from which grouped planes are multiplied as they
lie. One of each is a depthwise convolution."""

WEIGHT_GRADIENT_CHANNELS = 16
"""Number of input channels from which a weight's gradient is computed tap by tap, 16 channels at a
time: from 64 on 1.1 to 5 times as fast as torch's. With 3 it would take 4 times as long as torch's,
and the product with columns takes 0.5 to 1.2 times as long."""

POINTWISE_CHANNELS = 16
"""Number of input and of output channels from which a 1x1 convolution of a contiguous map is one
product into channels_last. A smaller product is small beside its call."""

POINTWISE_PIXELS = 256
"""Number of pixels of a map from which that is so. A smaller map is soon converted."""
