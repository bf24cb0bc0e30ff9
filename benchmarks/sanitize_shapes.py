"""Runs every CUDA op over small awkward shapes, for NVIDIA's compute-sanitizer.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m benchmarks.sanitize_shapes

Without torch's caching allocator each tensor is an allocation of its own, with a known end.
"""

from __future__ import annotations

import itertools

import torch

import fastseg

SHAPES = ((2, 8, 8, 32), (1, 3, 5, 7), (1, 16, 6, 12), (1, 1, 2, 2))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
WINDOWS = ((2, 2, 0, 1), (3, 2, 1, 1), (2, 1, 0, 1))  # kernel_size, stride, padding, dilation
CRFS = ((2, 21, 13, 17), (1, 1, 1, 1), (1, 2, 9, 15), (1, 150, 7, 10), (2, 3, 3, 4, 5))


def pool() -> None:
    """Forward and backward of pooling and unpooling, by codes and by flat indices."""
    for shape, dtype, layout, window in itertools.product(SHAPES, DTYPES, LAYOUTS, WINDOWS):
        x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout)
        x.requires_grad_()
        values, codes = fastseg.max_pool2d(x, *window)
        size = x.shape[-2:]
        indices = fastseg.codes_to_indices(codes, size, *window)
        for positions in (codes, indices):
            out = torch.ops.fastseg.max_unpool2d(values, positions, size, *window[:3])
            out.square().sum().backward(retain_graph=True)
        scale, shift = torch.ones(2, shape[1], device="cuda")
        fastseg.batch_norm_relu_max_pool2d(x.detach(), scale, shift, *window)


def dense_crf() -> None:
    """The fused mean field, and the filters by way of its gradient."""
    for shape, layout, quality in itertools.product(CRFS, LAYOUTS, ("compat", "high")):
        unary = torch.rand(shape, device="cuda")
        if len(shape) == 4:
            unary = unary.contiguous(memory_format=layout)
        image = torch.rand(shape[0], 3, *shape[2:], device="cuda")
        terms = [fastseg.PairwiseGaussian(2), fastseg.PairwiseBilateral(4, 0.2)]
        fastseg.dense_crf(unary, image, terms, iterations=2, quality=quality)
        image.requires_grad_()
        fastseg.dense_crf(
            unary.double(), image, terms, iterations=1, quality=quality
        ).sum().backward()


def main() -> None:
    """Everything."""
    pool()
    dense_crf()
    torch.cuda.synchronize()
    print("all ops ran")


if __name__ == "__main__":
    main()
