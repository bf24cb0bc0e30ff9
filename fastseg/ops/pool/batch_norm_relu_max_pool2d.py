"""The op fastseg.batch_norm_relu_max_pool2d, and the folding of a batch norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg import reference
from fastseg._core.formulas import compute_dtype
from fastseg._core.library import call, define
from fastseg._core.pool2d import pool2d, windows
from fastseg._core.tensor_checks import FLOATS, STRIDED, check_device, check_float, check_tensors
from fastseg._core.vmap import by_planes, in_front
from fastseg._core.window import Ints
from fastseg.ops.pool.max_pool2d import (
    codes_to_save,
    fake_pooled,
    gradient_of_pooled,
    plane_of_codes,
)
from fastseg.reference.pool.batch_norm_relu_max_pool2d import batch_norm_relu

ops = torch.ops.fastseg
OP = "fastseg::batch_norm_relu_max_pool2d"


def batch_norm_relu_max_pool2d(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes ``max_pool2d(relu(x * scale + shift))`` in one pass over x.

    With :func:`fastseg.fold_batch_norm` this is batch norm in inference, ReLU and max-pooling, the
    end of every encoder stage of SegNet, U-Net and VGG16-BN. It computes in float32 (float64 for a
    float64 x) and rounds to x's dtype before the comparison, so that the codes are those of the
    three ops in a row. The op is differentiable in x, scale and shift.

    Args:
        x: (N, C, H, W) or (C, H, W), any strides; float32, float64, float16 or bfloat16.
        scale: (C,), of a floating-point dtype.
        shift: (C,), of a floating-point dtype.
        kernel_size: one integer or (height, width), at most 256 positions.
        stride: one integer or (height, width); None is the kernel's size.
        padding: one integer or (height, width), at most half of the dilated kernel, where torch
            allows half of the kernel.
        dilation: the distance between the taps of a window, one integer or (height, width).
        ceil_mode: whether the number of windows is rounded up instead of down.

    Returns:
        values: (N, C, h, w), x's dtype, channels_last if x is, else contiguous.
        codes: uint8 of the same shape and layout; see :func:`fastseg.max_pool2d`.

    Raises:
        TypeError: x, scale or shift is no tensor.
        RuntimeError: an argument that torch's pooling refuses, a window of more than 256 positions,
            or a scale or shift of another shape than (C,).
    """
    tensors = (x, scale, shift)
    for t in tensors:
        if type(t) is not Tensor or t.layout is not STRIDED:
            check_tensors(OP, x=x, scale=scale, shift=shift)
            break
    arguments = (() if stride is None else stride, padding, dilation, ceil_mode)
    return call(_batch_norm_relu_max_pool2d, tensors, kernel_size, *arguments)


