"""The op fastseg.atrous_conv2d: convolution, folded batch norm, residual and activation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from fastseg._core import extension, prepared_calls
from fastseg import reference
from fastseg._core.autocast import autocast_dtype, cast
from fastseg._core.conv2d import Conv2d, empty_output, in_layout_of, is_bare, resolve_padding
from fastseg._core.conv2d_checks import (
    check_conv2d,
    check_epilogue,
    check_image_and_weight,
    check_output_size,
    check_residual,
)
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.formulas import ACTIVATION
from fastseg._core.library import (
    CPU_PLANS,
    DERIVATIVES,
    call,
    define,
    define_cpu,
    define_triton,
    keep_plan,
)
from fastseg._core.plain_tensors import (
    are_plain_on_cpu,
    needs_gradient,
    outside_modes,
    takes_no_gradient,
)
from fastseg._core.remember import remember
from fastseg._core.tensor_checks import FLOATS, check_optional_tensors, check_tensors
from fastseg._core.vmap import by_batch
from fastseg._core.window import Ints, pair
from fastseg.ops.conv.atrous_conv2d_backward import RECOMPUTED, backward, setup_context
from fastseg.ops.conv.cpu_plan import plan as plan_on_cpu

ops = torch.ops.fastseg
OP = "fastseg::atrous_conv2d"


def atrous_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Ints = 1,
    padding: Ints | str = "same",
    dilation: Ints = 1,
    groups: int = 1,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Computes ``act((conv2d(x, weight) + bias) * scale + shift + residual)`` in one op.

    This is atrous convolution (Chen et al. 2015, arXiv 1412.7062) and what follows it in every
    segmentation network: batch norm in inference (:func:`fastseg.fold_batch_norm` gives scale and
    shift), a residual and an activation. Taps in the padding are not multiplied: at rate 18 on a
    33 x 33 map they are 60 % of a 3x3 kernel's. The op is differentiable in all tensors and
    deterministic. It computes in float32 (float64 for float64) and rounds to x's dtype once, or
    twice where a processor has instructions for bfloat16 and torch's convolution of it is the
    fastest. A NaN reaches the outputs that read it; an infinity may reach them as NaN.

    On the CPU, 3x3 kernels use Winograd's algorithm with float32's accuracy. F(4, 3), with errors
    of about 2e-5, is admitted by ``torch.set_float32_matmul_precision("high")`` or by "tf32" as the
    fp32_precision of torch.backends, whichever is set for oneDNN's convolutions.

    Under autocast x and the weight are cast as for torch's convolution. A residual of another dtype
    is added to the rounded sums in the wider dtype of both, as torch adds it.

    Args:
        x: (N, Ci, H, W) or (Ci, H, W), any strides; float32, float64, float16 or bfloat16.
        weight: (Co, Ci / groups, kh, kw), kh and kw odd, x's dtype.
        bias: (Co,), of a floating-point dtype.
        stride: one integer or (vertical, horizontal).
        padding: zeros on both sides, one integer or (vertical, horizontal), at most
            ``dilation * (kernel - 1)``; "same" keeps the size at stride 1; "valid" is none.
        dilation: the rate, which is the distance between the kernel's taps: one integer or
            (vertical, horizontal).
        groups: 1, Ci for a depthwise convolution, or any other divisor of Ci and Co.
        scale: (Co,), of a floating-point dtype.
        shift: (Co,), of a floating-point dtype.
        activation: None, "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
        residual: a tensor of the output's shape and x's dtype.

    Returns:
        (N, Co, h, w), x's dtype, channels_last if x is, else contiguous.

    Raises:
        TypeError: an argument that is no tensor.
        RuntimeError: an argument that does not fit; the error names it.
        NotImplementedError: an argument with a tangent of forward-mode AD.
    """
    tensors = (x, weight, bias, scale, shift, residual)
    activation = activation or ""
    options = (stride, padding, dilation, groups, activation)
    plain = outside_modes()
    if plain and are_plain_on_cpu(tensors):
        plan = cpu_plan(tensors, stride, padding, dilation, groups, activation)
        if plan is not None:
            if not needs_gradient(tensors):
                return plan.run(*tensors)
            if activation not in RECOMPUTED:
                arguments = (*tensors, *plan.conv, activation)
                run = functools.partial(plan.run, *tensors)
                return DERIVATIVES[_atrous_conv2d](arguments, run)
    elif plain and prepared_calls.CALLS and not needs_gradient(tensors):
        out = prepared_calls.run("atrous_conv2d", tensors, options)
        if out is not None:
            return out
    check_tensors(OP, x=x, weight=weight)
    check_optional_tensors(OP, bias=bias, scale=scale, shift=shift, residual=residual)
    if x.dim() == 3:
        if residual is not None and residual.dim() != 3:
            refuse_residual_of_image(OP, residual)
        out = atrous_conv2d(
            x[None],
            weight,
            bias,
            stride=stride,
            padding=padding,
            dilation=dilation,
            groups=groups,
            scale=scale,
            shift=shift,
            activation=activation,
            residual=None if residual is None else residual[None],
        )
        return out[0]
    lower = autocast_dtype(x)
    if lower is not None:
        x, weight = cast(lower, x, weight)
        if residual is not None and residual.dtype in FLOATS and residual.dtype != x.dtype:
            # torch adds the residual to the rounded sums, in the wider dtype.
            y = atrous_conv2d(
                x,
                weight,
                bias,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=groups,
                scale=scale,
                shift=shift,
            )
            if residual.shape != y.shape:  # torch.compile cannot trace the check
                check_residual(OP, residual, y.shape, x)
            return ACTIVATION[activation](y + residual)
        tensors = (x, weight, bias, scale, shift, residual)
    kernel_size = weight.shape[2:] if weight.dim() == 4 else (1, 1)  # the op refuses other weights
    padding = resolve_padding(OP, padding, kernel_size, dilation)
    geometry = (pair(OP, "stride", stride), padding, pair(OP, "dilation", dilation), groups)
    if activation in RECOMPUTED and not takes_no_gradient(tensors):
        # Their derivatives need their input: it is kept here, so that it is computed only once.
        return ACTIVATION[activation](call(_atrous_conv2d, tensors, *geometry, ""))
    out = call(_atrous_conv2d, tensors, *geometry, activation)
    if plain and prepared_calls.CALLS:
        same = (*geometry, activation)
        prepared_calls.keep_as_well("atrous_conv2d", tensors, options, same)
    return out


