"""The permutohedral lattice of a set of points, and its format.

Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010. The
lattice is scaled and rounded as in Kraehenbuehl & Koltun's program (2011); its format is
:class:`PermutohedralTensors`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.permutohedral import MAX_DIMENSIONS, PermutohedralTensors, enclosing_simplex


def permutohedral_lattice(
    features: Tensor, refine: float = 1.0, dilation: int = 0
) -> PermutohedralTensors:
    """The op :func:`fastseg.ops.crf.permutohedral_lattice`, with one tile for each image."""
    check_lattice(features, refine, dilation)
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

    rows = [0] + [image.rows for image in images[: b if n else 0]]
    rows = torch.tensor(rows, device="cpu")
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
        torch.tensor([image.touched for image in images[:b]], dtype=torch.int64, device="cpu"),
    )


class _Image:
    """The vertices of one image.

    Args:
        quotients: the quotients of :func:`enclosing_simplex`, int64 (D1, N).
        ranks: its ranks, int64 (D1, N).
        dilation: the rule by which vertices are added, 0 to 2.
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
    """The steps along the axes, (D1, d): what each adds to the first d coordinates."""
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


def check_lattice(features: Tensor, refine: float, dilation: int) -> None:
    """Raises RuntimeError for arguments of permutohedral_lattice that do not fit.

    Args:
        features: (B, d, N), float32 or float64; their values are not looked at.
        refine: the factor of the features, positive.
        dilation: 0, 1 or 2.
    """
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
        fine: whether each point is within the limits, bool (N,); None where there are no points.
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
