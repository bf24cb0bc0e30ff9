"""The gradient of an atrous convolution's weight on NVIDIA GPUs: one matrix product a tap.

``dw[co, tap, ci] = sum_p grad[p, co] x[p + tap, ci]`` over the pixels p, of all images, at which
the tap is live; the pairs that fall into padding are not multiplied. A program takes a tile of
(output channels x input channels) and a piece of a tap's pixels (see
:mod:`fastseg.kernels.conv.weight_grad_plan`), in steps of some tens of pixels. Both
operands are channels_last, so that a pixel's channels are read 16 bytes at a time by asynchronous
copies, several steps ahead. Where a pixel lies follows from its number in the tap's rectangle by
two divisions, which are multiplications here: no copy waits for an index from memory.

Sums are float32. Pieces of one tap are stored in a workspace and added up in their order by a
second kernel: deterministic. A plan that cuts no tap stores the gradient straight away. For
float32 a product takes one TF32 term where torch lets cuDNN's convolutions do so
(torch.backends.cudnn.allow_tf32, its default), and else three, which keep float32's accuracy.

Depthwise convolutions have kernels of their own, :mod:`fastseg.kernels.conv.depthwise_conv2d`.
Where nothing is to be skipped, and for float64 and other groups, torch's own kernel runs, which is
as deterministic as torch.backends.cudnn.deterministic makes it.

Floor: 2 Ci Co FLOPs for each live pair (pixel, tap). 3x3, 2048 -> 256 on 33 x 33, eight images: 79,
59 and 42 microseconds at rates 6, 12 and 18 at 800 TFLOP/s in bfloat16, where the dense gradient
takes 103. Bytes: x, grad and the gradient once, 50 MB or 17 microseconds at 3 TB/s; a cut plan
writes and reads 8 Ci Co bytes for each of its pieces besides. These figures are arithmetic: no run
on a GPU stands behind them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseg._core.float32_precision import tf32_in_convolutions
from fastseg.kernels.conv.depthwise_conv2d import depthwise_conv2d_weight_grad
from fastseg.kernels.conv.weight_grad_plan import (
    COLUMNS,
    Geometry,
    live_share,
    plan_tensors,
)

WORTHWHILE_SHARE = 0.95
"""Above this live share torch's kernel, which multiplies all pairs, is called."""

MOST_PIXELS = 1 << 30
"""Of x or of grad, in all images: they are counted in 32 bits."""

VECTOR = 8
"""Channels that are copied at once, 16 bytes of them: those of a pixel are padded to a multiple."""

SUM_BLOCK = 1024

OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def divide(n, factor, shift):
    """The quotient n / d of n in [0, 2^31); factor and shift are `reciprocal(d)`."""
    n = n.to(tl.uint32)
    return ((tl.umulhi(n, factor.to(tl.uint32, bitcast=True)) + n) >> shift).to(tl.int32)