def refuse_residual_of_image(op: str, residual: Tensor) -> NoReturn:
    """Raises the error of a residual with a batch for an x without."""
    shape = tuple(residual.shape)
    raise RuntimeError(f"{op}: residual must have three dimensions, as x has, got shape {shape}")


def _check(x, weight, bias, scale, shift, residual, stride, padding, dilation, groups, act):
    """Checks the op's arguments; returns the geometry and the output's (h, w)."""
    check_image_and_weight(OP, x, weight, groups)
    conv = check_conv2d(OP, weight.shape[2:], stride, padding, dilation, groups)
    size = check_output_size(OP, "x", x.shape[2:], weight.shape[2:], conv)
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    check_epilogue(OP, x, (x.shape[0], weight.shape[0], *size), vectors, residual, act)
    return conv, size


_check_once = remember(_check)


def _fake(x, weight, *others):
    _, size = _check(x, weight, *others)
    return empty_output(x, weight.shape[0], size)


def _reference(*arguments):
    conv, _ = _check(*arguments)
    *tensors, _, _, _, _, activation = arguments
    out = reference.atrous_conv2d(*tensors, *conv, activation)
    return in_layout_of(arguments[0], out)


class CPUPlan(NamedTuple):
    """A plan of a call on the CPU: the function of its tensors, and its geometry."""

    run: Callable[..., Tensor]
    conv: Conv2d


def cpu_plan(tensors, stride, padding, dilation, groups, activation) -> CPUPlan | None:
    """Returns the plan of a call with these tensors, all that the op takes; plans are cached.

    It is None where the op itself must decide: x is no image, nothing is compiled, or an argument
    is missing or has no hash. Checks and the choice read nothing but what is in the cache's key.
    """
    x, weight, bias, scale, shift, residual = tensors
    try:
        key = (
            x.shape,
            x.dtype,
            weight.shape,
            weight.dtype,
            bias if bias is None else (bias.shape, bias.dtype),
            scale if scale is None else (scale.shape, scale.dtype),
            shift if shift is None else (shift.shape, shift.dtype),
            residual if residual is None else (residual.shape, residual.dtype),
            stride,
            padding,
            dilation,
            groups,
            activation,
            reduced_on_cpu(),
        )
        plan = CPU_PLANS.get(key)
    except (AttributeError, TypeError):
        return None
    if plan is None and x.dim() == weight.dim() == 4:
        if extension.CPU_MISSING:
            return None
        padding = resolve_padding(OP, padding, weight.shape[2:], dilation)
        conv, _ = _check(*tensors, stride, padding, dilation, groups, activation)
        bare = is_bare(bias, scale, shift, residual, activation)
        plan = CPUPlan(plan_on_cpu(x, weight, conv, activation, bare), conv)
        keep_plan(key, plan)
    return plan


def _cpu(*arguments):
    *tensors, stride, padding, dilation, groups, activation = arguments
    geometry = tuple(stride), tuple(padding), tuple(dilation), groups
    plan = cpu_plan(tensors, *geometry, activation)
    if plan is None:  # the checks raise the error
        _check(*arguments)
    return plan.run(*tensors)


def _triton(*arguments):
    *tensors, stride, padding, dilation, groups, activation = arguments
    options = (tuple(stride), tuple(padding), tuple(dilation), groups, activation)
    out = prepared_calls.run("atrous_conv2d", tensors, options)
    if out is not None:
        return out
    from fastseg.kernels.conv import atrous_conv2d as kernels

    conv, _ = _check_once(*arguments)
    return kernels.atrous_conv2d(*tensors, *conv, activation)


define(
    "atrous_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift,"
    " Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, int groups,"
    " str activation) -> Tensor",
    reference=_reference,
    standard=_reference,
    fake=_fake,
    setup_context=setup_context,
    backward=backward,
    vmap=by_batch(0, 5),
)
define_cpu("atrous_conv2d", _cpu)
define_triton("atrous_conv2d", _triton)
_atrous_conv2d = ops.atrous_conv2d.default
