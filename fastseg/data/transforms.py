"""Normalisation of (image, label) pairs.

A transform is called with an RGB Pillow image, its label image (one id per pixel) and a NumPy
random generator, and returns a float32 (3, H, W) tensor and an int64 (H, W) tensor. All
randomness comes from the generator that is passed in, so a sample is a function of its seed alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
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
