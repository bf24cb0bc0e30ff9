"""Conversions of pooling positions: byte codes, torch's int64 indices, packed codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import define
from fastseg._core.pool2d import check_image, memory_format, packed_layout, pool2d
from fastseg._core.tensor_checks import check_tensors
from fastseg._core.vmap import by_planes
from fastseg._core.window import Ints

ops = torch.ops.fastseg


def codes_to_indices(
    codes: Tensor,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """Converts byte codes to the flat indices of ``max_pool2d(..., return_indices=True)``.

    Args:
        codes: uint8 codes of :func:`fastseg.max_pool2d`, (N, C, h, w) or (C, h, w).
        input_size: (H, W) of the pooled input; its whole shape will do too.
        kernel_size: the pooling's window, one integer or (height, width).
        stride: the pooling's stride, one integer or (height, width); None is the kernel's size.
        padding: the pooling's padding, one integer or (height, width).
        dilation: the pooling's dilation, one integer or (height, width).

    Returns:
        int64 of the shape and layout of codes: ``y * W + x`` of each maximum.

    Raises:
        TypeError: codes is no tensor.
        RuntimeError: codes are not uint8, or one lies outside its window or the plane, as the code
            of a window of padding alone does (on a GPU a device-side assert that names the op).
    """
    check_tensors("fastseg::codes_to_indices", codes=codes)
    stride = () if stride is None else stride
    return ops.codes_to_indices(codes, input_size[-2:], kernel_size, stride, padding, dilation)


def indices_to_codes(
    indices: Tensor,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """Converts flat indices that torch's pooling returned to byte codes.

    Args:
        indices: int64, (N, C, h, w) or (C, h, w), flat in the input's H x W plane.
        input_size: (H, W) of the pooled input; its whole shape will do too.
        kernel_size: the pooling's window, one integer or (height, width).
        stride: the pooling's stride, one integer or (height, width); None is the kernel's size.
        padding: the pooling's padding, one integer or (height, width).
        dilation: the pooling's dilation, one integer or (height, width).

    Returns:
        uint8 of the shape and layout of indices.

    Raises:
        TypeError: indices is no tensor.
        RuntimeError: indices are not int64, or one lies outside its window (on a GPU a device-side
            assert that names the op).
    """
    check_tensors("fastseg::indices_to_codes", indices=indices)
    stride = () if stride is None else stride
    return ops.indices_to_codes(indices, input_size[-2:], kernel_size, stride, padding, dilation)


def _conversion(name: str, source: torch.dtype, target: torch.dtype, convert) -> None:
    """Defines one of the two conversions, which differ only in direction."""
    argument = name.partition("_")[0]

    def check(positions: Tensor) -> None:
        check_image(f"fastseg::{name}", argument, positions)
        torch._check(
            positions.dtype == source,
            lambda: f"fastseg::{name}: expected {source} {argument}, got {positions.dtype}",
        )

    def run(positions, *args):
        check(positions)
        converted = convert(positions, *args)
        return converted.contiguous(memory_format=memory_format(positions))

    def fake(positions, input_size, kernel_size, stride=(), padding=0, dilation=1):
        check(positions)
        pool2d(f"fastseg::{name}", kernel_size, stride, padding, dilation)
        layout = memory_format(positions)
        return torch.empty_like(positions, dtype=target, memory_format=layout)

    define(
        f"{name}(Tensor positions, SymInt[2] input_size, int[2] kernel_size, int[2] stride=[],"
        " int[2] padding=0, int[2] dilation=1) -> Tensor",
        reference=run,
        fake=fake,
        vmap=by_planes(1),
    )


_conversion("codes_to_indices", torch.uint8, torch.int64, reference.codes_to_indices)
_conversion("indices_to_codes", torch.int64, torch.uint8, reference.indices_to_codes)


def _check_pack(codes, packed_dim):
    op = "fastseg::pack_codes"
    check_image(op, "codes", codes, may_lack_channels=True)
    torch._check(
        codes.dtype == torch.uint8, lambda: f"{op}: codes must be uint8, got {codes.dtype}"
    )
    torch._check(
        packed_dim == -1 or (packed_dim == -3 and codes.dim() == 4),
        lambda: f"{op}: packed_dim must be -1 or, for 4-D codes, -3, got {packed_dim}",
    )


def _reference_pack(codes, packed_dim):
    _check_pack(codes, packed_dim)
    return reference.pack_codes(codes, packed_dim)


def _fake_pack(codes, packed_dim):
    _check_pack(codes, packed_dim)
    size = list(codes.shape)
    size[packed_dim] = (size[packed_dim] + 3) // 4
    layout = packed_layout(packed_dim)
    return torch.empty(size, dtype=torch.uint8, device=codes.device, memory_format=layout)


define(
    "pack_codes(Tensor codes, int packed_dim) -> Tensor",
    reference=_reference_pack,
    fake=_fake_pack,
    vmap=by_planes(1),
)
