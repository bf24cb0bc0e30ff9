"""Unary energies and pairwise features, which equal those of ``pydensecrf.utils``."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from numbers import Number

import numpy as np

__all__ = [
    "compute_unary",
    "create_pairwise_bilateral",
    "create_pairwise_gaussian",
    "softmax_to_unary",
    "unary_from_labels",
    "unary_from_softmax",
]


def unary_from_labels(
    labels: np.ndarray, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> np.ndarray:
    """Energies of an annotation that is right with probability ``gt_prob``.

    A labelled point has energy -log(gt_prob) at its label and -log((1 - gt_prob) / (L - 1)) at
    every other.

    Args:
        labels: the annotation, integers or booleans, any shape of n elements.
        n_labels: the number of labels L, the unsure one not counted.
        gt_prob: the probability that a label is right, between 0 and 1, exclusive.
        zero_unsure: if True, labels are 1 to L and 0 means unsure: energy -log(1 / L) for all. If
            False, labels are 0 to L - 1.

    Returns:
        The energies, float32 (L, n).

    Raises:
        TypeError: labels that are not integers.
        ValueError: a label out of range, n_labels below 1, or gt_prob outside (0, 1).
    """
    labels = np.asarray(labels)
    if labels.dtype.kind not in "iub":
        raise TypeError(f"labels must hold integers, got {labels.dtype}")
    if n_labels < 1:
        raise ValueError(f"n_labels must be at least 1, got {n_labels}")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob must be in (0, 1), got {gt_prob}")
    labels = labels.ravel().astype(np.int64)
    lowest, highest = (0, n_labels) if zero_unsure else (0, n_labels - 1)
    if labels.size and not lowest <= labels.min() <= labels.max() <= highest:
        raise ValueError(
            f"labels must be {lowest} to {highest} with n_labels={n_labels} and "
            f"zero_unsure={zero_unsure}, got {labels.min()} to {labels.max()}"
        )
    others = -np.log((1 - gt_prob) / (n_labels - 1)) if n_labels > 1 else np.inf
    energies = np.full((n_labels, labels.size), others, np.float32)
    # With an unsure label, row -1 is set here for its points and overwritten below.
    energies[labels - 1 if zero_unsure else labels, np.arange(labels.size)] = -np.log(gt_prob)
    if zero_unsure:
        energies[:, labels == 0] = -np.log(1 / n_labels)
    return energies


def compute_unary(labels: np.ndarray, M: int, GT_PROB: float = 0.5) -> np.ndarray:
    """`unary_from_labels` by its former name in pydensecrf; warns that it is deprecated."""
    warnings.warn("compute_unary is now unary_from_labels", DeprecationWarning, stacklevel=2)
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(
    sm: np.ndarray, scale: float | None = None, clip: float | None = 1e-5
) -> np.ndarray:
    """Energies -log(probability), of a softmax.

    Args:
        sm: probabilities (L, ...), labels first.
        scale: the share of sm, in (0, 1], in a mixture with the uniform distribution, scale * sm +
            (1 - scale) / L; None: sm is not mixed.
        clip: the value to which smaller probabilities are raised, so that no energy is infinite;
            None: they are not.

    Returns:
        The energies, float32 (L, n), n the product of the other axes. Their memory is not always
        contiguous; ``setUnaryEnergy`` wants ``np.ascontiguousarray`` of them, as with pydensecrf.

    Raises:
        ValueError: sm without an axis, or scale outside (0, 1].
    """
    sm = np.asarray(sm)
    if sm.ndim == 0 or sm.shape[0] == 0:
        raise ValueError(f"sm must have labels on its first axis, got shape {sm.shape}")
    labels = sm.shape[0]
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {scale}")
        sm = scale * sm + (1 - scale) * (np.ones(sm.shape) / labels)
    if clip is not None:
        sm = np.clip(sm, clip, 1.0)
    columns = int(np.prod(sm.shape[1:]))
    return -np.log(sm).reshape(labels, columns).astype(np.float32)


def softmax_to_unary(sm: np.ndarray, GT_PROB: float = 1) -> np.ndarray:
    """`unary_from_softmax` by its former name in pydensecrf, without clipping; warns."""
    warnings.warn("softmax_to_unary is now unary_from_softmax", DeprecationWarning, stacklevel=2)
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> np.ndarray:
    """Features of a spatial term for ``addPairwiseEnergy``: positions over bandwidths.

    Args:
        sdims: the standard deviation in pixels of each axis, positive.
        shape: the shape of the image or volume, in the same order.

    Returns:
        The features, float32 (len(shape), n), n the product of shape.

    Raises:
        ValueError: sdims not of the axes' number, or not positive.
    """
    return _positions("sdims", sdims, tuple(shape)).reshape(len(shape), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: np.ndarray, chdim: int = -1
) -> np.ndarray:
    """Features of a bilateral term for ``addPairwiseEnergy``: positions, then channels.

    Args:
        sdims: the standard deviation in pixels of each axis, positive.
        schan: the standard deviation of the values, positive; one for all channels or one for each.
        img: the image or volume, any dtype.
        chdim: the axis of the channels, from the end if below -1; -1: there is none, img is of one
            channel.

    Returns:
        The features, float32 (axes + channels, n).

    Raises:
        ValueError: sdims or schan not of the right number, or not positive; no such chdim.
    """
    img = np.asarray(img)
    if not -img.ndim <= chdim < img.ndim:
        raise ValueError(f"chdim must be an axis of img or -1, got {chdim} for {img.ndim} axes")
    channels = img[np.newaxis] if chdim == -1 else np.moveaxis(img, chdim, 0)
    channels = channels.astype(np.float32)
    if isinstance(schan, Number):
        schan = [schan] * len(channels)
    for channel, deviation in zip(
        channels, _deviations("schan", schan, len(channels), "channel"), strict=True
    ):
        channel /= deviation
    features = np.concatenate([_positions("sdims", sdims, channels.shape[1:]), channels])
    return features.reshape(len(features), -1)


def _positions(name: str, deviations: Sequence[float], shape: tuple[int, ...]) -> np.ndarray:
    """The coordinates of each element over the deviations, float32 (axes, *shape)."""
    mesh = np.indices(shape, np.float32)
    for axis, deviation in zip(
        mesh, _deviations(name, deviations, len(shape), "axis"), strict=True
    ):
        axis /= deviation
    return mesh


def _deviations(name: str, values: Sequence[float], count: int, of: str) -> Sequence[float]:
    if np.ndim(values) != 1 or len(values) != count:
        raise ValueError(f"{name} must have one entry for each {of} ({count}), got {values}")
    if not all(v > 0 for v in values):  # infinite: the axis or channel does not count
        raise ValueError(f"{name} must be positive, got {values}")
    return values
