"""Gaussian filtering on a permutohedral lattice: splat, blur, slice; and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.permutohedral import tile_points


def permutohedral_filter(
    values: Tensor,
    slots: Tensor,
    barycentric: Tensor,
    tile_starts: Tensor,
    tile_vertices: Tensor,
    vertex_rows: Tensor,
    vertex_starts: Tensor,
    neighbors: Tensor,
    passes: int = 1,
    symmetric: bool = False,
    reverse: bool = False,
    gain: float = 1.0,
    side: float = 0.5,
) -> Tensor:
    """The op :func:`fastseg.ops.crf.permutohedral_filter`, of the lattice's tensors."""
    vertices = vertices_of_points(slots, tile_starts, tile_vertices)
    rows = splat(values, vertices, barycentric, neighbors.shape[2])
    return (
        slice_(blur(rows, neighbors, passes, symmetric, reverse, side), vertices, barycentric)
        * gain
    )


def permutohedral_filter_backward(
    grad: Tensor,
    values: Tensor,
    slots: Tensor,
    barycentric: Tensor,
    tile_starts: Tensor,
    tile_vertices: Tensor,
    vertex_rows: Tensor,
    vertex_starts: Tensor,
    neighbors: Tensor,
    passes: int = 1,
    symmetric: bool = False,
    reverse: bool = False,
    gain: float = 1.0,
    side: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """The gradients of the values and of the barycentric weights.

    The first is the filter of grad with the axes in the opposite order. The second, of point i and
    its vertex v, is ``grad_i . Y[v] + values_i . Z[v]``, Y and Z being the blurred rows of values
    and of grad.
    """
    vertices = vertices_of_points(slots, tile_starts, tile_vertices)
    m = neighbors.shape[2]
    y = blur(splat(values, vertices, barycentric, m), neighbors, passes, symmetric, reverse, side)
    z = blur(splat(grad, vertices, barycentric, m), neighbors, passes, symmetric, not reverse, side)
    per_vertex = [
        (grad.transpose(1, 2) * y[vertices[..., v]]).sum(2)
        + (values.transpose(1, 2) * z[vertices[..., v]]).sum(2)
        for v in range(vertices.shape[2])
    ]
    return slice_(z, vertices, barycentric) * gain, torch.stack(per_vertex, 2) * gain


def vertices_of_points(slots: Tensor, tile_starts: Tensor, tile_vertices: Tensor) -> Tensor:
    """The vertices of each point's simplex, int64 (B, N, D1)."""
    b, n, _ = slots.shape
    tiles = (len(tile_starts) - 1) // b if b else 0
    point = torch.arange(n, device=slots.device)
    tile = torch.arange(b, device=slots.device)[:, None] * tiles + point // max(
        tile_points(n, tiles), 1
    )
    return tile_vertices[tile_starts[tile][..., None] + slots.long()].long()


def splat(values: Tensor, vertices: Tensor, barycentric: Tensor, count: int) -> Tensor:
    """Each vertex's sum of the values (B, C, N) of its points, by their weights: (M, C)."""
    points = values.transpose(1, 2)
    rows = values.new_zeros(count, values.shape[1])
    for v in range(vertices.shape[2]):
        weighted = points * barycentric[..., v, None]
        rows = rows.index_add(0, vertices[..., v].flatten(), weighted.flatten(0, 1))
    return rows


def blur(
    rows: Tensor, neighbors: Tensor, passes: int, symmetric: bool, reverse: bool, side: float
) -> Tensor:
    """The rows blurred by (side, 1, side) along each axis, and a row of zeros: (M + 1, C)."""
    if symmetric:
        both = [blur(rows, neighbors, passes, False, r, side) for r in (False, True)]
        return (both[0] + both[1]) / 2
    axes = range(len(neighbors))
    rows = torch.cat([rows, torch.zeros_like(rows[:1].sum(0, keepdim=True))])
    for axis in [*(reversed(axes) if reverse else axes)] * passes:
        back, forward = neighbors[axis].long()
        blurred = rows[:-1] + (rows[back] + rows[forward]) * side
        rows = torch.cat([blurred, rows[-1:]])
    return rows


def slice_(rows: Tensor, vertices: Tensor, barycentric: Tensor) -> Tensor:
    """Each point's mean of its vertices' rows, by their weights: (B, C, N)."""
    b, n, size = vertices.shape
    out = rows.new_zeros(b, n, rows.shape[1])
    for v in range(size):
        out = out + barycentric[..., v, None] * rows[vertices[..., v]]
    return out.transpose(1, 2).contiguous()
