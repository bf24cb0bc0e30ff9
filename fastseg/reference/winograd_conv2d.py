"""Dilated 3x3 convolution in fewer products, in plain PyTorch.

A convolution of rate r is r * r ordinary ones, of the pixels of each residue class. Along one axis
a class is a short line (33 pixels at rate 12: lines of 2 and 3), cut into pieces that compute a few
outputs each, ``y = output @ ((taps @ g) * (input @ x))``: Winograd's F(2, 3) (Lavin and Gray 2016,
arXiv 1509.09308) in the middle of long lines, others where the padding leaves less to do. Pieces of
two axes nest.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TAPS = (
    (1, 0, 0), (0, 1, 0), (0, 0, 1), (1 / 2, 1 / 2, 1 / 2), (1 / 2, -1 / 2, 1 / 2),
    (1, -1, 0), (0, -1, 1), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6), (1 / 24, -1 / 12, 1 / 6),
)  # fmt: skip
"""The combinations of a line's three taps that the pieces multiply with."""

PANEL = 16
"""Output channels of a panel of packed weights."""

LONG_LINE = 16
"""Lines of so many pixels end in a piece that hangs over the edge."""


class Piece(NamedTuple):
    """A few neighbouring outputs of a line.

    Attributes:
        first: the first pixel read, from the first output.
        rows: of TAPS, one for each product.
        input: (products, pixels).
        output: (outputs, products).
    """

    first: int
    rows: tuple[int, ...]
    input: tuple[tuple[float, ...], ...]
    output: tuple[tuple[float, ...], ...]


PIECES = {
    # F(2, 3).
    "pair": Piece(
        -1, (0, 3, 4, 2),
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    # F(4, 3).
    "four": Piece(
        -1, (0, 7, 8, 9, 10, 2),
        ((1, 0, -1.25, 0, 0.25, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0),
         (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0), (0, 4, 0, -5, 0, 1)),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
    # The last pixel of a line.
    "last": Piece(-1, (0, 1), ((1, 0), (0, 1)), ((1, 1),)),
    # Lines of one pixel, of two (Karatsuba), and of three: F(2, 3) with a zero before the line, one
    # of whose products the last pixel needs, too.
    "one": Piece(0, (1,), ((1,),), ((1,),)),
    "two": Piece(0, (1, 6, 5), ((1, 1), (0, 1), (1, 0)), ((1, 1, 0), (1, 0, 1))),
    "three": Piece(
        0, (0, 3, 4, 2, 1),
        ((0, 1, 0), (1, 1, 0), (-1, 1, 0), (1, 0, -1), (0, 0, 1)),
        ((-1, 1, 1, 0, 0), (0, 1, -1, -1, 0), (1, 0, 0, 0, 1)),
    ),
}  # fmt: skip


class WinogradAxis(NamedTuple):
    """How one axis is cut.

    Attributes:
        starts: by piece, the first output pixel of each.
        rows: of TAPS that the pieces use, ascending.
    """

    starts: dict[str, list[int]]
    rows: list[int]

    @property
    def products(self) -> int:
        """Products of a pair of channels along the axis."""
        return sum(len(PIECES[name].rows) * len(at) for name, at in self.starts.items())


@functools.lru_cache(256)
def winograd_axis(size: int, dilation: int, fast: bool) -> WinogradAxis:
    """The pieces of an axis of `size` pixels; `fast` admits F(4, 3)."""
    starts: dict[str, list[int]] = {}

    def cover(first: int, length: int, name: str, outputs: int, begin: int) -> int:
        while begin + outputs <= length or (length >= LONG_LINE and begin < length):
            starts.setdefault(name, []).append(first + begin * dilation)
            begin += outputs
        return begin

    for residue in range(min(dilation, size)):
        length = len(range(residue, size, dilation))
        if length <= 3:
            starts.setdefault(("one", "two", "three")[length - 1], []).append(residue)
            continue
        done = cover(residue, length, "four", 4, 0) if fast else 0
        done = cover(residue, length, "pair", 2, done)
        if done < length:
            starts.setdefault("last", []).append(residue + done * dilation)
    rows = sorted({row for name in starts for row in PIECES[name].rows})
    return WinogradAxis(starts, rows)


def _axes(size: Sequence[int], dilation: Sequence[int], fast: bool) -> list[WinogradAxis]:
    return [winograd_axis(n, d, fast) for n, d in zip(size, dilation, strict=True)]


def winograd_conv2d_weight(
    weight: Tensor, size: Sequence[int], dilation: Sequence[int], fast: bool, adjoint: bool
) -> Tensor:
    """The combinations of weight (Co, Ci, 3, 3) for maps of `size` (H, W).

    Args:
        weight: float32.
        size: of the map.
        dilation: (vertical, horizontal).
        fast: admits F(4, 3).
        adjoint: for the gradient of x: channels exchanged, taps in reverse order.

    Returns:
        (rows * rows, panels, Ci, 16): 16 output channels side by side, those that lack are 0.
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
    """``conv2d(x, w, padding=dilation, dilation=dilation)`` of 3x3 taps, stride 1.

    Args:
        x: (N, Ci, H, W).
        weight: of winograd_conv2d_weight for x's size.
        out_channels: Co.
        dilation: (vertical, horizontal).
        fast: as for the weight.
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
            slots.append(torch.tensor([axis.rows.index(row) for row in piece.rows]))
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
