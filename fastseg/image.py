"""Pictures in, pictures out: read any ordinary image, draw a segmentation over it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from fastseg.atomic import atomic_write


class ImageError(ValueError):
    """A picture that cannot be read or written, said in one line."""


def read_image(path: str | Path) -> Image.Image:
    """Reads a picture as 8-bit RGB, upright; of an animation, the first frame.

    Grey, 16-bit, palette, CMYK and floating-point images are converted; transparent pixels become
    white; a camera's orientation tag is applied.

    Raises:
        ImageError: there is no such file, it is empty, truncated, not an image, or larger than
            Pillow's limit against decompression bombs (twice ``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"{path}: no such file")
    if not path.is_file():
        raise ImageError(f"{path}: not a file")
    if path.stat().st_size == 0:
        raise ImageError(f"{path}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged files, which raise as well, or are usable
            with Image.open(path) as image:
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise ImageError(f"{path}: not an image, or of a kind that Pillow does not know") from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read it") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: too large an image; scale it down first ({error})") from None
    except Exception as error:  # Pillow's readers raise nearly anything at malformed bytes
        raise ImageError(
            f"{path}: damaged or truncated image ({type(error).__name__}: {error})"
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bit(np.asarray(image, dtype=np.float64), image.mode))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bit(pixels: np.ndarray, mode: str) -> np.ndarray:
    """Integer files are taken to fill 16 bits; floats are stretched to the values they hold."""
    low, high = 0.0, 65535.0
    finite = pixels[np.isfinite(pixels)]
    if mode == "F" and finite.size:
        low, high = finite.min(), finite.max()
    scaled = (np.nan_to_num(pixels, nan=low, posinf=high, neginf=low) - low) / max(
        high - low, 1e-12
    )
    return (scaled * 255).round().clip(0, 255).astype(np.uint8)


def overlay(
    image: Image.Image,
    labelings: Mapping[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    opacity: float = 0.55,
) -> Image.Image:
    """A picture with its classes in colour and, on the right, a legend with their shares.

    Args:
        image: RGB.
        labelings: by their titles, integers (H, W), class ids, of the image's size. Of several,
            the picture and each of them stand side by side, four in two rows, under their titles;
            the legend's shares are the last one's.
        classes: names by id.
        palette: RGB colours by id.
        opacity: of the colours, 0 to 1.

    Returns:
        RGB, wider than its parts by the legend, and higher only if the legend is.
    """
    colours = np.asarray(palette, dtype=np.uint8)
    parts = {
        title: Image.blend(image, Image.fromarray(colours[labels]), opacity)
        for title, labels in labelings.items()
    }
    if len(parts) > 1:
        parts = {"picture": image, **{title: _titled(part, title) for title, part in parts.items()}}
    columns = 2 if len(parts) == 4 else len(parts)
    rows = -(-len(parts) // columns)

    legend = _legend(image, list(labelings.values())[-1], classes, palette)
    width, height = columns * image.width, rows * image.height
    canvas = Image.new("RGB", (width + legend.width, max(height, legend.height)), "white")
    for k, part in enumerate(parts.values()):
        canvas.paste(part, (k % columns * image.width, k // columns * image.height))
    canvas.paste(legend, (width, 0))
    return canvas


def _legend(
    image: Image.Image,
    labels: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Image.Image:
    shares = class_shares(labels, len(classes))
    present = present_classes(shares)
    names = [f"{classes[k]} {shares[k]:.1%}" for k in present]
    size = _text_size(image)
    font = ImageFont.load_default(size)
    width = 4 * size + max(int(font.getlength(name)) for name in names)
    legend = Image.new("RGB", (width, (2 * len(names) + 1) * size), "white")
    draw = ImageDraw.Draw(legend)
    for row, (k, name) in enumerate(zip(present, names, strict=True)):
        left, top = size, (2 * row + 1) * size
        draw.rectangle((left, top, left + size, top + size), tuple(palette[k]), outline="black")
        draw.text((left + 1.5 * size, top + size / 2), name, "black", font, anchor="lm")
    return legend


def _titled(part: Image.Image, title: str) -> Image.Image:
    size = _text_size(part)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(part)
    draw.rectangle((0, 0, font.getlength(title) + size, 1.7 * size), "white")
    draw.text((size / 2, 0.85 * size), title, "black", font, anchor="lm")
    return part


def _text_size(image: Image.Image) -> int:
    return max(12, min(image.size) // 28)


def class_shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """The fraction of pixels of each class, float64 (num_classes,)."""
    return np.bincount(labels.ravel(), minlength=num_classes) / labels.size


def present_classes(shares: np.ndarray) -> list[int]:
    """The ids of the classes that round to 0.1 % or more, largest share first."""
    return [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] >= 0.0005]


def check_writable(path: str | Path) -> None:
    """Finds out before the work whether ``write_png`` can write there.

    Raises:
        ImageError: its name is not that of a PNG, it is a folder, or its folder does not exist or
            cannot be written to.
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
    """Writes a PNG that is never half there: a temporary file takes its place when it is whole.

    Raises:
        ImageError: as ``check_writable``, or the disk is full.
    """
    path = Path(path)
    check_writable(path)
    try:
        with atomic_write(path) as file:
            image.save(file, format="PNG")
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror})") from None
