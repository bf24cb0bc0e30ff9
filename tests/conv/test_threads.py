"""Convolutions on the CPU have the same bits with any number of threads."""

from __future__ import annotations

import random

import pytest
import torch

import fastseg


def random_problem(rng: random.Random):
    """Operands of a convolution and its geometry; the padding may reach beyond the map."""
    kernel, stride, dilation = (
        rng.choice((1, 3, 3, 5, 7)),
        rng.choice((1, 1, 2)),
        rng.choice((1, 2, 6)),
    )
    groups, batch = rng.choice((1, 1, 2, 8)), rng.choice((1, 1, 2))
    channels, outputs = rng.choice((1, 3, 8, 16, 32, 33, 64)), rng.choice((1, 5, 8, 16, 32, 21))
    size = rng.choice((5, 9, 17, 33)), rng.choice((5, 9, 17, 41))
    x = torch.randn(batch, groups * channels, *size)
    weight = torch.randn(groups * outputs, channels, kernel, kernel)
    padding = dilation * (kernel // 2)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return x, weight, geometry


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("seed", range(6))
def test_any_convolution(seed, layout):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(30):
        x, weight, geometry = random_problem(rng)
        x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
        vector = torch.rand(len(weight))
        epilogue = rng.choice(({}, {"scale": vector, "shift": vector, "activation": "relu"}))
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            fastseg.empty_cache()  # a prepared weight, too, is made with that number
            found.append(fastseg.atrous_conv2d(x, weight, **geometry, **epilogue))
        what = f"{tuple(x.shape)} {tuple(weight.shape)} {geometry}"
        assert torch.equal(found[0], found[1]), what
        assert torch.equal(found[0], found[2]), what
