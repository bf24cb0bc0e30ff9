"""A test whether cuDNN's convolutions skip taps in the padding: one of them at several rates."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.atrous_cases import GRADIENTS, gpu_randn, live_taps, sizes, torch_gradient
from benchmarks.harness import Candidate, Case, measure, nbytes, without_tensors

RATES = (1, 6, 12, 18)
MAP = (8, 2048, 33, 33)
OUT_CHANNELS = 256


def padding_cases(dtype: torch.dtype) -> Iterator[Case]:
    """Yields forward and both gradients; the rates are candidates, which need not agree."""
    x, weight = gpu_randn(MAP, dtype), gpu_randn((OUT_CHANNELS, MAP[1], 3, 3), dtype)
    grad = gpu_randn((MAP[0], OUT_CHANNELS, *MAP[2:]), dtype)
    runs = {"forward": lambda dilation: F.conv2d(x, weight, None, 1, dilation, dilation)}
    for which in GRADIENTS:
        runs[f"gradient of {which}"] = partial(torch_gradient, x, grad, weight, which=which)
    for what, run in runs.items():
        candidates = [Candidate(f"rate {rate}", partial(run, dilation=rate)) for rate in RATES]
        shape = sizes(MAP, OUT_CHANNELS)
        yield Case(f"cuDNN {what}", shape, candidates, lambda: None, nbytes(x, grad, weight))


def does_cudnn_skip_padding(dtype: torch.dtype, seconds: float) -> list[Case]:
    """Measures and prints the times at all rates."""
    print("\nDoes cuDNN skip the padding? If it does, its times follow the live taps.")
    live = {rate: live_taps(*MAP[2:], 3, 1, rate) for rate in RATES}
    measured = []
    for case in padding_cases(dtype):
        measure([case], "cuda", seconds, gpu_alone=True)
        for rate in RATES:
            mine, of_one = case.median(f"rate {rate}"), case.median("rate 1")
            print(
                f"{case.op:<25} {case.shape}, rate {rate:>2}: {mine * 1e6:7.1f} us,"
                f" {mine / of_one:.2f} of rate 1's time, {live[rate] / live[1]:.2f} of its live"
                " taps",
                flush=True,
            )
        measured.append(without_tensors(case))
    return measured
