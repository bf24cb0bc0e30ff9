"""Reading and writing of ordinary images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fastseg._core.atomic import atomic_write
from fastseg.data.silence import pillow_silenced
from fastseg.data.tiff import TiffError, is_tiff
from fastseg.data.to_rgb import Stored, grey_values, stored_values, tiff_to_rgb, to_rgb

ORIENTATION = 0x0112
"""Number of EXIF's tag for the orientation."""

LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
"""Pillow's names of formats that usually do not keep exact values."""


class ImageError(ValueError):
    """An error, in one line, for a picture that cannot be read or written."""


class UnknownImageError(ImageError):
    """An error for a file of a kind that Pillow does not know."""


class ImageWarning(UserWarning):
    """A warning, in one line, for a picture whose reading rests on a guess."""


def read_image(path: str | Path) -> Image.Image:
    """Reads a picture as 8-bit RGB, upright; of an animation, the first frame.

    Grey, 16-bit, palette, CMYK and floating-point images are converted; transparent pixels become
    white; a camera's orientation tag is applied. Integers of more than 8 bits are taken to have the
    fewest of 8, 10, 12, 14, 16, 18, 24, 32 or 64 bits that hold the largest; where that is none of
    16, 32 and 64, an ImageWarning says so. The range of floats, and of integers below zero, is
    stretched to 0 to 255.

    A TIFF that Pillow does not know, of many channels or floats in colours, is read by tifffile if
    it is installed: the first three channels are red, green and blue, which an ImageWarning says of
    more than three, and the first of one or two is grey.

    Raises:
        ImageError: there is no such file, it is empty, truncated, not an image, of a mode that
            cannot be converted, or larger than Pillow's limit against decompression bombs (twice
            ``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    rgb, guess = read_with_guess(path)
    if guess:
        warnings.warn(guess, ImageWarning, stacklevel=2)
    return rgb


def read_with_guess(path: str | Path) -> tuple[Image.Image, str]:
    """Returns what :func:`read_image` does, and the text of its warning; "" for none.

    Raises:
        ImageError: as :func:`read_image` does.
    """
    try:
        with opened(path) as (image, stored):
            try:
                rgb, guess = to_rgb(upright(image), stored)
            except ValueError:
                raise ImageError(f"{path}: cannot be converted to RGB from {image.mode}") from None
    except UnknownImageError:
        if not is_tiff(Path(path)):
            raise
        try:
            rgb, guess = tiff_to_rgb(Path(path))
        except TiffError as error:
            raise ImageError(f"{path}: {error}") from None
    return rgb, guess and f"{path}: {guess}"


class LabelImage(NamedTuple):
    """A picture of class ids, and its palette."""

    ids: np.ndarray
    """Ids, uint8 (H, W)."""
    palette: list[tuple[int, int, int]] | None
    """RGB colours of the ids from 0 on, as many as the file has; None for a grey picture."""


def read_labels(path: str | Path) -> LabelImage:
    """Reads a picture of class ids, upright: its orientation tag is applied.

    The ids are the indices of a palette picture or the grey values of a file of 1, 2, 4, 8, 16 or
    32 bits as they are stored: Pillow spreads those of 2 and 4 bits over 0 to 255, and inverts
    those of a TIFF whose 0 is white. Of 1 bit, white is 1 either way: fax compression, which has 0
    for white, stores masks as well.

    Raises:
        ImageError: a file that :func:`read_image` refuses; a picture in colour, with transparency
            or of floats, of several frames, in a format that changes values (JPEG, WebP), or with
            ids beyond 255.
    """
    with opened(path) as (image, stored):
        return labels_of(path, image, stored)


def check_keeps_values(path: str | Path, image: Image.Image) -> None:
    """Raises an ImageError for a picture that cannot hold exact labels.

    Args:
        path: its file, for messages.
        image: the picture, as :func:`opened` yields it.
    """
    if image.format in LOSSY:
        raise ImageError(
            f"{path}: {image.format} does not keep ids as they are; give a PNG of labels"
        )
    if getattr(image, "is_animated", False):
        raise ImageError(f"{path}: holds several pictures; give one of labels")


def labels_of(path: str | Path, image: Image.Image, stored: Stored) -> LabelImage:
    """Returns what :func:`read_labels` does, of a picture that :func:`opened` yields.

    Raises:
        ImageError: the picture is none of labels; see :func:`read_labels`.
    """
    check_keeps_values(path, image)
    if image.mode not in ("P", "L", "1", "I") and not image.mode.startswith("I;16"):
        raise ImageError(
            f"{path}: labels are a palette or grey picture of ids, this is {image.mode}"
        )
    palette = image.getpalette("RGB")
    ids = grey_values(upright(image), stored).astype(np.int64)
    if stored.highest is not None:
        spread = 255 if image.mode == "L" else 65535
        ids = (ids * stored.highest + spread // 2) // spread
    if stored.inverted:
        ids = (stored.highest or 255) - ids
    low, high = ids.min(), ids.max()
    if low < 0 or high > 255:
        raise ImageError(f"{path}: ids must be 0 to 255, got {low if low < 0 else high}")
    colours = palette and list(zip(palette[::3], palette[1::3], palette[2::3], strict=True))
    return LabelImage(ids.astype(np.uint8), colours)


def is_turned(path: str | Path) -> bool:
    """Whether a picture that can be read has an orientation tag by which Pillow turns it."""
    try:
        with pillow_silenced(), Image.open(path) as image:
            return image.getexif().get(ORIENTATION) in range(2, 9)
    except Exception:  # malformed tags, see upright; or a TIFF that Pillow does not know
        return False


@contextmanager
def opened(path: str | Path) -> Iterator[tuple[Image.Image, Stored]]:
    """Loads a picture; yields it and how its file stores it. All errors become ImageErrors."""
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if not path.is_file():
        raise ImageError(f"{path}: not a file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty")
    try:
        # Pillow gets an open file: by a name it would map plain TIFFs of 8 and 16 bits into
        # memory, and mix up the rows of those that are turned by 90 degrees.
        with path.open("rb") as file:
            with pillow_silenced():
                image = Image.open(file)
                if 0 in image.size:
                    raise ImageError(f"{path}: has no pixels")
                stored = stored_values(image)
                image.load()
            with image:
                yield image, stored
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise UnknownImageError(
            f"{path}: not an image, or not a picture of a kind that Pillow knows"
        ) from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read it") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too large an image; scale it down first ({error})") from None
    except Exception as error:  # Pillow's readers raise nearly anything at malformed bytes
        raise ImageError(
            f"{path}: damaged or truncated image ({type(error).__name__}: {error})"
        ) from error


def upright(image: Image.Image) -> Image.Image:
    """Returns a picture turned as its orientation tag says."""
    try:
        with pillow_silenced():
            return ImageOps.exif_transpose(image)
    except Exception:  # Pillow raises nearly anything at malformed tags; the pixels are there
        return image


def check_writable(path: str | Path) -> None:
    """Checks, before the work, that ``write_png`` can write to a path.

    Raises:
        ImageError: the name is not that of a PNG, the path is a folder, or its folder does not
            exist or cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ImageError(f"{path}: the output is a PNG, so its name must end in .png")
    if path.is_dir():
        raise ImageError(f"{path}: cannot be written (it is a folder)")
    if not path.parent.is_dir():
        raise ImageError(f"{path}: cannot be written (there is no folder {path.parent})")
    if not os.access(path.parent, os.W_OK):
        raise ImageError(f"{path}: cannot be written (no permission in {path.parent})")


def write_png(image: Image.Image, path: str | Path) -> None:
    """Writes a PNG, which takes its place only when it is whole.

    Raises:
        ImageError: ``check_writable`` refuses the path, or the disk is full.
    """
    path = Path(path)
    check_writable(path)
    try:
        with atomic_write(path) as file:
            image.save(file, format="PNG")
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from None
