"""The arguments of fastseg.dense_crf and fastseg.MeanField, checked, as those of the op."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from numbers import Integral, Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.devices import is_captured
from fastseg._core.lattice_quality import QUALITIES
from fastseg._core.mean_field_terms import FeatureGaussian, Gaussian, PositionGaussian, Term
from fastseg._core.pairwise import (
    Pairwise,
    PairwiseBilateral,
    PairwiseFeatures,
    PairwiseGaussian,
    bilateral_features,
    gaussian_bandwidths,
)
from fastseg._core.readable import readable
from fastseg.ops.crf.checks import check_compatibility, check_gaussian
from fastseg.ops.crf.pictures import image_tensor, warn_of_units

OUTPUTS = ("prob", "log_prob")
"""The names of what a mean field returns: Q, and log Q."""


class UnaryForm(NamedTuple):
    """What a caller's unary looked like before it became the op's."""

    dtype: torch.dtype
    """The dtype, which the op's may be wider than."""
    batched: bool
    """Whether there was a dimension of images."""

    def restore(self, q: Tensor) -> Tensor:
        """Q of the op with the dtype and the dimensions of the caller's unary."""
        q = q.to(self.dtype)
        return q if self.batched else q[0]


class Problem(NamedTuple):
    """A mean field's energies and terms, checked."""

    unary: Tensor
    """Energies (B, L, *spatial), float32 or float64."""
    terms: list[Term]
    """The terms, in unary's dtype and on its device."""
    quality: int
    """The quality's position in QUALITIES."""
    form: UnaryForm
    """The form of the caller's unary."""


def make_problem(
    name: str,
    unary: Tensor,
    image: Tensor | None,
    pairwise: Sequence[Pairwise] | None,
    quality: str,
    align_corners: bool | None = None,
) -> Problem:
    """The problem that a public function's arguments state.

    Args:
        name: the public function, with which errors begin.
        unary: the argument of that name of :func:`fastseg.dense_crf`.
        image: the argument of that name.
        pairwise: the argument of that name.
        quality: the argument of that name.
        align_corners: the argument of that name.

    Raises:
        TypeError: arguments of wrong types.
        ValueError: wrong shapes, dtypes or devices; a bilateral term without an image; an unknown
            quality.
    """
    _check_unary(name, unary)
    batched = unary.dim() > 3
    size = unary.shape[2 if batched else 1 :]
    if align_corners is not None:
        align_corners = bool(align_corners)
        if image is None:
            raise ValueError(f"{name}: align_corners needs an image, which has the size, got None")
    if image is not None:
        image = image_tensor(name, image, unary, resized=align_corners is not None)
        if align_corners is not None:
            size = _size_of_image(name, image, unary)
        _check_image(name, image, unary, size)
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
    if image is not None:
        warn_of_units(name, image, pairwise)
    if energies.shape[2:] != size:
        energies = _upsampled(energies, size, align_corners)
    terms = [
        _term(f"{name}: pairwise[{i}]", term, energies, image) for i, term in enumerate(pairwise)
    ]
    return Problem(energies, terms, QUALITIES.index(quality), UnaryForm(dtype, batched))


