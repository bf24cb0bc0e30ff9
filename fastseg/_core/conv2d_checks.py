"""Checks of a convolution's arguments. All raise RuntimeError with the argument's name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.conv2d import ACTIVATIONS, Conv2d
from fastseg._core.tensor_checks import check_alike, check_float, check_float32, check_vector
from fastseg._core.window import LIMIT, Ints, pair


def check_conv2d(
    op: str,
    kernel_size: Sequence[int],
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    name: str = "weight",
) -> Conv2d:
    """Checks the geometry of a convolution and returns it.

    Args:
        op: the op's name, with which an error begins.
        kernel_size: (kh, kw).
        stride: one integer or (vertical, horizontal).
        padding: one integer or (vertical, horizontal).
        dilation: one integer or (vertical, horizontal).
        groups: number of groups.
        name: the weight's name in an error.

    Raises:
        RuntimeError: an even kernel, a stride, dilation or number of groups below 1, a padding
            that is negative or reaches further than the kernel, `dilation * (kernel - 1)`.
    """
    conv = Conv2d(
        pair(op, "stride", stride),
        pair(op, "padding", padding),
        pair(op, "dilation", dilation),
        groups,
    )
    kernel = tuple(kernel_size)
    torch._check(
        all(k % 2 == 1 for k in kernel),
        lambda: f"{op}: {name} must have an odd kernel height and width, got {kernel}",
    )
    for argument, value in (("stride", conv.stride), ("dilation", conv.dilation)):
        torch._check(
            min(value) >= 1 and max(value) < LIMIT,
            lambda n=argument, v=value: f"{op}: {n} must be at least 1 and below 2^30, got {v}",
        )
    torch._check(
        min(conv.padding) >= 0, lambda: f"{op}: padding must not be negative, got {conv.padding}"
    )
    reach = tuple(d * (k - 1) for d, k in zip(conv.dilation, kernel, strict=True))
    torch._check(
        conv.padding[0] <= reach[0] and conv.padding[1] <= reach[1],
        lambda: (
            f"{op}: padding must not be larger than the kernel's reach dilation * (kernel - 1) ="
            f" {reach}, got {conv.padding}"
        ),
    )
    torch._check(groups >= 1, lambda: f"{op}: groups must be at least 1, got {groups}")
    return conv


def check_float32_image(op: str, x: Tensor) -> None:
    """Raises unless x is (N, C, H, W) and float32."""
    torch._check(
        x.dim() == 4, lambda: f"{op}: x must have the shape (N, C, H, W), got {tuple(x.shape)}"
    )
    check_float32(op, "x", x)


def check_image(op: str, name: str, x: Tensor) -> None:
    """Raises unless x is (N, C, H, W), empty only where N is 0."""
    torch._check(
        x.dim() == 4, lambda: f"{op}: {name} must have the shape (N, C, H, W), got {tuple(x.shape)}"
    )
    torch._check(
        x.shape[1] > 0 and x.shape[2] > 0 and x.shape[3] > 0,
        lambda: f"{op}: {name} must not be empty but for the batch, got shape {tuple(x.shape)}",
    )


def check_grad(op: str, grad: Tensor, output: Sequence[int]) -> None:
    """Raises unless the gradient has the output's shape."""
    torch._check(
        grad.dim() == 4 and all(a == b for a, b in zip(grad.shape, output, strict=True)),
        lambda: f"{op}: grad must have the output's shape {output}, got {tuple(grad.shape)}",
    )


def check_weight_grad(
    op: str, x: Tensor, grad: Tensor, kernel_size: Ints, *geometry
) -> tuple[Conv2d, tuple[int, int]]:
    """Checks the arguments of a float32 weight's gradient; returns the geometry and (kh, kw).

    Args:
        op: the op's name, with which an error begins.
        x: the convolution's input.
        grad: the gradient of its output.
        kernel_size: one integer or (kh, kw).
        *geometry: stride, padding, dilation and groups.
    """
    check_image(op, "x", x)
    check_image(op, "grad", grad)
    check_float32(op, "x", x)
    check_alike(op, "grad", grad, "x", x)
    kernel_size = pair(op, "kernel_size", kernel_size)
    torch._check(
        min(kernel_size) > 0,
        lambda: f"{op}: weight must have an odd kernel height and width, got {kernel_size}",
    )
    conv = check_conv2d(op, kernel_size, *geometry)
    check_groups(op, conv.groups, {"x": x.shape[1], "grad": grad.shape[1]})
    size = check_output_size(op, "x", x.shape[2:], kernel_size, conv)
    check_grad(op, grad, (x.shape[0], grad.shape[1], *size))
    return conv, kernel_size


