"""The op fastseg.max_unpool2d and the op of its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.autocast import autocast_dtype, cast, unpools_in_float32
from fastseg._core.library import call, define
from fastseg._core.pool2d import (
    check_image,
    codes_layout,
    empty_plane,
    memory_format,
    pool2d,
    windows,
)
from fastseg._core.tensor_checks import (
    STRIDED,
    check_dense,
    check_device,
    check_float,
    check_tensors,
)
from fastseg._core.vmap import by_planes
from fastseg._core.window import Ints, pair
from fastseg.ops.pool.max_pool2d import codes_to_save

ops = torch.ops.fastseg


def max_unpool2d(
    values: Tensor,
    indices: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    output_size: Sequence[int] | None = None,
) -> Tensor:
    """Puts each value back where max-pooling found it, and zero elsewhere.

    With int64 indices this is ``torch.nn.functional.max_unpool2d``. With the byte codes of
    :func:`fastseg.max_pool2d` (dilation 1) every output element is gathered from its window and
    written once. A code keeps its row and column whatever the output's size, where a flat index is
    counted in the output's own rows. Where windows meet in an element, the last one in raster order
    stays. The op is deterministic on every device, in both directions.

    Args:
        values: (N, C, h, w) or (C, h, w); float32, float64, float16 or bfloat16.
        indices: uint8 codes or int64 flat indices, of the shape of values.
        kernel_size: the pooling's window, one integer or (height, width).
        stride: the pooling's stride, one integer or (height, width); None is the kernel's size.
        padding: the pooling's padding, one integer or (height, width).
        output_size: (H, W), or the whole shape with H and W last. Each must differ by less than a
            stride from the default ``(h - 1) * stride - 2 * padding + kernel_size``.

    Returns:
        (N, C, H, W), the dtype of values, in the layout of indices. Under autocast it is float32
        where that of torch's unpooling is, which is so on the CPU.

    Raises:
        TypeError: values or indices is no tensor, or a window's argument no integers.
        ValueError: an output_size of wrong length or, in eager mode, out of range.
        RuntimeError: wrong shapes, dtypes or windows; a code or an index that does not lie in its
            window or the plane (on a GPU a device-side assert that names the op).
    """
    for t in (values, indices):
        if type(t) is not Tensor or t.layout is not STRIDED:
            check_tensors("fastseg::max_unpool2d", values=values, indices=indices)
            break
    op = "fastseg::max_unpool2d"
    kernel, padding = pair(op, "kernel_size", kernel_size), pair(op, "padding", padding)
    stride = kernel if stride is None else pair(op, "stride", stride)
    size = _output_size(values.shape[-2:], kernel, stride, padding, output_size)
    if autocast_dtype(values) is not None and unpools_in_float32(values.device.type):
        (values,) = cast(torch.float32, values)
    return call(_max_unpool2d, (values, indices), size, kernel, stride, padding)


def _output_size(
    pooled: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_size: Sequence[int] | None,
) -> list[int]:
    """Returns the plane's (H, W), by torch's rules."""
    default = [
        (n - 1) * s - 2 * p + k
        for n, k, s, p in zip(pooled, kernel_size, stride, padding, strict=False)
    ]
    if output_size is None:
        return default
    if not hasattr(output_size, "__len__") or len(output_size) not in (2, 4):
        raise ValueError(
            "max_unpool2d: output_size must be (H, W) or the whole shape with H and W last, "
            f"got {output_size}"
        )
    size = list(output_size[-2:])
    if torch.compiler.is_compiling():  # an exporter cannot prove ranges of dynamic sizes
        return size
    for n, d, s in zip(size, default, stride, strict=False):
        if not d - s < n < d + s:
            raise ValueError(
                f"max_unpool2d: output_size must be within less than a stride {tuple(stride)} of "
                f"{tuple(default)}, got {tuple(size)}"
            )
    return size


def _fake(values, indices, output_size, kernel_size, stride=(), padding=0):
    _check(values, indices, kernel_size, stride, padding)
    return empty_plane(values, output_size, memory_format(indices))


def _check(values, indices, kernel_size, stride, padding):
    op = "fastseg::max_unpool2d"
    pool2d(op, kernel_size, stride, padding)
    check_image(op, "values", values, may_lack_channels=True)
    check_float(op, "values", values)
    check_dense(op, "indices", indices)
    torch._check(
        indices.dtype in (torch.uint8, torch.int64),
        lambda: f"{op}: indices must be uint8 codes or int64 flat indices, got {indices.dtype}",
    )
    torch._check(
        indices.shape == values.shape,
        lambda: (
            f"{op}: indices must have shape {tuple(values.shape)} of values, got"
            f" {tuple(indices.shape)}"
        ),
    )
    check_device(op, "indices", indices, "values", values)


def _standard(values, indices, output_size, kernel_size, stride=(), padding=0):
    """Computes the op by a scatter, which ONNX has."""
    if indices.dtype == torch.uint8:
        indices = reference.codes_to_indices(
            indices, output_size, kernel_size, stride or None, padding
        )
    return _reference(values, indices, output_size, kernel_size, stride, padding)


def _reference(values, indices, output_size, kernel_size, stride=(), padding=0):
    _check(values, indices, kernel_size, stride, padding)
    return reference.max_unpool2d(values, indices, output_size, kernel_size, stride, padding)


def _setup_context(ctx, inputs, output):
    values, indices, _, kernel_size, stride, padding = inputs
    ctx.pool = windows("fastseg::max_unpool2d", kernel_size, stride, padding)
    ctx.pooled_size, ctx.packed_dim = values.shape[-2:], 0
    if indices.dtype == torch.uint8:
        indices, ctx.packed_dim = codes_to_save(indices, ctx.pool)
    ctx.save_for_backward(indices)


def _backward(ctx, grad):
    (indices,) = ctx.saved_tensors
    op, tensors = ops.max_unpool2d_backward.default, (grad, indices)
    return call(op, tensors, ctx.pooled_size, *ctx.pool, ctx.packed_dim), None


define(
    "max_unpool2d(Tensor values, Tensor indices, SymInt[2] output_size, int[2] kernel_size,"
    " int[2] stride=[], int[2] padding=0) -> Tensor",
    reference=_reference,
    standard=_standard,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=by_planes(2),
)
_max_unpool2d = ops.max_unpool2d.default


def _fake_backward(
    grad, indices, pooled_size, kernel_size, stride, padding, dilation, packed_dim=0
):
    return empty_plane(grad, pooled_size, codes_layout(indices, packed_dim))


def _setup_context_backward(ctx, inputs, output):
    grad, indices, _, *pool, ctx.packed_dim = inputs
    ctx.pool, ctx.size = pool, grad.shape[-2:]
    ctx.save_for_backward(indices)


def _backward_backward(ctx, grad):
    """Returns the gradient of the plane; an element gets those of all windows that picked it."""
    (indices,) = ctx.saved_tensors
    if indices.dtype == torch.uint8:
        out = ops.max_pool2d_backward(grad, indices, ctx.size, *ctx.pool, ctx.packed_dim)
    else:
        plane = grad.new_zeros((*grad.shape[:-2], ctx.size[0] * ctx.size[1]))
        out = plane.scatter_add(-1, indices.flatten(-2), grad.flatten(-2))
        out = out.unflatten(-1, ctx.size)
    return out, None


define(
    "max_unpool2d_backward(Tensor grad, Tensor indices, SymInt[2] pooled_size, int[2] kernel_size,"
    " int[2] stride, int[2] padding, int[2] dilation, int packed_dim=0) -> Tensor",
    reference=reference.max_unpool2d_backward,
    fake=_fake_backward,
    setup_context=_setup_context_backward,
    backward=_backward_backward,
    vmap=by_planes(2),
)
