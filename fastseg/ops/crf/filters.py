"""The Gaussian filters K of a mean field: product, adjoint product, gradient of the Gaussian.

Each class filters all images of a batch with one Gaussian, and is applied to values
(B, C, *spatial). Features of batch 1 serve every image: the batch becomes part of C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.lattice_quality import LATTICE_QUALITY, QUALITIES, LatticeQuality
from fastseg._core.mean_field_terms import Gaussian, PositionGaussian
from fastseg._core.pairwise import position_features
from fastseg._core.permutohedral import PermutohedralTensors, barycentric_backward

ops = torch.ops.fastseg

SUM_LENGTH = 2048
"""The number of elements that fixed_order_sum adds up at once."""

EXACT_CUTOFF = {torch.float32: 3e-5, torch.float64: 1e-14}
"""The weights below which pairs of pixels may be left out: about the rounding errors of the
dtype's sums."""


class SpatialFilter:
    """The filter by a Gaussian of positions as an exact separable convolution; its own adjoint."""

    def __init__(self, sigma: Tensor):
        self.sigma = sigma
        self.batch = 1
        self.grad = 0

    def apply(self, values: Tensor) -> Tensor:
        """The product K values."""
        return ops.spatial_gaussian_filter(values, self.sigma)

    adjoint = apply

    def backward(self, grad: Tensor, values: Tensor) -> Tensor:
        """The adjoint product; the gradient of the bandwidths is added up."""
        slopes = [
            fixed_order_sum(grad * ops.spatial_gaussian_filter(values, self.sigma, axis))
            for axis in range(len(self.sigma))
        ]
        self.grad = self.grad + torch.stack(slopes)
        return self.adjoint(grad)

    def gaussian_gradient(self) -> Tensor:
        """The gradient of the bandwidths, which the calls of backward have added up."""
        return self.grad


class _PointFilter:
    """What the filters of features share: values as the points (B or 1, C, N) that ops take."""

    batch: int
    points: int

    def _points(self, values: Tensor) -> Tensor:
        channels = values.shape[0] * values.shape[1] // max(self.batch, 1)
        return values.reshape(self.batch, channels, self.points)


class ExactFilter(_PointFilter):
    """The filter by a Gaussian of features, every pair of points; its own adjoint.

    Points are sorted into blocks once, for all products.
    """

    def __init__(self, features: Tensor):
        self.shape = features.shape
        self.features = features.flatten(2)
        self.batch, _, self.points = self.features.shape
        self.cutoff = EXACT_CUTOFF[features.dtype]
        # Gradients go through the features themselves: the blocks are constants.
        self.blocks = ops.exact_gaussian_blocks(self.features.detach(), self.cutoff)
        self.grad = 0

    def apply(self, values: Tensor) -> Tensor:
        """The product K values."""
        points = self._points(values)
        out = ops.exact_gaussian_filter(points, self.features, self.cutoff, self.blocks)
        return out.view(values.shape)

    adjoint = apply

    def backward(self, grad: Tensor, values: Tensor) -> Tensor:
        """The adjoint product; the gradient of the features is added up."""
        grad_values, grad_features = ops.exact_gaussian_filter_backward(
            self._points(grad), self._points(values), self.features, self.cutoff, self.blocks
        )
        self.grad = self.grad + grad_features
        return grad_values.view(values.shape)

    def gaussian_gradient(self) -> Tensor:
        """The gradient of the features, which the calls of backward have added up."""
        return self.grad.view(self.shape)


class LatticeFilter(_PointFilter):
    """The filter by a Gaussian of features on the permutohedral lattice.

    Args:
        features: (B or 1, d, *spatial).
        lattice_quality: the lattice's numbers.
    """

    def __init__(self, features: Tensor, lattice_quality: LatticeQuality):
        self.features, self.refine = features, lattice_quality.refine
        self.batch, d = features.shape[:2]
        lattice = PermutohedralTensors(
            *ops.permutohedral_lattice(
                features.flatten(2), lattice_quality.refine, lattice_quality.dilation
            )
        )
        self.points = lattice.slots.shape[1]
        self.lattice = lattice[:7]
        self.passes, self.symmetric = lattice_quality.passes, lattice_quality.symmetric
        self.gain, self.side = lattice_quality.gain(d), lattice_quality.side
        self.grad = 0

    def apply(self, values: Tensor) -> Tensor:
        """The product K values."""
        return self._filter(values, reverse=False)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The adjoint product: the axes are blurred in reverse order."""
        return self._filter(grad, reverse=not self.symmetric)

    def backward(self, grad: Tensor, values: Tensor) -> Tensor:
        """The adjoint product; the gradient of the barycentric weights is added up."""
        grad_values, grad_barycentric = ops.permutohedral_filter_backward(
            self._points(grad), self._points(values), *self._options(reverse=False)
        )
        self.grad = self.grad + grad_barycentric
        return grad_values.view(values.shape)

    def gaussian_gradient(self) -> Tensor:
        """The gradient of the features, of what the calls of backward have added up."""
        out = barycentric_backward(self.features.flatten(2), self.refine, self.grad)
        return out.view(self.features.shape)

    def _filter(self, values: Tensor, reverse: bool) -> Tensor:
        out = ops.permutohedral_filter(self._points(values), *self._options(reverse))
        return out.view(values.shape)

    def _options(self, reverse: bool) -> tuple:
        return *self.lattice, self.passes, self.symmetric, reverse, self.gain, self.side


class SpatialLatticeFilter(LatticeFilter):
    """The filter by a Gaussian of positions on the lattice, as pydensecrf computes it."""

    def __init__(self, sigma: Tensor, spatial: Sequence[int], lattice_quality: LatticeQuality):
        self.sigma = sigma
        super().__init__(position_features(sigma, spatial), lattice_quality)

    def gaussian_gradient(self) -> Tensor:
        """The gradient of the bandwidths: a feature is p / sigma, its slope -feature / sigma."""
        product = super().gaussian_gradient() * self.features
        per_axis = fixed_order_sum(product, keep=1)
        if self.features.dim() == 4:  # features are x, y; bandwidths (H, W)
            per_axis = per_axis.flip(0)
        return -per_axis / self.sigma


Filter = SpatialFilter | ExactFilter | LatticeFilter


def make_filter(gaussian: Gaussian, spatial: Sequence[int], quality: int) -> Filter:
    """The filter by a Gaussian, as a quality's code has it.

    Args:
        gaussian: of positions or of features (B or 1, d, *spatial).
        spatial: (H, W) or (D, H, W).
        quality: the position in QUALITIES.
    """
    name = QUALITIES[quality]
    if isinstance(gaussian, PositionGaussian):
        if name == "compat":
            return SpatialLatticeFilter(gaussian.sigma, spatial, LATTICE_QUALITY[name])
        return SpatialFilter(gaussian.sigma)
    if name == "exact":
        return ExactFilter(gaussian.features)
    return LatticeFilter(gaussian.features, LATTICE_QUALITY[name])


def fixed_order_sum(t: Tensor, keep: int | None = None) -> Tensor:
    """The sum over all dimensions, or all but one, in an order that no number of threads changes.

    torch splits a sum of everything among its threads; rows it does not split.
    """
    rows = t.flatten() if keep is None else t.movedim(keep, 0).flatten(1)
    whole = rows.shape[-1] // SUM_LENGTH * SUM_LENGTH
    parts = rows[..., :whole].unflatten(-1, (-1, SUM_LENGTH)).sum(-1)
    return parts.sum(-1) + rows[..., whole:].sum(-1)
