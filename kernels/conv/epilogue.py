"""What every fused convolution does to its sums before it stores them.

``y = act((sums + bias) * scale + shift + residual)``, in the sums' own dtype: `epilogue` inside of
a kernel that still holds them in registers, `apply_epilogue` over a convolution that torch
computed. The latter's floor is its bytes: y and the residual are read and y is written, once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """One of the six activations; a NaN stays one, as in torch."""
    if ACTIVATION == "relu":
        x = tl.where(x < 0, 0.0, x)
    elif ACTIVATION == "relu6":
        x = tl.where(x < 0, 0.0, tl.where(x > 6, 6.0, x))
    elif ACTIVATION == "leaky_relu":
        x = tl.where(x < 0, x * 0.01, x)
    elif ACTIVATION == "silu":
        x = x / (1 + tl.exp(-x))
    elif ACTIVATION == "hardswish":
        gate = x + 3
        gate = tl.where(gate < 0, 0.0, tl.where(gate > 6, 6.0, gate))
        x = x * gate / 6
    else:
        tl.static_assert(ACTIVATION == "")
    return x


@triton.jit
def epilogue(
    sums, bias, scale, shift, residual, channel, channel_exists, at, exists,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """``act((sums + bias) * scale + shift + residual)``.

    Args:
        sums: a block of float32, or of float64.
        bias: pointer to (Co,) of any floating dtype, or None; scale and shift likewise.
        scale: see bias.
        shift: see bias.
        residual: pointer of any floating dtype, or None.
        channel: integers that broadcast to the sums' shape: (1, BN) where channels are columns.
        channel_exists: of channel's shape; the others are not read.
        at: offsets into the residual, of the sums' shape; int64 where they may pass 2^31.
        exists: of the sums' shape; the other elements of the residual are not read.
        ACTIVATION: "", "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".

    Returns:
        A block like the sums.
    """
    if bias is not None:
        sums += tl.load(bias + channel, channel_exists, 0.0).to(sums.dtype)
    if scale is not None:
        sums *= tl.load(scale + channel, channel_exists, 0.0).to(sums.dtype)
    if shift is not None:
        sums += tl.load(shift + channel, channel_exists, 0.0).to(sums.dtype)
    if residual is not None:
        sums += tl.load(residual + at, exists, 0.0).to(sums.dtype)
    return activate(sums, ACTIVATION)


@triton.jit
def apply_epilogue_kernel(
    y, bias, scale, shift, residual, elements, channels, plane,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """In place. plane: how many elements of one channel follow each other, 1 if channels_last."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < elements
    channel = (at // plane % channels).to(tl.int32)
    sums = tl.load(y + at, exists, 0.0)
    if sums.dtype != tl.float64:
        sums = sums.to(tl.float32)
    out = epilogue(sums, bias, scale, shift, residual, channel, exists, at, exists, ACTIVATION)
    tl.store(y + at, out.to(y.dtype.element_ty), exists)


def apply_epilogue(
    y: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> Tensor:
    """Overwrites y, (N, C, H, W), contiguous or channels_last, with its epilogue; returns y.

    bias, scale and shift are (C,) or None, the residual is of y's shape and any layout, or None.
    """
    per_channel = [None if t is None else t.contiguous() for t in (bias, scale, shift)]
    if y.numel() == 0 or (per_channel == [None] * 3 and residual is None and activation == ""):
        return y
    contiguous = y.is_contiguous()
    layout = torch.contiguous_format if contiguous else torch.channels_last
    if residual is not None:
        residual = residual.contiguous(memory_format=layout)
    plane = y.shape[2] * y.shape[3] if contiguous else 1
    apply_epilogue_kernel[(triton.cdiv(y.numel(), BLOCK),)](
        y, *per_channel, residual, y.numel(), y.shape[1], plane,
        ACTIVATION=activation, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return y
