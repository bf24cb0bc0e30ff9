"""Counts what the dense atrous convolution's kernels do in Triton's interpreter; prints it.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import math

import torch

from fastseg.kernels.conv import configs
from fastseg.kernels.conv import plan as plans
from fastseg.kernels.conv.geometry import Branch
from fastseg.kernels.conv.launch import Epilogue, launch_of, run
from fastseg.kernels.conv.layouts import channels_last, empty_channels_last
from tests.triton_counts import counted

CONFIG = configs.Config(32, 32, 32, 4, 2)
CASES = (  # (N, Ci, H, W), Co, dilation
    ((1, 64, 12, 12), 64, 2),
    ((2, 64, 9, 9), 32, 6),
    ((1, 96, 12, 10), 40, 9),
)


def count(shape, outputs, dilation) -> dict[str, int]:
    """What one launch does, and what its plan says that it does."""
    x = channels_last(torch.randn(shape))
    weight = channels_last(torch.randn(outputs, shape[1], 3, 3))
    branch = Branch((3, 3), (1, 1), (dilation, dilation), (dilation, dilation))
    launch = launch_of(x, outputs, [branch])
    out = empty_channels_last(x, (shape[0], outputs, *shape[2:]))
    with counted() as counts:
        run(launch, x, [weight], out, Epilogue(), CONFIG)
    sizes, branches, cut, *options = launch.problem(CONFIG)
    tiles = plans.tiles_of(sizes, branches, cut.tile, *options)
    taps = tiles.taps.sum().item()
    product = 2 * CONFIG.BM * CONFIG.BN * CONFIG.BK
    return {
        "dot_flops": counts.dot_flops,
        "planned_flops": taps * cut.chunks * cut.columns * product,
        "dense_flops": 2 * 9 * math.prod(shape) * cut.columns * CONFIG.BN,
        "store_bytes": counts.store_bytes,
        "tile_bytes": len(tiles.taps) * CONFIG.BM * outputs * 4,  # the last tile is filled up
        "slots": launch.plan(CONFIG).slots,
        "load_bytes": counts.load_bytes,
        "operand_bytes": taps * cut.chunks * cut.columns * CONFIG.BK * (CONFIG.BM + CONFIG.BN) * 4,
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    print(json.dumps([count(*case) for case in CASES]))
