"""The branches of an ASPP, checks of its arguments, and what its calls are prepared for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg._core import prepared_calls
from fastseg._core.autocast import autocast_dtype, cast
from fastseg._core.conv2d_checks import (
    check_activation,
    check_conv2d,
    check_epilogue,
    check_image_and_weight,
)
from fastseg._core.plain_tensors import PLAIN, needs_gradient, outside_modes
from fastseg._core.remember import remember
from fastseg._core.tensor_checks import check_alike, check_optional_tensors, check_tensors

OP = "fastseg::aspp"


class ASPPBranch(NamedTuple):
    """A convolution with its folded batch norm: ``act(conv2d(x, weight) * scale + shift)``.

    With a depthwise weight it is separable: ``weight`` is then 1x1 and works on
    ``depthwise_act(conv2d(x, depthwise_weight) * depthwise_scale + depthwise_shift)``. A bias
    without batch norm is a shift without scale.

    Attributes:
        weight: (C, Ci, kh, kw), x's dtype.
        scale: (C,), of a floating-point dtype, or None.
        shift: (C,), of a floating-point dtype, or None.
        dilation: the rate.
        depthwise_weight: (Ci, 1, kh, kw), x's dtype, or None.
        depthwise_scale: (Ci,), of a floating-point dtype, or None.
        depthwise_shift: (Ci,), of a floating-point dtype, or None.
        depthwise_activation: the activation's name in :func:`fastseg.atrous_conv2d`, or None.
    """

    weight: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None
    dilation: int = 1
    depthwise_weight: Tensor | None = None
    depthwise_scale: Tensor | None = None
    depthwise_shift: Tensor | None = None
    depthwise_activation: str | None = None


@remember
def check_aspp(
    x: Tensor,
    branches: Sequence[ASPPBranch],
    project: ASPPBranch | None,
    pool: ASPPBranch | None,
    activation: str | None,
) -> bool:
    """Checks the arguments of :func:`fastseg.aspp`, with their names there. Returns True."""
    check_tensors(OP, x=x)
    if not isinstance(branches, (list, tuple)) or isinstance(branches, ASPPBranch):
        raise TypeError(f"{OP}: branches must be a list of them, got {type(branches).__name__}")
    torch._check(len(branches) > 0, lambda: f"{OP}: branches must not be empty")
    for i, branch in enumerate(branches):
        _check_tensors(f"branches[{i}]", f"{OP}: branch {i}", branch)
    if pool is not None:
        _check_tensors("pool", f"{OP}: pool", pool)
    if project is not None:
        _check_tensors("project", f"{OP}: project", project)
    _check_form(branches, project, pool, activation)
    x = x[None] if x.dim() == 3 else x
    lower = autocast_dtype(x)
    if lower is not None:
        (x,) = cast(lower, x)
    for i, branch in enumerate(branches):
        _check_branch(f"{OP}: branch {i}", x, branch, activation or "", lower)
    torch._check(
        x.shape[2] > 0 and x.shape[3] > 0,
        lambda: f"{OP}: x must not be empty but for the batch, got shape {tuple(x.shape)}",
    )
    if pool is not None:
        _check_branch(f"{OP}: pool", x, pool, activation or "", lower)
        shape = tuple(pool.weight.shape)
        torch._check(
            shape[2:] == (1, 1),
            lambda: f"{OP}: pool: weight must have the shape (C, Ci, 1, 1), got {shape}",
        )
    if project is not None:
        (weight,) = (project.weight,) if lower is None else cast(lower, project.weight)
        check_alike(OP, "project_weight", weight, "x", x)
        check_conv2d(OP, weight.shape[2:], 1, 0, 1, 1, "project_weight")
        vectors = {"project_scale": project.scale, "project_shift": project.shift}
        check_epilogue(OP, x, (x.shape[0], weight.shape[0]), vectors, None, "")
    return True


def _check_tensors(name: str, op: str, branch: Any) -> None:
    """Raises unless a value is an ASPPBranch of tensors; errors begin with `op`."""
    if not isinstance(branch, ASPPBranch):
        raise TypeError(f"{OP}: {name} must be an ASPPBranch, got {type(branch).__name__}")
    check_tensors(op, weight=branch.weight)
    fields = ("scale", "shift", "depthwise_weight", "depthwise_scale", "depthwise_shift")
    check_optional_tensors(op, **{field: getattr(branch, field) for field in fields})
    shape = tuple(branch.weight.shape)
    torch._check(
        len(shape) == 4 and shape[0] > 0,
        lambda: f"{op}: weight must have the shape (C, Ci, kh, kw), got {shape}",
    )


def _check_form(branches, project, pool, activation) -> None:
    """Checks which arguments may be given together, and the projection's input channels."""
    channels = [b.weight.shape[0] for b in branches]
    if project is None:
        torch._check(pool is None, lambda: f"{OP}: pool needs a projection, got project None")
        torch._check(
            activation is None,
            lambda: f"{OP}: activation must be None for a sum without projection",
        )
        torch._check(
            len(set(channels)) == 1,
            lambda: (
                f"{OP}: without a projection branches must have as many channels in each weight,"
                f" got {channels}"
            ),
        )
        return
    n = sum(channels) + (0 if pool is None else pool.weight.shape[0])
    shape = tuple(project.weight.shape)
    torch._check(
        shape[1] == n,
        lambda: f"{OP}: project's weight must have the shape (Co, {n}, kh, kw), got {shape}",
    )