def _upsampled(energies: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Energies of that size. A label that is forbidden at a pixel is so wherever it has a share.

    The plain weighted sum would be NaN beside such a pixel, where its share is 0 (0 * infinity).
    """
    mode = "bilinear" if len(size) == 2 else "trilinear"
    resize = partial(F.interpolate, size=size, mode=mode, align_corners=align_corners)
    values = readable(energies)
    if values is not None and not bool((values == torch.inf).any()):
        return resize(energies)
    forbidden = energies == torch.inf
    share = resize(forbidden.to(energies.dtype))
    return resize(energies.masked_fill(forbidden, 0)).masked_fill_(share > 0, torch.inf)


def check_count(what: str, value: int) -> int:
    """Value as an int: an integer, of numpy too, that is not negative."""
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


def check_output(name: str, output: str, log: bool) -> bool:
    """Whether log Q is asked for: by `output`, or by `log`, the shorter word for "log_prob"."""
    if output not in OUTPUTS:
        raise ValueError(f"{name}: output must be one of {', '.join(OUTPUTS)}, got {output!r}")
    return bool(log) or output == "log_prob"


def _size_of_image(name: str, image: Tensor, unary: Tensor) -> torch.Size:
    """The image's size, to which a unary of no more pixels along each axis is brought."""
    axes = 2 if unary.dim() < 5 else 3
    size, small = image.shape[-axes:], unary.shape[-axes:]
    if image.dim() == unary.dim() and any(n < m for n, m in zip(size, small, strict=True)):
        raise ValueError(
            f"{name}: image must not be smaller than the unary, which is upsampled, got shape "
            f"{tuple(image.shape)} for a unary of shape {tuple(unary.shape)}"
        )
    return size


def _check_image(name: str, image: Tensor, unary: Tensor, size: Sequence[int]) -> None:
    shape, axes = tuple(image.shape), 2 if unary.dim() < 5 else 3
    expected = tuple(size)
    lead = "C" if unary.dim() == 3 else f"{unary.shape[0]} or 1, C"
    if (
        image.dim() != unary.dim()
        or shape[-axes:] != expected
        or (unary.dim() > 3 and shape[0] != 1 and shape[0] != unary.shape[0])  # not in a tuple
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


def _term(where: str, term: Pairwise, unary: Tensor, image: Tensor | None) -> Term:
    """A term as the op has it, in unary's dtype and on its device."""
    gaussian = _gaussian(where, term, unary, image)
    check_gaussian(f"{where}.features", gaussian, unary, ValueError)
    mu = _compatibility(term, unary)
    check_compatibility(f"{where}.compatibility", mu, unary, ValueError)
    return Term(gaussian, mu, term.normalization)


def _gaussian(where: str, term: Pairwise, unary: Tensor, image: Tensor | None) -> Gaussian:
    """A term's Gaussian in unary's dtype."""
    if isinstance(term, PairwiseGaussian):
        return PositionGaussian(gaussian_bandwidths(where, term.sxy, unary.dim() - 2, unary))
    if isinstance(term, PairwiseBilateral):
        if image is None:
            raise ValueError(f"{where}: a PairwiseBilateral needs an image, got None")
        return FeatureGaussian(bilateral_features(where, image, term.sxy, term.srgb, unary.dtype))
    if not isinstance(term, PairwiseFeatures):
        raise TypeError(
            f"{where} must be a PairwiseGaussian, PairwiseBilateral or PairwiseFeatures, "
            f"got {type(term).__name__}"
        )
    features = term.features
    if unary.shape[0] == 1 and features.dim() == unary.dim() - 1:
        features = features[None]
    if features.dtype.is_complex:
        raise ValueError(f"{where}.features must be real, got {features.dtype}")
    return FeatureGaussian(features.to(unary.dtype))


def _compatibility(term: Pairwise, unary: Tensor) -> Tensor:
    """A term's compatibility in unary's dtype, and on its device unless it is a tensor."""
    mu = term.compatibility
    if isinstance(mu, Tensor):
        return mu.to(unary.dtype)
    if isinstance(mu, Real):
        return unary.new_full((), mu)  # filled on the device: nothing to wait for
    values = torch.tensor(mu, dtype=unary.dtype, device="cpu")
    return _filled(values, unary) if is_captured(unary) else values.to(unary.device)


def _filled(values: Tensor, like: Tensor) -> Tensor:
    """The values on like's device, number by number: a graph cannot copy them from the host."""
    out = like.new_empty(values.shape)
    for place, value in zip(out.view(-1).unbind(), values.view(-1).tolist(), strict=True):
        place.fill_(value)
    return out
