"""TIFFs that Pillow does not know, of many channels or 16 bits, read by tifffile if installed."""

from __future__ import annotations

import importlib
from pathlib import Path

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


def read_channels(path: Path) -> np.ndarray:
    """Returns the pixels of a TIFF's first page, (H, W, channels), upright, as they are stored.

    Raises:
        TiffError: tifffile is not installed, or cannot read the file.
    """
    try:
        tifffile = importlib.import_module("tifffile")
    except ImportError:
        raise TiffError(
            "a TIFF of a kind that Pillow does not know; tifffile may: pip install tifffile"
        ) from None
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            pixels = page.asarray()
            separate = page.planarconfig == 2 and pixels.ndim == 3
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
