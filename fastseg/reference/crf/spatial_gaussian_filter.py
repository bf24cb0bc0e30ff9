"""The exact Gaussian filter of the pixel grid."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spatial_gaussian_filter(values: Tensor, sigma: Tensor, derivative: int = -1) -> Tensor:
    """The op :func:`fastseg.ops.spatial_gaussian_filter`."""
    check_sigma("fastseg::spatial_gaussian_filter", sigma)
    out = values
    for axis, bandwidth in enumerate(sigma.tolist()):
        taps = gaussian_taps(bandwidth, values.shape[2 + axis], values, axis == derivative)
        out = _convolve(out, taps, 2 + axis)
    return out.clone() if out is values else out


def check_sigma(op: str, sigma: Tensor) -> None:
    """Raises RuntimeError for bandwidths that are not positive and finite."""
    if not bool(((sigma > 0) & (sigma < math.inf)).all()):
        raise RuntimeError(f"{op}: sigma must be positive and finite, got {sigma.tolist()}")


def gaussian_taps(sigma: float, size: int, like: Tensor, derivative: bool = False) -> Tensor:
    """One side of the taps exp(-k^2 / (2 sigma^2)), the centre first, in like's dtype.

    Taps below eight epsilons of the dtype are left out, whose sum is below one.

    Args:
        sigma: the bandwidth in pixels.
        size: the axis' size, which ends the taps too.
        like: a tensor of the taps' dtype and device.
        derivative: whether they are differentiated by sigma: times k^2 / sigma^3.
    """
    smallest = 8 * torch.finfo(like.dtype).eps / (64 if derivative else 1)
    radius = int(min(sigma * math.sqrt(-2 * math.log(smallest)), max(size, 1) - 1))
    z = torch.arange(radius + 1, dtype=torch.float64, device="cpu") / sigma
    taps = torch.exp(-0.5 * z * z) * (z * z / sigma if derivative else 1)
    return taps.to(like)


def _convolve(x: Tensor, taps: Tensor, dim: int) -> Tensor:
    """The sums over both sides of each element along dim, with zeros outside."""
    size = x.shape[dim]
    out = taps[0] * x
    for k in range(1, len(taps)):
        inner = size - k
        out.narrow(dim, k, inner).add_(taps[k] * x.narrow(dim, 0, inner))
        out.narrow(dim, 0, inner).add_(taps[k] * x.narrow(dim, k, inner))
    return out
