"""The exact mean field of a dense CRF, in float64, by the definition.

Every pair of pixels is looked at: O(N^2) time, O(N) memory without gradients. Differentiable by
autograd, which then keeps all pairs: for small images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.pairwise import NORMALIZATIONS

PAIRS_AT_ONCE = 1 << 22


def gaussian_sums(values: Tensor, features: Tensor) -> Tensor:
    """sum_j exp(-|f_i - f_j|^2 / 2) v_j.

    Args:
        values: (B, C, N).
        features: (B, d, N) or (1, d, N).

    Returns:
        (B, C, N).
    """
    points = features.shape[2]
    rows = max(1, PAIRS_AT_ONCE // max(1, points * features.shape[0]))
    sums = []
    for some in features.split(rows, dim=2):
        distance = sum(
            (mine[:, :, None] - all_[:, None, :]).square()
            for mine, all_ in zip(some.unbind(1), features.unbind(1), strict=True)
        )
        kernel = torch.exp(-0.5 * distance)  # (B, rows, N)
        sums.append(values @ kernel.mT)
    return torch.cat(sums, dim=2)


def kernel_features(kernel: Tensor, spatial: Sequence[int]) -> Tensor:
    """The features (B or 1, d, N) of an op's kernel in float64.

    Args:
        kernel: bandwidths (len(spatial),) of a kernel of positions, or features (B, d, *spatial).
        spatial: (H, W) or (D, H, W).
    """
    kernel = kernel.double()
    if kernel.dim() > 1:
        return kernel.flatten(2)
    axes = [torch.arange(n, dtype=kernel.dtype, device=kernel.device) for n in spatial]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    return (positions / kernel[:, None])[None]


def normalizers(total: Tensor, normalization: int) -> tuple[Tensor, Tensor]:
    """The factors n of each point before and after a filter K, of ``total`` = K 1."""
    before = after = torch.ones_like(total)
    name = NORMALIZATIONS[normalization]
    if name == "symmetric":
        before = after = 1 / torch.sqrt(total + 1e-20)
    elif name == "before":
        before = 1 / (total + 1e-20)
    elif name == "after":
        after = 1 / (total + 1e-20)
    return before, after


def cost(filtered: Tensor, mu: Tensor) -> Tensor:
    """Mu F: what F = n K (n Q), (B, L, N), costs every label of every pixel."""
    if mu.dim() == 0:  # Potts: equal labels gain mu
        return -mu * filtered
    return mu[:, None] * filtered if mu.dim() == 1 else mu @ filtered


def message(q: Tensor, features: Tensor, compatibility: Tensor, normalization: int) -> Tensor:
    """Mu (n K (n Q)): what one pairwise term costs every label of every pixel, (B, L, N)."""
    total = gaussian_sums(torch.ones_like(features[:, :1]), features)  # K 1, (B or 1, 1, N)
    before, after = normalizers(total, normalization)
    return cost(after * gaussian_sums(before * q, features), compatibility.double())


def mean_field(
    unary: Tensor,
    kernels: Sequence[Tensor],
    compatibility: Sequence[Tensor],
    normalization: Sequence[int],
    iterations: int,
    log: bool = False,
) -> Tensor:
    """Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q))), from Q = softmax(-U).

    Krähenbühl and Koltun, 2011, algorithm 1, with their normalisation of 2013. The sums include
    j = i, as everybody's implementation does.

    Args:
        unary: (B, L, *spatial) energies, the negative logarithms of probabilities.
        kernels: of each term, bandwidths (len(spatial),) or features (B or 1, d, *spatial).
        compatibility: of each term, (), (L,) or (L, L).
        normalization: of each term, the position in NORMALIZATIONS.
        iterations: the number of updates.
        log: whether to return log Q instead.

    Returns:
        Q in float64, of unary's shape.
    """
    spatial = unary.shape[2:]
    energy = unary.double().flatten(2)
    features = [kernel_features(kernel, spatial) for kernel in kernels]
    logits = -energy
    for _ in range(iterations):
        q = torch.softmax(logits, 1)
        logits = -energy
        for f, mu, n in zip(features, compatibility, normalization, strict=True):
            logits = logits - message(q, f, mu, n)
    normalised = torch.log_softmax if log else torch.softmax
    return normalised(logits, 1).reshape(unary.shape)


def kl_divergence(
    q: Tensor,
    unary: Tensor,
    kernels: Sequence[Tensor],
    compatibility: Sequence[Tensor],
    normalization: Sequence[int],
) -> Tensor:
    """Sum Q log Q + sum U Q + sum_m <Q, mu_m F_m> of each image, (B,).

    pydensecrf's function: the divergence up to a constant, but for the pairwise part, which has no
    factor 1/2.
    """
    q, energy = q.double().flatten(2), unary.double().flatten(2)
    total = q * q.clamp(min=1e-20).log() + energy * q
    for kernel, mu, n in zip(kernels, compatibility, normalization, strict=True):
        total = total + q * message(q, kernel_features(kernel, unary.shape[2:]), mu, n)
    return total.sum((1, 2))
