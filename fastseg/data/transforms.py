"""Normalisation of (image, label) pairs.

A transform is called with a picture, its label image (one id per pixel) and a NumPy random
generator, and returns a float32 (channels, H, W) tensor and an int64 (H, W) tensor. All randomness
comes from the generator that is passed in, so a sample is a function of its seed alone. A picture
is an RGB Pillow image, or a ``ChannelImage`` of any number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastseg.data.channel_image import ChannelImage, Picture

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(image: Picture, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """Returns a picture with mean and standard deviation removed, float32 (channels, H, W).

    That is ``(image / 255 - mean) / std`` of a Pillow image, and ``(image - mean) / std`` of one of
    channels, whose values that are not finite count as the mean.

    Args:
        image: a Pillow image, which is converted to RGB, or a picture of channels.
        mean: mean of R, G and B, in 0 to 1, ImageNet's by default; or of each channel, in the units
            of its values.
        std: standard deviation of them in the same units.

    Raises:
        ValueError: a picture of other channels than mean and std have.
    """
    if isinstance(image, ChannelImage):
        return _normalised_channels(image, mean, std)
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    shape = (3, 1, 1)
    return (pixels / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def _normalised_channels(
    image: ChannelImage, mean: Sequence[float], std: Sequence[float]
) -> Tensor:
    if not image.channels == len(mean) == len(std):
        raise ValueError(
            f"mean and std must have the picture's {image.channels} channels, got {len(mean)} and "
            f"{len(std)}"
        )
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image.pixels, 2, 0), np.float32))
    shape = (len(mean), 1, 1)
    x = (pixels - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)
    return torch.where(x.isfinite(), x, 0.0)


def label_tensor(label: Image.Image) -> Tensor:
    """Returns a label image as an int64 (H, W) tensor."""
    return torch.from_numpy(np.array(label)).long()


def resize_to_height(image: Picture, height: int) -> Picture:
    """Resizes an image to a short side of ``height`` pixels, keeping the aspect ratio."""
    scale = height / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class EvalTransform:
    """Resizes the image to a short side of ``height``; the label keeps its own resolution.

    Attributes:
        height: short side of the picture, pixels.
        mean: mean of each channel, see :func:`normalise`.
        std: standard deviation of each channel.
    """

    height: int
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __call__(
        self, image: Picture, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns the normalised image and the untouched label; ``rng`` is not used."""
        resized = resize_to_height(image, self.height)
        return normalise(resized, self.mean, self.std), label_tensor(label)