@triton.jit
def weight_grad_kernel(
    x, grad, out, pieces, x_image, x_row, x_column, x_vectors, grad_image, grad_row,
    grad_vectors, in_channels, out_channels, slot_stride, out_stride,
    COLUMNS: tl.constexpr, VECTOR: tl.constexpr, OUT: tl.constexpr, IN: tl.constexpr,
    PIXELS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (t, p): the sums of the t-th tile of channels over the p-th piece of a plan.

    x and grad: pixels of x_vectors and grad_vectors times VECTOR channels, of which the last may be
    beyond in_channels and out_channels. x_image, x_row and x_column: how many pixels of x lie
    between what an output reads and what the same output of the next image, the one below it and
    the one beside it read; grad_image and grad_row: likewise between outputs. out: rows of input
    channels, out_stride apart, at a piece's slot * slot_stride.
    """
    piece = pieces + tl.program_id(1) * COLUMNS
    first, last, slot = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2)
    x_corner, grad_corner = tl.load(piece + 3), tl.load(piece + 4)
    width, width_factor = tl.load(piece + 5), tl.load(piece + 6)
    width_shift = tl.load(piece + 7)
    height, height_factor = tl.load(piece + 8), tl.load(piece + 9)
    height_shift = tl.load(piece + 10)
    x_channels, grad_channels = x_vectors * VECTOR, grad_vectors * VECTOR
    in_tiles = tl.cdiv(in_channels, IN)
    co = tl.program_id(0) // in_tiles * OUT + tl.arange(0, OUT)
    ci = tl.program_id(0) % in_tiles * IN + tl.arange(0, IN)
    sums = tl.zeros((OUT, IN), tl.float32)
    for start in range(first, last, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        exists = pixel < last
        row = divide(pixel, width_factor, width_shift)
        image = divide(row, height_factor, height_shift)
        column = pixel - row * width
        row -= image * height
        grad_at = grad_corner + image * grad_image + row * grad_row + column
        x_at = x_corner + image * x_image + row * x_row + column * x_column
        # Transposed as it is read: Ampere's copies are asynchronous only straight into a product.
        a = tl.load(
            grad + grad_at.to(tl.int64)[None, :] * grad_channels + co[:, None],
            exists[None, :] & (co < grad_channels)[:, None],
            0.0,
        )
        b = tl.load(
            x + x_at.to(tl.int64)[:, None] * x_channels + ci[None, :],
            exists[:, None] & (ci < x_channels)[None, :],
            0.0,
        )
        sums = tl.dot(a, b, sums, input_precision=PRECISION)
    out += slot.to(tl.int64) * slot_stride
    at = co.to(tl.int64)[:, None] * out_stride + ci[None, :]
    exists = (co < out_channels)[:, None] & (ci < in_channels)[None, :]
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)


@triton.jit
def sum_pieces_kernel(sums, out, slots, elements, in_channels, BLOCK: tl.constexpr):
    """``out[co, tap, ci] = sum_s sums[s, co, ci]`` over the slots s of each tap.

    Program (k, tap): the k-th BLOCK of the elements (co, ci).
    """
    at, tap = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    exists = at < elements
    first, end = tl.load(slots + tap), tl.load(slots + tap + 1)
    sums += first.to(tl.int64) * elements
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(first, end):
        total += tl.load(sums + at, exists, 0.0)
        sums += elements
    to = at + (at // in_channels * (tl.num_programs(1) - 1) + tap).to(tl.int64) * in_channels
    tl.store(out + to, total.to(out.dtype.element_ty), exists)


class Tile(NamedTuple):
    """A tile of channels and a step of pixels: what fits registers and shared memory.

    Attributes:
        OUT: output channels.
        IN: input channels.
        PIXELS: of a step.
        num_warps: of a program.
        num_stages: steps in flight, one of them multiplied.
        programs: that a multiprocessor holds at a time.
    """

    OUT: int
    IN: int
    PIXELS: int
    num_warps: int
    num_stages: int
    programs: int


TILES = {
    # A large one and a small one for: the architecture that has the instructions and at least the
    # shared memory (80: the 99 KB of sm_86, sm_89 and sm_120), what a product takes.
    (90, "16 bit"): (Tile(128, 256, 64, 8, 4, 1), Tile(64, 128, 64, 8, 4, 2)),
    (90, "tf32"): (Tile(128, 256, 32, 8, 4, 1), Tile(64, 128, 32, 8, 4, 2)),
    (90, "tf32x3"): (Tile(128, 128, 32, 8, 3, 1), Tile(64, 128, 32, 8, 3, 1)),
    (80, "16 bit"): (Tile(128, 128, 32, 4, 4, 2), Tile(64, 128, 32, 4, 4, 2)),
    (80, "tf32"): (Tile(128, 128, 32, 8, 3, 1), Tile(64, 128, 32, 8, 3, 1)),
    (80, "tf32x3"): (Tile(128, 128, 32, 8, 3, 1), Tile(64, 128, 16, 8, 4, 2)),
}

SMALL_TILE_COST = 1.5
"""What a small tile takes for each of its elements, compared with a large one: it reads more."""


class Device(NamedTuple):
    """What a plan is made for: compute capability times 10, and the number of multiprocessors."""

    arch: int
    multiprocessors: int


@functools.cache
def device_properties(device: torch.device) -> Device:
    """Of a CUDA device; of an H100 for the CPU, where the kernels are interpreted."""
    if device.type == "cpu":
        return Device(90, 132)
    properties = torch.cuda.get_device_properties(device)
    return Device(properties.major * 10 + properties.minor, properties.multi_processor_count)


def choose_tile(arch: int, precision: str, out_channels: int, in_channels: int) -> Tile:
    """The tile that wastes the least on channels that do not exist.

    Args:
        arch: compute capability times 10.
        precision: "16 bit", "tf32" or "tf32x3".
        out_channels: of the convolution.
        in_channels: likewise.
    """
    large, small = TILES[90 if arch // 10 in (9, 10) else 80, precision]

    def padded(tile: Tile) -> int:
        columns = triton.cdiv(in_channels, tile.IN) * tile.IN
        return triton.cdiv(out_channels, tile.OUT) * tile.OUT * columns

    return large if padded(large) <= SMALL_TILE_COST * padded(small) else small


def product_precision(dtype: torch.dtype) -> str:
    """What a matrix product of that dtype takes: a key of TILES."""
    if dtype != torch.float32:
        return "16 bit"
    return "tf32" if tf32_in_convolutions() else "tf32x3"


def atrous_conv2d_weight_grad(
    x: Tensor,
    grad: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """See :func:`fastseg.reference.atrous_conv2d_weight_grad`; the arguments are checked."""
    if groups == x.shape[1] == grad.shape[1]:
        return depthwise_conv2d_weight_grad(x, grad, kernel_size, stride, padding, dilation)
    layout = torch._prims_common.suggest_memory_format(x)
    pairs = (x.shape[2:], grad.shape[2:], kernel_size, stride, padding, dilation)
    geometry = Geometry(x.shape[0], *map(tuple, pairs))
    shape = (grad.shape[1], x.shape[1] // groups, *kernel_size)
    if x.numel() == 0 or grad.numel() == 0:
        return x.new_zeros(shape).contiguous(memory_format=layout)
    if groups != 1 or not _runs_here(x, grad, geometry):
        weight = x.new_empty(shape).contiguous(memory_format=layout)
        out = torch.ops.aten.convolution_backward(
            grad, x, weight, None, stride, padding, dilation, False, (0, 0), groups,
            (False, True, False),
        )[1]  # fmt: skip
        return out.contiguous(memory_format=layout)
    out = _weight_grad(x, grad, geometry)  # (Co, kh, kw, Ci)
    return out.permute(0, 3, 1, 2).contiguous(memory_format=layout)


def _runs_here(x: Tensor, grad: Tensor, geometry: Geometry) -> bool:
    """Worth it, and in numbers of 32 bits; GPUs have few float64 units."""
    if x.dtype == torch.float64 or geometry.dilation == (1, 1):
        return False
    pixels = max(t.shape[0] * t.shape[2] * t.shape[3] for t in (x, grad))
    return pixels <= MOST_PIXELS and live_share(geometry) <= WORTHWHILE_SHARE


def _weight_grad(x: Tensor, grad: Tensor, geometry: Geometry) -> Tensor:
    out_channels, in_channels = grad.shape[1], x.shape[1]
    (height, width), (out_height, out_width) = geometry.size, geometry.out_size
    x, grad = _rows(x), _rows(grad)
    arch, multiprocessors = device_properties(x.device)
    precision = product_precision(x.dtype)
    tile = choose_tile(arch, precision, out_channels, in_channels)
    tiles = triton.cdiv(out_channels, tile.OUT) * triton.cdiv(in_channels, tile.IN)
    pieces, slots = plan_tensors(
        geometry, tiles, tile.PIXELS, multiprocessors * tile.programs, x.device
    )
    out = x.new_empty((out_channels, *geometry.kernel_size, in_channels))
    taps = slots.shape[0] - 1
    is_cut = pieces.shape[0] > taps
    if is_cut:
        sums = x.new_empty((pieces.shape[0], out_channels, in_channels), dtype=torch.float32)
        strides = (sums.stride(0), in_channels)
    else:  # slots are taps
        sums, strides = out, (in_channels, taps * in_channels)
    weight_grad_kernel[(tiles, pieces.shape[0])](
        x, grad, sums, pieces, height * width, geometry.stride[0] * width, geometry.stride[1],
        x.shape[3] // VECTOR, out_height * out_width, out_width, grad.shape[3] // VECTOR,
        in_channels, out_channels, *strides, COLUMNS=COLUMNS, VECTOR=VECTOR, OUT=tile.OUT,
        IN=tile.IN, PIXELS=tile.PIXELS, PRECISION="tf32x3" if precision == "tf32x3" else "tf32",
        num_warps=tile.num_warps, num_stages=tile.num_stages, **OPTIONS,
    )  # fmt: skip
    if is_cut:
        elements = sums.stride(0)
        sum_pieces_kernel[(triton.cdiv(elements, SUM_BLOCK), taps)](
            sums, out, slots, elements, in_channels, BLOCK=SUM_BLOCK, num_warps=4, **OPTIONS
        )
    return out


def _rows(t: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, channels), C padded to a multiple of VECTOR with anything."""
    rows, channels = t.permute(0, 2, 3, 1), t.shape[1]
    if channels % VECTOR == 0:
        return rows.contiguous()
    padded = t.new_empty((*rows.shape[:3], triton.cdiv(channels, VECTOR) * VECTOR))
    padded[..., :channels] = rows
    return padded
