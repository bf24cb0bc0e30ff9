"""Winograd's dilated 3x3 convolution in plain PyTorch, cut by :mod:`fastseg._core.winograd`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.winograd import PANEL, PIECES, TAPS, WinogradAxis, winograd_axis


def _axes(size: Sequence[int], dilation: Sequence[int], fast: bool) -> list[WinogradAxis]:
    return [winograd_axis(n, d, fast) for n, d in zip(size, dilation, strict=True)]


def winograd_conv2d_weight(
    weight: Tensor, size: Sequence[int], dilation: Sequence[int], fast: bool, adjoint: bool
) -> Tensor:
    """Returns the combinations of a weight's taps for maps of one size.

    Args:
        weight: (Co, Ci, 3, 3), float32.
        size: (H, W) of the maps.
        dilation: (vertical, horizontal).
        fast: whether F(4, 3) is admitted.
        adjoint: whether the convolution computes the gradient of x: channels are then exchanged and
            taps reversed.

    Returns:
        (rows * rows, panels, Ci, 16): 16 output channels side by side, with zeros after the last.
    """
    if adjoint:
        weight = weight.flip(2, 3).transpose(0, 1)
    rows_y, rows_x = (
        torch.tensor([TAPS[r] for r in axis.rows], dtype=torch.float64, device=weight.device)
        for axis in _axes(size, dilation, fast)
    )
    combined = torch.einsum("ya,xb,ocab->yxoc", rows_y, rows_x, weight.double())
    combined = F.pad(combined.flatten(0, 1), (0, 0, 0, -weight.shape[0] % PANEL))
    packed = combined.unflatten(1, (-1, PANEL)).transpose(2, 3)
    return packed.to(weight.dtype).contiguous()


def winograd_conv2d(
    x: Tensor, weight: Tensor, out_channels: int, dilation: Sequence[int], fast: bool
) -> Tensor:
    """Returns ``conv2d(x, w, padding=dilation, dilation=dilation)`` of 3x3 taps, stride 1.

    Args:
        x: (N, Ci, H, W).
        weight: a result of :func:`winograd_conv2d_weight` for x's size.
        out_channels: number of output channels.
        dilation: (vertical, horizontal).
        fast: whether F(4, 3) is admitted, for which the weight must be made.
    """
    (n, _, h, w), axes = x.shape, _axes(x.shape[2:], dilation, fast)
    reach = [5 * d for d in dilation]  # no piece reads further outside
    padded = F.pad(x, (reach[1], reach[1], reach[0], reach[0]))
    y = x.new_zeros((n, out_channels, h + reach[0], w + reach[1]))
    matrices = weight.transpose(2, 3).flatten(1, 2)[:, :out_channels]
    matrices = matrices.unflatten(0, (len(axes[0].rows), len(axes[1].rows)))
    for names in itertools.product(*(axis.starts for axis in axes)):
        pieces = [PIECES[name] for name in names]
        reads, writes, slots = [], [], []
        for axis, piece, name, d, r in zip(axes, pieces, names, dilation, reach, strict=True):
            start = torch.tensor(axis.starts[name], device=x.device)[:, None]
            pixels = torch.arange(len(piece.input[0]), device=x.device)
            reads.append(start + (pixels + piece.first) * d + r)
            writes.append(start + torch.arange(len(piece.output), device=x.device) * d)
            rows = [axis.rows.index(row) for row in piece.rows]
            slots.append(torch.tensor(rows, device=x.device))
        tiles = padded[:, :, reads[0][:, :, None, None], reads[1]]  # (N, Ci, ys, i, xs, j)
        (in_y, in_x), (out_y, out_x) = (
            [torch.tensor(matrix, dtype=x.dtype, device=x.device) for matrix in side]
            for side in ([p.input for p in pieces], [p.output for p in pieces])
        )
        inputs = torch.einsum("pi,qj,ncyixj->ncypxq", in_y, in_x, tiles)
        w_slots = matrices[slots[0][:, None], slots[1]]  # (p, q, Co, Ci)
        products = torch.einsum("pqoc,ncypxq->noypxq", w_slots, inputs)
        outputs = torch.einsum("ip,jq,noypxq->noyixj", out_y, out_x, products)
        y[:, :, writes[0][:, :, None, None], writes[1]] = outputs
    return y[:, :, :h, :w].contiguous()