def _check_branch(op: str, x: Tensor, branch: ASPPBranch, activation: str, lower) -> None:
    """Checks one branch, a convolution of x or two.

    Args:
        op: the text with which an error begins.
        x: (N, Ci, H, W), already cast by autocast.
        branch: an ASPPBranch of tensors.
        activation: the activation after the last convolution.
        lower: the dtype to which autocast casts the weights, or None.
    """
    weight, depthwise, vectors = branch.weight, branch.depthwise_weight, {}
    if lower is not None:
        weight, depthwise = cast(lower, weight, depthwise)
    if depthwise is not None:
        shape = tuple(depthwise.shape)
        torch._check(
            len(shape) == 4 and shape[1] == 1,
            lambda: f"{op}: depthwise_weight must have the shape (Ci, 1, kh, kw), got {shape}",
        )
        check_image_and_weight(op, x, depthwise, shape[0], "depthwise_weight")
        check_conv2d(op, shape[2:], 1, 0, branch.dilation, 1, "depthwise_weight")
        vectors = {
            "depthwise_scale": branch.depthwise_scale,
            "depthwise_shift": branch.depthwise_shift,
        }
        check_epilogue(op, x, x.shape[:2], vectors, None, "")
        check_activation(op, branch.depthwise_activation or "", "depthwise_activation")
        point = tuple(weight.shape)
        torch._check(
            point[2:] == (1, 1),
            lambda: f"{op}: weight must have the shape (C, Ci, 1, 1), got {point}",
        )
    check_image_and_weight(op, x, weight, 1)
    check_conv2d(op, weight.shape[2:], 1, 0, branch.dilation, 1)
    vectors = {"scale": branch.scale, "shift": branch.shift}
    check_epilogue(op, x, (x.shape[0], weight.shape[0]), vectors, None, activation)


def preparable(x, branches, project, pool, pool_first, activation):
    """What a call may be prepared for: its tensors and options, as the kernels keep them.

    The arguments may be anything. It is None without a GPU, and where autograd, a mode or a
    separable branch asks for ops one by one.
    """
    if type(x) not in PLAIN or x.device.type != prepared_calls.DEVICE or not outside_modes():
        return None
    if not isinstance(branches, (list, tuple)):
        return None
    weights, scales, shifts, dilations = [], [], [], []
    for branch in branches:
        if type(branch) is not ASPPBranch or branch.depthwise_weight is not None:
            return None
        weights.append(branch.weight)
        scales.append(branch.scale)
        shifts.append(branch.shift)
        dilations.append(branch.dilation)
    options, ending = (len(weights), tuple(dilations), activation or ""), (None,) * 4
    if type(project) is ASPPBranch:
        ending = (*project[:3], None)
        if type(pool) is ASPPBranch:
            ending = (*project[:3], *pool[:3])
            options = (*options, bool(pool_first))
        elif pool is not None:
            return None
    elif project is not None or pool is not None:
        return None
    tensors = (x, *weights, *scales, *shifts, *ending)
    try:
        return None if needs_gradient(tensors) else (tensors, options)
    except AttributeError:  # something that is no tensor
        return None
