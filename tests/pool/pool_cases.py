"""What the tests of the pooling ops run over: shapes, windows, layouts and values that matter."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


class PoolCase(NamedTuple):
    """One pooling of one shape (N, C, H, W)."""

    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, int] = (2, 2)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @property
    def window(self) -> tuple:
        """(kernel_size, stride, padding, dilation)."""
        return self[1:5]

    def __str__(self) -> str:
        numbers = ["x".join(map(str, part)) for part in self[:5]]
        return "-".join([*numbers, *(["ceil"] if self.ceil_mode else [])])


# Vectors of the 2x2 kernels hold 2 (float64), 4 or 8 (16-bit) windows of a row or channels.
CASES_2X2 = (
    PoolCase((2, 3, 8, 32)),  # rows of whole vectors
    PoolCase((2, 16, 5, 24)),  # half vectors in 16 bits; channels in whole vectors; odd height
    PoolCase((1, 2, 6, 12)),  # half vectors in float32
    PoolCase((1, 8, 7, 9)),  # odd sizes
    PoolCase((2, 5, 4, 6)),
    PoolCase((1, 1, 2, 2)),  # one window
    PoolCase((3, 1, 2, 16)),
    PoolCase((0, 3, 4, 4)),  # no image
)
CASES = (
    *CASES_2X2,
    PoolCase((1, 3, 5, 7), ceil_mode=True),
    PoolCase((1, 1, 1, 1), (1, 1), (1, 1)),
    PoolCase((1, 1, 1, 1), ceil_mode=True),
    PoolCase((2, 4, 9, 11), (3, 3), (2, 2), (1, 1)),  # ResNet's
    PoolCase((1, 3, 7, 6), (3, 3), (1, 1), (1, 1)),
    PoolCase((1, 8, 8, 8), (2, 2), (1, 1)),
    PoolCase((1, 2, 10, 13), (2, 3), (3, 4)),  # gaps between windows
    PoolCase((2, 3, 11, 12), (3, 2), (2, 3), (1, 1), (2, 3), ceil_mode=True),
    PoolCase((1, 2, 9, 9), (3, 3), (1, 2), (1, 0), (3, 2)),
    PoolCase((1, 1, 20, 17), (16, 16), (3, 1), (8, 7)),  # 256 taps
)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def special_values(shape, dtype: torch.dtype, layout: torch.memory_format, seed: int = 0) -> Tensor:
    """Few distinct values, so that windows hold ties, and NaN, -0.0, infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-3, 4, shape, generator=generator).to(dtype) / 2
    lot = torch.randint(0, 24, shape, generator=generator)
    for number, value in enumerate((torch.nan, -0.0, torch.inf)):
        x[lot == number] = value
    x[lot > 20] = -torch.inf
    return x.contiguous(memory_format=layout)


def finite_values(shape, dtype: torch.dtype, layout: torch.memory_format, seed: int = 0) -> Tensor:
    """Normal values and both zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    lot = torch.randint(0, 8, shape, generator=generator)
    x[lot == 0] = -0.0
    x[lot == 1] = 0.0
    return x.to(dtype).contiguous(memory_format=layout)


def misaligned(x: Tensor, elements: int = 1) -> Tensor:
    """x in memory that starts some elements beyond a 16-byte boundary."""
    storage = torch.empty(x.numel() + elements, dtype=x.dtype)
    return torch.as_strided(storage, x.shape, x.stride(), elements).copy_(x)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For torch's side of a comparison: its threads take longer to meet than small sizes take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def assert_identical(actual: Tensor, expected: Tensor) -> None:
    """The same shape, dtype and bits; any NaN for a NaN."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if not actual.is_floating_point():
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)
        return
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(
        torch.signbit(actual.nan_to_num(1.0)), torch.signbit(expected.nan_to_num(1.0))
    )


def assert_layout(actual: Tensor, layout: torch.memory_format) -> None:
    """An empty tensor has none."""
    assert actual.numel() == 0 or actual.is_contiguous(memory_format=layout)


def in_layout(x: Tensor, kind: str) -> Tensor:
    """x's values under other strides: one of STRIDES."""
    n, c, h, w = x.shape
    if kind == "sliced":
        out = x.new_full((n, 2 * c, h + 3, 2 * w + 1), torch.nan)[:, ::2, 2:-1, 1::2]
    elif kind == "sliced channels_last":
        out = x.new_full((n, h, w + 1, c + 3), torch.nan)[:, :, 1:, 2:-1].permute(0, 3, 1, 2)
    elif kind == "transposed":
        out = x.new_empty((n, c, w, h)).transpose(-1, -2)
    elif kind == "channels first in memory":
        out = x.new_empty((c, n, h, w)).transpose(0, 1)
    elif kind == "misaligned":
        return misaligned(x)
    elif kind == "expanded batch":
        return x[:1].expand(3, -1, -1, -1)
    elif kind == "expanded channels":
        return x[:, :1].expand(-1, 5, -1, -1)
    elif kind == "expanded rows":
        return x[..., :1, :].expand(-1, -1, 6, -1)
    elif kind == "one channel, channels_last":
        return x[:, :1].contiguous().as_strided((n, 1, h, w), (h * w, 1, w, 1))
    elif kind == "one image of channels_last":
        return x[:1].contiguous(memory_format=torch.channels_last)
    elif kind == "3-D":
        return x[0]
    elif kind == "3-D transposed":
        return x[0].transpose(0, 2).contiguous().transpose(0, 2)
    else:
        raise ValueError(kind)
    return out.copy_(x)


STRIDES = (
    "sliced",
    "sliced channels_last",
    "transposed",
    "channels first in memory",
    "misaligned",
    "expanded batch",
    "expanded channels",
    "expanded rows",
    "one channel, channels_last",
    "one image of channels_last",
    "3-D",
    "3-D transposed",
)
