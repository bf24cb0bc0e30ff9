"""TIFFs that Pillow does not know, of many channels or 16 bits, read by tifffile if installed."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of a TIFF and of a BigTIFF."""

TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),
}
"""How pixels (H, W, channels) are turned upright, by the orientation tag."""


class TiffError(ValueError):
    """A TIFF that cannot be read; the message says why, without the file's name."""


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF does."""
    with path.open("rb") as file:
        return file.read(4) in MAGIC


def read_channels(path: Path, *, pages: bool = False) -> np.ndarray:
    """Returns the pixels of a TIFF, (H, W, channels), upright, as they are stored.

    Args:
        path: the file.
        pages: whether pages of one size and one channel each are the channels; else the first page
            alone is read.

    Raises:
        TiffError: tifffile is not installed, or cannot read the file.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            taken = _channel_pages(file) if pages else [page]
            pixels = page.asarray()
            separate = page.planarconfig == 2 and pixels.ndim == 3
            if len(taken) > 1:
                pixels = np.stack([p.asarray() for p in taken], -1)
            tag = page.tags.get("Orientation")
    except Exception as error:  # tifffile raises nearly anything at malformed bytes
        raise TiffError(f"tifffile cannot read it ({type(error).__name__}: {error})") from None
    if separate:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.dtype.kind not in "uif" or 0 in pixels.shape:
        raise TiffError(f"holds {pixels.dtype} {pixels.shape}, no picture of real numbers")
    turn = TURNS.get(int(tag.value)) if tag is not None else None
    return pixels if turn is None else turn(pixels)


def stored_shape(path: Path) -> tuple[int, str]:
    """Returns the number of channels of a TIFF and the name of its values' type, by its header.

    Raises:
        TiffError: tifffile is not installed, or cannot read the file.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(path) as file:
            taken = _channel_pages(file)
            channels = len(taken) if len(taken) > 1 else int(taken[0].samplesperpixel)
            return channels, taken[0].dtype.name
    except Exception as error:  # tifffile raises nearly anything at malformed bytes
        raise TiffError(f"tifffile cannot read it ({type(error).__name__}: {error})") from None


def _tifffile() -> ModuleType:
    """Imports tifffile, which is optional.

    Raises:
        TiffError: it is not installed.
    """
    try:
        return importlib.import_module("tifffile")
    except ImportError:
        raise TiffError(
            "a TIFF of a kind that Pillow does not know; tifffile may: pip install tifffile"
        ) from None


def _channel_pages(file: Any) -> list[Any]:
    """Returns the pages of an open TIFF that are its channels; else the first alone.

    Smaller copies of the picture, which a GeoTIFF may hold, and masks are no channels.
    """
    whole = [page for page in file.pages if not (page.is_reduced or page.is_mask)]
    first = file.pages[0]
    alike = all((p.shape, p.dtype) == (first.shape, first.dtype) for p in whole)
    return whole if len(first.shape) == 2 and len(whole) > 1 and alike else [first]
