"""Benchmarks of atrous convolution and ASPP on an NVIDIA GPU beside cuDNN and torch.compile.

python -m benchmarks.atrous_conv2d_gpu [--dtype bfloat16] [--only TEXT] [--csv FILE] [--autotune]

Everything is channels_last, cuDNN chooses its algorithms by measuring them. First it answers
whether cuDNN skips the padding: by the times of one convolution at rates 1, 6, 12 and 18. Then
every case is compared with float64, where our error must not be over twice that of eager torch; a
case that fails is not timed, and the exit status says so.

Times are the GPU's: the host has queued the whole call before the clock starts. "call" is what one
call takes when nothing is queued, launches included. The floor is two operations for each pair of
channels and tap that reads a pixel, at the speed of a large matrix product in the same run, or the
bytes of inputs, weights and outputs at the speed of a copy, whichever is slower.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.atrous_cases import (
    GRADIENTS,
    LAST,
    Pair,
    aspp,
    aspp_sum,
    conv,
    flops_of,
    gpu_randn,
    live_taps,
    our_gradient,
    sizes,
    torch_gradient,
)
from benchmarks.atrous_conv2d_autotune import autotune
from benchmarks.cudnn_padding import MAP, RATES, does_cudnn_skip_padding
from benchmarks.harness import (
    Candidate,
    Case,
    copy_bandwidth,
    machine,
    measure,
    nbytes,
    without_tensors,
    write_csv,
)

OURS = "fastseg"
EAGER = "eager"


def check(candidates: list[Candidate], reference: Callable[[], object]) -> None:
    """Raises AssertionError if a candidate's relative error is over twice eager torch's."""
    torch.backends.cudnn.benchmark = False  # float64 is not worth the search
    expected = flat(reference())
    torch.backends.cudnn.benchmark = True
    errors = {
        c.name: ((flat(c.run()) - expected).norm() / expected.norm()).item() for c in candidates
    }
    print("  relative errors: " + ", ".join(f"{name} {e:.1e}" for name, e in errors.items()))
    assert all(e <= 2 * errors[EAGER] + 1e-6 for e in errors.values()), errors


def flat(tensors) -> Tensor:
    """Returns a tensor or several as one row of float64."""
    tensors = (tensors,) if isinstance(tensors, Tensor) else tensors
    return torch.cat([t.double().flatten() for t in tensors])


class Compiler:
    """torch.compile with max-autotune, for as many seconds as all of it may take."""

    def __init__(self, seconds: float):
        self.left = seconds

    def candidates(self, module: nn.Module, call: Callable, mode: str) -> list[Candidate]:
        """Returns one that runs ``call(compiled module)``; none if it fails or time is spent."""
        if self.left <= 0:
            print("  no time is left for torch.compile")
            return []
        torch._dynamo.reset()
        compiled = torch.compile(module, mode=mode, fullgraph=True, dynamic=False)
        start = time.perf_counter()
        try:
            for _ in range(3):
                call(compiled)
            torch.cuda.synchronize()
        except Exception as error:
            print(f"  torch.compile failed: {type(error).__name__}: {str(error)[:500]}")
            return []
        finally:
            self.left -= time.perf_counter() - start
        return [Candidate("torch.compile", lambda: call(compiled))]


def on_gpu(pair: Pair, dtype: torch.dtype) -> list[nn.Module]:
    """Returns our module and theirs on the GPU."""
    return [m.to("cuda", dtype).to(memory_format=LAST) for m in (pair.ours, pair.theirs)]


def inference(make: Callable[..., Pair], arguments, dtype: torch.dtype, compiler) -> Case:
    """Returns the case of both modules' outputs for one input."""
    with torch.device("cuda"):
        pair = make(*arguments)
    x = gpu_randn(pair.shape, dtype)
    ours, theirs = on_gpu(pair, dtype)
    torch._dynamo.mark_static_address(x)  # the CUDA graph of torch.compile reads it in place
    candidates = [
        Candidate(OURS, lambda: ours(x)),
        Candidate(EAGER, lambda: theirs(x)),
        *compiler.candidates(theirs, lambda module: module(x), "max-autotune"),
    ]

    def reference():
        return copy.deepcopy(theirs).double()(x.double())

    floor = nbytes(x, *theirs.parameters(), theirs(x))
    agree = partial(check, candidates, reference)
    return Case(pair.op, pair.title, candidates, agree, floor, flops_of(theirs, x))


