"""Mean fields under torch.vmap: the images of all slices become one batch."""

from __future__ import annotations

from torch import Tensor

from fastseg._core.mean_field_terms import FeatureGaussian, Gaussian, PositionGaussian, gaussian_of
from fastseg._core.vmap import by_slices, in_front


def by_images(op, info, in_dims, unary: Tensor, kernels, compatibility, *others):
    """The rule of ops that take a unary (B, L, *spatial), kernels and compatibilities.

    An op has one set of bandwidths and of compatibilities: where slices have their own, each is a
    call.
    """
    of_unary, of_kernels, of_compatibility = in_dims[:3]
    gaussians = [gaussian_of(k, d is not None) for k, d in zip(kernels, of_kernels, strict=True)]
    own_bandwidths = any(
        isinstance(gaussian, PositionGaussian) and d is not None
        for gaussian, d in zip(gaussians, of_kernels, strict=True)
    )
    if own_bandwidths or any(d is not None for d in of_compatibility):
        return by_slices(op, info, in_dims, unary, kernels, compatibility, *others)
    unary = in_front(info.batch_size, of_unary, unary)
    slices, batch = unary.shape[:2]
    kernels = [
        _of_images(gaussian, d, slices, batch).tensor
        for gaussian, d in zip(gaussians, of_kernels, strict=True)
    ]
    out = op(unary.flatten(0, 1), kernels, compatibility, *others)
    return out.unflatten(0, (slices, batch)), 0


def _of_images(gaussian: Gaussian, dim: int | None, slices: int, batch: int) -> Gaussian:
    """The Gaussian of every image of every slice; one that serves all of them stays as it is."""
    if isinstance(gaussian, PositionGaussian) or (dim is None and gaussian.features.shape[0] == 1):
        return gaussian
    front = in_front(slices, dim, gaussian.features)
    return FeatureGaussian(front.expand(slices, batch, *front.shape[2:]).flatten(0, 1))
