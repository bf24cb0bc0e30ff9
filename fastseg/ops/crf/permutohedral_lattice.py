"""The permutohedral lattice of a set of points: as an op, and as an object that filters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack

from fastseg import reference
from fastseg._core.lattice_quality import LATTICE_QUALITY
from fastseg._core.library import call, define
from fastseg._core.ordinary_tensors import ordinary_tensors
from fastseg._core.pairwise import NORMALIZATIONS
from fastseg._core.permutohedral import MAX_DIMENSIONS, PermutohedralTensors, barycentric_backward
from fastseg._core.plain_tensors import gradient_free
from fastseg._core.readable import readable
from fastseg._core.tensor_checks import check_dense, check_tensors
from fastseg._core.vmap import by_slices, slice_of
from fastseg.ops.crf import permutohedral_filter as _filter
from fastseg.reference.crf.permutohedral_lattice import check_lattice


def permutohedral_lattice(
    features: Tensor, refine: float = 1.0, dilation: int = 0
) -> PermutohedralTensors:
    """The lattice of a batch of point sets, as tensors.

    Building has sizes that depend on the data: under ``torch.compile`` they are unbacked symbols.
    Deterministic, for any number of threads.

    Args:
        features: (B, d, N), d from 1 to 8; float32 or float64; in units of the filter's standard
            deviation.
        refine: the factor of the features, positive.
        dilation: the rule by which vertices are added that no point touches, for the blur to reach
            further. 0: none are. 1: every neighbour of a vertex is. 2: those of them are that lie
            next to vertices along two axes or more, so that blur can turn there from one axis to
            another.

    Returns:
        The lattice, differentiable in features through ``barycentric``.

    Raises:
        RuntimeError: features of another shape or dtype, not finite, or so large that their
            lattice coordinates exceed 2^20 (float32) or 2^29 (float64) simplices or, on the CPU,
            all of them together 128 bits; N * (d + 1) of 2^31 or more, on CUDA B * N * (d + 1) of
            2^30 or more.

    Adams, Baek & Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice", 2010.
    """
    op = "fastseg::permutohedral_lattice"
    check_tensors(op, features=features)
    if type(features) is Tensor and features.is_meta:
        raise RuntimeError(f"{op}: features must hold values, got a tensor on meta")
    return PermutohedralTensors(*call(_lattice, (features,), refine, dilation))


class PermutohedralLattice:
    """Points with features, ready to be filtered by a Gaussian of their distances.

    ``filter`` approximates ``out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j`` in O(N d) by splatting the
    values onto the vertices of a permutohedral lattice, blurring these and slicing (Adams, Baek &
    Davis 2010). Built once, used for many filters; gradients reach values and features.

    With quality "compat" the lattice is that of Kraehenbuehl & Koltun's program (pydensecrf): the
    vertices, the weights, and that the vertices around the origin always exist if N is not a
    multiple of 4.

    ``filter`` can be compiled by ``torch.compile(fullgraph=True)``. Building allocates by what the
    features hold; build outside.

    Where gradients are off as it is built (``no_grad``, ``inference_mode``), its features are
    constants; values have a gradient all the same.

    Args:
        features: (d, N), (B, d, N) or ``(B, d, *spatial)``; d from 1 to 8; float32 or float64; in
            units of the Gaussian's standard deviation. Points of different images never meet.
        quality: "compat" or "high", which has more vertices and a symmetric filter.

    Attributes:
        tensors: the lattice itself, see :class:`fastseg.reference.PermutohedralTensors`.

    Raises:
        ValueError: an unknown quality, features with less than two dimensions.
        TypeError: features that are not a tensor.
        RuntimeError: as :func:`fastseg.ops.crf.permutohedral_lattice`.
    """

    def __init__(self, features: Tensor, *, quality: str = "compat"):
        if quality not in LATTICE_QUALITY:
            raise ValueError(
                f"PermutohedralLattice: quality must be one of {', '.join(LATTICE_QUALITY)}, "
                f"got {quality!r}"
            )
        if not isinstance(features, Tensor):
            raise TypeError(
                f"PermutohedralLattice: features must be a tensor, got {type(features).__name__}"
            )
        if features.dim() < 2:
            raise ValueError(
                "PermutohedralLattice: features must have shape (d, N), (B, d, N) or "
                f"(B, d, *spatial) with d from 1 to {MAX_DIMENSIONS}, got {tuple(features.shape)}"
            )
        self.batched = features.dim() > 2
        self.spatial = tuple(features.shape[2:] if self.batched else features.shape[1:])
        features = features.flatten(2) if self.batched else features[None]
        self._lattice_quality = LATTICE_QUALITY[quality]
        self._dimensions = features.shape[1]
        with ordinary_tensors():
            self.tensors = permutohedral_lattice(
                features, self._lattice_quality.refine, self._lattice_quality.dilation
            )
        self._ones: Tensor | None = None

    @property
    def num_vertices(self) -> int | list[int]:
        """The number of vertices that points touch; for a batch the number of each image.

        Raises:
            RuntimeError: the lattice is vmap's, and the number another one for each sample.
        """
        counts = readable(self.tensors.vertex_count)
        if counts is None:
            counts = self.tensors.vertex_count
        elif counts.dim() > 1:
            raise RuntimeError(
                "PermutohedralLattice: num_vertices differs between the samples of vmap and "
                "cannot be read in it"
            )
        return counts.tolist() if self.batched else counts.item()

    def filter(self, values: Tensor, normalization: str | None = None) -> Tensor:
        """The values, of which every channel is filtered.

        Args:
            values: ``(B, C, *spatial)``, or (C, N) for features (d, N); the features' dtype.
            normalization: None or "none": the sums K v. "symmetric": n K (n v),
                n = 1 / sqrt(K 1 + 1e-20). "before", "after": 1 / (K 1 + 1e-20) on that side alone.

        Returns:
            The values' shape and dtype, contiguous.

        Raises:
            ValueError: values of another shape or dtype, an unknown normalization.
            TypeError: values that are not a tensor.
            RuntimeError: values on another device.
        """
        if not isinstance(values, Tensor):
            raise TypeError(
                f"PermutohedralLattice.filter: values must be a tensor, got {type(values).__name__}"
            )
        expected = f"(B, C, {', '.join(map(str, self.spatial))})"
        if not self.batched:
            expected = f"(C, {self.spatial[0]})"
        dims = 2 if self.batched else 1
        if values.dim() != dims + len(self.spatial) or values.shape[dims:] != self.spatial:
            raise ValueError(
                f"PermutohedralLattice.filter: values must have shape {expected}, got "
                f"{tuple(values.shape)}"
            )
        if values.dtype != self.tensors.barycentric.dtype:
            raise ValueError(
                "PermutohedralLattice.filter: values must be "
                f"{self.tensors.barycentric.dtype} as the features are, got {values.dtype}"
            )
        if normalization is not None and normalization not in NORMALIZATIONS:
            raise ValueError(
                "PermutohedralLattice.filter: normalization must be None or one of "
                f"{', '.join(NORMALIZATIONS)}, got {normalization!r}"
            )
        flat = values.flatten(2) if self.batched else values[None]
        if normalization in (None, "none"):
            return self._sums(flat).view(values.shape)
        ones = self._response()
        if normalization == "symmetric":
            factor = (ones + 1e-20).rsqrt()
            return (self._sums(flat * factor) * factor).view(values.shape)
        factor = 1 / (ones + 1e-20)
        if normalization == "before":
            return self._sums(flat * factor).view(values.shape)
        return (self._sums(flat) * factor).view(values.shape)

    def ones(self) -> Tensor:
        """The filter's response to ones, K 1, (B, 1, N)."""
        return self._response().clone()

    def _response(self) -> Tensor:
        """K 1 itself, which is kept."""
        if self._ones is not None:
            return self._ones
        barycentric = self.tensors.barycentric
        b, n, _ = barycentric.shape
        with ordinary_tensors():
            ones = self._sums(barycentric.new_ones(b, 1, n))
        # Not where it has a gradient, or would have in another call; nor a transform's or a fake.
        constant = gradient_free((barycentric,)) and not barycentric.requires_grad
        if constant and not _len_torch_dispatch_stack():
            self._ones = ones
        return ones

    def _sums(self, values: Tensor) -> Tensor:
        """The product K values, (B, C, N)."""
        return _filter.permutohedral_filter(
            values,
            self.tensors,
            passes=self._lattice_quality.passes,
            symmetric=self._lattice_quality.symmetric,
            gain=self._lattice_quality.gain(self._dimensions),
            side=self._lattice_quality.side,
        )


