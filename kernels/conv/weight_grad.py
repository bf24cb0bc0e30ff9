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

Depthwise convolutions have an op of their own, in CUDA C++ or, where that is not built, in Triton
(:mod:`fastseg.kernels.conv.depthwise_conv2d`).
Where nothing is to be skipped, and for float64 and other groups, torch's own kernel runs, which is
as deterministic as torch.backends.cudnn.deterministic makes it.

Floor: 2 Ci Co FLOPs for each live pair (pixel, tap). 3x3, 2048 -> 256 on 33 x 33, eight images: 79,
59 and 42 microseconds at rates 6, 12 and 18 at 800 TFLOP/s in bfloat16, where the dense gradient
takes 103. Bytes: x, grad and the gradient once, 50 MB or 17 microseconds at 3 TB/s; a cut plan
writes and reads 8 Ci Co bytes for each of its pieces besides. These figures are arithmetic: no run
on a GPU stands behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseg._core.conv2d import in_layout_of
from fastseg.kernels.common import device_of, input_precision, precision_of
from fastseg.kernels.conv import weight_grad_plan as plans
from fastseg.kernels.conv.arguments import Channels, Rows
from fastseg.kernels.conv.configs import weight_grad_config
from fastseg.kernels.conv.forward import PART
from fastseg.kernels.conv.geometry import Branch, Sizes
from fastseg.kernels.conv.plan_cache import cache
from fastseg.kernels.conv.torch_conv2d import torch_weight_grad

WORTHWHILE_SHARE = 0.95
"""The live share above which torch's kernel, which multiplies all pairs, is called."""

MOST_PIXELS = 1 << 30
"""Most pixels of x or of grad, in all images: they are counted in 32 bits."""

VECTOR = 8
"""Number of channels that are copied at once, 16 bytes of 16 bits: a pixel's are padded to it."""

SUM_BLOCK = 1024
"""Number of elements of the gradient that one program of sum_pieces_kernel adds up."""

OPTIONS = {"enable_fp_fusion": True}


@triton.jit
def divide(n, factor, shift):
    """The quotient n / d of n in [0, 2^31), where factor and shift are `reciprocal(d)`."""
    n = n.to(tl.uint32)
    return ((tl.umulhi(n, factor.to(tl.uint32, bitcast=True)) + n) >> shift).to(tl.int32)


@triton.jit
def store_sums(out, sums, co, first_ci, channels, BM: tl.constexpr, BN: tl.constexpr):
    """Stores the sums (BM, BN) of the output channels co and of the inputs from first_ci on.

    In parts of PART elements: the pointers of more would take more registers than the main loop.
    """
    if BM * BN > PART:
        HALF: tl.constexpr = BN // 2
        left, right = sums.reshape(BM, 2, HALF).permute(0, 2, 1).split()
        store_sums(out, left, co, first_ci, channels, BM, HALF)
        store_sums(out, right, co, first_ci + HALF, channels, BM, HALF)
    else:
        ci = first_ci + tl.arange(0, BN)
        at = co.to(tl.int64)[:, None] * channels.out_stride + ci[None, :]
        exists = (co < channels.outputs)[:, None] & (ci < channels.inputs)[None, :]
        tl.store(out + at, sums.to(out.dtype.element_ty), exists)


