"""Byte codes, torch's int64 indices and packed codes: three forms of a position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.pool2d import Pool2d, packed_layout, pool2d
from fastseg._core.window import Ints


def window_starts(
    pool: Pool2d, pooled_size: Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns the (h, 1) rows and (w,) columns at which windows start, negative in the padding."""
    (h, w), (sh, sw), (ph, pw) = pooled_size, pool.stride, pool.padding
    rows = torch.arange(h, device=device)[:, None] * sh - ph
    columns = torch.arange(w, device=device) * sw - pw
    return rows, columns


def check_inside(op: str, inside: Tensor, what: str) -> None:
    """Raises RuntimeError, on a GPU as a device-side assert, unless all of `inside` is true."""
    torch._assert_async(inside.all(), f"{op}: {what}")


def codes_to_indices(
    codes: Tensor,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """Computes :func:`fastseg.codes_to_indices`, which explains the arguments."""
    op = "codes_to_indices"
    pool = pool2d(op, kernel_size, stride, padding, dilation)
    (height, width), (kh, kw), (dh, dw) = input_size, pool.kernel_size, pool.dilation
    rows, columns = window_starts(pool, codes.shape[-2:], codes.device)
    code = codes.long()
    y = rows + code // kw * dh
    x = columns + code % kw * dw
    inside = (code < kh * kw) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    check_inside(op, inside, "codes hold a code outside its window or the plane")
    return y * width + x


def indices_to_codes(
    indices: Tensor,
    input_size: Sequence[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
) -> Tensor:
    """Computes :func:`fastseg.indices_to_codes`, which explains the arguments."""
    op = "indices_to_codes"
    pool = pool2d(op, kernel_size, stride, padding, dilation)
    (height, width), (kh, kw), (dh, dw) = input_size, pool.kernel_size, pool.dilation
    rows, columns = window_starts(pool, indices.shape[-2:], indices.device)
    down = torch.div(indices, width, rounding_mode="floor") - rows
    right = indices.remainder(width) - columns
    inside = (
        (indices >= 0)
        & (indices < height * width)
        & (down >= 0)
        & (down < kh * dh)
        & (down % dh == 0)
        & (right >= 0)
        & (right < kw * dw)
        & (right % dw == 0)
    )
    check_inside(op, inside, "indices hold an index outside its window")
    return (down // dh * kw + right // dw).to(torch.uint8)


def pack_codes(codes: Tensor, packed_dim: int) -> Tensor:
    """Packs four codes of 2x2 windows into one byte: code k of a group in bits 2k and 2k + 1.

    Args:
        codes: uint8 codes below 4, (N, C, h, w) or (C, h, w).
        packed_dim: the dimension that shrinks to a quarter, rounded up: -1 (contiguous) or -3
            (channels_last).
    """
    along = codes.movedim(packed_dim, -1)
    missing = -along.shape[-1] % 4
    groups = torch.nn.functional.pad(along, (0, missing)).unflatten(-1, (-1, 4)).int()
    shifts = torch.arange(0, 8, 2, dtype=torch.int32, device=codes.device)
    packed = (groups << shifts).sum(-1).to(torch.uint8).movedim(-1, packed_dim)
    layout = packed_layout(packed_dim)
    return packed.contiguous(memory_format=layout)


def unpack_codes(packed: Tensor, size: Sequence[int], packed_dim: int) -> Tensor:
    """Returns codes of shape `size` that were packed along packed_dim, or were not if it is 0."""
    if packed_dim == 0:
        return packed
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    codes = (packed.movedim(packed_dim, -1)[..., None] >> shifts & 3).flatten(-2)
    codes = codes[..., : size[packed_dim]].movedim(-1, packed_dim)
    layout = packed_layout(packed_dim)
    return codes.contiguous(memory_format=layout)
