"""Runs the kernels of convolutions with few outputs in Triton's interpreter; prints the errors.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import math

import torch

from fastseg import reference
from fastseg.kernels.conv import aspp as pyramid
from fastseg.kernels.conv import atrous_conv2d as kernels
from fastseg.kernels.conv import choice, configs, few_outputs
from fastseg.kernels.conv.aspp import same_branch
from fastseg.kernels.conv.geometry import Branch
from fastseg.kernels.conv.launch import Epilogue, launch_of
from fastseg.kernels.conv.layouts import channels_last, empty_channels_last

F32, F16 = torch.float32, torch.float16
CASES = (  # (N, Ci, H, W), Co, kernel, padding, dilation, activation, dtype
    ((2, 32, 9, 11), 21, (3, 3), (2, 2), (2, 2), "relu", F32),
    ((1, 32, 7, 7), 2, (3, 3), (9, 9), (9, 9), "", F32),  # all taps but one are dead
    ((3, 20, 13, 8), 19, (3, 3), (4, 2), (4, 2), "relu6", F32),
    ((2, 33, 10, 10), 5, (5, 5), (6, 4), (3, 2), "leaky_relu", F32),
    ((1, 7, 5, 6), 1, (5, 1), (0, 0), (1, 1), "", F32),  # a smaller output, odd rows
    ((1, 16, 3, 5), 40, (3, 3), (5, 4), (2, 1), "silu", F32),  # a larger output
    ((2, 32, 9, 11), 21, (3, 3), (2, 2), (2, 2), "hardswish", F16),
    ((1, 21, 6, 8), 3, (3, 5), (2, 8), (2, 4), "silu", F16),
)
WAYS = (
    few_outputs.Way(configs.Config(32, 32, 16, 4, 2), 1),
    few_outputs.Way(configs.Config(16, 64, 16, 4, 2), 2),
)


def error(actual, expected):
    """Relative L2."""
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def wide(t):
    return t.double() if isinstance(t, torch.Tensor) else t


def conv(case, way, memory_format, bare):
    """The error of one; without an epilogue a second run must give the same."""
    shape, outputs, kernel, padding, dilation, activation, dtype = case
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    weight = torch.randn(outputs, shape[1], *kernel) / math.sqrt(shape[1] * math.prod(kernel))
    weight = weight.to(dtype)
    geometry = ((1, 1), padding, dilation, 1)
    plain = reference.atrous_conv2d(x.double(), weight.double(), *[None] * 4, *geometry, "")
    vectors = [None] * 3 if bare else list(torch.randn(3, outputs))
    residual = None if bare else channels_last(torch.randn_like(plain).to(dtype))
    tensors = (x, weight, *vectors, residual)
    expected = reference.atrous_conv2d(*map(wide, tensors), *geometry, activation)
    launch = launch_of(x, outputs, [Branch(kernel, *geometry[:3])])
    assert few_outputs.is_possible(launch)
    ending = Epilogue(*(v if v is None else (v,) for v in vectors), residual, activation)

    def run():
        out = empty_channels_last(x, plain.shape)
        return few_outputs.run(launch, channels_last(x), [channels_last(weight)], out, ending, way)

    out = run()
    assert not bare or torch.equal(out, run())
    return error(out, expected)


def summed(shape, outputs, kernels, rates, dtype, way):
    """The error of a sum of branches, each with a shift."""
    x = channels_last(torch.randn(shape).to(dtype))
    weights = [torch.randn(outputs, shape[1], k, k) / math.sqrt(shape[1] * k * k) for k in kernels]
    weights = [channels_last(w.to(dtype)) for w in weights]
    shifts = list(torch.randn(len(kernels), outputs))
    branches = [same_branch(w, rate) for w, rate in zip(weights, rates, strict=True)]
    launch = launch_of(x, outputs, branches, summed=True)
    out = empty_channels_last(x, (shape[0], outputs, *shape[2:]))
    few_outputs.run(launch, x, weights, out, Epilogue(shifts=shifts), way)
    nothing = [None] * len(kernels)
    tensors = (x, weights, nothing, shifts, rates)
    doubled = [[wide(t) for t in a] if isinstance(a, list) else wide(a) for a in tensors]
    return error(out, reference.aspp(*doubled, *[None] * 4, ""))


def ops_come_here():
    """The errors of the op and of a sum where the model chooses this form."""
    choice.choose_form = kernels.choose_form = pyramid.choose_form = lambda *_, **__: (
        choice.FEW_OUTPUTS
    )
    kernels.run = pyramid.run = None  # the other form's
    x, weight = torch.randn(2, 24, 9, 7), torch.randn(5, 24, 3, 3) / 15
    vectors, residual = torch.randn(3, 5), torch.randn(2, 5, 9, 7)
    rest = ((1, 1), (3, 3), (3, 3), 1, "relu")
    tensors = (x, weight, *vectors, residual)
    out = kernels.atrous_conv2d(*tensors, *rest)
    found = [error(out, reference.atrous_conv2d(*map(wide, tensors), *rest))]
    weights, shifts = list(torch.randn(2, 5, 24, 3, 3) / 15), list(torch.randn(2, 5))
    rest = ([2, 4], *[None] * 4, "")
    out = pyramid.aspp(x, weights, [None] * 2, shifts, *rest)
    expected = reference.aspp(
        x.double(), [w.double() for w in weights], [None] * 2, [s.double() for s in shifts], *rest
    )
    return [*found, error(out, expected)]


def nans_stay_where_they_are_read():
    """At every output that reads one by a live tap, and nowhere else."""
    x = channels_last(torch.randn(2, 20, 9, 11))
    x[0, 3, 4, 5] = x[1, 19, 8, 0] = math.nan
    weight = channels_last(torch.randn(3, 20, 3, 3))
    launch = launch_of(x, 3, [same_branch(weight, 3)])
    out = empty_channels_last(x, (2, 3, 9, 11))
    few_outputs.run(launch, x, [weight], out, Epilogue(), WAYS[0])
    expected = torch.conv2d(x.isnan().double(), torch.ones_like(weight).double(), None, 1, 3, 3)
    return bool(torch.equal(out.isnan(), expected > 0))


if __name__ == "__main__":
    torch.manual_seed(0)
    few_outputs.PIXELS = 64  # fewer programs, which the interpreter is slow in
    layouts = (torch.channels_last, torch.contiguous_format)
    report = {
        "errors": [
            conv(case, way, layouts[i % 2], i % 3 == 2)
            for i, case in enumerate(CASES)
            for way in WAYS
        ],
        "half": [CASES[i][-1] == F16 for i in range(len(CASES)) for _ in WAYS],
        "summed": [
            summed((2, 32, 8, 9), 21, [3] * 4, [1, 2, 4, 9], F32, WAYS[0]),
            summed((1, 20, 7, 6), 3, [1, 3, 5], [1, 2, 3], F32, WAYS[1]),
            summed((1, 16, 7, 6), 3, [3, 3], [1, 2], F16, WAYS[1]),
        ],
        "nan": nans_stay_where_they_are_read(),
        "ops": ops_come_here(),
    }
    print(json.dumps(report))
