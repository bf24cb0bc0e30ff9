"""Benchmarks of max-pooling with byte codes and its relatives, over SegNet's five levels.

python -m benchmarks.pooling [--device cpu|cuda] [--dtype float32] [--op NAME] [--csv FILE]

The rivals are torch eager in the same layout and torch.compile. Bytes of the floor: every tensor
that the op takes or returns, once.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
from benchmarks import allocators
from benchmarks.harness import (
    Candidate,
    Case,
    copy_bandwidth,
    machine,
    measure,
    nbytes,
    summary_row,
    write_csv,
)

CHANNELS = (64, 128, 256, 512, 512)
SIZES = ((360, 480), (512, 1024))
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
OURS = "fastseg"


def levels(size: tuple[int, int]) -> Iterator[tuple[int, int, int]]:
    """Yields the input's (C, H, W) for each of SegNet's five poolings."""
    height, width = size
    for channels in CHANNELS:
        yield channels, height, width
        height, width = height // 2, width // 2


def against_torch(op: str, shape: str, ours, torch_eager, floor: int, check) -> Case:
    """Returns a case of three candidates; `ours` and `torch_eager` take no arguments."""
    compiled = torch.compile(torch_eager, fullgraph=True, dynamic=False)
    rivals = [Candidate("eager", torch_eager), Candidate("torch.compile", compiled)]
    return Case(op, shape, [Candidate(OURS, ours), *rivals], check, floor)


def equal(ours, theirs) -> None:
    """Checks an op whose result is torch's bit for bit."""
    assert torch.equal(ours(), theirs()), "results differ from torch's"


def pool_and_codes(x: Tensor, shape: str) -> Case:
    """Returns the case of max_pool2d with positions."""

    def check():
        values, codes = fastseg.max_pool2d(x, 2)
        expected, indices = F.max_pool2d(x, 2, return_indices=True)
        assert torch.equal(values, expected)
        assert torch.equal(fastseg.codes_to_indices(codes, x.shape, 2), indices)

    ours = partial(fastseg.max_pool2d, x, 2)
    eager = partial(F.max_pool2d, x, 2, return_indices=True)
    return against_torch("max_pool2d", shape, ours, eager, nbytes(x, *ours()), check)


