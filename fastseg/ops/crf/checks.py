"""Checks of a mean field's terms: one form for the public functions and for the ops.

They look at shapes and devices alone, never at values. The public functions name a term's argument
as its user wrote it, and raise ValueError; the ops name the lists of their schema.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.mean_field_terms import Gaussian, PositionGaussian, terms_of
from fastseg._core.pairwise import NORMALIZATIONS


def check_terms(
    op: str,
    unary: Tensor,
    kernels: Sequence[Tensor],
    compatibility: Sequence[Tensor],
    normalization: Sequence[int],
) -> None:
    """Raises RuntimeError for an op's terms that fit neither each other nor its unary.

    Args:
        op: the op, with which the error begins.
        unary: (B, L, *spatial).
        kernels: for each term, bandwidths (axes,) or features (B or 1, d, *spatial).
        compatibility: for each term, (), (L,) or (L, L).
        normalization: for each term, the position in NORMALIZATIONS.
    """
    torch._check(
        len(kernels) == len(compatibility) == len(normalization),
        lambda: (
            f"{op}: kernels, compatibility and normalization must be of one length, got "
            f"{len(kernels)}, {len(compatibility)} and {len(normalization)}"
        ),
    )
    for n in normalization:
        torch._check(
            0 <= n < len(NORMALIZATIONS),
            lambda n=n: f"{op}: normalization must be from 0 to 3, got {n}",
        )
    for name, parameters in (("kernels", kernels), ("compatibility", compatibility)):
        for i, t in enumerate(parameters):
            torch._check(
                t.dtype == unary.dtype,
                lambda where=f"{op}: {name}[{i}]", t=t: (
                    f"{where} must have unary's dtype {unary.dtype}, got {t.dtype}"
                ),
            )
    bandwidths = f"bandwidths ({unary.dim() - 2},) or features "
    for i, term in enumerate(terms_of(kernels, compatibility, normalization)):
        check_gaussian(f"{op}: kernels[{i}]", term.gaussian, unary, or_else=bandwidths)
        check_compatibility(f"{op}: compatibility[{i}]", term.compatibility, unary)


def check_gaussian(
    where: str,
    gaussian: Gaussian,
    unary: Tensor,
    error: type[Exception] = RuntimeError,
    or_else: str = "",
) -> None:
    """Raises an error for a Gaussian of other axes, points, images or another device than unary's.

    Args:
        where: the function and the argument, with which the error begins.
        gaussian: the Gaussian.
        unary: (B, L, *spatial).
        error: the type of the error.
        or_else: words for what the argument may be instead of features of unary's shape.
    """
    batch, spatial = unary.shape[0], unary.shape[2:]
    if isinstance(gaussian, PositionGaussian):
        count = gaussian.sigma.shape[0]
        if count != len(spatial):
            raise error(f"{where} must hold {len(spatial)} bandwidths, got {count}")
    else:
        shape = gaussian.features.shape
        if (
            len(shape) != unary.dim()
            or (shape[0] != 1 and shape[0] != batch)  # a traced size is in no tuple
            or shape[1] == 0
            or shape[2:] != spatial
        ):
            raise error(
                f"{where} must be {or_else}({batch} or 1, d, {', '.join(map(str, spatial))}), got "
                f"shape {tuple(shape)}"
            )
    _check_device(where, gaussian.tensor, unary, error)


def check_compatibility(
    where: str, mu: Tensor, unary: Tensor, error: type[Exception] = RuntimeError
) -> None:
    """Raises an error for a compatibility of other labels or on another device than unary's.

    Args:
        where: the function and the argument, with which the error begins.
        mu: the compatibility.
        unary: (B, L, *spatial).
        error: the type of the error.
    """
    labels = unary.shape[1]
    if mu.dim() > 2 or any(n != labels for n in mu.shape):
        raise error(
            f"{where} must be a number, ({labels},) or ({labels}, {labels}) for {labels} labels, "
            f"got shape {tuple(mu.shape)}"
        )
    _check_device(where, mu, unary, error)


def _check_device(where: str, t: Tensor, unary: Tensor, error: type[Exception]) -> None:
    if t.device != unary.device:
        raise error(f"{where} must be on unary's device {unary.device}, got {t.device}")
