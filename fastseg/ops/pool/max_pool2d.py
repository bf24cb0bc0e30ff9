"""The op fastseg.max_pool2d and the op of its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define
from fastseg._core.pool2d import (
    Pool2d,
    check_image,
    check_pooled,
    codes_layout,
    empty_plane,
    memory_format,
    pool2d,
    windows,
)
from fastseg._core.tensor_checks import FLOATS, STRIDED, check_float, check_tensors
from fastseg._core.vmap import by_planes
from fastseg._core.window import Ints
from fastseg.reference.pool.pool_codes import window_starts

ops = torch.ops.fastseg


def max_pool2d(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Pools x and returns each maximum with its position in the window as one byte.

    Values, and positions after :func:`fastseg.codes_to_indices`, are bit for bit those of
    ``torch.nn.functional.max_pool2d(..., return_indices=True)``: the first of equal values wins,
    the last NaN wins. The byte code is ``ki * kernel_width + kj``, where torch keeps an int64. The
    gradient keeps a quarter of a byte for each 2x2 window with stride 2, one byte for others.

    A window whose dilated taps all lie in the padding has the value -infinity, as in torch. It
    passes no gradient, and its code names no position, which codes_to_indices refuses; torch's
    index lies behind the plane, where its gradient is written.

    Args:
        x: (N, C, H, W) or (C, H, W), any strides; float32, float64, float16 or bfloat16. Other
            dtypes that torch can pool run the reference.
        kernel_size: one integer or (height, width), at most 256 positions.
        stride: one integer or (height, width); None is the kernel's size.
        padding: one integer or (height, width), no more than half of the dilated kernel, where
            torch allows half of the kernel; it never wins.
        dilation: the distance between the taps of a window, one integer or (height, width).
        ceil_mode: whether the number of windows is rounded up instead of down.

    Returns:
        values: (N, C, h, w), x's dtype, channels_last if x is, else contiguous.
        codes: uint8 of the same shape and layout.

    Raises:
        TypeError: x is no tensor.
        RuntimeError: an argument that torch's pooling refuses, or a window of more than 256
            positions.
    """
    if type(x) is not Tensor or x.layout is not STRIDED:
        check_tensors("fastseg::max_pool2d", x=x)
    if x.dtype not in FLOATS:
        return reference.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    arguments = (() if stride is None else stride, padding, dilation, ceil_mode)
    if arguments == ((), 0, 1, False):
        arguments = ()  # passing lists takes as long as pooling a small x
    return call(_max_pool2d, (x,), kernel_size, *arguments)


def fake_pooled(op: str, x: Tensor, pool: Pool2d, ceil_mode: bool) -> tuple[Tensor, Tensor]:
    """Checks x; returns empty values and codes for its pooling."""
    check_image(op, "x", x)
    check_float(op, "x", x)
    size = pool.pooled_size(x.shape[-2:], ceil_mode)
    check_pooled(op, x, pool, size)
    layout = memory_format(x)
    return empty_plane(x, size, layout), empty_plane(x, size, layout, torch.uint8)


def codes_to_save(codes: Tensor, pool: Pool2d) -> tuple[Tensor, int]:
    """Returns the codes that a gradient keeps, packed where possible, and their packed_dim."""
    if not pool.is_2x2:
        return codes, 0
    packed_dim = -3 if memory_format(codes) == torch.channels_last else -1
    return call(ops.pack_codes.default, (codes,), packed_dim), packed_dim


def plane_of_codes(size: Sequence[int], pool: Pool2d) -> Sequence[int]:
    """The size of the plane in which the codes of all windows lie: a pooled plane's, or more.

    A window whose taps lie on both sides of the plane has the code of the first one behind it. It
    is not as far from the plane's first element as a tap from the next.
    """
    if all(d == 1 or d <= n for n, d in zip(size, pool.dilation, strict=True)):
        return size
    return [max(n, d) for n, d in zip(size, pool.dilation, strict=True)]


def gradient_of_pooled(
    grad: Tensor, codes: Tensor, size: Sequence[int], pool: Pool2d, packed_dim: int
) -> Tensor:
    """The gradient of a plane of `size` (H, W) that was pooled, of that of the values."""
    plane = plane_of_codes(size, pool)
    out = call(ops.max_pool2d_backward.default, (grad, codes), plane, *pool, packed_dim)
    if plane is size:
        return out
    inside = out[..., : size[0], : size[1]]
    return inside.contiguous(memory_format=codes_layout(codes, packed_dim))


def _fake(x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
    pool = pool2d("fastseg::max_pool2d", kernel_size, stride, padding, dilation)
    return fake_pooled("fastseg::max_pool2d", x, pool, ceil_mode)


def _standard(x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
    """Computes the op by torch's pooling, which ONNX has."""
    pool = pool2d("fastseg::max_pool2d", kernel_size, stride, padding, dilation)
    values, indices = F.max_pool2d(x, *pool, ceil_mode, return_indices=True)
    rows, columns = window_starts(pool, values.shape[-2:], x.device)
    # A width that is a symbol divides as a tensor alone.
    width = indices.new_full((), x.shape[-1])
    row = indices // width
    down, right = row - rows, indices - row * width - columns
    (_, kernel_width), (dh, dw) = pool.kernel_size, pool.dilation
    return values, (down // dh * kernel_width + right // dw).to(torch.uint8)


def _setup_context(ctx, inputs, output):
    x, kernel_size, stride, padding, dilation, _ = inputs
    ctx.pool = windows("fastseg::max_pool2d", kernel_size, stride, padding, dilation)
    ctx.input_size = x.shape[-2:]
    codes, ctx.packed_dim = codes_to_save(output[1], ctx.pool)
    ctx.save_for_backward(codes)


def _backward(ctx, grad_values, grad_codes):
    (codes,) = ctx.saved_tensors
    return (gradient_of_pooled(grad_values, codes, ctx.input_size, ctx.pool, ctx.packed_dim),)


define(
    "max_pool2d(Tensor x, int[2] kernel_size, int[2] stride=[], int[2] padding=0,"
    " int[2] dilation=1, bool ceil_mode=False) -> (Tensor values, Tensor codes)",
    reference=reference.max_pool2d,
    standard=_standard,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=by_planes(1),
)
_max_pool2d = ops.max_pool2d.default


def _fake_backward(grad, codes, input_size, kernel_size, stride, padding, dilation, packed_dim=0):
    return empty_plane(grad, input_size, codes_layout(codes, packed_dim))


def _setup_context_backward(ctx, inputs, output):
    grad, codes, _, *pool, ctx.packed_dim = inputs
    ctx.pool, ctx.pooled_size = pool, grad.shape[-2:]
    ctx.save_for_backward(codes)


def _backward_backward(ctx, grad):
    (codes,) = ctx.saved_tensors
    op, tensors = ops.max_unpool2d_backward.default, (grad, codes)
    return call(op, tensors, ctx.pooled_size, *ctx.pool, ctx.packed_dim), None


define(
    "max_pool2d_backward(Tensor grad, Tensor codes, SymInt[2] input_size, int[2] kernel_size,"
    " int[2] stride, int[2] padding, int[2] dilation, int packed_dim=0) -> Tensor",
    reference=reference.max_pool2d_backward,
    fake=_fake_backward,
    setup_context=_setup_context_backward,
    backward=_backward_backward,
    vmap=by_planes(2),
)