def _fake(features, refine=1.0, dilation=0):
    op = "fastseg::permutohedral_lattice"
    check_dense(op, "features", features)
    check_lattice(features, refine, dilation)
    b, d, n = features.shape
    context = torch.library.get_ctx()
    starts, rows, ends = (context.new_dynamic_size(min=m) for m in (1, 0, 1))

    def integers(*size):
        return features.new_empty(size, dtype=torch.int32)

    return (
        integers(b, n, d + 1),
        features.new_empty(b, n, d + 1),
        integers(starts),
        integers(rows),
        integers(rows),
        integers(ends),
        integers(d + 1, 2, ends - 1),
        features.new_empty(b, dtype=torch.int64, device="cpu"),
    )


def _setup_context(ctx, inputs, output):
    features, ctx.refine, _ = inputs
    ctx.save_for_backward(features)


def _backward(ctx, *grads):
    (features,) = ctx.saved_tensors
    return (barycentric_backward(features, ctx.refine, grads[1]),)


def _vmap(op, info, in_dims, *arguments):
    """The lattices of the slices, all of them with as many rows and vertices."""
    if info.batch_size == 0:
        return by_slices(op, info, in_dims, *arguments)
    slices = [
        PermutohedralTensors(*op(*slice_of(arguments, in_dims, i))) for i in range(info.batch_size)
    ]
    rows = max(s.tile_vertices.shape[0] for s in slices)
    vertices = max(s.neighbors.shape[2] + rows - s.tile_vertices.shape[0] for s in slices)
    padded = [_padded(s, rows, vertices) for s in slices]
    return tuple(torch.stack(parts) for parts in zip(*padded, strict=True)), (0,) * len(slices[0])


