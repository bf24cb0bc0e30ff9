"""The terms of a mean field as its ops take them: lists of tensors, and what each tensor means.

A schema has no word for a term: the ops mean_field and lattice_mean_field take its parts in three
lists, ``kernels``, ``compatibility`` and ``normalization``. Here alone the tensors of ``kernels``
are told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from fastseg._core.pairwise import NORMALIZATIONS


class PositionGaussian(NamedTuple):
    """A Gaussian of positions p: ``exp(-1/2 sum_a ((p_i - p_j)_a / sigma_a)^2)``."""

    sigma: Tensor
    """Bandwidths in pixels, (axes,), in the order of the spatial axes."""

    @property
    def tensor(self) -> Tensor:
        """The tensor that the ops take for this Gaussian."""
        return self.sigma


class FeatureGaussian(NamedTuple):
    """A Gaussian of any features f: ``exp(-|f_i - f_j|^2 / 2)``."""

    features: Tensor
    """Features in units of their bandwidths, (B, d, *spatial), or (1, d, *spatial) for all
    images."""

    @property
    def tensor(self) -> Tensor:
        """The tensor that the ops take for this Gaussian."""
        return self.features


Gaussian = PositionGaussian | FeatureGaussian


class Term(NamedTuple):
    """One term of the energy: what it adds to the logits is ``-mu (n K (n Q))``."""

    gaussian: Gaussian
    """The weights K between points."""
    compatibility: Tensor
    """The factors mu: () for Potts, whose mu is minus that on equal labels; (L,); or (L, L)."""
    normalization: str
    """The factors n, one of NORMALIZATIONS."""


def gaussian_of(kernel: Tensor, mapped: bool = False) -> Gaussian:
    """The Gaussian that an element of an op's ``kernels`` stands for.

    Args:
        kernel: bandwidths (axes,) or features (B or 1, d, *spatial).
        mapped: whether the tensor has a dimension of vmap's beside these.
    """
    if kernel.dim() - mapped == 1:
        return PositionGaussian(kernel)
    return FeatureGaussian(kernel)


def terms_of(
    kernels: Sequence[Tensor], compatibility: Sequence[Tensor], normalization: Sequence[int]
) -> list[Term]:
    """The terms that an op's three lists stand for.

    Args:
        kernels: for each term, bandwidths (axes,) or features (B or 1, d, *spatial).
        compatibility: for each term, (), (L,) or (L, L).
        normalization: for each term, the position in NORMALIZATIONS.
    """
    return [
        Term(gaussian_of(kernel), mu, NORMALIZATIONS[n])
        for kernel, mu, n in zip(kernels, compatibility, normalization, strict=True)
    ]


def lists_of(terms: Sequence[Term]) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """The three lists of an op's arguments: kernels, compatibility and normalization."""
    return (
        [term.gaussian.tensor for term in terms],
        [term.compatibility for term in terms],
        [NORMALIZATIONS.index(term.normalization) for term in terms],
    )
