"""The Gaussian kernels K of a mean field: product, adjoint product, gradient of the parameter.

Each class holds one kernel of all images of a batch and is applied to values (B, C, *spatial). Its
parameter is what the op mean_field takes: bandwidths (axes,) of a kernel of positions, or features
(B or 1, d, *spatial). Features of batch 1 serve every image: the batch becomes part of C.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.lattice_quality import LATTICE_QUALITY, LatticeQuality
from fastseg._core.pairwise import position_features
from fastseg._core.permutohedral import barycentric_backward

ops = torch.ops.fastseg

QUALITIES = ("compat", "high", "exact")
"""The names; an op takes the position in this tuple."""

SUM_LENGTH = 2048

EXACT_CUTOFF = {torch.float32: 3e-5, torch.float64: 1e-14}
"""Pairs of pixels below it may be left out: about the rounding errors of the dtype's sums."""


class SpatialKernel:
    """A Gaussian of positions as an exact separable convolution; its own adjoint."""

    def __init__(self, sigma: Tensor):
        self.sigma = sigma
        self.batch = 1
        self.grad = 0

    def apply(self, values: Tensor) -> Tensor:
        """K values."""
        return ops.spatial_gaussian_filter(values, self.sigma)

    adjoint = apply

    def backward(self, grad: Tensor, values: Tensor) -> Tensor:
        """The adjoint product; adds to the gradient of the parameter."""
        slopes = [
            fixed_order_sum(grad * ops.spatial_gaussian_filter(values, self.sigma, axis))
            for axis in range(len(self.sigma))
        ]
        self.grad = self.grad + torch.stack(slopes)
        return self.adjoint(grad)

    def parameter_gradient(self) -> Tensor:
        """What the calls of backward added up to, in the parameter's shape."""
        return self.grad


class ExactKernel:
    """A Gaussian of features, every pair of points; its own adjoint."""

    def __init__(self, features: Tensor):
        self.shape = features.shape
        self.features = features.flatten(2)
        self.batch = features.shape[0]
        self.cutoff = EXACT_CUTOFF[features.dtype]
        self.grad = 0

    def apply(self, values: Tensor) -> Tensor:
        """K values."""
        out = ops.exact_gaussian_filter(self._points(values), self.features, self.cutoff)
        return out.view(values.shape)

    adjoint = apply

    def backward(self, grad: Tensor, values: Tensor) -> Tensor:
        """The adjoint product; adds to the gradient of the parameter."""
        grad_values, grad_features = ops.exact_gaussian_filter_backward(
            self._points(grad), self._points(values), self.features, self.cutoff
        )
        self.grad = self.grad + grad_features
        return grad_values.view(values.shape)

    def parameter_gradient(self) -> Tensor:
        """What the calls of backward added up to, in the parameter's shape."""
        return self.grad.view(self.shape)

    def _points(self, values: Tensor) -> Tensor:
        channels = values.shape[0] * values.shape[1] // max(self.batch, 1)
        return values.reshape(self.batch, channels, self.features.shape[2])


class LatticeKernel:
    """A Gaussian of features on the permutohedral lattice.

    Args:
        features: (B or 1, d, *spatial).
        quality: the lattice's parameters.
    """

    def __init__(self, features: Tensor, quality: LatticeQuality):
        self.features, self.quality = features, quality
        self.batch, d = features.shape[:2]
        self.lattice = ops.permutohedral_lattice(
            features.flatten(2), quality.refine, quality.dilation
        )
        self.filter_options = (quality.passes, quality.symmetric)
        self.gain = quality.gain(d)
        self.grad = 0

    def apply(self, values: Tensor) -> Tensor:
        """K values."""
        return self._filter(values, reverse=False)

    def adjoint(self, grad: Tensor) -> Tensor:
        """The adjoint of K: the axes are blurred in reverse order."""
        return self._filter(grad, reverse=not self.quality.symmetric)

    def backward(self, grad: Tensor, values: Tensor) -> Tensor:
        """The adjoint product; adds to the gradient of the barycentric weights."""
        grad_values, grad_barycentric = ops.permutohedral_filter_backward(
            self._points(grad),
            self._points(values),
            *self.lattice[:7],
            *self.filter_options,
            False,
            self.gain,
            self.quality.side,
        )
        self.grad = self.grad + grad_barycentric
        return grad_values.view(values.shape)

    def parameter_gradient(self) -> Tensor:
        """What the calls of backward added up to, in the parameter's shape."""
        features = self.features.flatten(2)
        out = barycentric_backward(features, self.quality.refine, self.grad)
        return out.view(self.features.shape)

    def _filter(self, values: Tensor, reverse: bool) -> Tensor:
        points = self._points(values)
        out = ops.permutohedral_filter(
            points,
            *self.lattice[:7],
            *self.filter_options,
            reverse,
            self.gain,
            self.quality.side,
        )
        return out.view(values.shape)

    def _points(self, values: Tensor) -> Tensor:
        channels = values.shape[0] * values.shape[1] // max(self.batch, 1)
        return values.reshape(self.batch, channels, self.lattice[0].shape[1])


class SpatialLatticeKernel(LatticeKernel):
    """A Gaussian of positions on the lattice, as pydensecrf computes it."""

    def __init__(self, sigma: Tensor, spatial: Sequence[int], quality: LatticeQuality):
        self.sigma = sigma
        super().__init__(position_features(sigma, spatial), quality)

    def parameter_gradient(self) -> Tensor:
        """A feature is p / sigma: its derivative is -feature / sigma."""
        product = super().parameter_gradient() * self.features
        per_axis = fixed_order_sum(product, keep=1)
        if self.features.dim() == 4:  # features are x, y; bandwidths (H, W)
            per_axis = per_axis.flip(0)
        return -per_axis / self.sigma


def fixed_order_sum(t: Tensor, keep: int | None = None) -> Tensor:
    """The sum over all dimensions, or all but one, in an order that no number of threads changes.

    torch splits a sum of everything among its threads; rows it does not split.
    """
    rows = t.flatten() if keep is None else t.movedim(keep, 0).flatten(1)
    whole = rows.shape[-1] // SUM_LENGTH * SUM_LENGTH
    parts = rows[..., :whole].unflatten(-1, (-1, SUM_LENGTH)).sum(-1)
    return parts.sum(-1) + rows[..., whole:].sum(-1)


Kernel = SpatialKernel | ExactKernel | LatticeKernel


def make_kernel(parameter: Tensor, spatial: Sequence[int], quality: int) -> Kernel:
    """The kernel of an op's tensor for a quality's code.

    Args:
        parameter: bandwidths (axes,) or features (B or 1, d, *spatial).
        spatial: (H, W) or (D, H, W).
        quality: the position in QUALITIES.
    """
    name = QUALITIES[quality]
    if parameter.dim() == 1:
        if name == "compat":
            return SpatialLatticeKernel(parameter, spatial, LATTICE_QUALITY[name])
        return SpatialKernel(parameter)
    if name == "exact":
        return ExactKernel(parameter)
    return LatticeKernel(parameter, LATTICE_QUALITY[name])
