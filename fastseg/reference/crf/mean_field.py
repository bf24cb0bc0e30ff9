"""The exact mean field of a dense CRF, in float64, by the definition.

Every pair of pixels is looked at: O(N^2) time, O(N) memory without gradients. Differentiable by
autograd, which then keeps all pairs: for small images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.mean_field_terms import Gaussian, PositionGaussian, Term, terms_of

PAIRS_AT_ONCE = 1 << 22
"""The number of pairs of pixels whose weights are in memory at once."""


def gaussian_sums(values: Tensor, features: Tensor) -> Tensor:
    """The sums ``sum_j exp(-|f_i - f_j|^2 / 2) v_j`` over all points j.

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
        weights = torch.exp(-0.5 * distance)  # (B, rows, N)
        sums.append(values @ weights.mT)
    return torch.cat(sums, dim=2)


def gaussian_features(gaussian: Gaussian, spatial: Sequence[int]) -> Tensor:
    """The features (B or 1, d, N) of a Gaussian in float64.

    Args:
        gaussian: of positions or of features.
        spatial: (H, W) or (D, H, W).
    """
    if not isinstance(gaussian, PositionGaussian):
        return gaussian.features.double().flatten(2)
    sigma = gaussian.sigma.double()
    axes = [torch.arange(n, dtype=sigma.dtype, device=sigma.device) for n in spatial]
    positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
    return (positions / sigma[:, None])[None]


def normalizers(total: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """The factors n of each point before and after a filter K, of ``total`` = K 1."""
    before = after = torch.ones_like(total)
    if normalization == "symmetric":
        before = after = 1 / torch.sqrt(total + 1e-20)
    elif normalization == "before":
        before = 1 / (total + 1e-20)
    elif normalization == "after":
        after = 1 / (total + 1e-20)
    return before, after


def cost(filtered: Tensor, mu: Tensor) -> Tensor:
    """The cost mu F of every label of every pixel, F = n K (n Q) being (B, L, N)."""
    if mu.dim() == 0:  # Potts: equal labels gain mu
        return -mu * filtered
    return mu[:, None] * filtered if mu.dim() == 1 else mu @ filtered


def message(q: Tensor, term: Term, spatial: Sequence[int]) -> Tensor:
    """The cost mu (n K (n Q)) that one pairwise term adds to every label, (B, L, N)."""
    features = gaussian_features(term.gaussian, spatial)
    total = gaussian_sums(torch.ones_like(features[:, :1]), features)  # K 1, (B or 1, 1, N)
    before, after = normalizers(total, term.normalization)
    return cost(after * gaussian_sums(before * q, features), term.compatibility.double())


def mean_field(
    unary: Tensor,
    kernels: Sequence[Tensor],
    compatibility: Sequence[Tensor],
    normalization: Sequence[int],
    iterations: int,
    log: bool = False,
) -> Tensor:
    """The updates ``Q <- softmax(-U - sum_m mu_m (n_m K_m (n_m Q)))``, from ``Q = softmax(-U)``.

    Krähenbühl and Koltun, 2011, algorithm 1, with their normalisation of 2013. The sums include
    j = i, as everybody's implementation does.

    Args:
        unary: (B, L, *spatial) energies, the negative logarithms of probabilities.
        kernels: of each term the Gaussian: bandwidths (len(spatial),) or features
            (B or 1, d, *spatial).
        compatibility: of each term, (), (L,) or (L, L).
        normalization: of each term, the position in NORMALIZATIONS.
        iterations: the number of updates.
        log: whether to return log Q instead.

    Returns:
        Q in float64, of unary's shape.
    """
    spatial = unary.shape[2:]
    energy = unary.double().flatten(2)
    terms = terms_of(kernels, compatibility, normalization)
    logits = -energy
    for _ in range(iterations):
        q = torch.softmax(logits, 1)
        logits = -energy
        for term in terms:
            logits = logits - message(q, term, spatial)
    normalised = torch.log_softmax if log else torch.softmax
    return normalised(logits, 1).reshape(unary.shape)


def kl_divergence(
    q: Tensor,
    unary: Tensor,
    kernels: Sequence[Tensor],
    compatibility: Sequence[Tensor],
    normalization: Sequence[int],
) -> Tensor:
    """The sums Q log Q + U Q + sum_m <Q, mu_m F_m> of each image, (B,).

    pydensecrf's function is this: the divergence of Q up to a constant, but for the pairwise part,
    which has no factor 1/2.
    """
    q, energy = q.double().flatten(2), unary.double().flatten(2)
    total = q * q.clamp(min=1e-20).log() + energy * q
    for term in terms_of(kernels, compatibility, normalization):
        total = total + q * message(q, term, unary.shape[2:])
    return total.sum((1, 2))
