"""Depthwise convolution with its epilogue, and its gradients, on NVIDIA GPUs.

``y[c, p] = act((sum_tap weight[c, tap] x[c, p + tap] + bias) * scale + shift + residual)``, groups
equal to the channels. Sums are float32 in registers, the epilogue is applied
before they are stored. channels_last: a program takes 64 pixels of 128 bytes of channels, in
accesses of 16 bytes. At rate d those pixels lie d apart (see
:mod:`fastseg.kernels.conv.depthwise_forward`), so that they share what they read at any rate: 100
pixels for 64 outputs of a 3x3, from L2, and each pixel once from memory. Contiguous: a block of
pixels of one plane, its rows d apart, for the same reason.

The input's gradient is the same kernel with the taps turned around; at a stride it reads, of its
taps, those that an output ends at. The weight's gradient sums a run of tiles for each program, and
the runs in their order after that: deterministic.

Floor: x and the residual read and y written once; the weight's gradient: x and grad read once. In
bfloat16, eight images of 960 channels and 33 x 33 pixels: 33 MB or 11 microseconds at 3 TB/s for
each of the three; the 0.15 GFLOP of a 3x3 take 3 at 60 TFLOP/s of float32. These figures are
arithmetic: no run on a GPU stands behind them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastseg.kernels.conv.depthwise_forward import channels_last_kernel, contiguous_kernel
from fastseg.kernels.conv.depthwise_weight_grad import (
    channels_last_weight_grad_kernel,
    contiguous_weight_grad_kernel,
)
from fastseg.kernels.conv.epilogue import apply_epilogue

LARGEST_KERNEL = 7
"""Along an axis: the loads of a row of more taps would not fit registers."""

MOST_TAPS_AT_ONCE = 9
"""Whose sums a program of the weight's gradient keeps in registers."""

TILE_PIXELS = 64
"""In a program, where the channels are contiguous."""

BLOCK = 512
"""Pixels of a plane in a program, where they are contiguous."""

CHANNEL_BYTES = 128
"""Of a pixel in a program, where the channels are."""

RUNS = 2048
"""Programs of the weight's gradient: a few for each multiprocessor, each with a long run."""

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}

Pair = Sequence[int]


class Tile(NamedTuple):
    """How outputs are taken together: PHASES phases, ROWS by COLUMNS pixels of each."""

    PHASES: int
    ROWS: int
    COLUMNS: int


