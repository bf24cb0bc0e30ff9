"""Benchmarks of atrous convolution and ASPP beside torch, eager in both layouts and compiled.

python -m benchmarks.atrous_conv2d [--set bars|grid|all] [--only TEXT] [--csv FILE]

Cases are float32 inference on the CPU unless they say backward; torch.compile freezes weights.
Every case is first compared with float64: our error must not be over twice torch's, or 1e-6 of the
largest output. The floor is arithmetic: two operations for each pair of channels and tap that reads
a pixel, at the speed of a 1x1 convolution in the same run, or the
bytes of inputs, weights and outputs at the speed of a copy, whichever is slower.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch._inductor.config

from benchmarks import allocators
from benchmarks.atrous_cases import (
    LAST,
    Pair,
    aspp,
    aspp_sum,
    conv,
    flops_of,
    live_taps,
    our_gradient,
    sizes,
    torch_gradient,
)
from benchmarks.harness import (
    Candidate,
    Case,
    copy_bandwidth,
    machine,
    measure,
    write_csv,
)

OURS = "fastseg"


@dataclass
class ConvCase(Case):
    """A case that may be one of several."""

    group: str = ""  # cases whose times count together


def inference(pair: Pair, group: str = "") -> Case:
    """Returns the case of both modules' outputs for one input."""
    x, theirs = torch.randn(pair.shape), pair.theirs
    last, ours = x.contiguous(memory_format=LAST), pair.ours.to(memory_format=LAST)
    eager_last = copy.deepcopy(theirs).to(memory_format=LAST)
    compiled = torch.compile(eager_last, fullgraph=True, dynamic=False)

    def check():
        double = copy.deepcopy(theirs).double()
        expected = double(x.double())
        scale = expected.abs().max()
        error = {
            name: ((run() - expected).abs().max() / scale).item()
            for name, run in (
                ("ours", lambda: ours(last)),
                ("torch", lambda: eager_last(last)),
            )
        }
        exact = torch.get_float32_matmul_precision() == "highest"
        assert error["ours"] <= (max(2 * error["torch"], 1e-6) if exact else 3e-5), error

    candidates = [
        Candidate(OURS, lambda: ours(last)),
        Candidate(f"{OURS} contiguous", lambda: ours(x)),
        Candidate("eager contiguous", lambda: theirs(x)),
        Candidate("eager channels_last", lambda: eager_last(last)),
        Candidate("torch.compile", lambda: compiled(last)),
    ]
    parameters = sum(p.numel() for p in theirs.parameters())
    floor = 4 * (x.numel() + parameters + ours(last).numel())
    flops = flops_of(theirs, x)
    return ConvCase(pair.op, pair.title, candidates, check, floor, flops=flops, group=group)


def weight_grad(shape, out_channels, dilation) -> Case:
    """Returns the case of the weight's gradient."""
    n, c, h, w = shape
    plain = (torch.randn(shape), torch.randn(n, out_channels, h, w))
    plain += (torch.randn(out_channels, c, 3, 3),)
    last = tuple(t.contiguous(memory_format=LAST) for t in plain)
    ours, theirs = (
        partial(gradient, dilation=dilation, which="weight")
        for gradient in (our_gradient, torch_gradient)
    )

    def check():
        expected = theirs(*(t.double() for t in plain))
        errors = [(f(*last) - expected).abs().max().item() for f in (ours, theirs)]
        assert errors[0] <= 2 * errors[1], errors

    candidates = [
        Candidate(OURS, lambda: ours(*last)),
        Candidate(f"{OURS} contiguous", lambda: ours(*plain)),
        Candidate("eager contiguous", lambda: theirs(*plain)),
        Candidate("eager channels_last", lambda: theirs(*last)),
    ]
    floor = 4 * sum(t.numel() for t in plain)
    flops = 2.0 * n * c * out_channels * live_taps(h, w, 3, 1, dilation)
    title = f"{sizes(shape, out_channels)}, rate {dilation}"
    return ConvCase("weight gradient", title, candidates, check, floor, flops=flops)


