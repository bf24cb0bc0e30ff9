"""Runs depthwise convolution's Triton kernels in Triton's interpreter; prints the errors."""

from __future__ import annotations

import json

import torch

from fastseg import reference
from fastseg.kernels.conv import depthwise_conv2d as kernels
from fastseg.kernels.conv import depthwise_tiles

HALF, SINGLE = torch.float16, torch.float32
LAST, FIRST = torch.channels_last, torch.contiguous_format

CASES = {
    # (N, C, H, W), kernel, stride, padding, dilation, dtype, layout, activation
    "rate 1": ((2, 8, 11, 13), (3, 3), (1, 1), (1, 1), (1, 1), SINGLE, LAST, "relu"),
    "rate 6": ((1, 40, 13, 10), (3, 3), (1, 1), (6, 6), (6, 6), SINGLE, LAST, "relu6"),
    "rate over the map": ((1, 4, 5, 7), (3, 3), (1, 1), (9, 8), (9, 8), SINGLE, LAST, "silu"),
    "stride": ((2, 6, 13, 20), (3, 3), (2, 3), (1, 2), (1, 2), SINGLE, LAST, ""),
    "stride and rate": ((1, 3, 19, 22), (3, 5), (2, 2), (3, 8), (3, 4), SINGLE, LAST, "hardswish"),
    "five by five": ((1, 8, 12, 9), (5, 5), (1, 1), (4, 4), (2, 2), SINGLE, LAST, "leaky_relu"),
    "no padding": ((1, 70, 9, 10), (3, 1), (1, 1), (0, 0), (2, 1), SINGLE, LAST, "relu"),
    "planes, rate 1": ((2, 3, 24, 23), (3, 3), (1, 1), (1, 1), (1, 1), SINGLE, FIRST, "relu"),
    "planes, rate 6": ((2, 5, 17, 15), (3, 3), (1, 1), (6, 6), (6, 6), SINGLE, FIRST, "silu"),
    "planes, stride": ((1, 2, 13, 20), (3, 5), (2, 3), (2, 4), (2, 2), SINGLE, FIRST, ""),
    "planes, five": ((1, 2, 12, 9), (5, 5), (1, 1), (4, 4), (2, 2), SINGLE, FIRST, "relu6"),
    "half": ((1, 72, 9, 8), (3, 3), (1, 1), (2, 2), (2, 2), HALF, LAST, "relu"),
    "half, planes": ((2, 5, 14, 15), (3, 3), (1, 1), (2, 2), (2, 2), HALF, FIRST, "hardswish"),
}


def inputs(case):
    """x, weight, grad, the three vectors and the residual; the geometry."""
    (n, c, h, w), kernel, stride, padding, dilation, dtype, layout, _ = case
    axes = zip((h, w), kernel, stride, padding, dilation, strict=True)
    size = [(a + 2 * p - d * (k - 1) - 1) // s + 1 for a, k, s, p, d in axes]
    x = torch.randn((n, c, h, w)).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn((c, 1, *kernel)).to(dtype)
    grad, residual = torch.randn((2, n, c, *size)).to(dtype)
    return x, weight, grad, [*torch.randn(3, c)], residual, (stride, padding, dilation)


def error(out, expected, case) -> float:
    """The largest difference relative to the largest value."""
    assert out.dtype == case[5]
    assert out.shape == expected.shape
    assert out.is_contiguous(memory_format=case[6])
    return ((out - expected).abs().max() / expected.abs().max()).item()


def errors(case) -> dict[str, float]:
    """Of the convolution, without and with an epilogue, and of both gradients."""
    x, weight, grad, vectors, residual, geometry = inputs(case)
    groups, act = x.shape[1], case[-1]
    wide = [t.double() for t in (x, weight, grad)]
    operands = [t.double() for t in (*vectors, residual)]
    expected = reference.atrous_conv2d(*wide[:2], *operands, *geometry, groups, act)
    plain = torch.nn.functional.conv2d(*wide[:2], None, *geometry, groups)
    by_input, by_weight, _ = torch.ops.aten.convolution_backward(
        wide[2], *wide[:2], None, *geometry, False, (0, 0), groups, (True, True, False)
    )
    grad = grad.contiguous(memory_format=case[6])
    out = kernels.depthwise_conv2d(x, weight, *vectors, residual, *geometry, act)
    nothing = [None] * 4
    return {
        "fused": error(out, expected, case),
        "plain": error(kernels.depthwise_conv2d(x, weight, *nothing, *geometry, ""), plain, case),
        "by input": error(
            kernels.depthwise_conv2d_input_grad(grad, weight, x.shape[2:], *geometry),
            by_input,
            case,
        ),
        "by weight": error(
            kernels.depthwise_conv2d_weight_grad(x, grad, weight.shape[2:], *geometry),
            by_weight,
            case,
        ),
    }


def nan_reaches_what_reads_it(case) -> bool:
    """A NaN in x and one in grad each reach exactly the elements whose live taps read them."""
    x, weight, grad, *_, geometry = inputs(case)
    x[0, 1, 0, 2] = grad[0, 2, 0, 1] = float("nan")
    grad = grad.contiguous(memory_format=case[6])
    groups, kernel = x.shape[1], weight.shape[2:]
    expected = [
        reference.atrous_conv2d(x, weight, *[None] * 4, *geometry, groups, "relu"),
        reference.atrous_conv2d_input_grad(grad, weight, x.shape[2:], *geometry, groups),
        reference.atrous_conv2d_weight_grad(x, grad, kernel, *geometry, groups),
    ]
    actual = [
        kernels.depthwise_conv2d(x, weight, *[None] * 4, *geometry, "relu"),
        kernels.depthwise_conv2d_input_grad(grad, weight, x.shape[2:], *geometry),
        kernels.depthwise_conv2d_weight_grad(x, grad, kernel, *geometry),
    ]
    for y in expected:
        assert y.isnan().any()
        assert not y.isnan().all()
    return all(torch.equal(a.isnan(), b.isnan()) for a, b in zip(actual, expected, strict=True))


def repeated(case) -> bool:
    """The same bits of the weight's gradient from the same input."""
    x, weight, grad, *_, geometry = inputs(case)
    arguments = (x, grad, weight.shape[2:], *geometry)
    once, again = (kernels.depthwise_conv2d_weight_grad(*arguments) for _ in range(2))
    return torch.equal(once, again)


def main() -> None:
    """Prints one JSON line."""
    torch.manual_seed(0)
    depthwise_tiles.RUNS = 8  # few programs, since each takes the interpreter milliseconds
    both = [CASES[name] for name in ("rate 6", "planes, rate 6")]
    report = {
        "errors": {name: errors(case) for name, case in CASES.items()},
        "nan": [nan_reaches_what_reads_it(case) for case in both],
        "repeated": [repeated(case) for case in both],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
