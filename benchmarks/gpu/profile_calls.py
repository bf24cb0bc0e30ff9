"""Calls of the main ops for profilers.

python -m benchmarks.gpu.profile_calls            # a table of torch.profiler for each call
ncu --profile-from-start off ... python -m benchmarks.gpu.profile_calls --once
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

import fastseg
from benchmarks import atrous_cases, dense_crf, pooling

Call = Callable[[], object]


def crf(quality: str) -> Call:
    """Returns a call of the dense CRF, lattices included."""
    row = dense_crf.Row(500, 375, 21, 3, 80, 13, 10)
    return partial(dense_crf.Problem(row, dense_crf.synthetic_image(), "cuda").op, quality)


def module(make, *arguments) -> Call:
    """Returns a call of one of our modules in bfloat16."""
    with torch.device("cuda"):
        pair = make(*arguments)
    ours = pair.ours.to(torch.bfloat16)
    x = atrous_cases.gpu_randn(pair.shape, torch.bfloat16)
    return partial(ours, x)


def segnet_pooling() -> Call:
    """Returns SegNet's poolings and unpoolings, which are five levels of a batch of eight."""
    inputs = [
        torch.randn(8, *level, device="cuda", dtype=torch.bfloat16)
        for level in pooling.levels((360, 480))
    ]

    def run() -> None:
        for x in inputs:
            values, codes = fastseg.max_pool2d(x, 2)
            fastseg.max_unpool2d(values, codes, 2, output_size=x.shape[-2:])

    return run


def class_map() -> Call:
    """Returns a call of the class map of Cityscapes' size."""
    logits = torch.randn(1, 19, 128, 256, device="cuda")
    return partial(fastseg.upsample_argmax, logits, (1024, 2048))


CALLS: dict[str, Callable[[], Call]] = {
    "dense_crf, high": partial(crf, "high"),
    "dense_crf, compat": partial(crf, "compat"),
    "ASPP": partial(module, atrous_cases.aspp, (8, 2048, 33, 33), (6, 12, 18)),
    "depthwise": partial(module, atrous_cases.conv, (8, 2048, 33, 33), 2048, 3, 1, 12, 2048),
    "SegNet's poolings": segnet_pooling,
    "class map": class_map,
}


def print_profile(name: str, call: Call) -> None:
    """Prints the kernels and host functions of a warm call."""
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    table = found.key_averages().table(sort_by="self_device_time_total", row_limit=25)
    print(f"\n{name}\n{table}", flush=True)


@torch.no_grad()
def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--once", action="store_true", help="once each, between profiler marks")
    options = parser.parse_args()
    for name, make in CALLS.items():
        call = make()
        torch.cuda.synchronize()
        if not options.once:
            print_profile(name, call)
            continue
        torch.cuda.profiler.start()
        call()
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