VGG16 = (
    (3, 64, 1),
    (64, 64, 1),
    (64, 128, 2),
    (128, 128, 2),
    (128, 256, 4),
    (256, 256, 4),
    (256, 256, 4),
    (256, 512, 8),
    (512, 512, 8),
    (512, 512, 8),
    (512, 512, 16),
    (512, 512, 16),
    (512, 512, 16),
)
"""Input and output channels of the 13 layers, and the divisor of the image's sides."""


def bars() -> Iterator[Case]:
    """Yields cases with the sizes of segmentation networks."""
    for rate in (6, 12, 18):
        yield inference(conv((1, 2048, 33, 33), 256, dilation=rate))
    yield inference(aspp((1, 2048, 33, 33), (6, 12, 18)))
    yield inference(aspp((1, 2048, 65, 65), (12, 24, 36)))
    yield inference(aspp_sum((1, 512, 41, 41), 1024, (6, 12, 18, 24)))
    yield inference(aspp((1, 2048, 65, 65), (12, 24, 36), separable=True))
    for size, rate in ((33, 6), (33, 12), (33, 18), (65, 12), (65, 24)):
        yield inference(conv((1, 2048, size, size), 2048, dilation=rate, groups=2048))
    for rate in (6, 12, 18):
        yield weight_grad((1, 2048, 33, 33), 256, rate)
    for channels, out_channels, step in VGG16:
        shape = (1, channels, 360 // step, 480 // step)
        yield inference(conv(shape, out_channels), group="VGG16")


def grid() -> Iterator[Case]:
    """Yields cases of 60 shapes of all kinds."""
    for dilation in (1, 2, 4, 9, 18, 36):
        for n, c, h, w, o in (
            (1, 256, 33, 33, 256),
            (4, 64, 40, 61, 64),
            (2, 128, 65, 65, 96),
            (8, 32, 28, 28, 32),
            (1, 512, 15, 20, 512),
            (1, 16, 120, 160, 24),
        ):
            yield inference(conv((n, c, h, w), o, dilation=dilation))
    for n, c, h, w, o, k, s, d in (
        (1, 3, 224, 224, 64, 7, 2, 1),
        (1, 3, 360, 480, 32, 3, 2, 1),
        (1, 64, 90, 120, 128, 3, 2, 1),
        (2, 128, 33, 33, 256, 3, 2, 2),
        (1, 256, 33, 33, 64, 1, 1, 1),
        (4, 64, 56, 56, 256, 1, 1, 1),
        (1, 1280, 17, 17, 256, 1, 1, 1),
        (1, 512, 20, 20, 1024, 1, 2, 1),
        (1, 48, 64, 64, 48, 5, 1, 1),
        (1, 64, 33, 33, 64, 5, 1, 3),
        (1, 32, 48, 48, 32, 7, 1, 1),
        (8, 8, 32, 32, 8, 3, 1, 1),
    ):
        yield inference(conv((n, c, h, w), o, k, s, d))
    for n, c, h, w, s, d in (
        (1, 96, 112, 112, 2, 1),
        (1, 144, 65, 65, 1, 1),
        (1, 576, 33, 33, 1, 2),
        (1, 960, 33, 33, 1, 4),
        (2, 256, 65, 65, 1, 6),
        (1, 2048, 33, 33, 1, 12),
        (4, 32, 56, 56, 1, 18),
        (1, 960, 33, 33, 1, 36),
    ):
        yield inference(conv((n, c, h, w), c, 3, s, d, groups=c))
    for n, c, h, w, groups, d in ((1, 128, 56, 56, 32, 1), (1, 256, 33, 33, 8, 2)):
        yield inference(conv((n, c, h, w), c, dilation=d, groups=groups))
    for n, c, h, w, o, d in ((1, 256, 7, 7, 256, 1), (8, 512, 7, 7, 512, 2)):
        yield inference(conv((n, c, h, w), o, dilation=d))


def product_speed() -> float:
    """Returns operations per second of torch's fastest product, oneDNN's 1x1 convolution."""
    x = torch.randn(1, 512, 64, 64).contiguous(memory_format=LAST)
    weight = torch.randn(512, 512, 1, 1)
    conv = torch.ops.mkldnn._convolution_pointwise
    arguments = (x, weight, None, (0, 0), (1, 1), (1, 1), 1, "none", [], "")
    case = Case("1x1", "", [Candidate("1x1", lambda: conv(*arguments))], lambda: None, 0)
    measure([case], "cpu", min_seconds=0.5)
    return 2 * 512 * 512 * 64 * 64 / case.median("1x1")


def report(case: Case, bandwidth: float, speed: float) -> tuple[float, float]:
    """Prints a line; returns the seconds of ours and of the fastest rival."""
    mine = case.median(OURS)
    rivals = {c.name: case.median(c.name) for c in case.candidates if OURS not in c.name}
    rival = min(rivals, key=rivals.__getitem__)
    floor = max(case.flops / speed, case.floor_bytes / bandwidth)
    others = "  ".join(f"{name} {t * 1e3:.2f}" for name, t in rivals.items())
    contiguous = case.median(f"{OURS} contiguous")
    print(
        f"{case.op:<17} {case.shape:<58} {mine * 1e3:8.2f} ms {rivals[rival] / mine:6.2f}x over"
        f" {rival:<20} floor {floor * 1e3:7.2f} ms; contiguous {contiguous * 1e3:.2f} ms,"
        f" {rivals['eager contiguous'] / contiguous:.2f}x  [{others}]",
        flush=True,
    )
    return mine, rivals[rival]


@torch.no_grad()
def main() -> None:
    """Measures, prints and, with --csv, writes all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--set", choices=("bars", "grid", "all"), default="bars")
    parser.add_argument("--only", default="", help="cases whose line has this text")
    parser.add_argument("--fast", action="store_true", help="admit F(4, 3); errors may be 3e-5")
    parser.add_argument("--csv", type=Path)
    allocators.add_option(parser)
    options = parser.parse_args()
    if not allocators.measures_here(options):
        return
    torch.manual_seed(0)
    if options.fast:
        torch.set_float32_matmul_precision("high")
    torch._inductor.config.freezing = True
    bandwidth, speed = copy_bandwidth("cpu"), product_speed()
    print(
        f"{machine('cpu')}: copy {bandwidth / 1e9:.1f} GB/s,"
        f" 1x1 convolution {speed / 1e9:.0f} GFLOP/s"
    )
    sets: dict[str, Callable[[], Iterator[Case]]] = {"bars": bars, "grid": grid}
    names = sets if options.set == "all" else (options.set,)
    done: list[Case] = []
    totals: dict[str, list[float]] = {}
    ratios = []
    for case in (c for name in names for c in sets[name]()):
        if options.only not in f"{case.op} {case.shape} {case.group}":
            continue
        torch._dynamo.reset()  # or the same class would be compiled for many sizes, up to a limit
        measure([case], "cpu", min_seconds=0.5, min_rounds=7, warm_up=2)
        mine, theirs = report(case, bandwidth, speed)
        ratios.append(theirs / mine)
        if case.group:
            total = totals.setdefault(case.group, [0.0, 0.0])
            total[0] += mine
            total[1] += theirs
        done.append(case)
    for group, (mine, theirs) in totals.items():
        print(f"{group}: {mine * 1e3:.1f} ms, {theirs / mine:.2f}x over the fastest of each layer")
    if ratios:
        print(f"{len(ratios)} cases, {min(ratios):.2f}x at least, {statistics.median(ratios):.2f}x")
    if options.csv:
        write_csv(options.csv, "cpu", done)


if __name__ == "__main__":
    main()
