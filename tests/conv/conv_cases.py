"""What the tests of convolution run over: shapes and geometries, operands, tolerances."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.conv2d import ACTIVATIONS

ACTIVATION_NAMES = (None, *ACTIVATIONS[1:])


class ConvCase(NamedTuple):
    """One convolution of x (N, Ci, H, W); padding None is "same"."""

    shape: tuple[int, int, int, int]
    out_channels: int
    kernel: tuple[int, int] = (3, 3)
    dilation: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] | None = None
    groups: int = 1

    @property
    def pad(self) -> tuple[int, int]:
        """The padding in pixels."""
        same = tuple(d * (k // 2) for d, k in zip(self.dilation, self.kernel, strict=True))
        return same if self.padding is None else self.padding

    @property
    def geometry(self) -> tuple:
        """What the ops take after their tensors."""
        return self.stride, self.pad, self.dilation, self.groups

    @property
    def options(self) -> dict:
        """What the public function takes."""
        padding = "same" if self.padding is None else self.padding
        return {
            "stride": self.stride,
            "padding": padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(Co, Ci / groups, kh, kw)."""
        return (self.out_channels, self.shape[1] // self.groups, *self.kernel)

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """(N, Co, h, w)."""
        size = [
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d in zip(
                self.shape[2:], self.kernel, self.stride, self.pad, self.dilation, strict=True
            )
        ]
        return (self.shape[0], self.out_channels, *size)

    def tensors(self, dtype: torch.dtype = torch.float64, layout=torch.contiguous_format):
        """x and weight."""
        x = torch.randn(self.shape).to(dtype).contiguous(memory_format=layout)
        return x, torch.randn(self.weight_shape).to(dtype)

    def __str__(self) -> str:
        parts = [self.shape, (self.out_channels,), *self[2:5], self.pad]
        numbers = "-".join("x".join(map(str, p)) for p in parts)
        return numbers if self.groups == 1 else f"{numbers}-g{self.groups}"


# Ordinary convolutions: rates below, at and beyond the map, channels that fill no vector.
DENSE = (
    ConvCase((2, 5, 9, 11), 7),
    ConvCase((3, 17, 13, 10), 3, dilation=(2, 2)),
    ConvCase((1, 64, 33, 33), 32, dilation=(6, 6)),  # ASPP's
    ConvCase((1, 32, 33, 33), 64, dilation=(12, 12)),
    ConvCase((2, 32, 33, 33), 33, dilation=(18, 18)),
    ConvCase((1, 100, 12, 12), 17, dilation=(4, 4)),
    ConvCase((1, 1, 12, 15), 1, dilation=(3, 3)),
    ConvCase((1, 3, 30, 21), 100),
    ConvCase((1, 8, 70, 67), 8),  # several tiles of any size
    ConvCase((1, 16, 41, 65), 16, dilation=(12, 12)),
    ConvCase((1, 7, 19, 40), 9, dilation=(2, 5)),
    ConvCase((2, 3, 5, 7), 4, dilation=(9, 9)),  # only the centre is live
    ConvCase((1, 4, 5, 20), 6, dilation=(7, 7)),  # only the middle row is
    ConvCase((1, 4, 6, 6), 5, dilation=(5, 6)),  # the corners read one pixel; the sides none
    ConvCase((1, 4, 1, 1), 5, dilation=(6, 6)),  # a 1x1 map
    ConvCase((1, 2, 6, 6), 3, dilation=(1 << 20, 1 << 20)),
    ConvCase((0, 3, 6, 6), 4, dilation=(2, 2)),
)
# 1x1, and kernels, strides and paddings of every kind.
GEOMETRIES = (
    ConvCase((2, 19, 11, 9), 37, (1, 1)),
    ConvCase((1, 1, 1, 1), 1, (1, 1)),
    ConvCase((1, 6, 9, 12), 5, (1, 1), stride=(2, 2)),
    ConvCase((1, 3, 17, 20), 8, (7, 7), stride=(2, 2)),  # ResNet's first
    ConvCase((2, 4, 12, 13), 6, stride=(2, 2)),
    ConvCase((1, 4, 33, 31), 6, stride=(2, 2), dilation=(6, 6)),
    ConvCase((1, 5, 14, 11), 3, (3, 5), stride=(2, 3), padding=(1, 2), dilation=(2, 1)),
    ConvCase((1, 5, 12, 9), 4, stride=(1, 2)),
    ConvCase((1, 3, 9, 8), 5, (1, 3), dilation=(1, 2)),
    ConvCase((1, 3, 9, 8), 5, (5, 1), dilation=(3, 1)),
    ConvCase((2, 8, 9, 10), 8, padding=(0, 0)),  # "valid"
    ConvCase((1, 8, 13, 14), 8, padding=(0, 0), dilation=(4, 4)),
    ConvCase((1, 8, 9, 9), 8, padding=(0, 0), dilation=(4, 4)),  # one window
    ConvCase((1, 6, 7, 8), 5, padding=(2, 2)),  # "full"
    ConvCase((1, 6, 7, 8), 5, padding=(6, 8), dilation=(3, 4)),
    ConvCase((1, 6, 10, 8), 5, padding=(1, 5), dilation=(3, 4)),
    ConvCase((1, 2, 4, 5), 3, padding=(18, 18), dilation=(9, 9)),  # outputs that read nothing
)
IN_BLOCKS = ConvCase((1, 33, 33, 29), 20, (5, 5))
"""A large kernel, for contiguous maps of which torch has the faster one with AVX2."""
GROUPED = (
    ConvCase((2, 6, 9, 10), 8, groups=2),
    ConvCase((1, 12, 20, 17), 18, dilation=(6, 6), groups=3),
    ConvCase((1, 64, 9, 9), 64, dilation=(2, 2), groups=32),  # ResNeXt's
    ConvCase((1, 8, 11, 11), 6, (1, 1), stride=(2, 2), groups=2),
)
DEPTHWISE = (
    ConvCase((2, 33, 33, 33), 33, dilation=(6, 6), groups=33),
    ConvCase((1, 16, 33, 33), 16, dilation=(12, 12), groups=16),
    ConvCase((1, 24, 33, 34), 24, dilation=(18, 18), groups=24),
    ConvCase((3, 17, 10, 13), 17, groups=17),
    ConvCase((1, 3, 40, 70), 3, groups=3),
    ConvCase((1, 8, 21, 22), 8, stride=(2, 2), groups=8),
    ConvCase((1, 9, 21, 22), 9, stride=(2, 2), dilation=(2, 2), groups=9),
    ConvCase((1, 5, 9, 12), 5, (5, 5), groups=5),
    ConvCase((1, 5, 19, 22), 5, (3, 7), dilation=(4, 2), padding=(3, 0), groups=5),
    ConvCase((1, 40, 5, 7), 40, dilation=(9, 9), groups=40),
    ConvCase((1, 6, 12, 12), 12, dilation=(3, 3), groups=6),  # a multiplier of 2
    ConvCase((0, 4, 8, 8), 4, groups=4),
)
CASES = (*DENSE, *GEOMETRIES, *GROUPED, *DEPTHWISE)


def needs_kernel(*names: str):
    """Skips where an op runs on its reference, whose threads torch lets change the last bits."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return pytest.mark.skipif(
        not all(has(f"fastseg::{n}", "CPU") for n in names), reason="no CPU kernel"
    )


def operands(case: ConvCase, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """bias, scale, shift and residual; the scales are of both signs, one is 0."""
    c = case.out_channels
    scale = torch.randn(c)
    scale[c // 2] = 0 if c > 1 else -1
    vectors = {"bias": torch.randn(c), "scale": scale, "shift": torch.randn(c)}
    return {k: v.to(dtype) for k, v in vectors.items()} | {
        "residual": torch.randn(case.out_shape).to(dtype)
    }


def double(t):
    """A tensor in float64; None stays."""
    return None if t is None else t.double()


def expected_conv2d(x, weight, case: ConvCase, activation=None, **epilogue):
    """In float64: the output, and the largest of what goes into the activation."""
    names = ("bias", "scale", "shift", "residual")
    tensors = (double(t) for t in (x, weight, *(epilogue.get(n) for n in names)))
    z = reference.atrous_conv2d(*tensors, *case.geometry, "")
    return reference.ACTIVATION[activation or ""](z), largest(z)


def largest(t: Tensor) -> float:
    """max |t|, over what is finite."""
    finite = t[t.isfinite()]
    return finite.abs().max().item() if finite.numel() else 0.0


def assert_close(
    actual: Tensor, expected: Tensor, size: float | None = None, roundings: int = 1
) -> None:
    """Right to 2e-5 of the largest element (1e-12 in float64), and to one rounding of 16 bits.

    Sums of products cancel, and Winograd's transforms add values of neighbours: an error is small
    beside the largest element, not beside its own.

    Args:
        actual: of the dtype under test.
        expected: in float64; what is not finite must be where it is here. NaN for an infinity is
            right: fewer products mean differences of pixels.
        size: the largest of what went into the activation, by default of expected.
        roundings: to 16 bits: those before the last are of what went into the activation.
    """
    assert actual.shape == expected.shape
    assert expected.dtype == torch.float64
    size = largest(expected) if size is None else size
    finite = torch.finfo(actual.dtype)
    tolerance = size * (1e-12 if actual.dtype == torch.float64 else 2e-5)
    rounding = 0.501 * finite.eps if finite.bits == 16 else 0.0
    held = expected.isfinite() & (expected.abs() < finite.max)
    error = (actual.double() - expected).where(held, 0).abs()
    tolerance += rounding * (roundings - 1) * size
    excess = error - tolerance - rounding * expected.where(held, 0).abs()
    assert (excess <= 0).all(), f"largest error {error.max():.3g} of {size:.3g}"
    assert not actual[~expected.isfinite()].isfinite().any()
