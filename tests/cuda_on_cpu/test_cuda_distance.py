"""The CUDA distance transform, run on the CPU (tests/cuda_on_cpu), and the reference."""

from __future__ import annotations

import pytest
import torch

from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home
from tests.head.test_distance_transform import MASKS, SPACINGS, axes, lines_of_one_zero, masks

ops = torch.ops.fastseg_cuda_on_cpu

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
# Short of a warp, several stretches and halvings, more lines than a block has warps.
SIZES = ((1,), (70,), (5, 33), (3, 131), (40, 3), (1, 1, 1), (2, 66, 3), (4, 3, 34))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("squared", [False, True])
def test_reference(size, squared):
    for spacing in SPACINGS[len(size)]:
        mask, steps = masks(*size, batch=1)[2:], axes(spacing, len(size))
        for in_float64 in (False, True):
            actual = ops.distance_transform(mask, steps, squared, in_float64)
            expected = reference.distance_transform(mask, steps, squared, in_float64)
            exact = spacing == 1.0 and (squared or not in_float64)
            rounding = 0 if exact else 2 * torch.finfo(expected.dtype).eps
            torch.testing.assert_close(actual, expected, rtol=rounding, atol=0)


@pytest.mark.parametrize("size", [13_000, 25_000])
def test_lines_in_shared_memory_and_beyond(size):
    """Of 52 kB, which a launch must ask for, and of 100, which no block has."""
    mask, steps = lines_of_one_zero(size)
    assert torch.equal(ops.distance_transform(mask[2], [1.0]), steps[2].float())


@pytest.mark.parametrize("dtype", MASKS, ids=lambda d: str(d)[6:])
def test_every_dtype_of_a_mask(dtype):
    mask = masks(9, 7, batch=1)
    expected = ops.distance_transform(mask, [1.0, 1.0])
    assert torch.equal(ops.distance_transform(mask.to(dtype), [1.0, 1.0]), expected)
    if dtype.is_floating_point:
        negative_zeros = mask.to(dtype).where(mask, -0.0)
        assert torch.equal(ops.distance_transform(negative_zeros, [1.0, 1.0]), expected)


def test_empty_and_too_long():
    assert ops.distance_transform(torch.ones(0, 4, 5), [1.0, 1.0]).shape == (0, 4, 5)
    with pytest.raises(RuntimeError, match=r"on CUDA, an axis must be no longer than 2\^19"):
        ops.distance_transform(torch.ones(1, dtype=torch.bool).expand((1 << 19) + 1), [1.0])