def fold_batch_norm(
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Returns the scale and shift by which batch norm in inference is ``x * scale + shift``.

    Ioffe and Szegedy, "Batch Normalization", 2015, section 3.1:
    ``scale = weight / sqrt(running_var + eps)``, ``shift = bias - running_mean * scale``.

    Args:
        weight: (C,), or None for ones.
        bias: (C,), or None for zeros.
        running_mean: (C,).
        running_var: (C,).
        eps: number added to the variance.

    Returns:
        scale and shift, (C,) each, float32 (float64 for float64 tensors): for 16-bit ones, too, of
        which the square root of a small variance and a mean beside it would have few digits.

    Raises:
        TypeError: an argument that is no tensor.
        RuntimeError: a tensor of another shape or on another device than running_var, or of no
            floating-point dtype.
    """
    _check_batch_norm(weight, bias, running_mean, running_var)
    scale = torch.rsqrt(running_var.to(compute_dtype(running_var.dtype)) + eps)
    if weight is not None:
        scale = scale * weight
    shift = -running_mean * scale
    return scale, shift if bias is None else shift + bias


def _check_batch_norm(weight, bias, running_mean, running_var):
    op = "fastseg::fold_batch_norm"
    for name, t in (
        ("running_var", running_var),
        ("running_mean", running_mean),
        ("weight", weight),
        ("bias", bias),
    ):
        if t is None and name in ("weight", "bias"):
            continue
        if not isinstance(t, Tensor) or t.layout is not STRIDED:
            check_tensors(op, **{name: t})
        # This runs before every fused pooling, so that torch._check would take too long.
        if t.dtype not in FLOATS:
            check_float(op, name, t)
        if t.dim() != 1 or t.shape != running_var.shape:
            like = "" if t is running_var else f", running_var's {tuple(running_var.shape)}"
            raise RuntimeError(f"{op}: {name} must have the shape (C,){like}, got {tuple(t.shape)}")
        if t.device != running_var.device:
            check_device(op, name, t, "running_var", running_var)


def _fake(x, scale, shift, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
    outputs = fake_pooled(OP, x, pool2d(OP, kernel_size, stride, padding, dilation), ceil_mode)
    for name, t in (("scale", scale), ("shift", shift)):
        check_float(OP, name, t)
        torch._check(
            t.dim() == 1 and t.shape[0] == x.shape[-3],
            lambda n=name, t=t: (
                f"{OP}: {n} must be (C,) = ({x.shape[-3]},) as x has channels, got shape"
                f" {tuple(t.shape)}"
            ),
        )
        check_device(OP, name, t, "x", x)
    return outputs


def _standard(x, scale, shift, *window):
    """Computes the op by torch's pooling, which ONNX has."""
    y = batch_norm_relu(x, scale, shift)
    return call(ops.max_pool2d.default, (y,), *window)


def _reference(x, scale, shift, *window):
    _fake(x, scale, shift, *window)
    return reference.batch_norm_relu_max_pool2d(x, scale, shift, *window)


def _setup_context(ctx, inputs, output):
    x, scale, shift, kernel_size, stride, padding, dilation, _ = inputs
    values, codes = output
    ctx.pool = windows(OP, kernel_size, stride, padding, dilation)
    codes, ctx.packed_dim = codes_to_save(codes, ctx.pool)
    ctx.shift_dtype = shift.dtype
    # Whoever has the values may write to them, as to those of torch's pooling.
    ctx.save_for_backward(x, scale, values > 0, codes)


def _backward(ctx, grad_values, grad_codes):
    """Returns the gradients of x, scale and shift.

    Let y = x[code] * scale + shift, so that values = relu(y), and grad = grad_values where y > 0,
    which `passes` says. Then dx = grad * scale at the code's position, dscale = sum grad * x[code]
    and dshift = sum grad.
    """
    x, scale, passes, codes = ctx.saved_tensors
    wide = compute_dtype(x.dtype)
    grad = torch.where(passes, grad_values, 0).to(wide)
    per_channel = scale.to(wide).view(-1, 1, 1)
    but_channels = [d for d in range(x.dim()) if d != x.dim() - 3]
    grad_x = grad_scale = grad_shift = None
    if ctx.needs_input_grad[0]:
        windows = (grad * per_channel).to(x.dtype)
        grad_x = gradient_of_pooled(windows, codes, x.shape[-2:], ctx.pool, ctx.packed_dim)
    if ctx.needs_input_grad[1]:
        size = x.shape[-2:]
        if (plane := plane_of_codes(size, ctx.pool)) is not size:
            x = F.pad(x, (0, plane[1] - size[1], 0, plane[0] - size[0]))
        picked = ops.max_unpool2d_backward(x, codes, passes.shape[-2:], *ctx.pool, ctx.packed_dim)
        grad_scale = (grad * picked).sum(but_channels).to(scale.dtype)
    if ctx.needs_input_grad[2]:
        grad_shift = grad.sum(but_channels).to(ctx.shift_dtype)
    return grad_x, grad_scale, grad_shift


def _vmap(op, info, in_dims, x, scale, shift, *args):
    if in_dims[1] is None and in_dims[2] is None:
        return by_planes(1)(op, info, in_dims, x, scale, shift, *args)
    # Each element of the batch has its own scale: vmap's dimension becomes part of C.
    x, scale, shift = (
        in_front(info.batch_size, d, t) for t, d in zip((x, scale, shift), in_dims, strict=False)
    )
    channels = x.shape[-3]
    x = x.movedim(0, -4).flatten(-4, -3)
    outputs = op(x, scale.flatten(), shift.flatten(), *args)
    return tuple(t.unflatten(-3, (-1, channels)).movedim(-4, 0) for t in outputs), (0, 0)


define(
    "batch_norm_relu_max_pool2d(Tensor x, Tensor scale, Tensor shift, int[2] kernel_size,"
    " int[2] stride=[], int[2] padding=0, int[2] dilation=1, bool ceil_mode=False)"
    " -> (Tensor values, Tensor codes)",
    reference=_reference,
    standard=_standard,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
_batch_norm_relu_max_pool2d = ops.batch_norm_relu_max_pool2d.default
