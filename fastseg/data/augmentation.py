"""Random changes of pictures and their masks, by Pillow or by torchvision.transforms.v2.

A picture of channels is changed in its shape as one in RGB is. Its colours change after the
normalisation, alike in all channels, since a factor of the stored values would mean little: they
may lie far from zero.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from fastseg.data.channel_image import ChannelImage, Picture
from fastseg.data.transforms import MEAN, STD, label_tensor, normalise

AUGMENTERS = ("auto", "plain", "torchvision")


@dataclass(frozen=True)
class Augmentation:
    """How much pictures are changed at random; 0 leaves a change out.

    Attributes:
        scale: range of the random scale, drawn log-uniformly.
        flip: probability of a flip from left to right.
        vflip: probability of a flip upside down.
        rotate: largest angle of a turn, degrees.
        colour: brightness, contrast and saturation are each multiplied by a factor drawn from
            [1 - colour, 1 + colour]. A normalised picture of channels is multiplied by such a
            factor, its contrast, and moved by a number of [-colour, colour], its brightness;
            saturation, which only colours have, is left out.
        elastic: size of elastic deformations, as ``alpha`` of torchvision's ElasticTransform, which
            it needs.
    """

    scale: tuple[float, float] = (0.75, 1.5)
    flip: float = 0.5
    vflip: float = 0.0
    rotate: float = 0.0
    colour: float = 0.4
    elastic: float = 0.0

    def __post_init__(self) -> None:
        """Raises a ValueError for a number out of range."""
        low, high = self.scale
        if not 0.05 <= low <= high <= 20:
            raise ValueError(f"scale must be two numbers of 0.05 to 20 in order, got {self.scale}")
        for name, most in (("flip", 1), ("vflip", 1), ("rotate", 180), ("colour", 1)):
            if not 0 <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be 0 to {most}, got {getattr(self, name)}")
        if not 0 <= self.elastic <= 1000:
            raise ValueError(f"elastic must be 0 to 1000, got {self.elastic}")

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Augmentation:
        """Returns the table of texts such as "rotate=10", "scale=0.5:2" and "none".

        Raises:
            ValueError: no such change, or a number out of range.
        """
        table = cls()
        names = [field.name for field in fields(cls)]
        for text in texts:
            name, _, value = text.partition("=")
            if text == "none":
                table = NOTHING
                continue
            try:
                if name not in names:
                    raise ValueError
                numbers = [float(number) for number in value.split(":")]
                if name == "scale":
                    numbers = numbers * (3 - len(numbers))
                    table = replace(table, scale=(numbers[0], numbers[1]))
                else:
                    (number,) = numbers
                    table = replace(table, **{name: number})
            except (ValueError, IndexError) as error:
                raise ValueError(
                    f"--augment {text}: must be none or NAME=NUMBER of {', '.join(names)}, such as "
                    f"rotate=10 or scale=0.5:2" + f" ({error})" * bool(str(error))
                ) from None
        return table

    def texts(self) -> list[str]:
        """Returns the texts that :meth:`parse` reads."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self)}
        low, high = numbers.pop("scale")
        return [f"scale={low:g}:{high:g}", *(f"{name}={n:g}" for name, n in numbers.items())]


NOTHING = Augmentation((1.0, 1.0), flip=0.0, colour=0.0)


def resolved_augmenter(name: str, table: Augmentation) -> str:
    """Returns "plain" or "torchvision": for "auto" the latter where it is installed.

    Raises:
        ValueError: torchvision is asked for, or needed, and cannot be imported.
    """
    if name == "plain" and table.elastic:
        raise ValueError("--augment elastic needs --augmenter torchvision")
    if name == "plain":
        return name
    try:
        _torchvision()
    except ImportError as error:
        if name == "torchvision" or table.elastic:
            what = "--augment elastic" if name == "auto" else "--augmenter torchvision"
            raise ValueError(
                f"{what} needs torchvision, which cannot be imported ({error}): "
                "pip install torchvision"
            ) from None
        return "plain"
    return "torchvision"


def _torchvision() -> tuple[ModuleType, ModuleType]:
    """Returns torchvision.transforms.v2 and torchvision.tv_tensors.

    They are imported here because they are optional and take seconds.

    Raises:
        ImportError: they are not installed, or do not fit the installed torch.
    """
    try:
        return tuple(
            importlib.import_module(f"torchvision.{name}")
            for name in ("transforms.v2", "tv_tensors")
        )
    except (RuntimeError, OSError) as error:  # its compiled ops are of another torch
        raise ImportError(str(error).partition("\n")[0]) from error


