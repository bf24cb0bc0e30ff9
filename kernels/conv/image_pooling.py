"""The pooled branch of an ASPP on NVIDIA GPUs, up to what it adds to the projection's sums.

    mean = the average over each map, (N, Ci), rounded to x's dtype
    p = act((mean weight^T) * scale + shift), (N, C), rounded
    pool_bias = p project_weight^T, (N, Co), rounded

in three kernels: the average, and one product of a vector for each of the others. They round where
torch's mean and two 1x1 convolutions do. As torch computes them they are six kernels or more, of
which the host's share alone is several times as long as the branch.

Floor: x read once, from the second-level cache where the branches read it too; the weights read
once for each image: Ci * C + C * Co, 1.2 MB for 2048 channels, 256 and bfloat16.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastseg.kernels.conv.arguments import Vector
from fastseg.kernels.conv.epilogue import Operands, epilogue
from fastseg.kernels.conv.recording import Recording

PIXELS, CHANNELS = 64, 32
"""Pixels and channels that a program of mean_kernel reads at a time."""

OUTPUTS, INPUTS = 8, 256
"""Outputs of a program of vector_kernel, and inputs that it multiplies at a time."""


@triton.jit
def mean_kernel(x, out, pixels, channels, BP: tl.constexpr, BC: tl.constexpr):
    """Program (n, c): the averages of BC channels of image n of x (N, pixels, channels)."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    exists = (channel < channels)[None, :]
    sums = tl.zeros((BP, BC), tl.float32)
    for first in range(0, pixels, BP):
        pixel = first + tl.arange(0, BP)
        at = (image * pixels + pixel)[:, None] * channels + channel[None, :]
        sums += tl.load(x + at, (pixel < pixels)[:, None] & exists, 0.0).to(tl.float32)
    mean = tl.sum(sums, 0) / pixels
    tl.store(out + image * channels + channel, mean.to(out.dtype.element_ty), channel < channels)


@triton.jit
def vector_kernel(
    x,
    weight,
    out,
    operands,
    sizes,
    BN: tl.constexpr,
    BK: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Program (n, c): BN outputs of image n, each a sum over all channels.

    operands: the scale and the shift of an `Operands`. sizes: a `Vector`.
    """
    image, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BN
    channels, outputs = sizes.channels, sizes.outputs
    channel = column + tl.arange(0, BN)
    exists = channel < outputs
    rows = channel.to(tl.int64) * sizes.weight_stride
    products = tl.zeros((BN, BK), tl.float32)
    for first in range(0, channels, BK):
        k = first + tl.arange(0, BK)
        a = tl.load(x + image * channels + k, k < channels, 0.0).to(tl.float32)
        live = exists[:, None] & (k < channels)[None, :]
        b = tl.load(weight + rows[:, None] + k[None, :], live, 0.0).to(tl.float32)
        products += a[None, :] * b
    sums = tl.sum(products, 1)
    sums = epilogue(sums, operands, channel, exists, channel, exists, ACTIVATION)
    tl.store(out + image * outputs + channel, sums.to(out.dtype.element_ty), exists)


def pool_bias(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    project_weight: Tensor,
    activation: str,
    recording: Recording,
) -> Tensor:
    """What the pooled branch adds to the projection's sums, (N, Co), of x's dtype.

    Args:
        x: (N, Ci, H, W), channels_last, not empty.
        weight: (C, Ci), rows of any stride.
        scale: (C,) or None.
        shift: (C,) or None.
        project_weight: the projection's columns of the pooled branch, (Co, C), rows of any stride.
        activation: its name, or "".
        recording: the recording that the tensors belong to.
    """
    n, channels, height, width = x.shape
    mean = recording.temporary(x.new_empty((n, channels)))
    recording.launch(
        mean_kernel,
        (n, triton.cdiv(channels, CHANNELS)),
        x,
        mean,
        height * width,
        channels,
        BP=PIXELS,
        BC=CHANNELS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    pooled = _product(mean, weight, Operands(scale=scale, shift=shift), activation, recording)
    return _product(pooled, project_weight, Operands(), "", recording)


def _product(x, weight, operands, activation, recording):
    """``act((x weight^T) * scale + shift)`` for x (N, K) and a weight (Co, K)."""
    (n, channels), outputs = x.shape, weight.shape[0]
    if weight.stride(1) != 1:
        weight = recording.derive(Tensor.contiguous, weight)
    scale, shift = (
        None if t is None else recording.derive(Tensor.contiguous, t) for t in operands[1:3]
    )
    out = recording.temporary(x.new_empty((n, outputs)))
    recording.launch(
        vector_kernel,
        (n, triton.cdiv(outputs, OUTPUTS)),
        x,
        weight,
        out,
        Operands(scale=scale, shift=shift),
        Vector(channels, outputs, weight.stride(0)),
        BN=OUTPUTS,
        BK=INPUTS,
        ACTIVATION=activation,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return out
