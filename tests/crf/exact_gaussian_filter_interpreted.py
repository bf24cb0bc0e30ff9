"""Runs the Triton kernels of the exact Gaussian filter in Triton's interpreter; prints the errors.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported.
"""

from __future__ import annotations

import collections
import itertools
import json
import math
import types

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastseg import reference
from fastseg.kernels.crf import exact_gaussian_filter as kernels
from fastseg.kernels.crf import exact_gaussian_filter_blocks as blocks
from fastseg.ops.crf import filters
from tests.triton_counts import counted

CASES = (  # (B, C, d, N), the values' dtype
    ((1, 1, 1, 1), torch.float32),
    ((2, 3, 2, 17), torch.float32),
    ((2, 21, 5, 200), torch.float32),
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


def features_of(kind: str, n: int = 200):
    """Points (1, 3, n) whose blocks and cells are of a kind."""
    features = torch.randn(1, 3, n)
    if kind == "far from the origin":
        return features + 1000
    if kind == "apart":  # a block reaches over hundreds of standard deviations
        return features.sign() * 300 + torch.randn(1, 3, 8).repeat(1, 1, n // 8)
    if kind == "crowded":  # one cell of all blocks
        return features * 0.1
    if kind == "with far ones":
        features[..., ::7] = 1e30
    return features


def kind_errors(kind: str):
    """The errors of a filter of such points, beside those of float32 on the CPU."""
    features = features_of(kind)
    values = torch.randn(1, 5, features.shape[2])
    features64 = features.double()
    if kind == "with far ones":
        features64 = features64.clamp(max=1e6)  # whose squares float64 holds
    expected = reference.exact_gaussian_filter(values.double(), features64)
    actual = kernels.exact_gaussian_filter(values, features, 0.0)
    return ((actual - expected).norm() / expected.norm()).item()


def values_errors():
    """The largest error of an output beside the largest of its channel: of channels far apart."""
    features = torch.randn(1, 3, 200)
    values = torch.randn(1, 6, 200) * torch.tensor([1e-35, 1e-12, 1, 1e4, 1e30, 1e36])[:, None]
    expected = reference.exact_gaussian_filter(values.double(), features.double())
    actual = kernels.exact_gaussian_filter(values, features, 0.0).double()
    return ((actual - expected).abs().amax(2) / expected.abs().amax(2)).max().item()


def nan_reaches() -> list[bool]:
    """Whether a NaN stays in its channel, and reaches the points near it."""
    features, values = torch.randn(1, 3, 200) * 3, torch.randn(1, 2, 200)
    values[0, 1, 50] = float("nan")
    out = kernels.exact_gaussian_filter(values, features, 1e-3)
    near = (features[0] - features[0, :, 50:51]).square().sum(0) < 10
    return [out[0, 0].isfinite().all().item(), out[0, 1, near].isnan().all().item()]


def check_cells() -> list[int]:
    """Cells are blocks in a row, no further than RADIUS from their centre; returns their sizes."""
    sizes = []
    for scale in (0.3, 1.0, 30.0):
        features = torch.randn(2, 3, 900) * scale
        found = blocks.sort_into_blocks(features, 30.0)
        points = found.features.unflatten(1, (-1, blocks.BLOCK))
        for image in range(2):
            cells = torch.where(found.cells < 0, -1 - found.cells, found.cells)[image]
            for first in cells.unique().tolist():
                members = (cells == first).nonzero()[:, 0]
                assert members.tolist() == list(range(first, first + len(members)))
                centers = found.centers[image, members]
                assert torch.equal(centers, centers[:1].expand_as(centers))
                corner = (points[image, members] - centers[0]).abs().flatten(0, 1).amax(0)
                assert len(members) == 1 or corner.norm() <= blocks.RADIUS * 1.0001
                if found.cells[image, first] >= 0:
                    assert corner.norm() <= blocks.WIDE * 1.0001
                sizes.append(len(members))
    return sizes


def check_prepared() -> None:
    """Blocks that are given are those that are made, to the last bit; kept lists or not."""
    features = torch.randn(2, 3, 150) * 2
    values, grad = torch.randn(2, 2, 4, 150)
    arguments = (grad, values, features, 1e-3)
    expected = [kernels.exact_gaussian_filter(*arguments[1:])]
    expected += kernels.exact_gaussian_filter_backward(*arguments)
    for entries in (1 << 26, 10):
        blocks.LIST_ENTRIES = entries
        given = kernels.exact_gaussian_blocks(features, 1e-3)
        forms = [(tuple(t.shape), t.dtype) for t in given]
        assert forms == kernels.block_forms(features)
        actual = [kernels.exact_gaussian_filter(*arguments[1:], given)]
        actual += kernels.exact_gaussian_filter_backward(*arguments, given)
        assert all(map(torch.equal, actual, expected))
    blocks.LIST_ENTRIES = 1 << 26


class Called(TorchDispatchMode):
    """Counts torch's ops, but those that only look at the same memory."""

    def __init__(self):
        super().__init__()
        self.counts = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if not function.is_view:
            self.counts[function.overloadpacket._qualified_op_name] += 1
        return function(*args, **kwargs or {})


class Launches:
    """Stands for Triton's kernels, and counts their launches."""

    def __init__(self):
        self.count = 0

    def __getitem__(self, grid):
        return self

    def __call__(self, *arguments, **options):
        self.count += 1


def calls_of_a_field(iterations: int) -> dict[str, int]:
    """torch's ops and Triton's launches, as a term's filter is made and for each of its uses."""
    launches = Launches()
    replaced = [(kernels, name) for name in ("rows_kernel", "filter_kernel")]
    replaced += [(blocks, f"{name}_kernel") for name in ("cells", "keys", "near_blocks")]
    originals = [getattr(module, name) for module, name in replaced]
    for module, name in replaced:
        setattr(module, name, launches)
    filters.ops = types.SimpleNamespace(
        exact_gaussian_blocks=kernels.exact_gaussian_blocks,
        exact_gaussian_filter=kernels.exact_gaussian_filter,
    )
    features, unary = torch.randn(1, 3, 100, 90), torch.randn(1, 4, 100, 90)
    with Called() as called:
        term = filters.ExactFilter(features)
        built, launched = called.counts.total(), launches.count
        for _ in range(iterations):
            term.apply(unary)
    filters.ops = torch.ops.fastseg
    for (module, name), original in zip(replaced, originals, strict=True):
        setattr(module, name, original)
    return {
        "sorts": called.counts["aten::sort"] + called.counts["aten::argsort"],
        "levels": math.ceil(math.log2(-(-9000 // blocks.BLOCK))),
        "ops": (called.counts.total() - built) / iterations,
        "launches of the build": launched,
        "launches": (launches.count - launched) / iterations,
    }


def cost(dtype: torch.dtype) -> dict[str, tuple[int, int]]:
    """The bytes and operations that a filter's kernels count, and by the formulas."""
    d, channels, n = 5, 21, 300
    features, values = torch.randn(1, d, n) * 2, torch.randn(1, channels, n).to(dtype)
    given = blocks.Blocks(*kernels.exact_gaussian_blocks(features, 1e-3))
    with counted() as counts:
        kernels.exact_gaussian_filter(values, features, 1e-3, given)
    count, columns, width = given.blocks, given.keys.shape[2], 32
    size = blocks.BLOCK
    listed = [row[:k].tolist() for row, k in zip(given.lists[0], given.counts[0], strict=True)]
    tiles = sum(map(len, listed))
    cells = given.cells[0].tolist()
    turns = sum(len(list(itertools.groupby(row, key=cells.__getitem__))) for row in listed)
    products, halves = (3, 2) if dtype == torch.float32 else (1, 1)
    scales = 4 * width if dtype == torch.float32 else 0
    gathered = n * channels * values.element_size() + 4 * count * size
    of_tile = 2 * size * (columns + halves * width) + scales + 4 + 4  # and the block, its cell
    of_turn = 4 * size * columns + 4 * columns
    return {
        "flops": (counts.dot_flops, 2 * size * size * (columns + products * width) * tiles),
        "loads": (
            counts.load_bytes,
            gathered + tiles * of_tile + turns * of_turn + count * (4 + 4 * size),
        ),
        "stores": (
            counts.store_bytes,
            count * (2 * halves * size * width + scales) + values.element_size() * n * channels,
        ),
    }


def main() -> None:
    """Prints one JSON line."""
    torch.manual_seed(0)
    for n in (64, 65, 2000):
        check_order(n)
    report = [errors(*case, cutoff) for case in CASES for cutoff in (0.0, 1e-9)]
    shares = [check_lists(900, 1e-3)]
    blocks.LIST_ENTRIES = 100  # 15 blocks in an image: lists for 6 rows at a time
    shares.append(check_lists(900, 1e-3))
    blocks.LIST_ENTRIES = 16  # 4 blocks in an image: lists for 4 rows at a time
    several_launches = errors((2, 3, 2, 200), torch.float32, 1e-9)
    blocks.LIST_ENTRIES = 1 << 26
    check_prepared()
    kinds = ("far from the origin", "apart", "crowded", "with far ones")
    print(
        json.dumps(
            {
                "errors": report,
                "shares": shares,
                "launches": several_launches,
                "kinds": {kind: kind_errors(kind) for kind in kinds},
                "magnitudes": values_errors(),
                "nan": nan_reaches(),
                "cells": check_cells(),
                "fields": [calls_of_a_field(iterations) for iterations in (1, 10)],
                "costs": [cost(dtype) for dtype in (torch.float32, torch.float16)],
            }
        )
    )


if __name__ == "__main__":
    main()
