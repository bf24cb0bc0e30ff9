"""The geometry of 2-D convolution: what the ops, their fakes and the references agree on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fastseg._core.tensor_checks import check_alike, check_float, check_float32, check_vector

ACTIVATIONS = ("", "relu", "relu6", "leaky_relu", "silu", "hardswish")
"""What an epilogue may end with; "" is none. leaky_relu has torch's slope of 0.01."""

MOST_CALLS = 4096
"""Whose checks are remembered."""

LIMIT = 1 << 30
"""Strides, paddings and dilations stay below it."""

Ints = int | Sequence[int]
_T = TypeVar("T")


class Conv2d(NamedTuple):
    """Stride, padding and dilation, each as (vertical, horizontal), and the groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def output_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> list[int]:
        """(h, w) of the output for an input of `size` (H, W)."""
        geometry = zip(size, kernel_size, *self[:3], strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]


def pair(op: str, name: str, value: Ints) -> tuple[int, int]:
    """One integer or two as two."""
    if isinstance(value, int):
        return (value, value)
    values = tuple(value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2:
        torch._check(False, lambda: f"{op}: {name} must be one integer or two, got {value!r}")
    return values


def remember(check: Callable[..., _T]) -> Callable[..., _T]:
    """`check`, called once for tensors of the same shapes, dtypes and devices.

    In Python the checks of a call take as long as a small convolution.

    Args:
        check: looks at no more than that of tensors, alone or in lists; what else it takes can be
            hashed.
    """
    known: dict = {}

    @functools.wraps(check)
    def remembering(*arguments):
        try:
            key = _known_by(arguments)
            found = known.get(key)
        except (TypeError, RuntimeError):
            # Symbolic sizes, while a graph is traced, cannot be hashed, nor what is no tensor.
            return check(*arguments)
        if found is None:
            found = check(*arguments)
            if len(known) >= MOST_CALLS:
                known.clear()
            known[key] = found
        return found

    return remembering


def _known_by(arguments: Sequence) -> tuple:
    key = []
    for a in arguments:  # a generator would take longer
        if isinstance(a, Tensor):
            key += (a.shape, a.dtype, a.device)
        else:
            key.append(_known_by(a) if isinstance(a, (list, tuple)) else a)
    return tuple(key)


def resolve_padding(
    op: str, padding: Ints | str, kernel_size: Sequence[int], dilation: Ints
) -> tuple[int, int]:
    """Padding as two integers: "same" keeps the size at stride 1, "valid" is none."""
    if padding == "valid":
        return (0, 0)
    if isinstance(padding, str):
        torch._check(
            padding == "same",
            lambda: f'{op}: padding must be "same", "valid" or integers, got {padding!r}',
        )
        dilations = pair(op, "dilation", dilation)
        return tuple(d * (k // 2) for d, k in zip(dilations, kernel_size, strict=True))
    return pair(op, "padding", padding)


def check_conv2d(
    op: str,
    kernel_size: Sequence[int],
    stride: Ints,
    padding: Ints,
    dilation: Ints,
    groups: int,
    name: str = "weight",
) -> Conv2d:
    """Checks the arguments that are no tensors; `name` is the weight's.

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
    """(N, C, H, W), float32."""
    torch._check(
        x.dim() == 4, lambda: f"{op}: x must have the shape (N, C, H, W), got {tuple(x.shape)}"
    )
    check_float32(op, "x", x)


def check_output_size(
    op: str, name: str, size: Sequence[int], kernel_size: Sequence[int], conv: Conv2d
) -> tuple[int, int]:
    """The output's (h, w) for an input of that size (H, W), which must hold a kernel."""
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
    """(N, Ci, H, W) and (Co, Ci / groups, kh, kw) that fit each other.

    Args:
        op: what errors begin with.
        x: the image.
        weight: the kernel.
        groups: of the convolution.
        name: the weight's.
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
    """The operands of ``act((y + bias) * scale + shift + residual)``, y of shape `out_shape`."""
    for name, t in vectors.items():
        if t is not None:
            check_vector(op, name, t, out_shape[1], x)
    if residual is not None:
        check_alike(op, "residual", residual, "x", x)
        check_residual(op, residual, out_shape, x)
    check_activation(op, activation)


def check_activation(op: str, activation: str, name: str = "activation") -> None:
    """One of ACTIVATIONS."""
    torch._check(
        activation in ACTIVATIONS,
        lambda: f"{op}: {name} must be one of {ACTIVATIONS[1:]} or none, got {activation!r}",
    )


def check_residual(op: str, residual: Tensor, out_shape: Sequence[int], x: Tensor) -> None:
    """The output's shape for x: a residual is not broadcast."""
    torch._check(
        residual.dim() == 4 and all(a == b for a, b in zip(residual.shape, out_shape, strict=True)),
        lambda: (
            f"{op}: residual must have the output's shape {tuple(out_shape)} for x of"
            f" {tuple(x.shape)}, got {tuple(residual.shape)}"
        ),
    )


def is_bare(
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> bool:
    """Whether nothing follows the convolution."""
    return not activation and bias is scale is shift is residual is None


def empty_output(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """An empty (N, channels, h, w) in x's dtype; channels_last if x is, else contiguous."""
    return torch.empty(
        (x.shape[0], channels, *size),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch._prims_common.suggest_memory_format(x),
    )


def in_layout_of(x: Tensor, out: Tensor) -> Tensor:
    """out, channels_last if x is, else contiguous."""
    return out.contiguous(memory_format=torch._prims_common.suggest_memory_format(x))


def live_range(
    size: int, out: int, stride: int, padding: int, dilation: int, tap: int
) -> tuple[slice, slice]:
    """Along one axis, what a tap reads of x and the outputs that it is live at.

    Args:
        size: of x.
        out: of the output.
        stride: of the convolution, like padding and dilation.
        padding: likewise.
        dilation: likewise.
        tap: its number in the kernel.
    """
    offset = tap * dilation - padding
    first = max(0, -(offset // stride))  # the first i with i * stride + offset >= 0
    last = min(out, (size - 1 - offset) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    read = slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)
    return read, slice(first, last)


def empty_weight(x: Tensor, grad: Tensor, kernel_size, groups: int) -> Tensor:
    """An empty gradient of the weight, channels_last if x is."""
    return torch.empty(
        (grad.shape[1], x.shape[1] // groups, *kernel_size),
        dtype=x.dtype,
        device=x.device,
        memory_format=torch._prims_common.suggest_memory_format(x),
    )
