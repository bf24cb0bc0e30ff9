"""Runs the Triton kernels in the interpreter on tensors of all kinds of strides; prints the errors.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import math

import torch

from fastseg.kernels.conv import aspp, atrous_conv2d, choice, depthwise_conv2d, weight_grad
from fastseg.kernels.crf import exact_gaussian_filter as exact
from tests.core.memory_layouts import layouts
from tests.core.op_samples import samples

KERNELS = {
    "aspp": aspp.aspp,
    "atrous_conv2d": atrous_conv2d.atrous_conv2d,
    "atrous_conv2d_input_grad": atrous_conv2d.atrous_conv2d_input_grad,
    "atrous_conv2d_weight_grad": weight_grad.atrous_conv2d_weight_grad,
    "depthwise_conv2d": depthwise_conv2d.depthwise_conv2d,
    "depthwise_conv2d_input_grad": depthwise_conv2d.depthwise_conv2d_input_grad,
    "depthwise_conv2d_weight_grad": depthwise_conv2d.depthwise_conv2d_weight_grad,
    "exact_gaussian_filter": exact.exact_gaussian_filter,
    "exact_gaussian_filter_backward": exact.exact_gaussian_filter_backward,
}
KINDS = ("expanded along 0", "a column", "0 and 1 exchanged")


def outputs(sample):
    """What the op's Triton kernels compute for its arguments."""
    out = KERNELS[sample.name](*sample.arguments)
    return [out] if isinstance(out, torch.Tensor) else list(out)


def error(sample, name, t):
    """The largest difference from the op on a contiguous tensor, beside the largest element."""
    expected = sample.with_tensors({name: t.clone(memory_format=torch.contiguous_format)})()
    actual = outputs(sample.with_tensors({name: t}))
    return max(
        ((a - e).abs().max() / e.abs().max().clamp_min(1e-30)).nan_to_num(torch.inf).item()
        for a, e in zip(actual, expected, strict=True)
    )


if __name__ == "__main__":
    choice.MARGIN = math.inf  # nothing is left to torch
    errors = {
        f"{sample} {leaf.name} {what}": error(sample, leaf.name, t)
        for sample in samples()
        if sample.name in KERNELS
        for leaf in sample.leaves()
        for what, t in layouts(leaf.tensor)
        if what in KINDS
    }
    print(json.dumps(errors))
