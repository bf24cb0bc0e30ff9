"""Runs the Triton kernels of dense atrous convolution in Triton's interpreter; prints the errors.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import math

import torch

import fastseg
from fastseg import reference
from fastseg.kernels import common
from fastseg.kernels.conv import aspp as pyramid
from fastseg.kernels.conv import atrous_conv2d as kernels
from fastseg.kernels.conv import choice, configs, few_outputs, rates
from fastseg.kernels.conv import launch as launches
from fastseg.kernels.conv.epilogue import Operands, apply_epilogue
from fastseg.kernels.conv.geometry import Branch

F32, F16 = torch.float32, torch.float16
ONE = (1, 1)
CASES = (  # (N, Ci, H, W), Co, kernel, stride, padding, dilation, activation, dtype
    ((2, 32, 9, 11), 32, (3, 3), ONE, (2, 2), (2, 2), "relu", F32),
    ((1, 32, 7, 7), 40, (3, 3), ONE, (9, 9), (9, 9), "", F32),  # a rate beyond the map
    ((3, 20, 13, 8), 21, (3, 3), ONE, (4, 2), (4, 2), "relu6", F32),
    ((2, 33, 10, 10), 17, (5, 5), ONE, (6, 4), (3, 2), "leaky_relu", F32),
    ((2, 32, 10, 12), 38, (3, 3), (2, 2), (3, 3), (3, 3), "silu", F32),
    ((2, 40, 9, 9), 33, (1, 1), ONE, (0, 0), ONE, "hardswish", F32),
    ((1, 7, 5, 6), 3, (5, 1), ONE, (0, 0), ONE, "", F32),  # rows begin at no multiple of 16 bytes
    ((1, 16, 1, 5), 8, (3, 3), (1, 2), (4, 2), (2, 1), "relu", F32),  # pixels without a live tap
    ((2, 32, 9, 11), 32, (3, 3), ONE, (2, 2), (2, 2), "relu", F16),
    ((1, 21, 6, 8), 19, (3, 5), ONE, (2, 8), (2, 4), "silu", F16),
)
SPLIT = (1, 4, 7, 9)
WIDE = (0, 2, 4, 6, 8)
SMALL = configs.Config(32, 32, 16, 4, 2)  # many tiles, columns and chunks of small images

WIDE_TILES = configs.Config(configs.WIDE, 32, 16, 4, 2)


def wide(t):
    return t.double() if isinstance(t, torch.Tensor) else t


def error(actual, expected):
    """Relative L2."""
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def random_weight(outputs, channels, kernel, dtype):
    return (torch.randn(outputs, channels, *kernel) / math.sqrt(channels * math.prod(kernel))).to(
        dtype
    )


def conv(case, memory_format, bare):
    """Errors of the output and of the input's gradient, and whether it ran as it should."""
    shape, outputs, kernel, *geometry, activation, dtype = case
    geometry = (*geometry, 1)
    x = torch.randn(shape).to(dtype).contiguous(memory_format=memory_format)
    weight = random_weight(outputs, shape[1], kernel, dtype)
    vectors = [None] * 3 if bare else list(torch.randn(3, outputs).to(dtype))
    plain = reference.atrous_conv2d(x.double(), weight.double(), *[None] * 4, *geometry, "")
    residual = None if bare else torch.randn_like(plain).to(dtype)
    tensors = (x, weight, *vectors, residual)
    expected = reference.atrous_conv2d(*map(wide, tensors), *geometry, activation)
    actual = kernels.atrous_conv2d(*tensors, *geometry, activation)
    grad = torch.randn_like(actual)
    by_grad = (grad, weight, shape[2:], *geometry)
    expected_grad = reference.atrous_conv2d_input_grad(*map(wide, by_grad))
    actual_grad = kernels.atrous_conv2d_input_grad(*by_grad)
    for t in (actual, actual_grad):
        assert t.dtype == dtype
        assert t.is_contiguous(memory_format=memory_format)
    return [error(actual, expected), error(actual_grad, expected_grad)]


def slots(case):
    """Of the workspace, where tiles are split."""
    shape, outputs, kernel, stride, padding, dilation, *_ = case
    x = torch.empty(shape)
    launch = launches.launch_of(x, outputs, [Branch(kernel, stride, padding, dilation)])
    return launch.plan(launches.choose(launch)).slots


