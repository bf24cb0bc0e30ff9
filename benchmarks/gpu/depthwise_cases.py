"""Depthwise convolutions of DeepLab's maps and their gradients, the calls that the model times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.gpu.figures import OURS, as_on_cpu, job
from benchmarks.gpu.worker import Job
from benchmarks.harness import Candidate, Case, nbytes

CHANNELS = 2048
ROUNDING = 1e-2
"""Largest difference between the same sums in bfloat16: about a unit in the last place."""


def depthwise_case(name: str, size: int, rate: int, layout: torch.memory_format) -> Case:
    """Returns the case of an op on one image, beside torch's convolution."""
    x = torch.randn(1, CHANNELS, size, size, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=layout)
    weight = torch.randn(CHANNELS, 1, 3, 3, device="cuda", dtype=torch.bfloat16)
    one, rates = [1, 1], [rate, rate]
    geometry = one, rates, rates
    op = getattr(torch.ops.fastseg, name)
    if name == "depthwise_conv2d":
        scale, shift = torch.randn(2, CHANNELS, device="cuda")
        arguments = (x, weight, None, scale, shift, None, *geometry, "relu")

        def theirs():
            y = F.conv2d(x, weight, None, *geometry, CHANNELS)
            return torch.relu_(y * scale[:, None, None] + shift[:, None, None])

    else:
        by_input = name == "depthwise_conv2d_input_grad"
        arguments = (x, weight, [size, size]) if by_input else (x, torch.randn_like(x), [3, 3])
        arguments += geometry
        grad = x if by_input else arguments[1]
        wanted = (by_input, not by_input, False)

        def theirs():
            given = (grad, x, weight, None, *geometry, False, [0, 0], CHANNELS, wanted)
            return torch.ops.aten.convolution_backward(*given)

    scale_of_sums = 1 if name != "depthwise_conv2d_weight_grad" else size
    check = partial(as_on_cpu, op, *arguments, tolerance=ROUNDING * scale_of_sums)
    candidates = [Candidate(OURS, partial(op, *arguments)), Candidate("eager", theirs)]
    return Case(name, "", candidates, check, 2 * nbytes(x))


def depthwise_jobs() -> Iterator[Job]:
    """Yields a convolution and both gradients in both layouts."""
    layouts = {"last": torch.channels_last, "first": torch.contiguous_format}
    kinds = {"": "", "gx ": "_input_grad", "gw ": "_weight_grad"}
    size, rate = 65, 12
    for channels, kind in itertools.product(layouts, kinds):
        op, layout = f"depthwise_conv2d{kinds[kind]}", layouts[channels]
        make = partial(depthwise_case, op, size, rate, layout)
        image = f"1x{CHANNELS}x{size}x{size}"
        modelled = f"{op} {image}, rate {rate}, bfloat16 {str(layout)[6:]}"
        yield job(f"depthwise {kind}{image} {channels}", make, modelled=modelled)
