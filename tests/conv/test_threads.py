"""Our convolutions on the CPU and their gradients have the same bits with any number of threads.

oneDNN's blocks depend on that number, and so do its sums, in one of a hundred random shapes.
"""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from torch.autograd import profiler

import fastseg
from fastseg._core import extension

pytestmark = pytest.mark.skipif(
    extension.simd_level() not in ("avx2", "avx512"), reason="all convolutions are torch's here"
)
each_layout = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=str
)
each_seed = pytest.mark.parametrize("seed", range(6))
PROBLEMS = 30
ops = torch.ops.fastseg


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
    pairs = {"stride": stride, "padding": dilation * (kernel // 2), "dilation": dilation}
    return x, weight, {k: (v, v) for k, v in pairs.items()} | {"groups": groups}


def is_ours(run) -> bool:
    """Whether what `run` computes is computed without torch's convolutions."""
    with profiler.profile() as profile:
        run()
    names = {event.name for event in profile.function_events}
    return not any("conv" in name for name in names if not name.startswith("fastseg::"))


def check(run, what: str) -> bool:
    """Checks the bits of what `run` returns, if that is ours; returns whether it is."""
    if not is_ours(run):
        return False
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        fastseg.empty_cache()  # a prepared weight, too, is made with that number
        found.append(run())
    assert torch.equal(found[0], found[1]), what
    assert torch.equal(found[0], found[2]), what
    return True


@each_layout
@each_seed
def test_any_convolution(seed, layout):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ours = 0
    for _ in range(PROBLEMS):
        x, weight, geometry = random_problem(rng)
        x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
        vector = torch.rand(len(weight))
        epilogue = rng.choice(({}, {"scale": vector, "shift": vector, "activation": "relu"}))
        what = f"{tuple(x.shape)} {tuple(weight.shape)} {geometry}"
        ours += check(partial(fastseg.atrous_conv2d, x, weight, **geometry, **epilogue), what)
    assert ours > PROBLEMS / 5


@each_layout
@each_seed
def test_gradients_of_any_convolution(seed, layout):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    ours = [0, 0]
    for _ in range(PROBLEMS):
        x, weight, geometry = random_problem(rng)
        x, weight = (t.contiguous(memory_format=layout) for t in (x, weight))
        grad = torch.randn_like(fastseg.atrous_conv2d(x, weight, **geometry))
        rest = tuple(geometry.values())
        what = f"{tuple(x.shape)} {tuple(weight.shape)} {geometry}"
        of_input = partial(ops.atrous_conv2d_input_grad, grad, weight, x.shape[2:], *rest)
        of_weight = partial(ops.atrous_conv2d_weight_grad, x, grad, weight.shape[2:], *rest)
        ours[0] += check(of_input, f"input {what}")
        ours[1] += check(of_weight, f"weight {what}")
    assert min(ours) > PROBLEMS / 5
