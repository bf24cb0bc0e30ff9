"""What the kernels take together: the parameters that belong to one thing, as one NamedTuple.

Triton takes each field as if it were an argument of its own: an integer that is 1 or a multiple of
16, and a pointer that is aligned, are known to the compiler, and None is a constant. Triton 3.6
asks for three things: no group holds another, no function returns a group that may hold None, and
a constant of a group is passed on under a name of its own, ``BM: tl.constexpr = FORM.BM``.
"""

from __future__ import annotations

from typing import NamedTuple

import triton.language as tl


class Tables(NamedTuple):
    """Pointers to the parts of a :class:`fastseg.kernels.conv.plan.Plan`."""

    items: tl.tensor
    pixels: tl.tensor
    taps: tl.tensor


class Image(NamedTuple):
    """Integers: the size of x (N, height, width, channels), of the output, and the stride."""

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    stride_y: int
    stride_x: int


class Columns(NamedTuple):
    """Integers: how the output's rows of channels are shared out.

    Attributes:
        outputs: number of output channels of a branch.
        out_stride: number of channels of a pixel of the output, of all branches.
        blocks: number of programs that share the channels of a branch.
    """

    outputs: int
    out_stride: int
    blocks: int


class Windows(NamedTuple):
    """Where the windows of a program's pixels begin in x, blocks (BM,).

    Attributes:
        origin: number of the pixel of x, counted over (N, height, width).
        top: its row.
        left: its column.
    """

    origin: tl.tensor
    top: tl.tensor
    left: tl.tensor


class Form(NamedTuple):
    """The constants that atrous_conv2d_kernel is compiled with.

    Attributes:
        BM: number of pixels of a program.
        BN: number of its output channels.
        BK: number of input channels of a step.
        SUMMED: number of branches that add up into one output, 1 where they do not.
        MIXED: whether some taps are dead for some pixels of their tile.
        SPLIT: whether some tiles are shared by several programs.
        WHOLE: whether BK divides the channels.
        ALIGNED: whether all rows of x and of the weights begin at multiples of 16 bytes.
        TRANSPOSED: whether the weight is (channels, taps, outputs), not (outputs, taps, channels).
        PRECISION: what `tl.dot` does with float32, "tf32" or "tf32x3".
        ACTIVATION: what the epilogue ends with, or "".
    """

    BM: int
    BN: int
    BK: int
    SUMMED: int
    MIXED: bool
    SPLIT: bool
    WHOLE: bool
    ALIGNED: bool
    TRANSPOSED: bool
    PRECISION: str
    ACTIVATION: str


class Window(NamedTuple):
    """Integers: the geometry of a depthwise convolution from an input to an output.

    Of the gradient of the input the input is what it reads, the gradient of the output.
    """

    height: int
    width: int
    out_height: int
    out_width: int
    stride_y: int
    stride_x: int
    padding_y: int
    padding_x: int
    dilation_y: int
    dilation_x: int


class Tiling(NamedTuple):
    """Integers: how a depthwise convolution's output is cut into tiles.

    Attributes:
        phases_y: number of rows from one pixel to the next of its phase.
        phases_x: number of columns from one pixel to the next of its phase.
        tiles_y: number of tiles of a phase, vertically.
        tiles_x: number of tiles of a phase, horizontally.
        tiles: number of tiles of all phases of all images.
    """

    phases_y: int
    phases_x: int
    tiles_y: int
    tiles_x: int
    tiles: int


class Tile(NamedTuple):
    """Constants: how many pixels of a depthwise output are taken together.

    Attributes:
        PHASES: number of phases.
        ROWS: number of rows of each phase.
        COLUMNS: number of columns of each phase.
    """

    PHASES: int
    ROWS: int
    COLUMNS: int


class Rows(NamedTuple):
    """Integers: where a weight gradient finds the pixels of x and grad, rows of channels.

    Attributes:
        x_image: number of pixels of x between what an output reads and what the same output of the
            next image reads.
        x_row: number of pixels of x between what an output and the one below it read.
        x_column: number of pixels of x between what an output and the one beside it read.
        x_vectors: number of vectors of channels of a pixel of x, of which the last may be padding.
        grad_image: number of pixels of grad between an output and the same one of the next image.
        grad_row: number of pixels of grad between an output and the one below it.
        grad_vectors: number of vectors of channels of a pixel of grad, padded in the same way.
    """

    x_image: int
    x_row: int
    x_column: int
    x_vectors: int
    grad_image: int
    grad_row: int
    grad_vectors: int


class Channels(NamedTuple):
    """Integers: where a weight gradient stores its sums.

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        slot_stride: number of sums from one slot to the next.
        out_stride: number of sums from one output channel to the next.
    """

    inputs: int
    outputs: int
    slot_stride: int
    out_stride: int


class Product(NamedTuple):
    """Integers: the sizes of an ASPP's projection.

    Attributes:
        rows: number of pixels of all images.
        plane: number of pixels of an image.
        channels: number of channels of a pixel.
        outputs: number of output channels.
        weight_stride: number of elements from one row of the weight to the next.
        blocks: number of programs that share the outputs of a pixel.
    """

    rows: int
    plane: int
    channels: int
    outputs: int
    weight_stride: int
    blocks: int


class Vector(NamedTuple):
    """Integers: the sizes of a product of a vector, one for each image.

    Attributes:
        channels: number of the vector's elements.
        outputs: number of the product's.
        weight_stride: number of elements from one row of the weight to the next.
    """

    channels: int
    outputs: int
    weight_stride: int
