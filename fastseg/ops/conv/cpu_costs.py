"""Measured costs of the convolution kernels on the CPU: the data behind the choice of a kernel.

Unless a constant says otherwise, costs are medians on one thread of an AMD Zen 5 with torch 2.13
and its oneDNN, float32, channels_last, over 3x3 kernels of 3 to 512 channels on maps of 4 x 4 to
360 x 480. The AVX2 figures are of the same processor with FASTSEG_SIMD and ONEDNN_MAX_CPU_ISA set.
The costs of im2col and of fingerprints were measured on an Intel Emerald Rapids, with 16 to 2048
channels on maps of 1 x 1 to 65 x 65, and scaled by the speed of products on both; so were those of
planes, on an AMD Zen 3 with AVX2, with 3 to 256 channels on maps of 14 x 14 to 224 x 224. What
calls cost beside products with AVX2 was fitted there to 3 to 512 channels on maps of 5 x 5 to 129 x
129, where other choices than before took 0.86 to 0.88 of the time (geometric means of 68 cases).
benchmarks/results has what the choice gains and loses on two threads.
"""

from __future__ import annotations

import math

from fastseg.ops.conv.cpu_cost_model import ConvCosts

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

DIRECT_KERNEL = 5
"""Side of a kernel from which torch's convolution of contiguous maps, oneDNN's in blocks of 8
channels, is faster than planes with AVX2, at rate 1: it takes 0.78 to 0.92 of their time."""

DIRECT_CHANNELS = 32
"""Number of input channels from which that is so. Of 16, planes take 0.6 to 1.0 of its time, and
of 24 to 40 about as long."""

DIRECT_FLOPS = 30_000_000
"""Number of operations from which that is so. Smaller products are small beside a call."""

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