def choose_tile(size: Pair, phases: Pair) -> Tile:
    """A tile of TILE_PIXELS, as square as the phases of an output of `size` are large."""
    rows, columns = (triton.next_power_of_2(-(-n // p)) for n, p in zip(size, phases, strict=True))
    columns = min(columns, 8 if rows >= 8 else TILE_PIXELS // rows)
    rows = min(rows, TILE_PIXELS // columns)
    return Tile(TILE_PIXELS // (rows * columns), rows, columns)


def count_phases(size: Pair, stride: Pair, dilation: Pair, transposed: bool) -> tuple[int, ...]:
    """How far apart outputs are, on each axis, one of whose taps read what another's do."""
    return tuple(
        min(n, d if transposed else d // math.gcd(d, s))
        for n, s, d in zip(size, stride, dilation, strict=True)
    )


def channel_blocks(channels: int, dtype: torch.dtype, widest: int) -> dict[str, int]:
    """The channels of a program, and how many a thread reads at once, `widest` at most."""
    return {
        "VECTOR": math.gcd(channels, min(widest, 16 // dtype.itemsize)),
        "CHANNELS": CHANNEL_BYTES // dtype.itemsize,
    }


def weight_grad_taps(kernel_size: Pair) -> dict[str, int]:
    """Rows of a kernel, and their width, that a program of the weight's gradient takes."""
    height, width = kernel_size
    return {"KW": width, "TAP_ROWS": height if height * width <= MOST_TAPS_AT_ONCE else 1}


def largest_registers(kernel_width: int) -> int:
    """What the loads of a row of taps take; left to itself, ptxas spills to save some."""
    return 128 if kernel_width <= 5 else 168


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str,
) -> Tensor:
    """See :func:`fastseg.reference.atrous_conv2d`, of groups = C; the arguments are checked.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw).
        bias: (C,), of any floating dtype, or None; scale and shift likewise.
        scale: see bias.
        shift: see bias.
        residual: like the output, or None.
        stride: (vertical, horizontal), like padding and dilation.
        padding: see stride.
        dilation: see stride.
        activation: "", "relu", "relu6", "leaky_relu", "silu" or "hardswish".

    Returns:
        (N, C, h, w), channels_last if x is, else contiguous.
    """
    geometry = (stride, padding, dilation)
    if not _runs_here(x, weight.shape[2:]):
        y = F.conv2d(x, weight, None, *geometry, x.shape[1])
        y = y.contiguous(memory_format=_layout(x))
        return apply_epilogue(y, bias, scale, shift, residual, activation)
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(x.shape[2:], weight.shape[2:], *geometry, strict=True)
    ]
    epilogue = (bias, scale, shift, residual)
    return _convolve(x, weight, epilogue, size, *geometry, transposed=False, activation=activation)


def depthwise_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """The gradient of x (N, C, H, W) for grad (N, C, h, w); `input_size` is (H, W).

    See :func:`fastseg.reference.atrous_conv2d_input_grad`, of groups = C.
    """
    geometry = (stride, padding, dilation)
    if _runs_here(grad, weight.shape[2:]):
        return _convolve(
            grad, weight, (None,) * 4, input_size, *geometry, transposed=True, activation=""
        )
    x = grad.new_empty((*grad.shape[:2], *input_size))
    x = x.contiguous(memory_format=_layout(grad))
    return _convolution_backward(grad, x, weight, geometry, 0)


def depthwise_conv2d_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient of the weight (C, 1, kh, kw) for x (N, C, H, W) and grad (N, C, h, w).

    See :func:`fastseg.reference.atrous_conv2d_weight_grad`, of groups = C.
    """
    channels = x.shape[1]
    if x.numel() == 0 or grad.numel() == 0:
        out = x.new_zeros((channels, 1, *kernel_size))
    elif _runs_here(x, kernel_size):
        sums = _weight_grad_sums(x, grad, kernel_size, stride, padding, dilation)
        out = sums.sum(0).t().to(x.dtype).reshape(channels, 1, *kernel_size)
    else:
        weight = x.new_empty((channels, 1, *kernel_size))
        out = _convolution_backward(grad, x, weight, (stride, padding, dilation), 1)
    return out.contiguous(memory_format=_layout(x))


def _layout(x: Tensor) -> torch.memory_format:
    return torch._prims_common.suggest_memory_format(x)


def _plane_blocks(size: Pair, phases: Pair) -> int:
    """BLOCKs of a plane, its rows padded to whole phases."""
    return triton.cdiv(phases[0] * triton.cdiv(size[0], phases[0]) * size[1], BLOCK)


def _runs_here(x: Tensor, kernel_size: Pair) -> bool:
    """GPUs have few float64 units; of large kernels the taps do not fit registers."""
    return x.dtype != torch.float64 and max(kernel_size) <= LARGEST_KERNEL


def _convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Sequence[Pair], which: int
) -> Tensor:
    """Torch's gradient of x (which = 0) or of the weight (1)."""
    out = torch.ops.aten.convolution_backward(
        grad, x, weight, None, *geometry, False, (0, 0), grad.shape[1],
        (which == 0, which == 1, False),
    )[which]  # fmt: skip
    return out.contiguous(memory_format=_layout(x))


def _convolve(
    x: Tensor,
    weight: Tensor,
    epilogue: Sequence[Tensor | None],
    size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    transposed: bool,
    activation: str,
) -> Tensor:
    """The convolution of x, or its adjoint, to an output of `size`."""
    layout = _layout(x)
    images, channels = x.shape[:2]
    x = x.contiguous(memory_format=layout)
    out = x.new_empty((images, channels, *size)).contiguous(memory_format=layout)
    if out.numel() == 0:
        return out
    *vectors, residual = epilogue
    vectors = [None if t is None else t.contiguous() for t in vectors]
    if residual is not None:
        residual = residual.contiguous(memory_format=layout)
    kernel = tuple(weight.shape[2:])
    phases = count_phases(size, stride, dilation, transposed)
    shared = {
        "KH": kernel[0],
        "KW": kernel[1],
        "TRANSPOSED": transposed,
        "ACTIVATION": activation,
    }
    pairs = (*x.shape[2:], *size, *stride, *padding, *dilation)
    weight = weight.reshape(channels, -1)
    if layout == torch.contiguous_format:
        blocks = _plane_blocks(size, phases)
        contiguous_kernel[(blocks * images * channels,)](
            x, weight.contiguous(), out, *vectors, residual, channels, *pairs, phases[0], blocks,
            BLOCK=BLOCK, **shared, **OPTIONS,
        )  # fmt: skip
        return out
    tile = choose_tile(size, phases)
    tiles_y, tiles_x, tiles = count_tiles(images, size, phases, tile)
    constants = channel_blocks(channels, x.dtype, 8)
    channels_last_kernel[(tiles * triton.cdiv(channels, constants["CHANNELS"]),)](
        x, weight.t().contiguous(), out, *vectors, residual, channels // constants["VECTOR"],
        *pairs, *phases, tiles_y, tiles_x, **constants, **tile._asdict(), **shared,
        maxnreg=largest_registers(kernel[1]), **OPTIONS,
    )  # fmt: skip
    return out


def count_tiles(images: int, size: Pair, phases: Pair, tile: Tile) -> tuple[int, int, int]:
    """Tiles of a phase, vertically and horizontally, and of all phases of all images."""
    rows, columns = (-(-n // p) for n, p in zip(size, phases, strict=True))
    tiles_y, tiles_x = triton.cdiv(rows, tile.ROWS), triton.cdiv(columns, tile.COLUMNS)
    groups = triton.cdiv(phases[0] * phases[1], tile.PHASES)
    return tiles_y, tiles_x, images * groups * tiles_y * tiles_x


def _weight_grad_sums(
    x: Tensor, grad: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """(runs, kh * kw, C) float32, to be summed over the runs."""
    layout = _layout(x)
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    images, channels = x.shape[:2]
    size = grad.shape[2:]
    phases = count_phases(size, stride, dilation, transposed=False)
    taps = weight_grad_taps(kernel_size)
    row_groups = kernel_size[0] // taps["TAP_ROWS"]
    pairs = (*x.shape[2:], *size, *stride, *padding, *dilation)

    def sums_of(blocks: int, tiles: int) -> Tensor:
        runs = min(tiles, triton.cdiv(RUNS, blocks))
        return x.new_empty((runs, math.prod(kernel_size), channels), dtype=torch.float32)

    if layout == torch.contiguous_format:
        blocks = _plane_blocks(size, phases)
        sums = sums_of(channels, images * blocks)
        contiguous_weight_grad_kernel[(channels, sums.shape[0], row_groups)](
            x, grad, sums, channels, *pairs, phases[0], blocks, images * blocks,
            BLOCK=BLOCK, LANES=32 * OPTIONS["num_warps"], **taps, **OPTIONS,
        )  # fmt: skip
        return sums
    tile = choose_tile(size, phases)
    tiles_y, tiles_x, tiles = count_tiles(images, size, phases, tile)
    constants = channel_blocks(channels, x.dtype, 4)
    blocks = triton.cdiv(channels, constants["CHANNELS"])
    sums = sums_of(blocks, tiles)
    channels_last_weight_grad_kernel[(blocks, sums.shape[0], row_groups)](
        x, grad, sums, channels // constants["VECTOR"], *pairs, *phases, tiles_y, tiles_x, tiles,
        LANES=lanes(constants), **constants, **tile._asdict(), **taps, **OPTIONS,
    )  # fmt: skip
    return sums


def lanes(constants: dict[str, int]) -> int:
    """How many pixels of `channel_blocks` all threads of a program hold, with one vector each."""
    return min(
        TILE_PIXELS, 32 * OPTIONS["num_warps"] * constants["VECTOR"] // constants["CHANNELS"]
    )
