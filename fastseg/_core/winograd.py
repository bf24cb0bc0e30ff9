"""Winograd's algorithm for dilated 3x3 convolutions: pieces with fewer products.

A convolution of rate r is r * r ordinary ones, each on the pixels of one residue class. Along an
axis a class is a short line (33 pixels at rate 12: lines of 2 and 3). A line is cut into pieces
that compute a few outputs each, ``y = output @ ((taps @ g) * (input @ x))``. They are Winograd's
F(2, 3) (Lavin and Gray 2016, arXiv 1509.09308) in the middle of long lines, and others where the
padding leaves less to do. The pieces of two axes nest.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

TAPS = (
    (1, 0, 0),
    (0, 1, 0),
    (0, 0, 1),
    (1 / 2, 1 / 2, 1 / 2),
    (1 / 2, -1 / 2, 1 / 2),
    (1, -1, 0),
    (0, -1, 1),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
)
"""Combinations of a line's three taps, with which the pieces multiply."""

PANEL = 16
"""Number of output channels in a panel of packed weights."""

LONG_LINE = 16
"""Number of pixels from which a line ends in a piece that hangs over the edge."""


class Piece(NamedTuple):
    """A few neighbouring outputs of a line.

    Attributes:
        first: the first pixel that is read, relative to the first output.
        rows: the row of TAPS for each product.
        input: the matrix (products, pixels) of the input's transform.
        output: the matrix (outputs, products) of the output's transform.
    """

    first: int
    rows: tuple[int, ...]
    input: tuple[tuple[float, ...], ...]
    output: tuple[tuple[float, ...], ...]


PIECES = {
    # F(2, 3).
    "pair": Piece(
        -1,
        (0, 3, 4, 2),
        ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1)),
        ((1, 1, 1, 0), (0, 1, -1, -1)),
    ),
    # F(4, 3).
    "four": Piece(
        -1,
        (0, 7, 8, 9, 10, 2),
        (
            (1, 0, -1.25, 0, 0.25, 0),
            (0, -4, -4, 1, 1, 0),
            (0, 4, -4, -1, 1, 0),
            (0, -2, -1, 2, 1, 0),
            (0, 2, -1, -2, 1, 0),
            (0, 4, 0, -5, 0, 1),
        ),
        ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1)),
    ),
    # The last pixel of a line.
    "last": Piece(-1, (0, 1), ((1, 0), (0, 1)), ((1, 1),)),
    # Lines of one pixel, of two (Karatsuba), and of three: F(2, 3) with a zero before the line, one
    # of whose products the last pixel needs, too.
    "one": Piece(0, (1,), ((1,),), ((1,),)),
    "two": Piece(0, (1, 6, 5), ((1, 1), (0, 1), (1, 0)), ((1, 1, 0), (1, 0, 1))),
    "three": Piece(
        0,
        (0, 3, 4, 2, 1),
        ((0, 1, 0), (1, 1, 0), (-1, 1, 0), (1, 0, -1), (0, 0, 1)),
        ((-1, 1, 1, 0, 0), (0, 1, -1, -1, 0), (1, 0, 0, 0, 1)),
    ),
}


class WinogradAxis(NamedTuple):
    """The cut of one axis into pieces.

    Attributes:
        starts: the first output pixels of all pieces, by the piece's name in PIECES.
        rows: the rows of TAPS that the pieces use, ascending.
    """

    starts: dict[str, list[int]]
    rows: list[int]

    @property
    def products(self) -> int:
        """Number of products of a pair of channels along the axis."""
        return sum(len(PIECES[name].rows) * len(at) for name, at in self.starts.items())


@functools.lru_cache(256)
def winograd_axis(size: int, dilation: int, fast: bool) -> WinogradAxis:
    """Returns the cut of an axis of `size` pixels; `fast` admits F(4, 3)."""
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