def aspp(shape, widths, projected, sizes, dilations, dtype, activation="relu", plain=()):
    """The error of one with a projection, or of a sum if projected is 0.

    plain: the branches that have no batch norm; the scale alone is missing of a sum's.
    """
    x = torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
    weights = [
        random_weight(c, shape[1], (k, k), dtype) for c, k in zip(widths, sizes, strict=True)
    ]
    scales, shifts = (
        [None if i in plain else torch.randn(c) for i, c in enumerate(widths)] for _ in range(2)
    )
    total = sum(widths)
    rest = [None] * 4
    if projected:
        # The projection's weight is a slice of one that also has the pooled image's columns.
        project = random_weight(projected, total + 8, ONE, dtype)[:, :total]
        rest = [project, *torch.randn(2, projected), torch.randn(shape[0], projected)]
    else:
        shifts = [torch.randn(c) for c in widths]
    arguments = (x, weights, scales, shifts, dilations, *rest)
    doubled = [[wide(t) for t in a] if isinstance(a, list) else wide(a) for a in arguments]
    actual = pyramid.aspp(*arguments, activation)
    assert actual.dtype == dtype
    assert actual.is_contiguous(memory_format=torch.channels_last)
    return error(actual, reference.aspp(*doubled, activation))


def aspp_with_pooling(shape, width, projected, pooled, pool_first, dtype, activation="relu"):
    """The error of one of two branches whose pooled branch has kernels of its own."""
    x = torch.randn(shape).to(dtype)
    weights = [random_weight(width, shape[1], (k, k), dtype) for k in (1, 3)]
    scales, shifts = torch.randn(2, width), [None, torch.randn(width)]
    project = (random_weight(projected, 2 * width + pooled, ONE, dtype), *torch.randn(2, projected))
    pool = (random_weight(pooled, shape[1], ONE, dtype), torch.randn(pooled), None)
    branches = [*zip(weights, scales, shifts, (1, 2), strict=True)]
    actual = pyramid.aspp_with_pooling(
        x, weights, [*scales], shifts, (1, 2), project, pool, pool_first, activation
    )
    assert actual.dtype == dtype
    assert actual.is_contiguous()
    expected = fastseg.aspp(
        x.double(),
        [fastseg.ASPPBranch(*map(wide, b)) for b in branches],
        fastseg.ASPPBranch(*map(wide, project)),
        pool=fastseg.ASPPBranch(*map(wide, pool)),
        pool_first=pool_first,
        activation=activation,
    )
    return error(actual, expected)


def joined_sums():
    """The errors of sums whose weights are joined into one."""
    kept, pyramid.choose_form = pyramid.choose_form, lambda *_, **__: choice.JOINED
    try:
        return [
            aspp((1, 32, 8, 8), [21] * 4, 0, [3] * 4, [1, 2, 4, 9], F32, "", plain=range(4)),
            aspp((2, 20, 7, 6), [17] * 3, 0, [1, 3, 5], [1, 2, 3], F32, "", plain=range(3)),
        ]
    finally:
        pyramid.choose_form = kept


def nans_stay_where_they_are_read():
    """At every output that reads one by a live tap, and nowhere else."""
    x = torch.randn(2, 20, 9, 11)
    x[0, 3, 4, 5] = x[1, 19, 8, 0] = math.nan
    weight = random_weight(18, 20, (3, 3), F32)
    geometry = (ONE, (3, 3), (3, 3), 1)
    actual = kernels.atrous_conv2d(x, weight, *[None] * 4, *geometry, "relu")
    expected = torch.conv2d(x.isnan().double(), torch.ones_like(weight).double(), None, *geometry)
    return bool(torch.equal(actual.isnan(), expected > 0))


def epilogues():
    """Of the kernel that follows torch's convolution."""
    worst = 0.0
    for activation in reference.ACTIVATION:
        for memory_format in (torch.contiguous_format, torch.channels_last):
            y = torch.randn(2, 5, 7, 9).mul(4).contiguous(memory_format=memory_format)
            operands = (*torch.randn(3, 5).double(), torch.randn(2, 5, 7, 9).half())
            expected = reference.conv2d_epilogue(y.double(), *map(wide, operands), activation)
            worst = max(worst, error(apply_epilogue(y, Operands(*operands), activation), expected))
    return worst