@triton.jit
def weight_grad_kernel(
    x,
    grad,
    out,
    pieces,
    rows,
    channels,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (t, p): the sums of the t-th tile of channels over the p-th piece of a plan.

    x and grad: rows of channels, one a pixel. out: rows of input channels, those of a piece at its
    slot. pieces: rows of COLUMNS integers. rows: `Rows`. channels: `Channels`. A tile is BM output
    channels by BN input channels; a step sums BK pixels, VECTOR channels of which are a vector.
    """
    piece = pieces + tl.program_id(1) * COLUMNS
    first, last, slot = tl.load(piece), tl.load(piece + 1), tl.load(piece + 2)
    x_corner, grad_corner = tl.load(piece + 3), tl.load(piece + 4)
    width, width_factor = tl.load(piece + 5), tl.load(piece + 6)
    width_shift = tl.load(piece + 7)
    height, height_factor = tl.load(piece + 8), tl.load(piece + 9)
    height_shift = tl.load(piece + 10)
    x_channels, grad_channels = rows.x_vectors * VECTOR, rows.grad_vectors * VECTOR
    in_tiles = tl.cdiv(channels.inputs, BN)
    co = tl.program_id(0) // in_tiles * BM + tl.arange(0, BM)
    first_ci = tl.program_id(0) % in_tiles * BN
    ci = first_ci + tl.arange(0, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(first, last, BK):
        pixel = start + tl.arange(0, BK)
        exists = pixel < last
        row = divide(pixel, width_factor, width_shift)
        image = divide(row, height_factor, height_shift)
        column = pixel - row * width
        row -= image * height
        grad_at = grad_corner + image * rows.grad_image + row * rows.grad_row + column
        x_at = x_corner + image * rows.x_image + row * rows.x_row + column * rows.x_column
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
    out += slot.to(tl.int64) * channels.slot_stride
    store_sums(out, sums, co, first_ci, channels, BM, BN)


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
    geometry = (stride, padding, dilation)
    if groups == x.shape[1] == grad.shape[1]:
        return torch.ops.fastseg.depthwise_conv2d_weight_grad(x, grad, kernel_size, *geometry)
    if x.numel() == 0 or grad.numel() == 0:
        return in_layout_of(x, x.new_zeros((grad.shape[1], x.shape[1] // groups, *kernel_size)))
    sizes = Sizes(x.shape[0], *x.shape[2:], *grad.shape[2:])
    branch = Branch(*map(tuple, (kernel_size, *geometry)))
    if groups != 1 or not _runs_here(x, sizes, branch):
        return torch_weight_grad(x, grad, kernel_size, geometry, groups)
    out = _weight_grad(x, grad, sizes, branch)  # (Co, kh, kw, Ci)
    return in_layout_of(x, out.permute(0, 3, 1, 2))


def _runs_here(x: Tensor, sizes: Sizes, branch: Branch) -> bool:
    """Whether the kernels are ahead and 32 bits count the pixels; GPUs have few float64 units."""
    if x.dtype == torch.float64 or branch.dilation == (1, 1):
        return False
    pixels = sizes.batch * max(sizes.height * sizes.width, sizes.out_pixels)
    return pixels <= MOST_PIXELS and plans.live_share(sizes, branch) <= WORTHWHILE_SHARE


def _weight_grad(x: Tensor, grad: Tensor, sizes: Sizes, branch: Branch) -> Tensor:
    """The gradient (Co, kh, kw, Ci) by the kernels here."""
    out_channels, in_channels = grad.shape[1], x.shape[1]
    x, grad = _rows(x), _rows(grad)
    device, precision = device_of(x.device), precision_of(x.dtype)
    config = weight_grad_config(device.architecture, precision, out_channels, in_channels)
    tiles = triton.cdiv(out_channels, config.BM) * triton.cdiv(in_channels, config.BN)
    programs = device.multiprocessors * config.programs
    plan = cache.get(x.device, plans.build, sizes, branch, tiles, config.BK, programs)
    out = x.new_empty((out_channels, *branch.kernel_size, in_channels))
    is_cut = plan.pieces.shape[0] > branch.taps
    if is_cut:
        shape = (plan.pieces.shape[0], out_channels, in_channels)
        sums = x.new_empty(shape, dtype=torch.float32)
        strides = (sums.stride(0), in_channels)
    else:  # slots are taps
        sums, strides = out, (in_channels, branch.taps * in_channels)
    rows = Rows(
        x_image=sizes.height * sizes.width,
        x_row=branch.stride[0] * sizes.width,
        x_column=branch.stride[1],
        x_vectors=x.shape[3] // VECTOR,
        grad_image=sizes.out_pixels,
        grad_row=sizes.out_width,
        grad_vectors=grad.shape[3] // VECTOR,
    )
    weight_grad_kernel[(tiles, plan.pieces.shape[0])](
        x,
        grad,
        sums,
        plan.pieces,
        rows,
        Channels(in_channels, out_channels, *strides),
        COLUMNS=plans.COLUMNS,
        VECTOR=VECTOR,
        BM=config.BM,
        BN=config.BN,
        BK=config.BK,
        PRECISION=input_precision(precision),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        **OPTIONS,
    )
    if is_cut:
        elements = sums.stride(0)
        sum_pieces_kernel[(triton.cdiv(elements, SUM_BLOCK), branch.taps)](
            sums, out, plan.slots, elements, in_channels, BLOCK=SUM_BLOCK, num_warps=4, **OPTIONS
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
