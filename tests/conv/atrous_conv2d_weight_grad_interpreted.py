"""Runs the weight gradient's Triton kernels in Triton's interpreter; prints the errors."""

from __future__ import annotations

import json
from typing import NamedTuple

import torch

from fastseg import reference
from fastseg.kernels import common
from fastseg.kernels.conv import weight_grad as kernels

HALF, SINGLE = torch.float16, torch.float32
LAST, FIRST = torch.channels_last, torch.contiguous_format

CASES = {
    # (N, Ci, H, W), Co, kernel, stride, padding, dilation, dtype, layout
    "all taps live": ((2, 16, 9, 11), 32, (3, 3), (1, 1), (3, 3), (3, 3), SINGLE, LAST),
    "only the centre": ((2, 16, 5, 7), 16, (3, 3), (1, 1), (9, 9), (9, 9), SINGLE, LAST),
    "rows without neighbours": ((1, 32, 4, 30), 16, (3, 3), (1, 1), (6, 2), (6, 2), SINGLE, LAST),
    "stride": ((2, 16, 17, 23), 16, (3, 3), (2, 3), (4, 5), (4, 5), SINGLE, LAST),
    "dead outputs": ((1, 16, 10, 9), 16, (5, 1), (1, 2), (8, 0), (4, 2), SINGLE, LAST),
    "more padding than half": ((1, 16, 6, 6), 16, (3, 5), (1, 1), (10, 9), (5, 3), SINGLE, LAST),
    "odd channels": ((2, 21, 9, 10), 5, (3, 3), (1, 1), (4, 4), (4, 4), SINGLE, FIRST),
    "several tiles": ((1, 300, 7, 6), 150, (3, 3), (1, 1), (3, 3), (3, 3), SINGLE, LAST),
    "a large tile": ((1, 250, 5, 4), 120, (3, 3), (1, 1), (2, 2), (2, 2), SINGLE, LAST),
    "several pieces": ((3, 16, 21, 20), 16, (3, 3), (1, 1), (6, 6), (6, 6), SINGLE, LAST),
    "half": ((2, 40, 13, 12), 24, (3, 3), (1, 1), (6, 6), (6, 6), HALF, LAST),
    "half, contiguous": ((2, 17, 13, 12), 24, (3, 3), (1, 1), (6, 6), (6, 6), HALF, FIRST),
}


def inputs(case):
    """x, grad and the geometry."""
    (n, ci, h, w), co, kernel, stride, padding, dilation, dtype, layout = case
    geometry = zip((h, w), kernel, stride, padding, dilation, strict=True)
    size = [(a + 2 * p - d * (k - 1) - 1) // s + 1 for a, k, s, p, d in geometry]
    x = torch.randn((n, ci, h, w)).to(dtype).contiguous(memory_format=layout)
    grad = torch.randn(n, co, *size).to(dtype).contiguous(memory_format=layout)
    return x, grad, (kernel, stride, padding, dilation, 1)


def error(case) -> float:
    """The largest difference relative to the largest value."""
    x, grad, geometry = inputs(case)
    out = kernels.atrous_conv2d_weight_grad(x, grad, *geometry)
    weight = torch.zeros(grad.shape[1], x.shape[1], *geometry[0], dtype=torch.float64)
    expected = torch.ops.aten.convolution_backward(
        grad.double(),
        x.double(),
        weight,
        None,
        *geometry[1:4],
        False,
        (0, 0),
        1,
        (False, True, False),
    )[1]
    assert out.dtype == x.dtype
    assert out.shape == weight.shape
    assert out.is_contiguous(memory_format=case[-1])
    return ((out - expected).abs().max() / expected.abs().max()).item()


def nan_reaches_what_reads_it(name: str) -> bool:
    """A NaN in x or in grad reaches exactly the taps that read it."""
    x, grad, geometry = inputs(CASES["all taps live"])
    (x if name == "x" else grad)[1, 3, 0, 1] = float("nan")
    out = kernels.atrous_conv2d_weight_grad(x, grad, *geometry)
    expected = reference.atrous_conv2d_weight_grad(x, grad, *geometry)
    assert expected.isnan().any()
    assert not expected.isnan().all()
    return torch.equal(out.isnan(), expected.isnan())


def launches(case) -> int:
    """How many kernels a case launches: a second one adds up pieces."""
    seen = []

    class Spy(NamedTuple):
        kernel: object

        def __getitem__(self, grid):
            seen.append(grid)
            return self.kernel[grid]

    both = (kernels.weight_grad_kernel, kernels.sum_pieces_kernel)
    kernels.weight_grad_kernel, kernels.sum_pieces_kernel = map(Spy, both)
    error(case)
    kernels.weight_grad_kernel, kernels.sum_pieces_kernel = both
    return len(seen)


def repeated(case) -> bool:
    """The same bits from the same input."""
    x, grad, geometry = inputs(case)
    once, again = (kernels.atrous_conv2d_weight_grad(x, grad, *geometry) for _ in range(2))
    return torch.equal(once, again)


def main() -> None:
    """Prints one JSON line."""
    torch.manual_seed(0)
    common.NO_GPU = common.Device("sm_90", 20)
    report = {
        "errors": {name: error(case) for name, case in CASES.items()},
        "nan": {name: nan_reaches_what_reads_it(name) for name in ("x", "grad")},
        "repeated": repeated(CASES["several pieces"]),
        "launches": {name: launches(CASES[name]) for name in ("half", "several pieces")},
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
