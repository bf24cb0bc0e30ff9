"""Pictures of any number of channels, with the methods of Pillow's that fastseg calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

COLOURS = 3
"""Number of channels from which a preview is in colours."""

STRETCH = (2.0, 98.0)
"""Percentiles of a channel that are black and full in a preview of more than 8 bits."""

MOST_MEASURED = 2**20
"""Number of a channel's pixels from which the percentiles are those of a part of them."""


@dataclass(frozen=True, eq=False)
class ChannelImage:
    """A picture of any number of channels, whose values are those that its file stores.

    Its methods do to every channel what Pillow does to a grey picture of floats, so that geometric
    changes are those of RGB pictures.

    Args:
        pixels: real numbers (H, W, channels); of bytes where the file has 8 bits.
    """

    pixels: np.ndarray

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.pixels.shape[1]

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.pixels.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, as Pillow has them."""
        return (self.width, self.height)

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.pixels.shape[2]

    def resize(
        self, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
    ) -> ChannelImage:
        """Returns the picture in another size (width, height)."""
        if size == self.size:
            return self
        return self._changed(lambda channel, k: channel.resize(size, resample))

    def crop(self, box: tuple[int, int, int, int]) -> ChannelImage:
        """Returns the part within (left, top, right, bottom), which lies inside of the picture."""
        left, top, right, bottom = box
        return ChannelImage(self.pixels[top:bottom, left:right])

    def transpose(self, method: Image.Transpose) -> ChannelImage:
        """Returns the picture flipped or turned by quarters."""
        return self._changed(lambda channel, k: channel.transpose(method))

    def rotate(
        self, angle: float, resample: Image.Resampling, *, fillcolor: Sequence[float]
    ) -> ChannelImage:
        """Returns the picture turned by degrees; what was outside has a value for each channel."""
        return self._changed(
            lambda channel, k: channel.rotate(angle, resample, fillcolor=fillcolor[k])
        )

    def preview(self) -> Image.Image:
        """Returns an RGB picture to look at.

        The first three channels are red, green and blue; of one or two the first is grey. Bytes
        stay as they are. Of other values each channel is stretched, so that its 2nd percentile is
        0 and its 98th 255.
        """
        chosen = self.pixels[..., : COLOURS if self.channels >= COLOURS else 1]
        if chosen.dtype != np.uint8:
            chosen = np.stack([_stretched(chosen[..., k]) for k in range(chosen.shape[2])], -1)
        return Image.fromarray(
            np.ascontiguousarray(np.broadcast_to(chosen, (*chosen.shape[:2], 3)))
        )

    def _changed(self, change: Callable[[Image.Image, int], Image.Image]) -> ChannelImage:
        """Returns the picture after a change of its channels, which gets each and its number."""
        channels = [
            np.asarray(change(Image.fromarray(np.asarray(self.pixels[..., k], np.float32)), k))
            for k in range(self.channels)
        ]
        return ChannelImage(np.stack(channels, -1))


Picture = Image.Image | ChannelImage
"""A picture in RGB, or one of any number of channels."""


def preview(picture: Picture) -> Image.Image:
    """Returns a picture in RGB, to be looked at: see :meth:`ChannelImage.preview`."""
    return picture.preview() if isinstance(picture, ChannelImage) else picture


def _stretched(channel: np.ndarray) -> np.ndarray:
    """Returns a channel as bytes; values that are not finite are black."""
    values = np.asarray(channel, np.float64)
    step = max(1, int((values.size / MOST_MEASURED) ** 0.5))
    measured = values[::step, ::step]
    measured = measured[np.isfinite(measured)]
    low, high = np.percentile(measured, STRETCH) if measured.size else (0.0, 0.0)
    if high <= low and measured.size:  # nearly all values are alike
        low, high = measured.min(), measured.max()
    scaled = (np.nan_to_num(values, nan=low, posinf=low, neginf=low) - low) / max(high - low, 1e-12)
    return (scaled * 255).round().clip(0, 255).astype(np.uint8)
