"""What fastseg.dense_crf and fastseg.MeanField are given, checked, as arguments of the op."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg._core.pairwise import (
    NORMALIZATIONS,
    Pairwise,
    PairwiseBilateral,
    PairwiseFeatures,
    PairwiseGaussian,
    bilateral_features,
    gaussian_bandwidths,
)
from fastseg.ops.crf.gaussians import QUALITIES


class Problem(NamedTuple):
    """Arguments of the op mean_field, and the way back."""

    arguments: tuple
    """unary (B, L, *spatial), kernels, compatibility, normalization, quality."""
    dtype: torch.dtype
    batched: bool

    def as_unary(self, q: Tensor) -> Tensor:
        """Q with the dtype and the dimensions of the caller's unary."""
        q = q.to(self.dtype)
        return q if self.batched else q[0]


def make_problem(
    name: str,
    unary: Tensor,
    image: Tensor | None,
    pairwise: Sequence[Pairwise] | None,
    quality: str,
) -> Problem:
    """Checks what the public functions are given, and turns it into the op's arguments."""
    _check_unary(name, unary)
    batched = unary.dim() > 3
    if image is not None:
        _check_image(name, image, unary)
        image = image if batched else image[None]
    if quality not in QUALITIES:
        raise ValueError(f"{name}: quality must be one of {', '.join(QUALITIES)}, got {quality!r}")
    if pairwise is None:
        pairwise = (
            (PairwiseGaussian(),) if image is None else (PairwiseGaussian(), PairwiseBilateral())
        )
    elif isinstance(pairwise, Pairwise):
        pairwise = (pairwise,)
    elif not isinstance(pairwise, Sequence):
        raise TypeError(f"{name}: pairwise must be a list of terms, got {type(pairwise).__name__}")
    dtype = unary.dtype
    energies = unary if batched else unary[None]
    energies = energies.to(torch.float64 if dtype == torch.float64 else torch.float32)
    terms = list(enumerate(pairwise))
    return Problem(
        (
            energies,
            [_kernel(f"{name}: pairwise[{i}]", t, energies, image) for i, t in terms],
            [_weights(f"{name}: pairwise[{i}]", t, energies) for i, t in terms],
            [NORMALIZATIONS.index(t.normalization) for t in pairwise],
            QUALITIES.index(quality),
        ),
        dtype,
        batched,
    )


def check_count(what: str, value: int) -> int:
    """An integer, of numpy too, that is not negative."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    if value < 0:
        raise ValueError(f"{what} must not be negative, got {value}")
    return int(value)


def _check_unary(name: str, unary: Tensor) -> None:
    if not isinstance(unary, Tensor):
        raise TypeError(f"{name}: unary must be a tensor, got {type(unary).__name__}")
    shape = tuple(unary.shape)
    if unary.dim() not in (3, 4, 5):
        raise ValueError(
            f"{name}: unary must be (B, L, H, W), (B, L, D, H, W) or (L, H, W), got shape {shape}"
        )
    if not unary.dtype.is_floating_point or unary.dtype.itemsize < 2:
        raise ValueError(
            f"{name}: unary must be float32, float64, float16 or bfloat16, got {unary.dtype}"
        )
    if 0 in shape[(unary.dim() > 3) :]:
        raise ValueError(f"{name}: unary must not be empty but for the batch, got shape {shape}")


def _check_image(name: str, image: Tensor, unary: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise TypeError(f"{name}: image must be a tensor or None, got {type(image).__name__}")
    shape, axes = tuple(image.shape), 2 if unary.dim() < 5 else 3
    expected = tuple(unary.shape[-axes:])
    lead = "C" if unary.dim() == 3 else f"{unary.shape[0]} or 1, C"
    if (
        image.dim() != unary.dim()
        or shape[-axes:] != expected
        or (unary.dim() > 3 and shape[0] not in (1, unary.shape[0]))
    ):
        raise ValueError(
            f"{name}: image must be ({lead}, {', '.join(map(str, expected))}) for a unary of shape "
            f"{tuple(unary.shape)}, got shape {shape}"
        )
    if shape[-axes - 1] == 0:
        raise ValueError(f"{name}: image must have a channel, got shape {shape}")
    if image.dtype == torch.bool or image.dtype.is_complex:
        raise ValueError(
            f"{name}: image must be of an integer or floating-point dtype, got {image.dtype}"
        )
    if image.device != unary.device:
        raise ValueError(
            f"{name}: image must be on unary's device {unary.device}, got {image.device}"
        )


def _kernel(where: str, term: Pairwise, unary: Tensor, image: Tensor | None) -> Tensor:
    """A term's bandwidths or features, in unary's dtype and on its device."""
    axes = unary.dim() - 2
    if isinstance(term, PairwiseGaussian):
        return gaussian_bandwidths(where, term.sxy, axes, unary)
    if isinstance(term, PairwiseBilateral):
        if image is None:
            raise ValueError(f"{where}: a PairwiseBilateral needs an image, got None")
        return bilateral_features(where, image, term.sxy, term.srgb, unary.dtype)
    if not isinstance(term, PairwiseFeatures):
        raise TypeError(
            f"{where} must be a PairwiseGaussian, PairwiseBilateral or PairwiseFeatures, "
            f"got {type(term).__name__}"
        )
    features = term.features
    if unary.shape[0] == 1 and features.dim() == unary.dim() - 1:
        features = features[None]
    spatial = unary.shape[2:]
    if (
        features.dim() != unary.dim()
        or features.shape[2:] != spatial
        or features.shape[0] not in (1, unary.shape[0])
        or features.shape[1] == 0
    ):
        raise ValueError(
            f"{where}.features must be ({unary.shape[0]} or 1, d, {', '.join(map(str, spatial))}), "
            f"got shape {tuple(term.features.shape)}"
        )
    if features.dtype.is_complex:
        raise ValueError(f"{where}.features must be real, got {features.dtype}")
    if features.device != unary.device:
        raise ValueError(
            f"{where}.features must be on unary's device {unary.device}, got {features.device}"
        )
    return features.to(unary.dtype)


def _weights(where: str, term: Pairwise, unary: Tensor) -> Tensor:
    """A term's compatibility, in unary's dtype and on its device."""
    mu, labels = term.compatibility, unary.shape[1]
    if isinstance(mu, Tensor):
        if mu.device != unary.device:
            raise ValueError(
                f"{where}.compatibility must be on unary's device {unary.device}, got {mu.device}"
            )
        mu = mu.to(unary.dtype)
    elif isinstance(mu, Real):
        mu = unary.new_full((), mu)  # filled on the device: nothing to wait for
    else:
        mu = torch.tensor(mu, dtype=unary.dtype, device=unary.device)
    if any(n != labels for n in mu.shape):
        raise ValueError(
            f"{where}.compatibility must be a number, ({labels},) or ({labels}, {labels}) for "
            f"{labels} labels, got shape {tuple(mu.shape)}"
        )
    return mu
