"""Runs Triton kernels that leave their tensors or int32, each in turn; prints what refuses them.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json

import torch
import triton
import triton.language as tl


@triton.jit
def copy(x, out, first, count, BLOCK: tl.constexpr):
    """Copies `count` elements from `first` on, BLOCK or fewer."""
    i = tl.arange(0, BLOCK)
    mask = i < count
    tl.store(out + i, tl.load(x[0] + first + i, mask), mask)


@triton.jit
def add(out, a, b):
    """Writes a + b, of int32."""
    tl.store(out, a + b)


@triton.jit
def subtract(out, a, b):
    """Writes a - b, of int32."""
    tl.store(out, a - b)


@triton.jit
def multiply(out, a, b):
    """Writes a * b, of int32."""
    tl.store(out, a * b)


def refusal(kernel, *arguments, **constants):
    """What the error says, or an empty string where there is none."""
    try:
        kernel[(1,)](*arguments, **constants)
    except Exception as error:
        return str(error)
    return ""


def copied(x, out, first, count=16):
    """The refusal of a copy."""
    return refusal(copy, (x,), out, first, count, BLOCK=16)


if __name__ == "__main__":
    x, out = torch.arange(64.0), torch.zeros(64)
    report = {
        "inside": copied(x[:16], out[:16], 0),
        "masked": copied(x[:8], out[:8], 0, count=8),
        "a view of the half": copied(x[:32:2], out[:16], 0),
        "behind the end": copied(x[:15], out[:16], 0),
        "before the start": copied(x[16:32], out[:16], -1),
        "stored": copied(x[:16], out[:13], 0),
        "empty": copied(x[:0], out[:16], 0),
    }
    numbers = torch.zeros(1, dtype=torch.int32)
    most, least = 2**31 - 1, -(2**31)
    report["int32"] = {
        "add": [refusal(add, numbers, most, b) for b in (0, 1)],
        "sub": [refusal(subtract, numbers, least, b) for b in (0, 1)],
        "mul": [refusal(multiply, numbers, 2**15, b) for b in (2**15, 2**16)],
    }
    print(json.dumps(report))
