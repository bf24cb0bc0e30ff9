"""Runs a Triton kernel that leaves its tensors, each access in turn; prints what refuses it.

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


def refusal(x, out, first, count=16):
    """What the error says, or an empty string where there is none."""
    try:
        copy[(1,)]((x,), out, first, count, BLOCK=16)
    except Exception as error:
        return str(error)
    return ""


if __name__ == "__main__":
    x, out = torch.arange(64.0), torch.zeros(64)
    report = {
        "inside": refusal(x[:16], out[:16], 0),
        "masked": refusal(x[:8], out[:8], 0, count=8),
        "a view of the half": refusal(x[:32:2], out[:16], 0),
        "behind the end": refusal(x[:15], out[:16], 0),
        "before the start": refusal(x[16:32], out[:16], -1),
        "stored": refusal(x[:16], out[:13], 0),
        "empty": refusal(x[:0], out[:16], 0),
    }
    print(json.dumps(report))
