"""The permutohedral lattice of a set of points, and its format.

Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010; scaled
and rounded as in Kraehenbuehl & Koltun's program (2011). See :class:`PermutohedralTensors`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MAX_DIMENSIONS = 8


class PermutohedralTensors(NamedTuple):
    """A lattice of B images of N points with d features: D1 = d + 1, M vertices in all.

    Points are cut into T tiles of consecutive points, equally many for each image:
    ``tile_points(N, T // B)`` points each. A tile numbers the vertices that it touches: these are
    its rows, R in all. So a splat is a sum into the rows of a tile, which stay in a cache, and then
    a sum of rows in a fixed order.
    """

    slots: Tensor
    """int32 (B, N, D1): the row, within the point's tile, of each vertex of its simplex."""
    barycentric: Tensor
    """(B, N, D1), the features' dtype: the weight of each; differentiable."""
    tile_starts: Tensor
    """int32 (T + 1): the first row of each tile."""
    tile_vertices: Tensor
    """int32 (R): the vertex, 0 to M - 1, of each row."""
    vertex_rows: Tensor
    """int32 (R): the rows in order of their vertices, ascending for each."""
    vertex_starts: Tensor
    """int32 (M + 1): where each vertex's rows start in vertex_rows."""
    neighbors: Tensor
    """int32 (D1, 2, M): the vertices one step back and one forward along each axis; M if none."""
    vertex_count: Tensor
    """int64 (B), on the CPU: the vertices of each image, without those that dilation added."""


def tile_points(points: int, tiles: int) -> int:
    """The points of each of an image's tiles but the last, which may be shorter."""
    if tiles <= 1:
        return points
    return (-(-points // tiles) + 63) // 64 * 64


def permutohedral_lattice(
    features: Tensor, refine: float = 1.0, dilation: int = 0
) -> PermutohedralTensors:
    """See :func:`fastseg.ops.permutohedral_lattice`; one tile for each image."""
    _check(features, refine, dilation)
    b, d, n = features.shape
    quotients, ranks, barycentric = enclosing_simplex(features, refine)
    limit = 2**29 if features.dtype == torch.float64 else 2**20
    check_quotients(features, quotients.abs().amax((0, 1)) < limit if b * n else None)
    images = [_Image(q, r, dilation) for q, r in zip(quotients.long(), ranks.long(), strict=True)]
    if not images:
        images = [_Image(*(ranks.new_zeros(d + 1, 0, dtype=torch.int64),) * 2, dilation)]

    def joined(name: str, shift_by: str | None = None) -> Tensor:
        parts, shift = [], 0
        for image in images:
            parts.append(getattr(image, name) + shift)
            shift += 0 if shift_by is None else getattr(image, shift_by)
        return torch.cat(parts, -1)

    rows = torch.tensor([0] + [image.rows for image in images[: b if n else 0]])
    tile_vertices = joined("tile_vertices", "vertices")
    vertices = sum(image.vertices for image in images)
    counts = torch.bincount(tile_vertices, minlength=vertices)
    starts = torch.nn.functional.pad(counts.cumsum(0), (1, 0))
    neighbors, shift = [], 0
    for image in images:  # M stands for none
        here = image.neighbors
        neighbors.append(torch.where(here < image.vertices, here + shift, vertices))
        shift += image.vertices
    return PermutohedralTensors(
        torch.stack([image.slots for image in images]).int()[:b].view(b, n, d + 1),
        barycentric.contiguous(),
        rows.cumsum(0).int().to(features.device),
        tile_vertices.int(),
        tile_vertices.argsort(stable=True).int(),
        starts.int(),
        torch.cat(neighbors, -1).int(),
        torch.tensor([image.touched for image in images[:b]], dtype=torch.int64),
    )


def enclosing_simplex(features: Tensor, refine: float) -> tuple[Tensor, Tensor, Tensor]:
    """The simplex that each point lies in.

    Every operation is rounded by itself and in the order of Kraehenbuehl's program: the nearest
    vertex with remainder 0 and the order of the coordinates depend on it.

    Args:
        features: (B, d, N).
        refine: multiplies the features.

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
    inverse = torch.tensor(1.0, dtype=features.dtype) / (d + 1)
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
    """What the features are multiplied by, so that the blur's deviation is one unit of theirs."""
    deviation = torch.tensor(math.sqrt(2 / 3) * (dimensions + 1), dtype=dtype).item()
    scales = [1 / math.sqrt((i + 2) * (i + 1)) * deviation * refine for i in range(dimensions)]
    return torch.tensor(scales, dtype=torch.float64).to(dtype).tolist()


class _Image:
    """The vertices of one image.

    Args:
        quotients: int64 (D1, N), as of :func:`enclosing_simplex`.
        ranks: int64 (D1, N).
        dilation: see :func:`fastseg.ops.permutohedral_lattice`.
    """

    def __init__(self, quotients: Tensor, ranks: Tensor, dilation: int):
        d, n = quotients.shape[0] - 1, quotients.shape[1]
        remainder = torch.arange(d + 1, device=ranks.device)
        if dilation == 0 and n % 4:
            # Kraehenbuehl's program fills its last four points with features of zero, whose
            # coordinates have ranks 0 to d. Their vertices carry blur without having mass.
            quotients = torch.cat([quotients, quotients.new_zeros(d + 1, 1)], 1)
            ranks = torch.cat([ranks, remainder[:, None]], 1)
        below = ranks[:, :, None] > d - remainder
        keys = (quotients[:, :, None] * (d + 1) + remainder - (d + 1) * below.long())[:d]
        keys, slots = _unique(keys.flatten(1))
        self.slots = slots.view(-1, d + 1)[:n]
        self.rows = self.touched = keys.shape[1]
        self.tile_vertices = torch.arange(self.rows, device=ranks.device)
        steps = _steps(d, ranks.device)
        if dilation:
            around = [keys + sign * step[:, None] for step in steps for sign in (-1, 1)]
            new, place = _unique(torch.cat([keys, *around], 1))
            is_new = torch.ones(new.shape[1], dtype=torch.bool, device=ranks.device)
            is_new[place[: self.rows]] = False
            if dilation == 2:
                by_axis = [
                    torch.zeros_like(is_new).index_fill(0, p, True)
                    for p in place[self.rows :].view(d + 1, -1)
                ]
                is_new &= torch.stack(by_axis).sum(0) > 1
            keys = torch.cat([keys, new[:, is_new]], 1)
        self.vertices = m = keys.shape[1]
        self.neighbors = keys.new_full((d + 1, 2, m), m)
        for axis, step in enumerate(steps):
            for side, sign in enumerate((-1, 1)):
                both, place = _unique(torch.cat([keys, keys + sign * step[:, None]], 1))
                vertex = keys.new_full((both.shape[1],), m)
                vertex[place[:m]] = torch.arange(m, device=ranks.device)
                self.neighbors[axis, side] = vertex[place[m:]]


def _steps(d: int, device: torch.device) -> Tensor:
    """(D1, d): what a step along each axis adds to the first d coordinates."""
    return 1 - (d + 1) * torch.eye(d + 1, d, dtype=torch.int64, device=device)


def _unique(keys: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct columns of (d, K) integers, sorted, and each column's index among them."""
    code = torch.zeros_like(keys[0])
    if keys.shape[1]:
        for row in keys:  # indices and spans of 31 bits fit, whatever the range of all rows
            low, high = row.aminmax()
            code = torch.unique(code * (high - low + 1) + row - low, return_inverse=True)[1]
    count = int(code.max()) + 1 if code.numel() else 0
    first = code.new_empty(count).scatter_(0, code, torch.arange(code.numel(), device=code.device))
    return keys[:, first], code


def barycentric_backward(features: Tensor, refine: float, grad: Tensor) -> Tensor:
    """The gradient of the features: the weights are piecewise linear in them.

    Args:
        features: (B, d, N).
        refine: as of the lattice.
        grad: (B, N, D1), of the weights.
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


def _check(features: Tensor, refine: float, dilation: int) -> None:
    if features.dim() != 3 or not 1 <= features.shape[1] <= MAX_DIMENSIONS:
        raise RuntimeError(
            f"fastseg::permutohedral_lattice: features must have shape (B, d, N) with d from 1 to "
            f"{MAX_DIMENSIONS}, got {tuple(features.shape)}"
        )
    if features.dtype not in (torch.float32, torch.float64):
        raise RuntimeError(
            "fastseg::permutohedral_lattice: features must be float32 or float64, got "
            f"{features.dtype}"
        )
    if not 0 < refine <= 1e6:
        raise RuntimeError(f"fastseg::permutohedral_lattice: refine must be positive, got {refine}")
    if dilation not in (0, 1, 2):
        raise RuntimeError(
            f"fastseg::permutohedral_lattice: dilation must be 0, 1 or 2, got {dilation}"
        )


def check_quotients(features: Tensor, fine: Tensor | None) -> None:
    """Raises for features that are not finite or too large for their dtype.

    Args:
        features: (B, d, N).
        fine: bool (N,), whether a point is within the limits; None: there are none.
    """
    if fine is None or bool(fine.all()):
        return
    for j in range(features.shape[1]):
        bad = features[:, j][~features[:, j].isfinite()]
        if bad.numel():
            raise RuntimeError(
                f"fastseg::permutohedral_lattice: features must be finite, got {bad[0].item()} in "
                f"dimension {j}"
            )
    largest = features.abs().amax((0, 2))
    raise RuntimeError(
        f"fastseg::permutohedral_lattice: features must be smaller, got up to "
        f"{largest.max().item():g} in dimension {int(largest.argmax())}, too many lattice steps "
        "for their dtype: use a larger bandwidth or float64"
    )
