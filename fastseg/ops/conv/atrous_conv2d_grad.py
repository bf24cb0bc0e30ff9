"""The gradients of atrous convolution, each an op that is differentiable itself.

With the convolution they are three bilinear maps of x, the weight and the output's gradient, each
the adjoint of the others: the gradients of one are the other two.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core import prepared_calls
from fastseg import reference
from fastseg._core.conv2d import empty_output, empty_weight, in_layout_of
from fastseg._core.conv2d_checks import check_conv2d
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.library import (
    CPU_PLANS,
    ON_CPU,
    call,
    define,
    define_cpu,
    define_triton,
    keep_plan,
)
from fastseg._core.plain_tensors import needs_gradient, plain_on_cpu
from fastseg._core.tensor_checks import check_alike, check_float
from fastseg._core.vmap import by_batch
from fastseg.ops.conv import cpu_grad

ops = torch.ops.fastseg


def _convolution(x: Tensor, weight: Tensor, geometry: Sequence) -> Tensor:
    tensors = (x, weight, None, None, None, None)
    return call(ops.atrous_conv2d.default, tensors, *geometry, "")


def input_grad(
    grad: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    geometry: Sequence,
    temporary: bool = False,
) -> Tensor:
    """Calls fastseg::atrous_conv2d_input_grad.

    Args:
        grad: the gradient of the output, (N, Co, h, w).
        weight: (Co, Ci / groups, kh, kw).
        input_size: (H, W) of x.
        geometry: the stride, padding, dilation and groups of the convolution.
        temporary: whether the weight is dropped afterwards, so that what is prepared of it on the
            CPU need not be kept.
    """
    op, tensors = ops.atrous_conv2d_input_grad.default, (grad, weight)
    if (
        temporary
        and ON_CPU[op] is _cpu_input_grad
        and plain_on_cpu(tensors)
        and not needs_gradient(tensors)
    ):
        return _cpu_input_grad(*tensors, input_size, *geometry, keeps_weight=False)
    return call(op, tensors, input_size, *geometry)


def weight_grad(x: Tensor, grad: Tensor, kernel_size: Sequence[int], geometry: Sequence) -> Tensor:
    """Calls fastseg::atrous_conv2d_weight_grad.

    Args:
        x: the input, (N, Ci, H, W).
        grad: the gradient of the output, (N, Co, h, w).
        kernel_size: (kh, kw) of the weight.
        geometry: the stride, padding, dilation and groups of the convolution.
    """
    return call(ops.atrous_conv2d_weight_grad.default, (x, grad), kernel_size, *geometry)


def _check_dimensions(op, **tensors):
    for name, t in tensors.items():
        torch._check(
            t.dim() == 4, lambda n=name, t=t: f"{op}: {n} must be 4-D, got {tuple(t.shape)}"
        )


def _check_sizes(op, input_size, kernel_size, conv, grad):
    expected = conv.output_size(input_size, kernel_size)
    torch._check(
        all(a == b for a, b in zip(grad.shape[2:], expected, strict=True)),
        lambda: (
            f"{op}: grad must be of {tuple(expected)} pixels for an input of {tuple(input_size)},"
            f" got {tuple(grad.shape[2:])}"
        ),
    )


def _setup_context(ctx, inputs, output):
    first, second, _, *ctx.geometry = inputs
    ctx.save_for_backward(first, second)


def _check_input_grad(grad, weight, input_size, stride, padding, dilation, groups):
    op = "fastseg::atrous_conv2d_input_grad"
    _check_dimensions(op, grad=grad, weight=weight)
    check_float(op, "grad", grad)
    check_alike(op, "weight", weight, "grad", grad)
    channels = weight.shape[0]
    torch._check(
        grad.shape[1] == channels,
        lambda: f"{op}: grad must have weight's {channels} output channels, got {grad.shape[1]}",
    )
    conv = check_conv2d(op, weight.shape[2:], stride, padding, dilation, groups)
    torch._check(
        channels % groups == 0,
        lambda: f"{op}: groups must divide weight's {channels} output channels, got {groups}",
    )
    _check_sizes(op, input_size, weight.shape[2:], conv, grad)
    return conv


def _fake_input_grad(grad, weight, input_size, *geometry):
    conv = _check_input_grad(grad, weight, input_size, *geometry)
    return empty_output(grad, weight.shape[1] * conv.groups, input_size)


def _reference_input_grad(grad, weight, input_size, *geometry):
    conv = _check_input_grad(grad, weight, input_size, *geometry)
    return in_layout_of(grad, reference.atrous_conv2d_input_grad(grad, weight, input_size, *conv))


def _cpu_input_grad(grad, weight, input_size, stride, padding, dilation, groups, keeps_weight=True):
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    looks = (grad.shape, grad.dtype, weight.shape, weight.dtype)
    key = ("input_grad", *looks, *input_size, geometry, reduced_on_cpu())
    run = CPU_PLANS.get(key)
    if run is None:
        conv = _check_input_grad(grad, weight, input_size, *geometry)
        run = cpu_grad.plan_input_grad(grad, weight, tuple(input_size), conv)
        keep_plan(key, run)
    return run(grad, weight, keeps_weight)


def _triton_input_grad(grad, weight, input_size, *geometry):
    *pairs, groups = geometry
    options = (tuple(input_size), *map(tuple, pairs), groups)
    out = prepared_calls.run("atrous_conv2d_input_grad", (grad, weight), options)
    if out is not None:
        return out
    from fastseg.kernels.conv import atrous_conv2d as kernels

    conv = _check_input_grad(grad, weight, input_size, *geometry)
    return kernels.atrous_conv2d_input_grad(grad, weight, input_size, *conv)


def _backward_input_grad(ctx, grad_x):
    grad, weight = ctx.saved_tensors
    needs_grad, needs_weight = ctx.needs_input_grad[:2]
    return (
        _convolution(grad_x, weight, ctx.geometry) if needs_grad else None,
        weight_grad(grad_x, grad, weight.shape[2:], ctx.geometry) if needs_weight else None,
    )


define(
    "atrous_conv2d_input_grad(Tensor grad, Tensor weight, SymInt[2] input_size, int[2] stride,"
    " int[2] padding, int[2] dilation, int groups) -> Tensor",
    reference=_reference_input_grad,
    fake=_fake_input_grad,
    setup_context=_setup_context,
    backward=_backward_input_grad,
    vmap=by_batch(0),
)
define_cpu("atrous_conv2d_input_grad", _cpu_input_grad)
define_triton("atrous_conv2d_input_grad", _triton_input_grad)


def _check_weight_grad(x, grad, kernel_size, stride, padding, dilation, groups):
    op = "fastseg::atrous_conv2d_weight_grad"
    _check_dimensions(op, x=x, grad=grad)
    check_float(op, "x", x)
    check_alike(op, "grad", grad, "x", x)
    torch._check(
        x.shape[0] == grad.shape[0],
        lambda: f"{op}: grad must have x's batch size {x.shape[0]}, got {grad.shape[0]}",
    )
    conv = check_conv2d(op, kernel_size, stride, padding, dilation, groups)
    for name, t in (("x", x), ("grad", grad)):
        torch._check(
            t.shape[1] % groups == 0,
            lambda n=name, t=t: (
                f"{op}: groups must divide {n}'s {t.shape[1]} channels, got {groups}"
            ),
        )
    _check_sizes(op, x.shape[2:], kernel_size, conv, grad)
    return conv


def _fake_weight_grad(x, grad, kernel_size, *geometry):
    conv = _check_weight_grad(x, grad, kernel_size, *geometry)
    return empty_weight(x, grad, kernel_size, conv.groups)


def _reference_weight_grad(x, grad, kernel_size, *geometry):
    conv = _check_weight_grad(x, grad, kernel_size, *geometry)
    return in_layout_of(x, reference.atrous_conv2d_weight_grad(x, grad, kernel_size, *conv))


def _cpu_weight_grad(x, grad, kernel_size, stride, padding, dilation, groups):
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    key = ("weight_grad", x.shape, x.dtype, grad.shape, grad.dtype, *kernel_size, geometry)
    run = CPU_PLANS.get(key)
    if run is None:
        conv = _check_weight_grad(x, grad, kernel_size, *geometry)
        run = cpu_grad.plan_weight_grad(x, grad, tuple(kernel_size), conv)
        keep_plan(key, run)
    return run(x, grad)


def _triton_weight_grad(x, grad, kernel_size, *geometry):
    from fastseg.kernels.conv import weight_grad as kernels

    conv = _check_weight_grad(x, grad, kernel_size, *geometry)
    return kernels.atrous_conv2d_weight_grad(x, grad, kernel_size, *conv)


def _backward_weight_grad(ctx, grad_weight):
    x, grad = ctx.saved_tensors
    needs_x, needs_grad = ctx.needs_input_grad[:2]
    return (
        input_grad(grad, grad_weight, x.shape[2:], ctx.geometry) if needs_x else None,
        _convolution(x, grad_weight, ctx.geometry) if needs_grad else None,
    )


define(
    "atrous_conv2d_weight_grad(Tensor x, Tensor grad, int[2] kernel_size, int[2] stride,"
    " int[2] padding, int[2] dilation, int groups) -> Tensor",
    reference=_reference_weight_grad,
    fake=_fake_weight_grad,
    setup_context=_setup_context,
    backward=_backward_weight_grad,
)
define_cpu("atrous_conv2d_weight_grad", _cpu_weight_grad)
define_triton("atrous_conv2d_weight_grad", _triton_weight_grad)
