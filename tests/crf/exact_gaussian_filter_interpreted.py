"""Runs the Triton kernels of the exact Gaussian filter in Triton's interpreter; prints the errors.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import json
import math

import torch

from fastseg import reference
from fastseg.kernels.crf import exact_gaussian_filter as kernels
from fastseg.kernels.crf import exact_gaussian_filter_blocks as blocks

CASES = (  # (B, C, d, N), the values' dtype
    ((1, 1, 1, 1), torch.float32),
    ((2, 3, 2, 17), torch.float32),
    ((2, 21, 5, 300), torch.float32),
    ((1, 5, 20, 130), torch.float32),
    ((1, 70, 3, 130), torch.float32),  # three chunks of channels
    ((1, 2, 40, 70), torch.float32),  # more dimensions than a tile holds
    ((1, 21, 5, 200), torch.float16),
    ((1, 70, 2, 64), torch.float16),
    ((0, 2, 3, 10), torch.float32),
    ((2, 0, 3, 10), torch.float32),
)


def errors(case, dtype, cutoff):
    """Relative L2 errors of the output and of both gradients."""
    b, c, d, n = case
    features = torch.randn(b, d, n) * 1.5 * min(1, 3 / d) + 100 / d**0.5
    values, grad = torch.randn(2, b, c, n).to(dtype)
    inputs = [t.double() for t in (grad, values, features)]
    expected = [
        reference.exact_gaussian_filter(*inputs[1:]),
        *reference.exact_gaussian_filter_backward(*inputs, 0.0),
    ]
    actual = [
        kernels.exact_gaussian_filter(values, features, cutoff),
        *kernels.exact_gaussian_filter_backward(grad, values, features, cutoff),
    ]
    for x, like in zip(actual, (values, values, features), strict=True):
        assert x.shape == like.shape
        assert x.dtype == like.dtype
    return [
        ((x - y).norm() / y.norm().clamp_min(1e-30)).item()
        for x, y in zip(actual, expected, strict=True)
    ]


def check_order(n: int) -> None:
    """A permutation, in blocks that are cut along their widest axis."""
    features = torch.randn(2, 3, n)
    order = blocks.kd_order(features)
    assert torch.equal(order.sort(1)[0], torch.arange(n).expand(2, n))
    sorted_points = blocks.sort_into_blocks(features, 30.0)
    whole = n // 64 * 64
    in_blocks = features.gather(2, order[:, None].expand(2, 3, n))[..., :whole]
    in_blocks = in_blocks.unflatten(-1, (-1, 64))
    assert torch.equal(in_blocks.amin(-1), sorted_points.lower[..., : whole // 64])
    spread = (in_blocks.amax(-1) - in_blocks.amin(-1)).mean()
    assert n < 2000 or spread < 0.6 * (features.amax(-1) - features.amin(-1)).mean()


def check_lists(n: int, cutoff: float) -> float:
    """The near blocks are those that a look at every pair of points finds, and others around."""
    features = torch.randn(2, 2, n) * 10
    sorted_points = blocks.sort_into_blocks(features, -2 * math.log(cutoff))
    points = sorted_points.features
    distance = torch.cdist(points, points).square()
    closest = distance.unflatten(1, (-1, 64)).unflatten(3, (-1, 64)).amin((2, 4))
    reach = -2 * math.log(cutoff)
    needed = 0
    for near in kernels._near_blocks(sorted_points, cutoff):
        for row, (count, numbers) in enumerate(zip(near.counts, near.lists, strict=True)):
            image, block = divmod(near.first_row + row, sorted_points.blocks)
            listed = numbers[:count].tolist()
            assert listed == sorted(set(listed))
            required = set((closest[image, block] < reach * 0.999).nonzero()[:, 0].tolist())
            assert required <= set(listed)
            needed += count.item()
    return needed / (2 * sorted_points.blocks**2)


def main() -> None:
    """Prints one JSON line."""
    torch.manual_seed(0)
    for n in (64, 65, 2000):
        check_order(n)
    report = [errors(*case, cutoff) for case in CASES for cutoff in (0.0, 1e-9)]
    shares = [check_lists(900, 1e-3)]
    blocks.LIST_ENTRIES = 100  # 15 blocks in an image: lists for 6 rows at a time
    shares.append(check_lists(900, 1e-3))
    several_launches = errors((2, 3, 2, 900), torch.float32, 1e-9)
    print(json.dumps({"errors": report, "shares": shares, "launches": several_launches}))


if __name__ == "__main__":
    main()
