"""The calls that the model times: traced small, wanted large.

What a kernel asks for grows by the same step with each image, row or iteration of a call, except
where a case says so. Two traced sizes give the step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastseg._core.pairwise import bilateral_features

PHOTO = Path(__file__).parents[2] / "fastseg/weights/photo.jpg"
NORMALIZATION_SYMMETRIC = 3
COMPAT = (0, 1.0, 0, 1, False)
HIGH = (1, 1.0, 2, 1, True, 0.45)
WINDOW = ([2, 2], [2, 2])


@dataclass(frozen=True)
class Case:
    """A call of an op.

    Attributes:
        op: its name.
        shape: the wanted call, in words.
        call: runs the traced ops at a size.
        traced: sizes at which it is traced.
        wanted: the size that is modelled.
        floor_bytes: that any implementation must move, at the wanted size.
        exact: whether counts grow by the same step with each unit of size.
        images: of the wanted call, where ``call`` has one.
        of_two: the same call with two images, for what each further one adds.
    """

    op: str
    shape: str
    call: Callable[[Any, int], object]
    traced: tuple[int, int]
    wanted: int
    floor_bytes: float
    exact: bool = True
    images: int = 1
    of_two: Callable[[Any, int], object] | None = None


def pool_input(images: int, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    return torch.randn(images, 64, 90, 120).to(dtype).contiguous(memory_format=layout)


def max_pool2d(dtype, layout, ops, images):
    ops.max_pool2d(pool_input(images, dtype, layout), *WINDOW)


def max_unpool2d(dtype, layout, ops, images):
    values, codes = torch.ops.fastseg.max_pool2d(pool_input(images, dtype, layout), *WINDOW)
    ops.max_unpool2d(values, codes, [90, 120], *WINDOW)


def max_pool2d_backward(dtype, layout, ops, images):
    values, codes = torch.ops.fastseg.max_pool2d(pool_input(images, dtype, layout), *WINDOW)
    ops.max_pool2d_backward(values, codes, [90, 120], *WINDOW, [0, 0], [1, 1])


def pooling() -> list[Case]:
    """SegNet's first pooling, batch 32, so that it does not fit the second-level cache."""
    cases = []
    whole, batch = 64 * 90 * 120, 32
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            words = f"{batch}x64x90x120 {str(dtype)[6:]} {str(layout)[6:]}"
            for op in (max_pool2d, max_unpool2d, max_pool2d_backward):
                floor = batch * (whole * dtype.itemsize * 1.25 + whole / 4)
                call = partial(op, dtype, layout)
                cases.append(Case(op.__name__, words, call, (1, 2), batch, floor))
    return cases


def upsample_argmax(classes, width, ops, rows):
    logits = torch.randn(1, classes, rows, width)
    ops.upsample_argmax(logits, [8 * rows, 8 * width], False, torch.uint8)


def small_logits(classes, width, rows):
    """Logits and a target that is eight times as large."""
    target = torch.randint(0, classes, (1, 8 * rows, 8 * width), dtype=torch.uint8)
    return torch.randn(1, classes, rows, width), target


CROSS_ENTROPY = (None, None, False, 255)  # weights, align_corners, ignore_index


def upsample_cross_entropy(classes, width, ops, rows):
    ops.upsample_cross_entropy(*small_logits(classes, width, rows), *CROSS_ENTROPY, 0.0, "mean")


def upsample_cross_entropy_backward(classes, width, ops, rows):
    logits, target = small_logits(classes, width, rows)
    op = torch.ops.fastseg.upsample_cross_entropy
    kept = op(logits, target, *CROSS_ENTROPY, 0.0, "mean")[2]
    weights, options = CROSS_ENTROPY[:2], CROSS_ENTROPY[2:]
    backward = ops.upsample_cross_entropy_backward
    backward(torch.ones(target.shape), logits, target, kept, *weights, *options, 0.0)


def upsample_confusion_matrix(classes, width, ops, rows):
    ops.upsample_confusion_matrix(*small_logits(classes, width, rows), False, 255)


def confusion_matrix(dtype, ops, rows):
    prediction, target = (torch.randint(0, 19, (rows, 2048), dtype=dtype) for _ in range(2))
    ops.confusion_matrix(prediction, target, 19)


def distance_transform(ops, images):
    ops.distance_transform(torch.rand(images, 256, 1024) > 0.001, [1.0, 1.0])


def pixel_adaptive_refinement(ops, iterations):
    image, masks = torch.rand(1, 3, 128, 512), torch.rand(1, 21, 128, 512)
    ops.pixel_adaptive_refinement(image, masks, [1, 2, 4, 8, 12, 24], iterations)


def heads() -> list[Case]:
    """What follows the logits."""
    cityscapes = 19 * 128 * 256 * 4 + 1024 * 2048
    cases = [
        Case(
            "upsample_argmax",
            "1x19x128x256 to 1024x2048",
            partial(upsample_argmax, 19, 256),
            (8, 16),
            128,
            cityscapes,
        )
    ]
    for op in (upsample_cross_entropy, upsample_cross_entropy_backward):
        # Eight images of 65 rows, one below the other.
        floor = 8 * (520 * 520 * 5 + 21 * 65 * 65 * 4 * (1 if op is upsample_cross_entropy else 2))
        words = "8x21x65x65 to 520x520, uint8"
        cases.append(Case(op.__name__, words, partial(op, 21, 65), (4, 8), 520, floor))
    op = upsample_confusion_matrix
    words = "1x19x128x256 to 1024x2048, uint8"
    cases.append(Case(op.__name__, words, partial(op, 19, 256), (8, 16), 128, cityscapes))
    for dtype in (torch.uint8, torch.int64):
        words = f"1024x2048 {str(dtype)[6:]}, 19 classes"
        floor = 2 * 1024 * 2048 * dtype.itemsize
        call = partial(confusion_matrix, dtype)
        cases.append(Case("confusion_matrix", words, call, (128, 256), 1024, floor))
    floor = 8 * 256 * 1024 * 5
    cases.append(Case("distance_transform", "8x256x1024", distance_transform, (1, 2), 8, floor))
    floor = 128 * 512 * 4 * (3 + 2 * 21)
    words = "1x21x128x512, 10 iterations"
    cases.append(
        Case("pixel_adaptive_refinement", words, pixel_adaptive_refinement, (1, 2), 10, floor)
    )
    return cases


