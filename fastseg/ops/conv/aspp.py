"""The op fastseg.aspp: atrous spatial pyramid pooling without the concatenation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._C import _get_tracing_state
from torch.compiler import is_dynamo_compiling

from fastseg._core import prepared_calls
from fastseg._core.autocast import autocast_dtype, cast
from fastseg._core.conv2d import empty_output
from fastseg._core.conv2d_checks import check_conv2d, check_epilogue, check_image_and_weight
from fastseg._core.library import (
    TRITON_NAMES,
    define,
    define_cpu,
    define_triton,
    dispatch,
    on_device_of_first,
)
from fastseg._core.plain_tensors import gradient_free
from fastseg._core.remember import remember
from fastseg._core.tensor_checks import check_alike, check_float
from fastseg._core.vmap import by_batch
from fastseg.ops.conv import cpu_aspp
from fastseg.ops.conv.aspp_branch import ASPPBranch, check_aspp, preparable
from fastseg.ops.conv.aspp_projection import (
    image_pooling,
    pooled_share,
    project_maps,
    project_pooled,
    split_project,
)
from fastseg.ops.conv.atrous_conv2d import atrous_conv2d
from fastseg.ops.conv.separable_atrous_conv2d import separable_atrous_conv2d

OP = "fastseg::aspp"


def aspp(
    x: Tensor,
    branches: Sequence[ASPPBranch],
    project: ASPPBranch | None = None,
    *,
    pool: ASPPBranch | None = None,
    pool_first: bool = False,
    activation: str | None = "relu",
) -> Tensor:
    """Computes atrous convolutions at several rates, projected (v3, v3+) or summed (v2).

    Chen et al., "Rethinking Atrous Convolution", 2017, section 3.3, in inference::

        b_i = act(conv2d(x, W_i, dilation_i) * scale_i + shift_i)
        p = act(conv2d(mean(x), W_pool) * scale_pool + shift_pool), the same at all pixels
        y = act(conv2d(concat(b_1, ..., b_n, p), W_project) * scale_project + shift_project)

    Nothing is concatenated: the projection is linear, so that each branch adds its share to a sum,
    and p is one vector per image. Partial sums are rounded to x's dtype, except in the fused kernel
    that computes all branches at once (on NVIDIA GPUs, where no gradient is needed, no branch is
    separable and the projection is 1x1). Without a projection the result is that of DeepLab v2
    (Chen et al. 2018, section 3.2): ``y = sum_i conv2d(x, W_i, dilation_i) * scale_i + shift_i``.
    The op is differentiable in all tensors.

    Args:
        x: (N, Ci, H, W) or (Ci, H, W), any strides; float32, float64, float16 or bfloat16.
        branches: the convolutions, at least one. Their padding keeps the map's size.
        project: the projection, with a weight (Co, sum of the branches' and pool's channels, kh,
            kw), in this order; its padding keeps the size. None for the sum.
        pool: the convolution after the average over each map, with a weight (C, Ci, 1, 1); it needs
            a projection. None for no such branch.
        pool_first: whether the pool's channels are the first in project's weight, which is so in
            mmsegmentation, or the last.
        activation: the activation after branches, pool and project: None, "relu", "relu6",
            "leaky_relu", "silu" or "hardswish". It must be None for the sum.

    Returns:
        (N, Co, H, W), x's dtype, channels_last if x is, else contiguous.

    Raises:
        TypeError: an argument that is no tensor or no ASPPBranch.
        RuntimeError: an argument that does not fit; the error names it.
    """
    found = None
    if not is_dynamo_compiling():
        found = preparable(x, branches, project, pool, pool_first, activation)
        out = found and prepared_calls.run("aspp", *found)
        if out is not None:
            return out
        check_aspp(x, branches, project, pool, activation)
    if x.dim() == 3:
        options = {"pool": pool, "pool_first": pool_first, "activation": activation}
        return aspp(x[None], branches, project, **options)[0]
    # TorchScript, which torch.jit.trace writes, has no lists of tensors some of which are None.
    traced = _get_tracing_state() is not None
    separable = any(b.depthwise_weight is not None for b in branches)
    if traced or separable or (project is not None and tuple(project.weight.shape[2:]) != (1, 1)):
        return _by_branch(x, branches, project, pool, pool_first, activation)
    weights = [b.weight for b in branches]
    triton = found and "aspp" in TRITON_NAMES and prepared_calls.are_on_gpu(found[0])
    if triton and pool is not None:
        out = _triton_with_pooling(
            x,
            weights,
            [b.scale for b in branches],
            [b.shift for b in branches],
            [b.dilation for b in branches],
            project[:3],
            pool[:3],
            pool_first,
            activation or "",
        )
        if out is not None:
            return out
    project_weight = bias = None
    if project is not None:
        project_weight = project.weight
        if pool is not None:
            project_weight, by_pool = split_project(project_weight, pool, pool_first)
            bias = atrous_conv2d(image_pooling(x, pool, activation), by_pool).flatten(1)
    lower = autocast_dtype(x)
    if lower is not None:
        x, project_weight, *weights = cast(lower, x, project_weight, *weights)
    return dispatch(
        torch.ops.fastseg.aspp.default,
        x,
        weights,
        [b.scale for b in branches],
        [b.shift for b in branches],
        [b.dilation for b in branches],
        project_weight,
        None if project is None else project.scale,
        None if project is None else project.shift,
        bias,
        activation or "",
    )


def _by_branch(x, branches, project, pool, pool_first, activation):
    """Computes separable branches and projections that are not 1x1, one after the other."""

    def convolve(branch: ASPPBranch, residual: Tensor | None = None) -> Tensor:
        options = {
            "scale": branch.scale,
            "shift": branch.shift,
            "activation": activation,
            "residual": residual,
            "dilation": branch.dilation,
        }
        if branch.depthwise_weight is None:
            return atrous_conv2d(x, branch.weight, **options)
        return separable_atrous_conv2d(
            x,
            branch.depthwise_weight,
            branch.weight,
            depthwise_scale=branch.depthwise_scale,
            depthwise_shift=branch.depthwise_shift,
            depthwise_activation=branch.depthwise_activation,
            **options,
        )

    if project is None:
        total = None
        for branch in branches:
            total = convolve(branch, total)
        return total
    residual, weight = None, project.weight
    if pool is not None:
        weight, by_pool = split_project(weight, pool, pool_first)
        pooled = image_pooling(x, pool, activation)
        residual = project_pooled(pooled, by_pool, project.scale, x.shape[2:])
    maps = map(convolve, branches)
    return project_maps(maps, weight, project.scale, project.shift, activation, residual)


def _check(x, weights, scales, shifts, dilations, project, project_scale, project_shift, bias, act):
    """Checks the op's arguments and returns the number of output channels."""
    lengths = [len(v) for v in (weights, scales, shifts, dilations)]
    torch._check(
        len(set(lengths)) == 1 and lengths[0] > 0,
        lambda: (
            f"{OP}: weights, scales, shifts and dilations must be as many, at least one each,"
            f" got {lengths}"
        ),
    )
    for i, (weight, scale, shift) in enumerate(zip(weights, scales, shifts, strict=True)):
        name = f"{OP}: branch {i}"
        check_image_and_weight(name, x, weight, 1)
        check_conv2d(name, weight.shape[2:], 1, 0, dilations[i], 1)
        shape = (x.shape[0], weight.shape[0], *x.shape[2:])
        check_epilogue(name, x, shape, {"scale": scale, "shift": shift}, None, act)
    channels = [w.shape[0] for w in weights]
    if project is None:
        torch._check(
            act == "" and all(c == channels[0] for c in channels),
            lambda: (
                f"{OP}: without a projection branches must have as many channels and no"
                f" activation, got {channels} and {act!r}"
            ),
        )
        return channels[0]
    check_alike(OP, "project_weight", project, "x", x)
    shape = tuple(project.shape)
    torch._check(
        len(shape) == 4 and shape[1:] == (sum(channels), 1, 1),
        lambda: (
            f"{OP}: project_weight must have the shape (Co, {sum(channels)}, 1, 1), got {shape}"
        ),
    )
    vectors = {"project_scale": project_scale, "project_shift": project_shift}
    check_epilogue(OP, x, (x.shape[0], shape[0], *x.shape[2:]), vectors, None, act)
    if bias is not None:
        check_float(OP, "pool_bias", bias)
        expected = (x.shape[0], shape[0])
        torch._check(
            tuple(bias.shape) == expected and bias.device == x.device,
            lambda: (
                f"{OP}: pool_bias must have the shape (N, Co) = {expected} on {x.device}, got"
                f" {tuple(bias.shape)} on {bias.device}"
            ),
        )
    return shape[0]


