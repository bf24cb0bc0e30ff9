"""The CUDA kernels of refinement, run on the CPU (tests/cuda_on_cpu), and the reference."""

from __future__ import annotations

import pytest
import torch

from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home

ops = torch.ops.fastseg_cuda_on_cpu

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
CASES = [
    # image, channels of the masks, dilations, iterations
    ((2, 3, 11, 27), 9, [1, 2, 4, 24], 3),
    ((1, 3, 5, 1), 8, [1, 2], 2),
    ((1, 1, 1, 18), 7, [4, 1], 2),
    ((1, 2, 1, 1), 2, [1], 1),
    ((1, 3, 6, 5), 2, [2**40, 100], 3),  # beyond the image
    ((1, 3, 8, 9), 3, [1, 2], 0),
    ((2, 3, 4, 5), 0, [1], 2),
]


@pytest.mark.parametrize("variant", ["par", "pamr"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_pixel_adaptive_refinement(case, dtype, variant):
    shape, channels, *options = case
    image, planes = torch.rand(shape), torch.randn(shape[0], channels, *shape[2:]).to(dtype)
    for actual, expected in (
        (
            ops.pixel_adaptive_refinement(image, planes, *options, variant),
            reference.pixel_adaptive_refinement(image.double(), planes.double(), *options, variant),
        ),
        (
            ops.pixel_adaptive_refinement_backward(planes, image, *options, variant),
            reference.pixel_adaptive_refinement_backward(
                planes.double(), image.double(), *options, variant
            ),
        ),
    ):
        assert actual.dtype == dtype
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_nan_reaches_the_pixels_whose_neighbour_it_is():
    image, masks = torch.rand(1, 2, 9, 20), torch.rand(1, 3, 9, 20)
    masks[0, 1, 3, 10] = image[0, 0, 8, 19] = torch.nan
    for function, plain, tensors in (
        (ops.pixel_adaptive_refinement, reference.pixel_adaptive_refinement, (image, masks)),
        (
            ops.pixel_adaptive_refinement_backward,
            reference.pixel_adaptive_refinement_backward,
            (masks, image),
        ),
    ):
        actual, expected = (f(*tensors, [1, 3], 1, "pamr") for f in (function, plain))
        torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-5, atol=1e-5)


def test_too_many_dilations():
    image = torch.rand(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="on CUDA, dilations must be at most 64, got 65"):
        ops.pixel_adaptive_refinement(image, image, [1] * 65, 1, "par")