CHUNK = 64
"""Channels by which depthwise convolutions grow."""


def depthwise_input(size: int, dtype: torch.dtype, layout: torch.memory_format, chunks: int):
    """One image of CHUNK * chunks channels, and the weight of a 3x3 kernel."""
    channels = CHUNK * chunks
    x = torch.randn(1, channels, size, size).to(dtype).contiguous(memory_format=layout)
    return x, torch.randn(channels, 1, 3, 3).to(dtype)


def depthwise_conv2d(size, rate, dtype, layout, ops, chunks):
    x, weight = depthwise_input(size, dtype, layout, chunks)
    scale, shift = torch.randn(2, x.shape[1])
    geometry = [1, 1], [rate, rate], [rate, rate]
    ops.depthwise_conv2d(x, weight, None, scale, shift, None, *geometry, "relu")


def depthwise_conv2d_input_grad(size, rate, dtype, layout, ops, chunks):
    grad, weight = depthwise_input(size, dtype, layout, chunks)
    geometry = [1, 1], [rate, rate], [rate, rate]
    ops.depthwise_conv2d_input_grad(grad, weight, [size, size], *geometry)


def depthwise_conv2d_weight_grad(size, rate, dtype, layout, ops, chunks):
    x, _ = depthwise_input(size, dtype, layout, chunks)
    geometry = [1, 1], [rate, rate], [rate, rate]
    ops.depthwise_conv2d_weight_grad(x, torch.randn_like(x), [3, 3], *geometry)


def depthwise() -> list[Case]:
    """A map of output stride 8 with ASPP's 2048 channels."""
    cases, channels = [], 2048
    ops = (depthwise_conv2d, depthwise_conv2d_input_grad, depthwise_conv2d_weight_grad)
    size, rate = 65, 12
    for layout in (torch.channels_last, torch.contiguous_format):
        for op in ops:
            floor = 2 * channels * size * size * 2
            words = f"1x2048x{size}x{size}, rate {rate}, bfloat16 {str(layout)[6:]}"
            call = partial(op, size, rate, torch.bfloat16, layout)
            # From 24 chunks on tiles are as large as for all of them.
            cases.append(Case(op.__name__, words, call, (24, 28), channels // CHUNK, floor))
    return cases


def crf_terms(width: int, height: int, images: int) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """A Gaussian of 3 and a bilateral of 80 and 13, on the documentation's photo."""
    photo = np.array(Image.open(PHOTO).convert("RGB").resize((width, height)))
    image = torch.from_numpy(photo).permute(2, 0, 1)[None].float().repeat(images, 1, 1, 1)
    kernels = [torch.full((2,), 3.0), bilateral_features("", image, 80.0, 13.0, torch.float32)]
    return kernels, [torch.tensor(3.0), torch.tensor(10.0)], [NORMALIZATION_SYMMETRIC] * 2


def spatial_gaussian_filter(ops, rows):
    values = torch.randn(1, rows, 500, 24).permute(0, 3, 1, 2)
    ops.spatial_gaussian_filter(values, torch.full((2,), 3.0))


def lattice_mean_field(width, height, labels, quality, ops, iterations, images=1):
    unary = torch.randn(images, labels, height, width)
    ops.lattice_mean_field(unary, *crf_terms(width, height, images), iterations, *quality)


def mean_field_case(width: int, height: int, labels: int, name: str, images: int = 1) -> Case:
    """A whole call, lattices included."""
    call = partial(
        lattice_mean_field, width, height, labels, {"compat": COMPAT, "high": HIGH}[name]
    )
    size = f"{width}x{height}x{labels}" if images == 1 else f"{images}x{labels}x{height}x{width}"
    words = f"{size}, 80/13, {name}, 10 iterations"
    floor = images * width * height * (11 * 4 * labels + 10 * 8 * 9)
    of_two = partial(call, images=2) if images > 1 else None
    batches = {"images": images, "of_two": of_two}
    return Case("lattice_mean_field", words, call, (1, 2), 10, floor, **batches)


def dense_crf() -> list[Case]:
    """Mean fields of 10 iterations, and the Gaussian of one alone."""
    words, floor = "1x24x375x500 channels_last, sigma 3", 4 * 24 * 375 * 500 * 4
    gaussian = spatial_gaussian_filter
    cases = [Case("spatial_gaussian_filter", words, gaussian, (75, 150), 375, floor, exact=False)]
    for width, height in ((125, 94), (500, 375)):
        cases += [mean_field_case(width, height, 21, name) for name in ("compat", "high")]
    return cases


def cases() -> list[Case]:
    """All of them."""
    return [*pooling(), *depthwise(), *heads(), *dense_crf()]


def long_cases() -> list[Case]:
    """Those that take many minutes each."""
    calls = [(500, 375, 21, 8), (2048, 1024, 19, 1)]
    return [
        mean_field_case(width, height, labels, name, images)
        for width, height, labels, images in calls
        for name in ("compat", "high")
    ]