def _fake(x, *others):
    return empty_output(x, _check(x, *others), x.shape[2:])


def _composition(
    x, weights, scales, shifts, dilations, project, project_scale, project_shift, bias, activation
):
    """Computes the op by atrous_conv2d, as its reference and where a gradient is needed."""
    branches = [ASPPBranch(*b) for b in zip(weights, scales, shifts, dilations, strict=True)]
    if project is None:
        return _by_branch(x, branches, None, None, False, None)
    residual = pooled_share(x, bias, project_scale)
    maps = (
        atrous_conv2d(x, weight, scale=scale, shift=shift, dilation=dilation, activation=activation)
        for weight, scale, shift, dilation, *_ in branches
    )
    return project_maps(maps, project, project_scale, project_shift, activation, residual)


_check_once = remember(_check)


def _reference(x, *others):
    _check_once(x, *others)
    return _composition(x, *others)


def _cpu(x, *others):
    _check_once(x, *others)
    *branches, project, scale, shift, bias, activation = others
    residual = pooled_share(x, bias, scale)
    y = cpu_aspp.aspp(x, *branches, project, scale, shift, residual, activation)
    return _composition(x, *others) if y is None else y


def _triton(x, *others):
    weights, scales, shifts, dilations, *ending, activation = others
    options = (len(weights), tuple(dilations), activation)
    tensors = (x, *weights, *scales, *shifts, *ending)
    out = prepared_calls.run("aspp", tensors, options)
    if out is not None:
        return out
    from fastseg.kernels.conv import aspp as kernels

    _check_once(x, *others)
    return kernels.aspp(x, *others)


def _launch_with_pooling(x, *others):
    if x.dtype == torch.float64 or x.numel() == 0:
        return None
    from fastseg.kernels.conv import aspp as kernels

    return kernels.aspp_with_pooling(x, *others)


# None where the branch is computed by ops of its own.
_triton_with_pooling = on_device_of_first(_launch_with_pooling, lambda *_: None)


def _autograd(*arguments):
    """Runs the op where no gradient is needed, and its differentiable parts elsewhere."""
    tensors = [t for a in arguments for t in (a if isinstance(a, Sequence) else [a])]
    if gradient_free([t for t in tensors if isinstance(t, Tensor)]):
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.fastseg.aspp(*arguments)
    return _composition(*arguments)


define(
    "aspp(Tensor x, Tensor[] weights, Tensor?[] scales, Tensor?[] shifts, int[] dilations,"
    " Tensor? project_weight, Tensor? project_scale, Tensor? project_shift, Tensor? pool_bias,"
    " str activation) -> Tensor",
    reference=_reference,
    standard=_composition,
    fake=_fake,
    autograd=_autograd,
    vmap=by_batch(0, 8),
)
define_cpu("aspp", _cpu)
define_triton("aspp", _triton)