def plan_for(multiprocessors):
    """Launches are planned for a GPU of so many, from now on."""
    common.NO_GPU = common.NO_GPU._replace(multiprocessors=multiprocessors)
    for estimated in (launches.estimate, few_outputs.estimate, choice.times):
        estimated.cache_clear()


def main() -> None:
    """Prints one JSON line."""
    torch.manual_seed(0)
    choice.MARGIN = math.inf
    few_outputs.MOST_OUTPUTS = 0  # they have a program of their own
    report = {"default": [conv(CASES[i], torch.channels_last, False) for i in (0, 8)]}
    configs.TABLE.update(dict.fromkeys(configs.TABLE, (SMALL,)))
    plan_for(1)
    report["slots"] = [slots(case) for case in CASES]
    report["errors"] = [
        conv(case, torch.channels_last if i % 2 else torch.contiguous_format, i % 3 == 2)
        for i, case in enumerate(CASES)
    ]
    report["aspp"] = [
        aspp((2, 32, 9, 11), [24] * 3, 20, [1, 3, 3], [1, 2, 6], F32),
        aspp((1, 20, 7, 6), [17] * 3, 19, [1, 3, 5], [1, 2, 3], F32, "silu", plain=[1]),
        aspp((1, 20, 7, 6), [9, 17], 19, [1, 3], [1, 2], F32),
        aspp((1, 32, 8, 8), [21] * 4, 0, [3] * 4, [1, 2, 4, 9], F32, "", plain=range(4)),
        aspp((1, 32, 5, 6), [21] * 2, 0, [3] * 2, [1, 2], F32, "", plain=[1]),
        aspp((1, 16, 5, 6), [16] * 2, 16, [1, 3], [1, 3], F16),
    ]
    report["pooling"] = [
        aspp_with_pooling((2, 40, 9, 11), 24, 20, 13, False, F32),
        aspp_with_pooling((1, 300, 5, 5), 16, 16, 16, True, F32, "silu"),
        aspp_with_pooling((3, 16, 5, 6), 16, 24, 8, True, F16),
    ]
    report["joined"] = joined_sums()
    configs.TABLE.update(dict.fromkeys(configs.TABLE, (WIDE_TILES,)))
    plan_for(1)
    report["wide slots"] = [slots(CASES[i]) for i in WIDE]
    report["wide errors"] = [conv(CASES[i], torch.channels_last, False) for i in WIDE]
    report["joined"] += joined_sums()
    report["wide aspp"] = [aspp((2, 20, 9, 11), [24] * 3, 20, [1, 3, 3], [1, 2, 6], F32)]
    configs.TABLE.update(dict.fromkeys(configs.TABLE, (SMALL,)))
    # As if a program and its sums cost nothing beside its products.
    free = {"start": 0.0, "launch": 0.0, "l2": math.inf}
    rates.ESTIMATED["A100"] = rates.ESTIMATED["A100"]._replace(**free)
    plan_for(24)
    report["split slots"] = [slots(CASES[i]) for i in SPLIT]
    report["split errors"] = [conv(CASES[i], torch.channels_last, False) for i in SPLIT]
    report["split aspp"] = [
        aspp((1, 32, 5, 6), [24] * 3, 20, [1, 3, 3], [1, 2, 6], F32),
        aspp((1, 32, 6, 6), [21] * 4, 0, [3] * 4, [1, 2, 4, 9], F32, "", plain=range(4)),
    ]
    configs.TABLE.update(dict.fromkeys(configs.TABLE, (WIDE_TILES,)))
    plan_for(24)
    report["split wide slots"] = [slots(CASES[i]) for i in WIDE]
    report["split wide errors"] = [conv(CASES[i], torch.channels_last, False) for i in WIDE[:2]]
    configs.TABLE.update(dict.fromkeys(configs.TABLE, (SMALL,)))
    plan_for(24)
    report["nan"] = nans_stay_where_they_are_read()
    report["epilogue"] = epilogues()
    choice.MARGIN = 0.0
    report["torch"] = [conv(CASES[i], torch.channels_last, False) for i in (5, 8)]
    print(json.dumps(report))


if __name__ == "__main__":
    main()
