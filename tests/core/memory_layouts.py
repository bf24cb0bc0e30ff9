"""The same values, differently in memory: what kernels must not be wrong about."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor


def layouts(t: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Tensors of t's shape and dtype; most of its values too, with garbage around these.

    Yields:
        What it is, and the tensor.
    """
    for d in range(t.dim()):
        yield f"expanded along {d}", t.narrow(d, 0, 1).expand(t.shape)
        wide = t.repeat_interleave(2, d)
        wide[(slice(None),) * d + (slice(1, None, 2),)] = garbage(t)
        yield f"every second along {d}", wide[(slice(None),) * d + (slice(0, None, 2),)]
        yield f"flipped along {d}", t.flip(d)
    yield "one value", t.flatten()[:1].view((1,) * t.dim()).expand(t.shape)
    for a, b in itertools.combinations(range(t.dim()), 2):
        yield f"{a} and {b} exchanged", t.transpose(a, b).contiguous().transpose(a, b)
    beside = torch.full((*t.shape, 2), garbage(t), dtype=t.dtype)
    beside[..., 1] = t
    yield "a column", beside[..., 1]
    longer = torch.full((t.numel() + 6,), garbage(t), dtype=t.dtype)
    longer[3:-3] = t.flatten()
    yield "with an offset", longer[3:-3].view(t.shape)
    yield "not aligned", _not_aligned(t)
    yield "a parameter", torch.nn.Parameter(t.clone(), requires_grad=False)
    if t.dim() == 4:
        yield "channels_last", t.contiguous(memory_format=torch.channels_last)
    if 1 in t.shape:
        strides = [7 if n == 1 else s for n, s in zip(t.shape, t.stride(), strict=True)]
        yield "strange strides of sizes of 1", t.clone().as_strided(t.shape, strides)
    if t.is_floating_point() and t.dtype in (torch.float32, torch.float64):
        yield "with the negative bit", torch.complex(torch.zeros_like(t), -t).conj().imag


def garbage(t: Tensor) -> float | int:
    """What shows where it is read."""
    if t.is_floating_point():
        return float("nan")
    return torch.iinfo(t.dtype).max


def _not_aligned(t: Tensor) -> Tensor:
    bytes_of = t.contiguous().flatten().view(torch.uint8)
    memory = bytearray(1 + len(bytes_of))
    view = torch.frombuffer(memory, dtype=torch.uint8, offset=1)
    view.copy_(bytes_of)
    return torch.frombuffer(memory, dtype=t.dtype, offset=1).view(t.shape)