def _padded(lattice: PermutohedralTensors, rows: int, vertices: int) -> PermutohedralTensors:
    """The lattice with more rows in its last tile, each with a vertex of its own; no point's."""
    old_rows, old_vertices = lattice.tile_vertices.shape[0], lattice.neighbors.shape[2]
    more_rows, more_vertices = rows - old_rows, vertices - old_vertices
    if more_vertices == 0:
        return lattice
    steps = torch.arange(more_vertices, dtype=torch.int32, device=lattice.slots.device)
    own = steps[:more_rows]
    none = lattice.neighbors == old_vertices
    return lattice._replace(
        tile_starts=torch.cat([lattice.tile_starts[:-1], lattice.tile_starts[-1:] + more_rows]),
        tile_vertices=torch.cat([lattice.tile_vertices, own + old_vertices]),
        vertex_rows=torch.cat([lattice.vertex_rows, own + old_rows]),
        vertex_starts=torch.cat([lattice.vertex_starts, (steps + old_rows + 1).clamp(max=rows)]),
        neighbors=torch.nn.functional.pad(
            lattice.neighbors.masked_fill(none, vertices), (0, more_vertices), value=vertices
        ),
    )


define(
    "permutohedral_lattice(Tensor features, float refine=1.0, int dilation=0) -> (Tensor slots,"
    " Tensor barycentric, Tensor tile_starts, Tensor tile_vertices, Tensor vertex_rows,"
    " Tensor vertex_starts, Tensor neighbors, Tensor vertex_count)",
    reference=reference.permutohedral_lattice,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
_lattice = torch.ops.fastseg.permutohedral_lattice.default
