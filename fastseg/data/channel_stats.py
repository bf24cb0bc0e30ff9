"""Mean and standard deviation of the channels of pictures, measured one picture at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastseg.data.channel_image import ChannelImage


@dataclass(frozen=True, eq=False)
class ChannelStats:
    """The statistics of one picture.

    Attributes:
        dtype: name of its values' type, such as "uint16".
        counts: number of finite values of each channel.
        means: their means, float64 (channels,).
        variances: their variances, float64 (channels,).
    """

    dtype: str
    counts: np.ndarray
    means: np.ndarray
    variances: np.ndarray


def measured(picture: ChannelImage) -> ChannelStats:
    """Returns the statistics of a picture; values that are not finite do not count."""
    found = np.zeros((3, picture.channels))
    for k in range(picture.channels):
        values = picture.pixels[..., k].astype(np.float64)
        values = values[np.isfinite(values)]
        if values.size:
            found[:, k] = values.size, values.mean(), values.var()
    return ChannelStats(picture.pixels.dtype.name, *found)


def mean_and_std(pictures: Sequence[ChannelStats]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and standard deviation of each channel over all pixels of some pictures.

    A channel that has one value everywhere gets the deviation 1, since values are divided by it.
    """
    counts, means, variances = (
        np.stack([getattr(p, name) for p in pictures]) for name in ("counts", "means", "variances")
    )
    total = np.maximum(counts.sum(0), 1)
    mean = (counts * means).sum(0) / total
    std = ((counts * (variances + (means - mean) ** 2)).sum(0) / total) ** 0.5
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())
