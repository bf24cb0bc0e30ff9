"""Normalisation and augmentation of (image, label) pairs.

A transform is called with an RGB Pillow image, its label image (one id per pixel) and a NumPy
random generator, and returns a float32 (3, H, W) tensor and an int64 (H, W) tensor. All
randomness comes from the generator that is passed in, so a sample is a function of its seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalise(
    image: Image.Image,
    mean: tuple[float, float, float] = MEAN,
    std: tuple[float, float, float] = STD,
) -> Tensor:
    """Returns ``(image / 255 - mean) / std``, float32 (3, H, W), of an RGB Pillow image.

    Args:
        image: a Pillow image, which is converted to RGB.
        mean: mean of R, G and B, in 0 to 1; ImageNet's by default.
        std: standard deviation of R, G and B in the same units.
    """
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    shape = (3, 1, 1)
    return (pixels / 255 - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


def label_tensor(label: Image.Image) -> Tensor:
    """Returns a label image as an int64 (H, W) tensor."""
    return torch.from_numpy(np.array(label)).long()


def resize_to_height(image: Image.Image, height: int) -> Image.Image:
    """Resizes an image to a short side of ``height`` pixels, keeping the aspect ratio."""
    scale = height / min(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class EvalTransform:
    """Resizes the image to a short side of ``height``; the label keeps its own resolution."""

    height: int

    def __call__(
        self, image: Image.Image, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns the normalised image and the untouched label; ``rng`` is not used."""
        return normalise(resize_to_height(image, self.height)), label_tensor(label)


@dataclass(frozen=True)
class TrainTransform:
    """Changes scale, crop, horizontal flip, brightness, contrast and saturation at random.

    Attributes:
        height: short side of the image at scale 1, pixels.
        crop: (height, width) of the result; an image smaller than this is padded with the mean
            colour, its label with ``ignore_index``.
        scale: range of the random scale, drawn log-uniformly.
        jitter: brightness, contrast and saturation are each multiplied by a factor drawn from
            [1 - jitter, 1 + jitter].
        ignore_index: label of padded pixels.
    """

    height: int
    crop: tuple[int, int]
    ignore_index: int
    scale: tuple[float, float] = (0.75, 1.5)
    jitter: float = 0.4

    def __call__(
        self, image: Image.Image, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns a normalised (3, *crop) image and a (*crop) label, both augmented."""
        image, label = self._scale_and_crop(image, label, rng)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhancer(image).enhance(rng.uniform(1 - self.jitter, 1 + self.jitter))
        return self._pad(normalise(image), 0.0), self._pad(label_tensor(label), self.ignore_index)

    def _scale_and_crop(
        self, image: Image.Image, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Image.Image, Image.Image]:
        low, high = self.scale
        scale = np.exp(rng.uniform(np.log(low), np.log(high))) * self.height / min(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        left = int(rng.integers(max(size[0] - self.crop[1], 0) + 1))
        top = int(rng.integers(max(size[1] - self.crop[0], 0) + 1))
        box = (left, top, min(left + self.crop[1], size[0]), min(top + self.crop[0], size[1]))
        image = image.resize(size, Image.Resampling.BILINEAR).crop(box)
        return image, label.resize(size, Image.Resampling.NEAREST).crop(box)

    def _pad(self, x: Tensor, value: float) -> Tensor:
        missing = [max(c - s, 0) for c, s in zip(self.crop, x.shape[-2:], strict=True)]
        return torch.nn.functional.pad(x, (0, missing[1], 0, missing[0]), value=value)
