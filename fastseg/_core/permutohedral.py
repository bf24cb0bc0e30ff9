"""The format of a permutohedral lattice, the simplex of a point, and its derivative.

Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010. The
lattice is scaled and rounded as in Kraehenbuehl & Koltun's program (2011).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_DIMENSIONS = 8
"""The most features that a lattice can have."""


class PermutohedralTensors(NamedTuple):
    """A lattice of B images of N points with d features: D1 = d + 1, M vertices in all.

    Points are cut into T tiles of consecutive points, equally many for each image:
    ``tile_points(N, T // B)`` points each. A tile numbers the vertices that it touches: these are
    its rows, R in all. So a splat is a sum into the rows of a tile, which stay in a cache, and then
    a sum of rows in a fixed order.
    """

    slots: Tensor
    """Rows of each simplex's vertices within the point's tile, int32 (B, N, D1)."""
    barycentric: Tensor
    """Weights of each simplex's vertices, (B, N, D1), the features' dtype; differentiable."""
    tile_starts: Tensor
    """First rows of the tiles, int32 (T + 1)."""
    tile_vertices: Tensor
    """Vertices of the rows, 0 to M - 1, int32 (R)."""
    vertex_rows: Tensor
    """Rows in the order of their vertices, ascending for each, int32 (R)."""
    vertex_starts: Tensor
    """Positions in vertex_rows at which each vertex's rows start, int32 (M + 1)."""
    neighbors: Tensor
    """Vertices one step back and one forward along each axis, M for none, int32 (D1, 2, M)."""
    vertex_count: Tensor
    """Numbers of each image's vertices without those of dilation, int64 (B), on the CPU."""


def tile_points(points: int, tiles: int) -> int:
    """The points of each of an image's tiles but the last, which may be shorter."""
    if tiles <= 1:
        return points
    return (-(-points // tiles) + 63) // 64 * 64


def enclosing_simplex(features: Tensor, refine: float) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex that each point lies in.

    Every operation is rounded by itself and in the order of Kraehenbuehl's program: the nearest
    vertex with remainder 0 and the order of the coordinates depend on it.

    Args:
        features: (B, d, N).
        refine: the factor of the features.

    Returns:
        The quotients by D1 of the coordinates of vertex 0 and the rank of each coordinate of the
        point relative to it, 0 the largest, both (B, D1, N) of the features' dtype; and the
        weights of the simplex's vertices, (B, N, D1).
    """
    d = features.shape[1]
    scales = feature_scales(d, refine, features.dtype)
    total = torch.zeros_like(features[:, 0])
    elevated = [total] * (d + 1)
    for j in range(d, 0, -1):
        scaled = features[:, j - 1] * scales[j - 1]
        elevated[j] = total - j * scaled
        total = total + scaled
    elevated[0] = total
    inverse = torch.tensor(1.0, dtype=features.dtype, device="cpu") / (d + 1)
    y = torch.stack(elevated, 1)
    quotients = (y * inverse).round()
    offsets = y - quotients * (d + 1)
    ranks = torch.zeros_like(offsets)
    for i in range(d):
        for j in range(i + 1, d + 1):
            less = (offsets[:, i] < offsets[:, j]).to(features.dtype)
            ranks[:, i] += less
            ranks[:, j] += 1 - less
    ranks += quotients.sum(1, keepdim=True)  # not 0 where the nearest point is off the plane
    step = (ranks < 0).to(features.dtype) - (ranks > d).to(features.dtype)
    ranks, quotients = ranks + step * (d + 1), quotients + step
    heights = (y - quotients * (d + 1)) * inverse
    by_rank = torch.zeros_like(heights).scatter(1, ranks.long().clamp(0, d), heights)
    first = by_rank[:, d:] + (1 - by_rank[:, :1])
    barycentric = torch.cat([first, by_rank[:, :d].flip(1) - by_rank[:, 1:].flip(1)], 1)
    return quotients, ranks, barycentric.transpose(1, 2)


def feature_scales(dimensions: int, refine: float, dtype: torch.dtype) -> list[float]:
    """The factors of the features, by which the blur's deviation is one unit of theirs."""
    deviation = math.sqrt(2 / 3) * (dimensions + 1)
    deviation = torch.tensor(deviation, dtype=dtype, device="cpu").item()
    scales = [1 / math.sqrt((i + 2) * (i + 1)) * deviation * refine for i in range(dimensions)]
    return torch.tensor(scales, dtype=torch.float64, device="cpu").to(dtype).tolist()


def barycentric_backward(features: Tensor, refine: float, grad: Tensor) -> Tensor:
    """The gradient of the features: the weights are piecewise linear in them.

    Args:
        features: (B, d, N).
        refine: the factor of the features with which the lattice was built.
        grad: the gradient of the weights, (B, N, D1).
    """
    d = features.shape[1]
    with torch.no_grad():
        ranks = enclosing_simplex(features.detach(), refine)[1].long().transpose(1, 2)
    # The coordinate of rank k raises weight d - k and lowers the next one, weight D1 being 0.
    here = grad.gather(2, (d - ranks).clamp(0, d))
    following = grad.gather(2, (d + 1 - ranks).remainder(d + 1))
    elevated = ((here - following) / (d + 1)).unbind(2)
    scales = feature_scales(d, refine, features.dtype)
    out, total = [], elevated[0]
    for j in range(1, d + 1):  # the transpose of the elevation
        out.append((total - j * elevated[j]) * scales[j - 1])
        total = total + elevated[j]
    return torch.stack(out, 1)
