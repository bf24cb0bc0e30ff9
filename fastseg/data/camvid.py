"""The data set CamVid with 11 classes, in the layout of the SegNet authors' tutorial.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video: A high-definition ground truth
database", Pattern Recognition Letters 2009. The 11-class split (367 training, 101 validation and
233 test images of 480x360) is that of Badrinarayanan, Kendall, Cipolla, "SegNet", PAMI 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from fastseg.data.image import read_image

CAMVID_CLASSES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "signsymbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
CAMVID_IGNORE = 11
CAMVID_PALETTE = (
    (128, 128, 128),
    (128, 0, 0),
    (192, 192, 128),
    (128, 64, 128),
    (60, 40, 222),
    (128, 128, 0),
    (192, 128, 128),
    (64, 64, 128),
    (64, 0, 128),
    (64, 64, 0),
    (0, 128, 192),
)
SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")

Transform = Callable[[Image.Image, Image.Image, np.random.Generator], tuple[Tensor, Tensor]]


class CamVid(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels of one split of a CamVid folder.

    The folder holds ``{train,val,test}/NAME.{jpg,png}`` and ``{train,val,test}annot/NAME.png``;
    a label image has one 8-bit id per pixel: 0 to 10 as in ``CAMVID_CLASSES``, 11 for unlabelled.

    Args:
        root: the CamVid folder.
        split: "train", "val" or "test".
        transform: a function that is called with (image, label, random generator) for every sample,
            see ``fastseg.data.transforms``.
        seed: seed of the random generators. That of sample ``i`` in epoch ``e`` is seeded with
            ``(seed, e, i)``, whatever the order, the worker or the process.

    Raises:
        FileNotFoundError: a folder is missing, or an image has no label.
        ValueError: an unknown split, no images, or (on access) an image and a label that cannot be
            read or do not fit each other.
    """

    ignore_index = CAMVID_IGNORE
    """The label of pixels that do not count."""

    def __init__(
        self, root: str | Path, split: str, transform: Transform, *, seed: int = 0
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
        images, labels = Path(root) / split, Path(root) / f"{split}annot"
        for folder in (images, labels):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"{folder} is not a folder; root must be a CamVid folder with {split}/ and "
                    f"{split}annot/, got {str(root)!r}"
                )
        self.root = Path(root)
        self.images = sorted(p for p in images.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not self.images:
            raise ValueError(f"{images} has no images ({', '.join(IMAGE_SUFFIXES)})")
        self.labels = [labels / f"{p.stem}.png" for p in self.images]
        missing = [p.name for p in self.labels if not p.is_file()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(self.images)} images of {images} have no label in "
                f"{labels}, the first is {missing[0]}"
            )
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.images)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose random augmentation the samples get."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Returns one sample, transformed: image float32 (3, H, W) and label int64 (H, W)."""
        image, label = read_image(self.images[index]), self.load_label(index)
        self.check_sizes(index, image, label)
        return self.transform(image, label, np.random.default_rng((self.seed, self.epoch, index)))

    def check_sizes(self, index: int, image: Image.Image, label: Image.Image) -> None:
        """Raises a ValueError unless the picture and the label of a sample have the same size."""
        if label.size != image.size:
            raise ValueError(
                f"{self.labels[index]} is {label.size[0]}x{label.size[1]}, its image "
                f"{image.size[0]}x{image.size[1]}; they must be the same size"
            )

    def load_label(self, index: int) -> Image.Image:
        """Returns the label image of one sample, with its mode and its ids checked."""
        path = self.labels[index]
        try:
            with Image.open(path) as file:
                file.load()
                label = file.copy()
        except Exception as error:  # Pillow's readers raise nearly anything at malformed bytes
            raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
        if label.mode not in ("L", "P"):
            raise ValueError(f"{path} has mode {label.mode}, expected 8-bit ids (mode L or P)")
        highest = label.getextrema()[1]
        if highest > CAMVID_IGNORE:
            raise ValueError(f"{path} has id {highest}, expected 0 to {CAMVID_IGNORE}")
        return label


def no_transform(
    image: Image.Image, label: Image.Image, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Returns the pixels of a sample, uint8 (H, W, 3) and (H, W), as they are."""
    return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(label))


def class_counts(dataset: CamVid) -> tuple[Tensor, Tensor]:
    """Counts the pixels of each class over a data set's labels, without augmentation.

    Returns:
        pixels: int64 (11,), the number of pixels of each class.
        present: int64 (11,), the number of pixels of all images with the class.
    """
    classes = len(CAMVID_CLASSES)
    pixels = torch.zeros(classes, dtype=torch.int64)
    present = torch.zeros(classes, dtype=torch.int64)
    for index in range(len(dataset)):
        label = np.asarray(dataset.load_label(index))
        counts = torch.from_numpy(np.bincount(label.ravel(), minlength=classes)[:classes])
        pixels += counts
        present += (counts > 0) * label.size
    return pixels, present


def median_frequency_weights(
    pixels: Tensor | Sequence[int], present: Tensor | Sequence[int]
) -> Tensor:
    """Returns class weights of median frequency balancing.

    They are ``weight[c] = median(freq) / freq[c]`` with ``freq[c] = pixels[c] / present[c]``, the
    share of the class in all images that have it (Eigen and Fergus, ICCV 2015; SegNet, section
    4.1). The median is over the classes that occur; a class that never occurs gets 0.

    Args:
        pixels: (C,), the number of pixels of each class, see ``class_counts``.
        present: (C,), the number of pixels of all images with the class.

    Returns:
        The weights, float32 (C,).

    Raises:
        ValueError: the two differ in length, or no class occurs.
    """
    pixels = torch.as_tensor(pixels, dtype=torch.float64)
    present = torch.as_tensor(present, dtype=torch.float64)
    if pixels.shape != present.shape or pixels.ndim != 1:
        raise ValueError(
            f"pixels and present must be of one shape (C,), got {tuple(pixels.shape)} and "
            f"{tuple(present.shape)}"
        )
    occurs = pixels > 0
    if not occurs.any():
        raise ValueError("pixels must have a class that occurs, got zeros only")
    frequency = pixels[occurs] / present[occurs]
    weights = torch.zeros_like(pixels)
    # torch.median takes the lower of two middle values; the median of an even number is their mean.
    weights[occurs] = torch.quantile(frequency, 0.5) / frequency
    return weights.float()
