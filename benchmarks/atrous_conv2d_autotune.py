"""Measures block shapes of the atrous convolution's kernels for the launches of the benchmark.

python -m benchmarks.atrous_conv2d_autotune [TEXT]     # in bfloat16, launches whose title has it

Beside the entries of the table, those of EXTRA that fit the GPU. What a launch takes is then kept
for this process, and the fastest are printed as the table's entries.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.atrous_cases import gpu_randn, sizes

PROCESSES = 8  # that compile; each has a CUDA context
EXTRA = {
    "16": (
        (256, 128, 64, 8, 3),
        (128, 256, 64, 8, 3),
        (128, 256, 32, 8, 4),
        (128, 128, 128, 8, 3),
        (128, 128, 64, 4, 4),
        (64, 256, 64, 4, 4),
        (64, 128, 64, 4, 4),
        (64, 64, 128, 4, 4),
    ),
    "tf32": ((128, 256, 32, 8, 3), (64, 256, 32, 8, 4), (64, 128, 32, 4, 4)),
    "tf32x3": ((64, 128, 32, 8, 3), (64, 64, 32, 4, 3)),
}


class Problem(NamedTuple):
    """A launch, by what it computes: summed or side by side, or the gradient of the input."""

    shape: tuple[int, int, int, int]
    out_channels: int
    kernels_and_rates: tuple[tuple[int, int], ...]
    summed: bool = False
    transposed: bool = False

    @property
    def title(self) -> str:
        """Its name."""
        kind = ", summed" * self.summed + ", gradient of input" * self.transposed
        rates = tuple(rate for _, rate in self.kernels_and_rates)
        return f"{sizes(self.shape, self.out_channels)}, rates {rates}{kind}"

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor], Tensor]:
        """The input, the weights and the output of the launch."""
        (n, c, h, w), kernels = self.shape, [k for k, _ in self.kernels_and_rates]
        weights = [gpu_randn((self.out_channels, c, k, k), dtype) for k in kernels]
        columns = 1 if self.summed else len(kernels)
        out = gpu_randn((n, self.out_channels * columns, h, w), dtype)
        x = gpu_randn(self.shape, dtype)
        return (out, weights, x) if self.transposed else (x, weights, out)

    def launch(self, x: Tensor, weights: list[Tensor]):
        """For the input of `tensors`, with the weights that it takes."""
        from fastseg.kernels.conv import choice
        from fastseg.kernels.conv.geometry import Branch
        from fastseg.kernels.conv.launch import launch_of

        branches = [
            Branch((k, k), (1, 1), (rate * (k // 2),) * 2, (rate, rate))
            for k, rate in self.kernels_and_rates
        ]
        outputs = self.shape[1] if self.transposed else self.out_channels
        launch = launch_of(x, outputs, branches, summed=self.summed, transposed=self.transposed)
        if choice.choose_form(launch, followed=True) == choice.JOINED:
            return choice.joined(launch), [choice.join_weights(weights)]
        return launch, weights


def problems() -> Iterator[Problem]:
    """The launches of :mod:`benchmarks.atrous_conv2d_gpu`."""
    for n in (1, 8, 16):
        yield Problem((n, 2048, 33, 33), 256, ((1, 1), (3, 6), (3, 12), (3, 18)))
    yield Problem((8, 2048, 65, 65), 256, ((1, 1), (3, 12), (3, 24), (3, 36)))
    yield Problem((8, 512, 41, 41), 1024, ((3, 6), (3, 12), (3, 18), (3, 24)), summed=True)
    yield Problem((8, 512, 41, 41), 1024, ((3, 12),))
    for transposed in (False, True):
        for rate in (6, 12, 18):
            yield Problem((8, 2048, 33, 33), 256, ((3, rate),), transposed=transposed)


def try_out(problem: Problem, dtype: torch.dtype, entry: tuple[int, ...]) -> str | None:
    """Compiles and runs a launch; the reason why it does not run, or None."""
    from fastseg.kernels.conv.configs import Config
    from fastseg.kernels.conv.launch import Epilogue, run

    x, weights, out = problem.tensors(dtype)
    try:
        launch, weights = problem.launch(x, weights)
        run(launch, x, weights, out, Epilogue(), Config(*entry))
        torch.cuda.synchronize()
    except Exception as error:
        return f"{type(error).__name__}: {error}".partition("\n")[0]
    return None


@contextlib.contextmanager
def row(key: tuple[str, str, str], entries) -> Iterator[None]:
    """The table with other entries, for a while."""
    from fastseg.kernels.conv import configs

    kept, configs.TABLE[key] = configs.TABLE[key], tuple(configs.Config(*e) for e in entries)
    try:
        yield
    finally:
        configs.TABLE[key] = kept


def autotune(dtype: torch.dtype, only: str = "") -> None:
    """Tunes the launches whose title has that text; prints what it finds, one by one."""
    from fastseg.kernels.common import device_of, precision_of
    from fastseg.kernels.conv import configs
    from fastseg.kernels.conv import launch as launches

    precision = precision_of(dtype)
    architecture = device_of(torch.device("cuda")).architecture
    key = (configs.FORWARD, architecture, precision)
    extra = [tuple(configs.Config(*entry)) for entry in EXTRA[precision]]
    entries = list(dict.fromkeys([*map(tuple, configs.TABLE[key]), *extra]))
    found = []
    # Processes of their own: they fill Triton's cache side by side, and one that dies is no harm.
    with ProcessPoolExecutor(PROCESSES, multiprocessing.get_context("spawn")) as pool:
        for problem in (p for p in problems() if only in p.title):
            x, weights, out = problem.tensors(dtype)
            launch, weights = problem.launch(x, weights)
            estimated = launches.estimate(launch)[0]
            with row(key, entries):
                fitting = [tuple(entry) for entry in launches.candidates(launch)]
            tries = [pool.submit(try_out, problem, dtype, entry) for entry in fitting]
            failed = {}
            for entry, future in zip(fitting, tries, strict=True):
                if why := future.result():
                    failed[entry] = why
                    print(f"{problem.title}: {configs.Config(*entry)} does not run: {why}")
            with row(key, [e for e in entries if e not in failed]):
                best = launches.autotune(launch, x, weights, out)
            found.append(best)
            print(f"{problem.title}: {best}, estimated {estimated}", flush=True)
    print(f"\n    {key}: (".replace("'", '"'))
    for config in sorted(set(found), key=lambda c: (-c.BM * c.BN, -c.BK)):
        print(f"        Config({', '.join(map(str, config))}),")
    print("    ),")


if __name__ == "__main__":
    autotune(torch.bfloat16, *sys.argv[1:])
