"""Runs every CUDA op over small awkward shapes, for NVIDIA's compute-sanitizer.

PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer python -m benchmarks.sanitize_shapes [NAME...]

Without torch's caching allocator each tensor is an allocation of its own, with a known end.
"""

from __future__ import annotations

import argparse
import itertools

import torch

import fastseg

SHAPES = ((2, 8, 8, 32), (1, 3, 5, 7), (1, 16, 6, 12), (1, 1, 2, 2))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
WINDOWS = ((2, 2, 0, 1), (3, 2, 1, 1), (2, 1, 0, 1))  # kernel_size, stride, padding, dilation
CONVS = (  # (N, Ci, H, W), Co, stride, dilation, groups
    ((2, 40, 13, 11), 24, 1, 3, 1),
    ((1, 33, 10, 7), 17, (1, 2), 2, 1),  # rows that begin at no multiple of 16 bytes
    ((3, 64, 9, 9), 72, 1, 12, 1),  # only the centre is live
    ((2, 24, 13, 11), 24, 1, 3, 24),
    ((1, 9, 10, 7), 9, 2, 2, 9),
)
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
        for log in (False, True):
            fastseg.dense_crf(unary, image, terms, iterations=2, quality=quality, log=log)
        image.requires_grad_()
        fastseg.dense_crf(
            unary.double(), image, terms, iterations=1, quality=quality
        ).sum().backward()


def atrous_conv2d() -> None:
    """Convolutions with their epilogue and their gradients; ASPP with a projection and as a sum."""
    from fastseg.kernels.conv import choice
    from fastseg.kernels.conv import weight_grad as gradient

    choice.MARGIN = gradient.WORTHWHILE_SHARE = float("inf")  # none is left to torch
    for case, dtype, layout in itertools.product(CONVS, (torch.bfloat16, torch.float32), LAYOUTS):
        shape, outputs, stride, dilation, groups = case
        x = torch.randn(shape, device="cuda").to(dtype).contiguous(memory_format=layout)
        weight = torch.randn(outputs, shape[1] // groups, 3, 3, device="cuda").to(dtype)
        vectors = torch.randn(3, outputs, device="cuda")
        options = {"stride": stride, "dilation": dilation, "groups": groups, "activation": "relu"}
        options |= {"scale": vectors[1], "shift": vectors[2]}
        residual = torch.randn_like(fastseg.atrous_conv2d(x, weight, vectors[0], **options))
        x.requires_grad_(), weight.requires_grad_()
        out = fastseg.atrous_conv2d(x, weight, vectors[0], residual=residual, **options)
        out.square().sum().backward()
    for dtype, module in itertools.product(
        (torch.bfloat16, torch.float32),
        (fastseg.nn.ASPP(40, (2, 5), 24), fastseg.nn.ASPPSum(40, 21, (2, 5))),
    ):
        module = module.to("cuda", dtype).eval()
        with torch.no_grad():
            module(torch.randn(2, 40, 13, 11, device="cuda").to(dtype))


def heads() -> None:
    """What follows the logits: class maps, counts, distances, refinement."""
    for shape, layout in itertools.product(((2, 19, 5, 7), (1, 150, 8, 8), (1, 1, 1, 1)), LAYOUTS):
        logits = torch.randn(shape, device="cuda").contiguous(memory_format=layout)
        size = (shape[2] * 3 + 1, shape[3] * 8)
        for dtype in DTYPES:
            fastseg.upsample_argmax(logits.to(dtype), size)
        target = torch.randint(shape[1], (shape[0], *size), device="cuda")
        fastseg.confusion_matrix(target, target.flip(1), shape[1])
        fastseg.distance_transform(target > shape[1] // 2)
        image = torch.rand(shape[0], 3, *size, device="cuda")
        masks = torch.rand(shape[0], 2, *size, device="cuda").requires_grad_()
        fastseg.pixel_adaptive_refinement(image, masks, (1, 2), 2).sum().backward()


OPS = {"pool": pool, "dense_crf": dense_crf, "atrous_conv2d": atrous_conv2d, "heads": heads}


def main() -> None:
    """Everything, or what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(OPS)}")
    names = parser.parse_args().names or OPS
    for name in names:
        OPS[name]()
    torch.cuda.synchronize()
    print("all ops ran")


if __name__ == "__main__":
    main()