@dataclass(frozen=True)
class TrainTransform:
    """Scales, crops and changes pictures at random, and normalises them.

    Masks are never interpolated. All randomness comes from the generator that is passed in.

    Attributes:
        height: short side of the picture at scale 1, pixels.
        crop: (height, width) of the result; a picture smaller than this is padded with the mean
            colour, its label with ``ignore_index``.
        ignore_index: label of pixels that are padded, or outside of a turned picture.
        table: how much is changed.
        augmenter: "plain" or "torchvision".
        mean: mean of each channel, see :func:`fastseg.data.normalise`; it is the colour of pixels
            that are outside of a turned picture.
        std: standard deviation of each channel.
    """

    height: int
    crop: tuple[int, int]
    ignore_index: int
    table: Augmentation = Augmentation()
    augmenter: str = "plain"
    mean: Sequence[float] = MEAN
    std: Sequence[float] = STD

    def __call__(
        self, image: Picture, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns a normalised (channels, *crop) image and a (*crop) label, both changed."""
        image, label = self._scale_and_crop(image, label, rng)
        change = self._by_torchvision if self.augmenter == "torchvision" else self._plainly
        image, label = change(image, label, rng)
        x = normalise(image, self.mean, self.std)
        if isinstance(image, ChannelImage) and self.table.colour:
            x = x * self._colour_factor(rng) + (self._colour_factor(rng) - 1)
        return self._pad(x, 0.0), self._pad(label_tensor(label), self.ignore_index)

    def _colour_factor(self, rng: np.random.Generator) -> float:
        return rng.uniform(1 - self.table.colour, 1 + self.table.colour)

    def _outside(self, image: Picture) -> tuple[float, ...]:
        """Returns the colour of pixels that are outside of a turned picture: the mean."""
        if isinstance(image, ChannelImage):
            return tuple(self.mean)
        return tuple(round(255 * m) for m in self.mean)

    def _scale_and_crop(
        self, image: Picture, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Picture, Image.Image]:
        low, high = np.log(self.table.scale)
        scale = np.exp(rng.uniform(low, high)) * self.height / min(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        left = int(rng.integers(max(size[0] - self.crop[1], 0) + 1))
        top = int(rng.integers(max(size[1] - self.crop[0], 0) + 1))
        box = (left, top, min(left + self.crop[1], size[0]), min(top + self.crop[0], size[1]))
        image = image.resize(size, Image.Resampling.BILINEAR).crop(box)
        return image, label.resize(size, Image.Resampling.NEAREST).crop(box)

    def _plainly(
        self, image: Picture, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Picture, Image.Image]:
        flips = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)
        for flip, probability in zip(flips, (self.table.flip, self.table.vflip), strict=True):
            if probability and rng.random() < probability:
                image, label = image.transpose(flip), label.transpose(flip)
        if self.table.rotate:
            angle = rng.uniform(-self.table.rotate, self.table.rotate)
            bilinear = Image.Resampling.BILINEAR
            image = image.rotate(angle, bilinear, fillcolor=self._outside(image))
            label = label.rotate(angle, Image.Resampling.NEAREST, fillcolor=self.ignore_index)
        if self.table.colour and isinstance(image, Image.Image):
            for enhancer in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = enhancer(image).enhance(self._colour_factor(rng))
        return image, label

    def _by_torchvision(
        self, image: Picture, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Picture, Image.Image]:
        transforms, tensors = _torchvision()
        table, bilinear = self.table, transforms.InterpolationMode.BILINEAR
        in_rgb = isinstance(image, Image.Image)
        fill = {tensors.Image: list(self._outside(image)), tensors.Mask: self.ignore_index}
        steps = [
            transforms.RandomHorizontalFlip(table.flip),
            transforms.RandomVerticalFlip(table.vflip),
        ]
        if table.rotate:
            steps.append(transforms.RandomRotation(table.rotate, bilinear, fill=fill))
        if table.elastic:
            steps.append(transforms.ElasticTransform(table.elastic, fill=fill))
        if table.colour and in_rgb:
            steps.append(transforms.ColorJitter(table.colour, table.colour, table.colour))
        values = np.array(image) if in_rgb else image.pixels.astype(np.float32)
        pixels = torch.from_numpy(values).permute(2, 0, 1)
        pair = tensors.Image(pixels), tensors.Mask(torch.from_numpy(np.array(label)))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from the default generator
            torch.manual_seed(int(rng.integers(2**62)))
            pixels, ids = transforms.Compose(steps)(*pair)
        changed = pixels.permute(1, 2, 0).numpy()
        picture = Image.fromarray(changed) if in_rgb else ChannelImage(changed)
        return picture, Image.fromarray(ids.numpy())

    def _pad(self, x: Tensor, value: float) -> Tensor:
        missing = [max(c - s, 0) for c, s in zip(self.crop, x.shape[-2:], strict=True)]
        return torch.nn.functional.pad(x, (0, missing[1], 0, missing[0]), value=value)
