"""The Gaussian filter over points in feature space by summing over all pairs, and its gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

PAIRS_AT_ONCE = 1 << 22
"""The number of pairs of points whose weights are in memory at once."""


def exact_gaussian_blocks(features: Tensor, cutoff: float = 0.0) -> list[Tensor]:
    """The op ``exact_gaussian_blocks``: here no tensors, as all pairs are summed in any order."""
    check_features(features)
    return []


def exact_gaussian_filter(values: Tensor, features: Tensor, cutoff: float = 0.0) -> Tensor:
    """The op :func:`fastseg.ops.exact_gaussian_filter`, which here sums all pairs."""
    check_features(features)
    out = values.new_empty(values.shape)
    summed = values.to(features.dtype)
    for queries, weights in _weights(features):
        out[:, :, queries] = (summed @ weights.transpose(1, 2)).to(out.dtype)
    return out


def exact_gaussian_filter_backward(
    grad: Tensor, values: Tensor, features: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """The gradients of the values and of the features.

    The Gaussian is symmetric, so the gradient of the values is the filter of the gradient; with
    ``s_ij = g_i.v_j + v_i.g_j``, that of feature i is ``sum_j k_ij s_ij (f_j - f_i)``.

    Args:
        grad: the gradient g of the filter's output, (B, C, N).
        values: v, (B, C, N).
        features: f, (B, d, N).
        cutoff: the filter's cutoff, for which all pairs are summed all the same.
    """
    grad_features = features.new_empty(features.shape)
    g, v = grad.to(features.dtype), values.to(features.dtype)
    for queries, weights in _weights(features):
        s = g[:, :, queries].transpose(1, 2) @ v + v[:, :, queries].transpose(1, 2) @ g
        s = s.mul_(weights)
        for f, out in zip(features.unbind(1), grad_features.unbind(1), strict=True):
            difference = f[:, None, :] - f[:, queries, None]
            out[:, queries] = difference.mul_(s).sum(-1)
    return exact_gaussian_filter(grad, features, cutoff), grad_features


def check_features(features: Tensor) -> None:
    """Raises RuntimeError for NaN and infinity; not on a GPU, whose stream the look would stop."""
    if features.device.type == "cpu" and not torch.isfinite(features).all():
        raise RuntimeError(
            "fastseg::exact_gaussian_filter: features must be finite, got NaN or infinity"
        )


def _weights(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weights of some queries at a time, (B, queries, N).

    They are of differences: ``|f_i|^2 - 2 f_i.f_j + |f_j|^2`` would cancel.
    """
    batch, _, n = features.shape
    step = max(1, PAIRS_AT_ONCE // max(1, batch * n))
    for begin in range(0, n, step):
        queries = slice(begin, min(begin + step, n))
        square = features.new_zeros((batch, queries.stop - begin, n))
        for f in features.unbind(1):
            square += (f[:, queries, None] - f[:, None, :]).square_()
        yield queries, square.mul_(-0.5).exp_()