def pooled(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns x after 2x2 pooling: values, codes and torch's indices."""
    values, codes = fastseg.max_pool2d(x, 2)
    return values, codes, fastseg.codes_to_indices(codes, x.shape[-2:], 2)


def packed_codes(codes: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """Returns the codes in the form that a gradient saves, and their packed_dim."""
    packed_dim = -1 if x.is_contiguous() else -3
    return torch.ops.fastseg.pack_codes(codes, packed_dim), packed_dim


def unpool(x: Tensor, shape: str) -> Case:
    """Returns the case of max_unpool2d to the size before pooling."""
    size = x.shape[-2:]
    values, codes, indices = pooled(x)
    ours = partial(fastseg.max_unpool2d, values, codes, 2, output_size=size)
    eager = partial(F.max_unpool2d, values, indices, 2, output_size=size)
    check = partial(equal, ours, eager)
    return against_torch("max_unpool2d", shape, ours, eager, nbytes(values, codes, x), check)


def fused(x: Tensor, shape: str) -> Case:
    """Returns the case of batch_norm_relu_max_pool2d."""
    channels = x.shape[1]
    mean, bias = torch.randn(2, channels, device=x.device)
    variance, weight = torch.rand(2, channels, device=x.device) + 0.5
    scale, shift = fastseg.fold_batch_norm(weight, bias, mean, variance)

    def eager():
        y = F.batch_norm(x, mean, variance, weight, bias).relu()
        return F.max_pool2d(y, 2, return_indices=True)

    ours = partial(fastseg.batch_norm_relu_max_pool2d, x, scale, shift, 2)

    def check():
        tolerance = 1e-5 if x.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(ours()[0], eager()[0], rtol=tolerance, atol=tolerance)

    floor = nbytes(x, *ours(), scale, shift)
    return against_torch("batch_norm_relu_max_pool2d", shape, ours, eager, floor, check)


def pool_backward(x: Tensor, shape: str) -> Case:
    """Returns the case of max_pool2d's gradient, from the tensors that each op saves."""
    size = x.shape[-2:]
    values, codes, indices = pooled(x)
    packed, packed_dim = packed_codes(codes, x)
    grad = torch.randn_like(values)
    ours = partial(
        torch.ops.fastseg.max_pool2d_backward, grad, packed, size, 2, 2, 0, 1, packed_dim
    )
    backward = torch.ops.aten.max_pool2d_with_indices_backward
    eager = partial(backward, grad, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices)
    check = partial(equal, ours, eager)
    floor = nbytes(grad, packed, x)
    return against_torch("max_pool2d_backward", shape, ours, eager, floor, check)


def unpool_backward(x: Tensor, shape: str) -> Case:
    """Returns the case of max_unpool2d's gradient; torch's is a gather."""
    values, codes, indices = pooled(x)
    packed, packed_dim = packed_codes(codes, x)
    backward = torch.ops.fastseg.max_unpool2d_backward
    ours = partial(backward, x, packed, values.shape[-2:], 2, 2, 0, 1, packed_dim)

    def eager():
        return x.flatten(2).gather(2, indices.flatten(2)).view(values.shape)

    check = partial(equal, ours, eager)
    floor = nbytes(values, packed, x)
    return against_torch("max_unpool2d_backward", shape, ours, eager, floor, check)


OPS = {
    "max_pool2d": pool_and_codes,
    "max_unpool2d": unpool,
    "batch_norm_relu_max_pool2d": fused,
    "max_pool2d_backward": pool_backward,
    "max_unpool2d_backward": unpool_backward,
}


def run(
    ops: list[str], device: str, dtype: torch.dtype, min_seconds: float
) -> tuple[list[Case], list[str]]:
    """Measures and returns all cases and the lines of the summary."""
    bandwidth = copy_bandwidth(device)
    lines = [f"copy {bandwidth / 1e9:.1f} GB/s; {machine(device)}; torch {torch.__version__}"]
    everything = []
    for make in (OPS[op] for op in ops):
        for layout, memory_format in LAYOUTS.items():
            both = []
            for size in SIZES:
                cases = []
                for channels, height, width in levels(size):
                    torch._dynamo.reset()
                    x = torch.randn(1, channels, height, width, device=device).to(dtype)
                    x = x.contiguous(memory_format=memory_format)
                    shape = f"{channels}x{height}x{width} {layout} {dtype}".replace("torch.", "")
                    case = make(x, shape)
                    measure([case], device, min_seconds)
                    case.candidates = [Candidate(c.name, lambda: None) for c in case.candidates]
                    cases.append(case)
                title = f"{cases[0].op} {size[0]}x{size[1]} {layout}"
                lines.append(summary_row(title, cases, OURS, bandwidth))
                print(lines[-1], flush=True)
                both += cases
            lines.append(summary_row(f"{both[0].op} both sizes {layout}", both, OURS, bandwidth))
            print(lines[-1], flush=True)
            everything += both
    return everything, lines


def tiny(device: str, dtype: torch.dtype) -> list[Case]:
    """Returns the cases of 8x8x16, which show the cost of a call."""
    x = torch.randn(1, 16, 8, 8, device=device).to(dtype)
    cases = [make(x, "16x8x8") for make in (pool_and_codes, unpool)]
    for case in cases:
        case.candidates = [c for c in case.candidates if c.name != "torch.compile"]
    measure(cases, device, min_seconds=0.5, min_rounds=2000)
    for case in cases:
        ours, eager = (case.median(name) * 1e6 for name in (OURS, "eager"))
        print(f"{case.op} 1x16x8x8: {ours:.2f} us, eager {eager:.2f} us ({eager / ours:.2f}x)")
    return cases


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each case")
    parser.add_argument("--op", action="append", choices=OPS, help="default: all")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    allocators.add_option(parser)
    arguments = parser.parse_args()
    if not allocators.measures_here(arguments):
        return
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    dtype = getattr(torch, arguments.dtype)
    ops = arguments.op or list(OPS)
    cases, lines = run(ops, arguments.device, dtype, arguments.seconds)
    print("\n" + "\n".join(line for line in lines if "both" in line or "copy " in line[:5]))
    cases += tiny(arguments.device, dtype)
    if arguments.csv:
        write_csv(arguments.csv, arguments.device, cases)


if __name__ == "__main__":
    main()