def check_groups(op: str, groups: int, channels: dict[str, int]) -> None:
    """Raises unless the groups divide the channels of each tensor, which `channels` has by name."""
    for name, count in channels.items():
        torch._check(
            count % groups == 0,
            lambda n=name, c=count: f"{op}: groups = {groups} must divide the {c} channels of {n}",
        )


def check_output_size(
    op: str, name: str, size: Sequence[int], kernel_size: Sequence[int], conv: Conv2d
) -> tuple[int, int]:
    """Returns the output's (h, w) for an input of `size` (H, W), which must hold the kernel."""
    height, width = conv.output_size(size, kernel_size)
    torch._check(
        height > 0 and width > 0,
        lambda: (
            f"{op}: {name} of {size[0]} x {size[1]} is too small for a kernel of"
            f" {tuple(kernel_size)}, padding {conv.padding} and dilation {conv.dilation}"
        ),
    )
    return height, width


def check_image_and_weight(
    op: str, x: Tensor, weight: Tensor, groups: int, name: str = "weight"
) -> None:
    """Raises unless x (N, Ci, H, W) and the weight (Co, Ci / groups, kh, kw) fit each other.

    Args:
        op: the op's name, with which an error begins.
        x: the image.
        weight: the kernel.
        groups: the convolution's number of groups.
        name: the weight's name in an error.
    """
    check_float(op, "x", x)
    torch._check(
        x.dim() == 4, lambda: f"{op}: x must have the shape (N, Ci, H, W), got {tuple(x.shape)}"
    )
    check_alike(op, name, weight, "x", x)
    torch._check(
        weight.dim() == 4,
        lambda: (
            f"{op}: {name} must have the shape (Co, Ci / groups, kh, kw), got {tuple(weight.shape)}"
        ),
    )
    torch._check(
        weight.shape[0] > 0 and weight.shape[1] > 0,
        lambda: (
            f"{op}: {name} must have an output and an input channel at least,"
            f" got {tuple(weight.shape)}"
        ),
    )
    torch._check(
        groups >= 1 and weight.shape[0] % groups == 0,
        lambda: (
            f"{op}: groups must divide {name}'s {weight.shape[0]} output channels, got {groups}"
        ),
    )
    torch._check(
        x.shape[1] == weight.shape[1] * groups,
        lambda: (
            f"{op}: x must have {name}'s {weight.shape[1]} * {groups} input channels,"
            f" got {x.shape[1]}"
        ),
    )


def check_epilogue(
    op: str,
    x: Tensor,
    out_shape: Sequence[int],
    vectors: dict[str, Tensor | None],
    residual: Tensor | None,
    activation: str,
) -> None:
    """Checks the operands of ``act((y + bias) * scale + shift + residual)``.

    Args:
        op: the op's name, with which an error begins.
        x: the convolution's input.
        out_shape: the shape of y.
        vectors: bias, scale and shift by their names in an error, (Co,) or None.
        residual: a tensor of y's shape or None.
        activation: one of ACTIVATIONS.
    """
    for name, t in vectors.items():
        if t is not None:
            check_vector(op, name, t, out_shape[1], x)
    if residual is not None:
        check_alike(op, "residual", residual, "x", x)
        check_residual(op, residual, out_shape, x)
    check_activation(op, activation)


def check_activation(op: str, activation: str, name: str = "activation") -> None:
    """Raises unless the activation is one of ACTIVATIONS."""
    torch._check(
        activation in ACTIVATIONS,
        lambda: f"{op}: {name} must be one of {ACTIVATIONS[1:]} or none, got {activation!r}",
    )


def check_residual(op: str, residual: Tensor, out_shape: Sequence[int], x: Tensor) -> None:
    """Raises unless the residual has the output's shape for x: it is not broadcast."""
    torch._check(
        residual.dim() == 4 and all(a == b for a, b in zip(residual.shape, out_shape, strict=True)),
        lambda: (
            f"{op}: residual must have the output's shape {tuple(out_shape)} for x of"
            f" {tuple(x.shape)}, got {tuple(residual.shape)}"
        ),
    )
