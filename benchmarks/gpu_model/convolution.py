"""Models the dense atrous convolutions of the benchmark on a GPU, beside cuDNN, without one.

python -m benchmarks.gpu_model.convolution [--device H200]

For each launch of benchmarks.atrous_conv2d_gpu and some that are hard: the floor, which is the
products of live taps at the speed of a large matrix product; what the forms of
fastseg.kernels.conv.choice should take; cuDNN at three quarters of that speed with all of its tiles
full; and which form is chosen. Microseconds, bfloat16. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator

import torch

from benchmarks import atrous_cases, atrous_conv2d_gpu
from benchmarks.atrous_cases import live_taps, sizes
from fastseg.kernels import common
from fastseg.kernels.conv import choice, few_outputs
from fastseg.kernels.conv import launch as launches
from fastseg.kernels.conv.aspp import same_branch
from fastseg.kernels.conv.launch import Launch, launch_of
from fastseg.kernels.conv.rates import rates_of

GPUS = {
    "H200": common.Device("sm_90", 132, "NVIDIA H200"),
    "H100": common.Device("sm_90", 132, "NVIDIA H100 80GB HBM3"),
    "A100": common.Device("sm_80", 108, "NVIDIA A100-SXM4-80GB"),
    "B200": common.Device("sm_100", 148, "NVIDIA B200"),
}

FORMS = (choice.LIVE_TAPS, choice.JOINED, choice.FEW_OUTPUTS, choice.TORCH)

ATROUS = ((1, 1), (3, 6), (3, 12), (3, 18))
HARD = (  # shape, outputs, kernels and rates, whether they are summed
    ((8, 256, 33, 33), 256, ((3, 2),), False),
    ((8, 2048, 41, 41), 21, ((3, 6), (3, 12), (3, 18), (3, 24)), True),
    ((1, 2048, 41, 41), 21, ((3, 6), (3, 12), (3, 18), (3, 24)), True),
    ((8, 2048, 41, 41), 21, ((3, 12),), False),
    ((1, 512, 64, 128), 19, ((3, 12),), False),
    ((1, 2048, 64, 128), 256, ATROUS, False),
    ((1, 2048, 65, 65), 256, ((1, 1), (3, 12), (3, 24), (3, 36)), False),
    ((1, 2048, 33, 33), 256, ((3, 6),), False),
    ((1, 2048, 33, 33), 256, ((3, 12),), False),
    ((1, 2048, 33, 33), 256, ((3, 18),), False),
    ((1, 512, 41, 41), 1024, ((3, 12),), False),
)


def launch(shape, outputs, kernels_and_rates, summed=False, transposed=False) -> Launch:
    """Returns the launch of convolutions that keep the size, on the GPU that is modelled."""
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    branches = [
        same_branch(torch.empty(1, 1, k, k, device="meta"), rate) for k, rate in kernels_and_rates
    ]
    found = launch_of(x, outputs, branches, summed=summed, transposed=transposed)
    return found._replace(device=torch.device("cpu"))


def of_the_benchmark() -> Iterator[tuple[str, Launch]]:
    """Yields the dense launches of benchmarks.atrous_conv2d_gpu, but for the weight's gradients."""
    for name, make in atrous_conv2d_gpu.cases(torch.bfloat16, atrous_conv2d_gpu.Compiler(0)):
        if make.func is atrous_conv2d_gpu.gradient:
            shape, outputs, rate, which, _, groups = make.args
            if groups == 1 and which == "input":
                shape, outputs = (shape[0], outputs, *shape[2:]), shape[1]
                yield name, launch(shape, outputs, [(3, rate)], transposed=True)
        elif make.func is atrous_conv2d_gpu.inference:
            kind, (shape, *rest) = make.args[0], make.args[1]
            if kind is atrous_cases.aspp:
                yield name, launch(shape, 256, [(1, 1), *((3, rate) for rate in rest[0])])
            elif kind is atrous_cases.aspp_sum:
                yield name, launch(shape, rest[0], [(3, rate) for rate in rest[1]], summed=True)
            elif len(rest) < 5:  # else depthwise
                outputs, kernel, _, rate = rest
                yield name, launch(shape, outputs, [(kernel, rate)])


def hard() -> Iterator[tuple[str, Launch]]:
    """Yields launches that the choice is about: few channels, few outputs, one image."""
    for shape, outputs, branches, summed in HARD:
        rates = ", ".join(str(rate) for _, rate in branches)
        name = f"{sizes(shape, outputs)}, rates {rates}" + ", summed" * summed
        yield name, launch(shape, outputs, branches, summed)


def floor(of: Launch) -> float:
    """Returns the microseconds of the products of live taps at a large product's speed."""
    products = sum(
        live_taps(*of.sizes[1:3], b.kernel_size[0], b.stride[0], b.dilation[0]) for b in of.branches
    )
    rate = rates_of(of.device).product * common.device_of(of.device).multiprocessors
    return 2.0 * of.sizes.batch * products * of.channels * of.outputs / rate


def full_cudnn(of: Launch) -> float:
    """Returns cuDNN's microseconds if its tiles were always full, launches included."""
    rates = rates_of(of.device)
    rate = rates.product * rates.cudnn * common.device_of(of.device).multiprocessors
    taps = sum(b.taps for b in of.branches)
    pixels = of.sizes.batch * of.sizes.out_pixels
    return 2.0 * pixels * taps * of.channels * of.outputs / rate + rates.launch * len(of.branches)


def row(name: str, of: Launch) -> str:
    """Returns a line of the table."""
    times, least = choice.times(of, True), floor(of)
    form = choice.choose_form(of, True)
    cells = [least, *(times.get(f, math.nan) for f in FORMS), full_cudnn(of)]
    if form == choice.FEW_OUTPUTS:
        way = few_outputs.estimate(of)[0]
        notes = f"{way.config[:3]}, {way.parts} parts"
    else:
        launched = choice.joined(of) if form == choice.JOINED else of
        config = launches.choose(launched)
        notes = f"{config[:3]}, {launched.plan(config).slots} slots"
    return (
        f"{name:<60} {' '.join(f'{cell:7.1f}' for cell in cells)}  {form:<14}"
        f" {times[form] / least:5.2f} {full_cudnn(of) / times[form]:5.2f}"
        f"  {notes if form != choice.TORCH else ''}"
    )


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=GPUS, default="H200")
    options = parser.parse_args()
    common.NO_GPU = GPUS[options.device]
    print(f"{options.device}, modelled, microseconds")
    heads = ("floor", "live", "joined", "few", "torch", "cudnn")
    print(" " * 60, *(f"{head:>7}" for head in heads), " chosen         /floor cudnn/")
    for name, of in (*of_the_benchmark(), *hard()):
        print(row(name, of), flush=True)


if __name__ == "__main__":
    main()