def gradient(shape, out_channels: int, rate: int, which: str, dtype: torch.dtype, groups=1) -> Case:
    """Returns the case of a 3x3 convolution's gradient; torch.compile would call eager's kernel."""
    n, c, h, w = shape
    c = c // groups
    weight = gpu_randn((out_channels, c, 3, 3), dtype) / (9 * c) ** 0.5
    tensors = (gpu_randn(shape, dtype), gpu_randn((n, out_channels, h, w), dtype), weight)
    candidates = [
        Candidate(OURS, lambda: our_gradient(*tensors, rate, which)),
        Candidate(EAGER, lambda: torch_gradient(*tensors, rate, which)),
    ]

    def reference():
        return torch_gradient(*(t.double() for t in tensors), rate, which)

    op = f"gradient of {which}"
    title = f"{sizes(shape, out_channels)}, rate {rate}" + f", groups {groups}" * (groups > 1)
    flops = 2.0 * n * c * out_channels * live_taps(h, w, 3, 1, rate)
    return Case(
        op, title, candidates, partial(check, candidates, reference), nbytes(*tensors), flops
    )


def training(arguments, dtype: torch.dtype, compiler: Compiler) -> Case:
    """Returns the case of an ASPP's forward and backward to x and all parameters, in training."""
    with torch.device("cuda"):
        pair = aspp(*arguments)
    x = gpu_randn(pair.shape, dtype).requires_grad_()
    ours, theirs = (m.train() for m in on_gpu(pair, dtype))
    grad = torch.randn_like(theirs(x))

    def step(module: nn.Module, x: Tensor = x, grad: Tensor = grad) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            return torch.autograd.grad(module(x), (x, *module.parameters()), grad)

    def reference():
        double = copy.deepcopy(theirs).double()
        return step(double, x.detach().double().requires_grad_(), grad.double())

    candidates = [
        Candidate(OURS, lambda: step(ours)),
        Candidate(EAGER, lambda: step(theirs)),
        *compiler.candidates(theirs, step, "max-autotune-no-cudagraphs"),
    ]
    floor = 2 * nbytes(x, *theirs.parameters()) + nbytes(grad)
    agree = partial(check, candidates, reference)
    return Case("aspp training", pair.title, candidates, agree, floor, 3 * flops_of(theirs, x))


def name_of(make: Callable[..., Pair], arguments) -> str:
    """Returns a case's name, without the memory of its weights."""
    with torch.device("meta"):
        pair = make(*arguments)
    return f"{pair.op} {pair.title}"


