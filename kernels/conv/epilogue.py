"""What every fused convolution does to its sums before it stores them.

``y = act((sums + bias) * scale + shift + residual)``, in the sums' own dtype: `epilogue` inside of
a kernel that still holds them in registers, `apply_epilogue` over a convolution that torch
computed. The latter's floor is its bytes: y and the residual are read and y is written, once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseg.kernels.conv.recording import Recording

BLOCK = 1024
"""Number of elements that one program of apply_epilogue_kernel takes."""


class Operands(NamedTuple):
    """What an epilogue adds and multiplies by: tensors outside a kernel, pointers inside, or None.

    Attributes:
        bias: (Co,) of any floating dtype, added first.
        scale: (Co,) of any floating dtype, multiplied by.
        shift: (Co,) of any floating dtype, added.
        residual: a tensor of the output's shape and of any floating dtype, added last.
    """

    bias: Tensor | None = None
    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None

    def in_layout(
        self, layout: torch.memory_format, recording: Recording | None = None
    ) -> Operands:
        """The operands with contiguous vectors and the residual in that layout.

        `recording`: the recording that they belong to.
        """
        recording = recording or Recording(())

        def residual_in_layout(t: Tensor) -> Tensor:
            return t.contiguous(memory_format=layout)

        functions = (*[Tensor.contiguous] * 3, residual_in_layout)
        return Operands(
            *(
                None if t is None else recording.derive(function, t)
                for function, t in zip(functions, self, strict=True)
            )
        )


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """The activation of that name, or none for ""; a NaN stays one, as in torch."""
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
def epilogue(sums, operands, channel, channel_exists, at, exists, ACTIVATION: tl.constexpr):
    """``act((sums + bias) * scale + shift + residual)``.

    Args:
        sums: a block of float32, or of float64.
        operands: `Operands`.
        channel: integers that broadcast to the sums' shape: (1, BN) where channels are columns.
        channel_exists: a mask of channel's shape; the other channels are not read.
        at: offsets into the residual, of the sums' shape; int64 where they may pass 2^31.
        exists: a mask of the sums' shape; the other elements of the residual are not read.
        ACTIVATION: "", "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".

    Returns:
        A block like the sums.
    """
    if operands.bias is not None:
        sums += tl.load(operands.bias + channel, channel_exists, 0.0).to(sums.dtype)
    if operands.scale is not None:
        sums *= tl.load(operands.scale + channel, channel_exists, 0.0).to(sums.dtype)
    if operands.shift is not None:
        sums += tl.load(operands.shift + channel, channel_exists, 0.0).to(sums.dtype)
    if operands.residual is not None:
        sums += tl.load(operands.residual + at, exists, 0.0).to(sums.dtype)
    return activate(sums, ACTIVATION)


@triton.jit
def apply_epilogue_kernel(
    y, operands, elements, channels, plane, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr
):
    """Overwrites y with its epilogue, BLOCK elements a program.

    plane: how many elements of one channel follow each other, 1 if y is channels_last.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    exists = at < elements
    channel = (at // plane % channels).to(tl.int32)
    sums = tl.load(y + at, exists, 0.0)
    if sums.dtype != tl.float64:
        sums = sums.to(tl.float32)
    out = epilogue(sums, operands, channel, exists, at, exists, ACTIVATION)
    tl.store(y + at, out.to(y.dtype.element_ty), exists)


def apply_epilogue(
    y: Tensor, operands: Operands, activation: str, recording: Recording | None = None
) -> Tensor:
    """Overwrites y, (N, C, H, W), contiguous or channels_last, with its epilogue; returns y.

    The operands may be of any layout. `recording`: the recording that the tensors belong to.
    """
    if y.numel() == 0 or (all(t is None for t in operands) and activation == ""):
        return y
    contiguous = y.is_contiguous()
    layout = torch.contiguous_format if contiguous else torch.channels_last
    plane = y.shape[2] * y.shape[3] if contiguous else 1
    recording = recording or Recording(())
    recording.launch(
        apply_epilogue_kernel,
        (triton.cdiv(y.numel(), BLOCK),),
        y,
        operands.in_layout(layout, recording),
        y.numel(),
        y.shape[1],
        plane,
        ACTIVATION=activation,
        BLOCK=BLOCK,
        num_warps=4,
    )
    return y
