"""Time fastseg's ops beside torch's on this machine; each must first compute the same.

Sizes are those of segmentation networks on a picture of 512x512. Where an op computes something
else than torch, it is not timed and the exit status is 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.devices import named_device
from fastseg.cli.agreement import agreement, tensors_of
from fastseg.cli.options import add_config_option, add_machine_options, use_threads
from fastseg.cli.running import UNFINISHED
from fastseg.cli.timing import Row, interleaved_medians, table
from fastseg.ops import atrous_conv2d, max_pool2d, upsample_argmax

EXAMPLES = """examples:
  fastseg bench
  fastseg bench atrous_conv2d max_pool2d --threads 1
"""

OURS, EAGER = "fastseg", "torch"


@dataclass(frozen=True)
class Case:
    """An op on one input, and torch's way to the same."""

    title: str
    ours: Callable[[], object]
    eager: Callable[[], object]


def atrous_case(device: torch.device, scale: float) -> Case:
    """Returns a convolution of ASPP, with the batch norm and ReLU after it."""
    side = max(1, int(64 * scale))
    x, weight = torch.randn(1, 64, side, side, device=device), torch.randn(64, 64, 3, 3) / 24
    x, weight = (t.to(device, memory_format=torch.channels_last) for t in (x, weight))
    factor, shift = (torch.rand(64, device=device) for _ in range(2))
    column = (1, -1, 1, 1)

    def eager() -> Tensor:
        y = F.conv2d(x, weight, padding=12, dilation=12)
        return F.relu(y * factor.view(column) + shift.view(column))

    def ours() -> Tensor:
        return atrous_conv2d(x, weight, dilation=12, scale=factor, shift=shift, activation="relu")

    return Case(
        f"3x3 at rate 12, 64 channels, {side}x{side}, with scale, shift and ReLU", ours, eager
    )


def pool_case(device: torch.device, scale: float) -> Case:
    """Returns SegNet's first pooling, by its maxima; torch's positions take eight bytes each."""
    side = max(2, int(512 * scale))
    x = torch.randn(1, 64, side, side, device=device)
    return Case(
        f"2x2 with positions, 64 channels, {side}x{side}",
        lambda: max_pool2d(x, 2)[0],
        lambda: F.max_pool2d(x, 2, return_indices=True)[0],
    )


def class_map_case(device: torch.device, scale: float) -> Case:
    """Returns the class map of logits at a quarter of the picture's size."""
    side = max(1, int(128 * scale))
    logits = torch.randn(1, 21, side, side, device=device)
    size = (4 * side, 4 * side)
    return Case(
        f"21 classes, {side}x{side} to {size[0]}x{size[1]}",
        lambda: upsample_argmax(logits, size),
        lambda: F.interpolate(logits, size, mode="bilinear").argmax(1),
    )


CASES = {
    "atrous_conv2d": atrous_case,
    "max_pool2d": pool_case,
    "upsample_argmax": class_map_case,
}
"""What builds the case of an op, by the op's name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg bench`."""
    parser.add_argument(
        "ops", nargs="*", metavar="OP", help=f"{', '.join(CASES)} (default: all of them)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="of the sides (default: 1)")
    add_machine_options(parser)
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Times the ops; returns 1 if one of them computes something else than torch."""
    for name in options.ops:
        if name not in CASES:
            raise ValueError(f"there is no case of {name!r}; there are {', '.join(CASES)}")
    if not 0 < options.scale <= 16:
        raise ValueError(f"--scale {options.scale}: more than 0, at most 16")
    use_threads(options.threads)
    device = named_device(options.device)
    if device.type == "cuda":  # float32 is that on both sides
        torch.backends.cudnn.allow_tf32 = False
    status = 0
    with torch.no_grad():
        for name in options.ops or CASES:
            torch.manual_seed(0)
            case = CASES[name](device, options.scale)
            print(f"{name}: {case.title}, {device}")
            found = agreement(tensors_of(case.eager()), tensors_of(case.ours()))
            if not found.within():
                print(f"  has other outputs: they {found}")
                status = UNFINISHED
                continue
            medians = interleaved_medians({EAGER: case.eager, OURS: case.ours}, device)
            print(table([Row(k, v) for k, v in medians.items()], [EAGER], "torch"))
    return status
