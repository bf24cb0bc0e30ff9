"""A data set of pictures and masks in files."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastseg.data.channel_image import Picture
from fastseg.data.classes import IGNORE, Classes
from fastseg.data.image import ImageError
from fastseg.data.masks import read_classes_of_mask
from fastseg.data.pairs import Pair
from fastseg.data.picture_format import PictureFormat, read_picture

Transform = Callable[[Picture, Image.Image, np.random.Generator], tuple[Tensor, Tensor]]


class PictureFolder(Dataset[tuple[Tensor, Tensor]]):
    """Pictures and their masks, read when they are asked for.

    Args:
        pairs: the files.
        classes: the classes, and what the masks' values mean.
        transform: a function that is called with (image, label, random generator) for every sample,
            see ``fastseg.data.transforms``; the label is a picture of classes, 255 where none
            counts.
        seed: seed of the random generators. That of a sample depends on it, on the epoch, and on
            the sample's number in the epoch, whatever the order, the worker or the process.
        form: how pictures are read as they are stored; None is as RGB of 8 bits.
    """

    ignore_index = IGNORE
    """The label of pixels that do not count."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        classes: Classes,
        transform: Transform,
        *,
        seed: int = 0,
        form: PictureFormat | None = None,
    ) -> None:
        self.pairs = list(pairs)
        self.classes = classes
        self.transform = transform
        self.seed = seed
        self.form = form
        self.epoch = 0

    def __len__(self) -> int:
        """Returns the number of pictures."""
        return len(self.pairs)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose random augmentation the samples get."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Returns one sample, transformed: image float32 (C, H, W) and label int64 (H, W).

        Args:
            key: the picture's index; or this and the sample's number in the epoch, in which a
                picture may come more than once.

        Raises:
            ImageError: a file that cannot be read, or a mask of another size.
        """
        index, number = key if isinstance(key, tuple) else (key, key)
        image, label = self.load(index)
        generator = np.random.default_rng((self.seed, self.epoch, number))
        return self.transform(image, label, generator)

    def load(self, index: int) -> tuple[Picture, Image.Image]:
        """Returns a picture, in RGB or of the form's channels, and its mask in mode "L"."""
        pair = self.pairs[index]
        image = read_picture(pair.image, self.form)
        label = read_classes_of_mask(pair.mask, self.classes)
        if image.size != label.size:
            raise ImageError(
                f"{pair.mask}: is {label.width}x{label.height}, its picture "
                f"{image.width}x{image.height}"
            )
        return image, label