def cases(dtype: torch.dtype, compiler: Compiler) -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yields names and functions that make the cases, the most common ones first."""
    pairs = [
        (aspp, (8, 2048, 33, 33), (6, 12, 18)),
        (aspp, (1, 2048, 33, 33), (6, 12, 18)),
        *((conv, MAP, 256, 3, 1, rate) for rate in RATES),
        *((conv, MAP, 2048, 3, 1, rate, 2048) for rate in (6, 12)),
        (aspp_sum, (8, 512, 41, 41), 1024, (6, 12, 18, 24)),
        (conv, (8, 512, 41, 41), 1024, 3, 1, 12),
        (aspp, (8, 2048, 65, 65), (12, 24, 36)),
        (aspp, (16, 2048, 33, 33), (6, 12, 18)),
    ]
    for make, *arguments in pairs:
        yield name_of(make, arguments), partial(inference, make, arguments, dtype, compiler)
    for rate, which, channels in itertools.product((6, 12, 18), GRADIENTS, (256, 2048)):
        groups = 1 if channels == 256 else 2048
        name = f"gradient of {which} {sizes(MAP, channels)}, rate {rate}"
        name += f", groups {groups}" * (groups > 1)
        yield name, partial(gradient, MAP, channels, rate, which, dtype, groups)
    arguments = (MAP, (6, 12, 18))
    name = name_of(aspp, arguments).replace("aspp", "aspp training", 1)
    yield name, partial(training, arguments, dtype, compiler)


def product_speed(dtype: torch.dtype, size: int = 8192) -> float:
    """Returns the FLOPs per second of a large matrix product."""
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    case = Case("product", "", [Candidate("product", lambda: a @ b)], lambda: None, 0)
    measure([case], "cuda", min_seconds=0.5, gpu_alone=True)
    return 2 * size**3 / case.median("product")


def report(case: Case, calls: Case, bandwidth: float, peak: float) -> None:
    """Prints a line on a case."""
    mine, mine_called = case.median(OURS), calls.median(OURS)
    names = [c.name for c in case.candidates if c.name != OURS]
    rival, rival_called = (min(names, key=c.median) for c in (case, calls))
    by_flops, by_bytes = case.flops / peak, case.floor_bytes / bandwidth
    others = "  ".join(
        f"{n} {case.median(n) * 1e6:.1f}, call {calls.median(n) * 1e6:.1f}" for n in names
    )
    print(
        f"{case.op:<18} {case.shape:<50} {mine * 1e6:8.1f} us"
        f" {case.median(rival) / mine:5.2f}x over {rival:<13}"
        f" {by_flops / mine:4.0%} of the FLOPs' floor {by_flops * 1e6:.1f} us,"
        f" {by_bytes / mine:4.0%} of copy speed; call {mine_called * 1e6:.1f} us,"
        f" {calls.median(rival_called) / mine_called:.2f}x over {rival_called}  [{others}]",
        flush=True,
    )


def time_case(case: Case, seconds: float, bandwidth: float, peak: float) -> list[Case]:
    """Measures the GPU's time and that of calls."""
    measure([case], "cuda", seconds, gpu_alone=True)
    calls = replace(case, op=f"{case.op}, call", check=lambda: None, seconds={})
    measure([calls], "cuda", seconds / 2)
    report(case, calls, bandwidth, peak)
    return [without_tensors(case), without_tensors(calls)]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--seconds", type=float, default=0.3, help="at least, for each case")
    parser.add_argument(
        "--compile-seconds", type=float, default=600.0, help="what torch.compile may take in all"
    )
    parser.add_argument("--autotune", action="store_true", help="measure block shapes first")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    return parser.parse_args(arguments)


@torch.no_grad()
def main() -> int:
    """Measures and prints; returns the number of cases that failed."""
    options = parse()
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32, which cuDNN's convolutions take by default
    dtype = getattr(torch, options.dtype)
    bandwidth, peak = copy_bandwidth("cuda"), product_speed(dtype)
    print(
        f"{machine('cuda')}; torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()};"
        f" copy {bandwidth / 1e9:.0f} GB/s, {options.dtype} product {peak / 1e12:.0f} TFLOP/s"
    )
    done = does_cudnn_skip_padding(dtype, options.seconds)
    if options.autotune:
        autotune(dtype, options.only)
    print()
    failed = 0
    for name, make in cases(dtype, Compiler(options.compile_seconds)):
        if options.only not in name:
            continue
        print(name, flush=True)
        try:
            done += time_case(make(), options.seconds, bandwidth, peak)
        except Exception:
            failed += 1
            traceback.print_exc(file=sys.stdout)
        if options.csv:
            write_csv(options.csv, "cuda", done)
    if failed:
        print(f"{failed} cases failed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
