"""The pairwise terms of a dense CRF: a Gaussian, a label compatibility, a normalisation.

A term is data. :func:`fastseg.dense_crf`, :class:`fastseg.MeanField` and
:class:`fastseg.nn.DenseCRF` turn it into the tensors that the ops take: bandwidths for a Gaussian
of positions, features for every other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from fastseg._core.readable import readable

NORMALIZATIONS = ("none", "before", "after", "symmetric")
"""The names of the normalisations. An op takes a name's position, which is pydensecrf's number."""

Bandwidth = float | Sequence[float] | Tensor
Compatibility = float | Sequence[float] | Sequence[Sequence[float]] | Tensor


@dataclass(frozen=True)
class PairwiseGaussian:
    """The term of smoothness: a Gaussian of positions p, which removes small isolated regions.

    ``k(i, j) = exp(-|p_i - p_j|^2 / (2 sxy^2))``, equation 3 of Krähenbühl and Koltun, "Efficient
    Inference in Fully Connected CRFs with Gaussian Edge Potentials", 2011.

    Args:
        sxy: the standard deviation in pixels, positive: one number, or one for each spatial axis in
            the order of the unary's axes, (H, W) or (D, H, W). A tensor can be trained.
        compatibility: what two labels cost each other, of any sign. A number w: Potts, equal labels
            gain w. (L,): diagonal, label l costs ``mu[l]`` times its own sum. (L, L): label l costs
            ``mu[l, l']`` times the sum of l'; taken as given, not made symmetric. A tensor can be
            trained.
        normalization: what the sums over j are divided by. "symmetric": by sqrt(k_i k_j) with
            ``k_i = sum_j k(i, j)``; "before": by k_j; "after": by k_i; "none": by nothing.

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a bandwidth that is not positive and finite, a compatibility that is not finite
            or of more than two dimensions, an unknown normalisation.
    """

    sxy: Bandwidth = 3
    compatibility: Compatibility = 3
    normalization: str = "symmetric"

    def __post_init__(self):
        object.__setattr__(self, "sxy", _checked_bandwidth(self, "sxy", self.sxy))
        _check_weights(self)


@dataclass(frozen=True)
class PairwiseBilateral:
    """The term of appearance: a Gaussian of positions p and of the image's channels I.

    ``k(i, j) = exp(-|p_i - p_j|^2 / (2 sxy^2) - |I_i - I_j|^2 / (2 srgb^2))``, equation 3 of
    Krähenbühl and Koltun, 2011. Near pixels of similar colour should have one label.

    Args:
        sxy: the standard deviation in pixels, positive: one number, or one for each spatial axis.
            A tensor can be trained.
        srgb: the standard deviation in the image's own units (0..255 for 8-bit colour), positive:
            one number, or one for each channel. A tensor can be trained.
        compatibility: what two labels cost each other: a number w (Potts), (L,) or (L, L), with the
            signs of :class:`PairwiseGaussian`. A tensor can be trained.
        normalization: what the sums over j are divided by: "symmetric", "before", "after" or
            "none".

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: a bandwidth that is not positive and finite, a compatibility that is not finite
            or of more than two dimensions, an unknown normalisation.
    """

    sxy: Bandwidth = 80
    srgb: Bandwidth = 13
    compatibility: Compatibility = 10
    normalization: str = "symmetric"

    def __post_init__(self):
        object.__setattr__(self, "sxy", _checked_bandwidth(self, "sxy", self.sxy))
        object.__setattr__(self, "srgb", _checked_bandwidth(self, "srgb", self.srgb))
        _check_weights(self)


@dataclass(frozen=True)
class PairwiseFeatures:
    """A term of any features f, whose Gaussian is ``k(i, j) = exp(-|f_i - f_j|^2 / 2)``.

    Args:
        features: ``(B, d, *spatial)``, ``(1, d, *spatial)`` for all images, or (d, H, W) with an
            unbatched unary; d from 1 to 8, already divided by their bandwidths. Differentiable.
        compatibility: what two labels cost each other: a number w (Potts), (L,) or (L, L), with the
            signs of :class:`PairwiseGaussian`. A tensor can be trained.
        normalization: what the sums over j are divided by: "symmetric", "before", "after" or
            "none".

    Raises:
        TypeError: features that are not a tensor, or another argument of a wrong type.
        ValueError: a compatibility that is not finite or of more than two dimensions, an unknown
            normalisation.
    """

    features: Tensor
    compatibility: Compatibility
    normalization: str = "symmetric"

    def __post_init__(self):
        if not isinstance(self.features, Tensor):
            raise TypeError(
                "PairwiseFeatures: features must be a tensor (B, d, *spatial), "
                f"got {type(self.features).__name__}"
            )
        _check_weights(self)


Pairwise = PairwiseGaussian | PairwiseBilateral | PairwiseFeatures


def gaussian_bandwidths(where: str, sxy: Bandwidth, axes: int, like: Tensor) -> Tensor:
    """The bandwidths sxy as (axes,), in the dtype and on the device of `like`."""
    return _bandwidths(f"{where}.sxy", sxy, axes, "spatial axis", like)


def bilateral_features(
    where: str, image: Tensor, sxy: Bandwidth, srgb: Bandwidth, dtype: torch.dtype
) -> Tensor:
    """The features of :class:`PairwiseBilateral`, (B, axes + C, *spatial).

    Their order is pydensecrf's, on which a lattice depends: x, y or z, y, x; then the channels.
    """
    spatial, channels = image.shape[2:], image.shape[1]
    axes = len(spatial)
    image = image.to(dtype)
    positions = position_features(gaussian_bandwidths(where, sxy, axes, image), spatial)
    colours = _bandwidths(f"{where}.srgb", srgb, channels, "channel", image)
    colours = image / colours.view(channels, *(1,) * axes)
    return torch.cat([positions.expand(image.shape[0], *positions.shape[1:]), colours], 1)


def position_features(sigma: Tensor, spatial: Sequence[int]) -> Tensor:
    """Positions divided by their bandwidths, (1, axes, *spatial).

    Args:
        sigma: bandwidths in pixels, (axes,), in the order of the axes.
        spatial: (H, W), of which the features are x, y, or (D, H, W), of which they are z, y, x.
    """
    features = [
        (torch.arange(n, dtype=sigma.dtype, device=sigma.device) / sigma[a])
        .view(-1, *(1,) * (len(spatial) - 1 - a))
        .expand(*spatial)
        for a, n in enumerate(spatial)
    ]
    if len(spatial) == 2:
        features.reverse()
    return torch.stack(features)[None]


def _bandwidths(name: str, value: Bandwidth, count: int, each: str, like: Tensor) -> Tensor:
    """The value as (count,), on like's device: to divide by a number there is to multiply."""
    if isinstance(value, Tensor):
        if value.device != like.device:
            raise ValueError(f"{name} must be on unary's device {like.device}, got {value.device}")
        if value.dim() == 1 and value.shape[0] != count:
            raise ValueError(_wrong_count(name, count, each, value.shape[0]))
        return value.to(like.dtype).expand(count)
    if isinstance(value, tuple):
        if len(value) != count:
            raise ValueError(_wrong_count(name, count, each, len(value)))
        return torch.stack([like.new_full((), v) for v in value])
    return like.new_full((count,), value)


def _wrong_count(name: str, count: int, each: str, came: int) -> str:
    return f"{name} must be one number or {count}, one for each {each}, got {came}"


def _checked_bandwidth(term: Pairwise, name: str, value: Bandwidth) -> Bandwidth:
    """The value of a bandwidth as a number, a tuple of numbers or a tensor."""
    where = f"{type(term).__name__}: {name}"
    if isinstance(value, Tensor):
        if value.dim() > 1 or not value.dtype.is_floating_point:
            raise ValueError(
                f"{where} must be a floating-point tensor of shape () or (n,), "
                f"got {value.dtype} of shape {tuple(value.shape)}"
            )
        values = readable(value)
        if values is not None and not bool(((values > 0) & values.isfinite()).all()):
            raise ValueError(f"{where} must be positive and finite, got {values.tolist()}")
        return value
    numbers = (value,) if _is_number(value) else value
    if not isinstance(numbers, Sequence) or isinstance(numbers, str) or not len(numbers):
        raise TypeError(
            f"{where} must be a number, a sequence of numbers or a tensor, got {value!r}"
        )
    for number in numbers:
        if not _is_number(number):
            raise TypeError(f"{where} must hold numbers, got {number!r}")
        if not 0 < number < math.inf:
            raise ValueError(f"{where} must be positive and finite, got {number!r}")
    return float(value) if _is_number(value) else tuple(map(float, numbers))


def _check_weights(term: Pairwise) -> None:
    name, mu = type(term).__name__, term.compatibility
    if not isinstance(mu, Tensor):
        try:
            mu = torch.tensor(mu, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(
                f"{name}: compatibility must be a number, (L,), (L, L) or a tensor, got {mu!r}"
            ) from error
    if mu.dim() > 2 or (mu.dim() == 2 and mu.shape[0] != mu.shape[1]):
        raise ValueError(
            f"{name}: compatibility must be a number, (L,) or (L, L), got shape {tuple(mu.shape)}"
        )
    if mu.dtype.is_complex:
        raise ValueError(f"{name}: compatibility must be real, got {mu.dtype}")
    values = readable(mu)
    if values is not None and not bool(values.isfinite().all()):
        raise ValueError(f"{name}: compatibility must be finite, got {values.tolist()}")
    if term.normalization not in NORMALIZATIONS:
        raise ValueError(
            f"{name}: normalization must be one of {', '.join(NORMALIZATIONS)}, "
            f"got {term.normalization!r}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
