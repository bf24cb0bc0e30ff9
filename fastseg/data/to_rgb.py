"""Pictures of all kinds as 8-bit RGB."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastseg.data.tiff import read_channels

DEPTHS = (8, 10, 12, 14, 16, 18, 24, 32, 64)
"""Numbers of bits that integers may be of."""

TYPES = (16, 32, 64)
"""Those of them that are a type's own, so that values that fill it are no guess."""


class Stored(NamedTuple):
    """The values of a file as they are stored, where Pillow gives others."""

    mode: str
    """Pillow's "raw mode", such as "L;4", or "" without one."""
    highest: int | None
    """Grey value that Pillow gives as 255, or as 65535 in mode "I"; None if it gives the value."""

    @property
    def inverted(self) -> bool:
        """Whether Pillow inverts grey values of 2 to 8 bits, those of a TIFF whose 0 is white."""
        return bool(re.fullmatch("L;[24]?IR?", self.mode))


def stored_values(image: Image.Image) -> Stored:
    """Returns how the file of a picture that is not loaded yet stores its values."""
    codec, *_, options = image.tile[0] if image.tile else ("", "")
    options = options if isinstance(options, tuple) else (options,)
    if codec.startswith("ppm") and len(options) == 2:
        return Stored(*options)
    mode = options[0] if options and isinstance(options[0], str) else ""
    return Stored(mode, {"L;2": 3, "L;4": 15}.get(mode[:3]))


def to_rgb(image: Image.Image, stored: Stored) -> tuple[Image.Image, str]:
    """Returns a picture as RGB, and the text of a guess."""
    guess, colours_of_16_bits = "", ";16" in stored.mode and image.mode.startswith("RGB")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = grey_values(image, stored).astype(np.float64)
        pixels, guess = _to_8_bit(values, image.mode, stored)
        image = Image.fromarray(pixels)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    rgb = image.convert("RGB")
    if colours_of_16_bits and max(high for _, high in rgb.getextrema()) < 64:
        guess = (
            "its colours of 16 bits end below a quarter of their range; of data of fewer bits the "
            "lowest are lost here: scale it to 16 bits before"
        )
    return rgb, guess


def grey_values(image: Image.Image, stored: Stored) -> np.ndarray:
    """Returns the values of a grey picture; Pillow gives unsigned ones of 32 bits as signed."""
    values = np.asarray(image)
    return values.view(np.uint32) if stored.mode == "I;32N" else values


def _to_8_bit(pixels: np.ndarray, mode: str, stored: Stored) -> tuple[np.ndarray, str]:
    """Returns grey values of 0 to 255, and the text of a guess."""
    guess, low, high = "", 0.0, 65535.0
    finite = pixels[np.isfinite(pixels)]
    if finite.size and (mode == "F" or finite.min() < 0):
        low, high = finite.min(), finite.max()
    elif finite.size and stored.highest is None:
        largest = int(finite.max())
        bits = next((b for b in DEPTHS if largest < 1 << b), DEPTHS[-1])
        high = (1 << bits) - 1
        if bits not in TYPES and largest > 0:
            guess = f"its grey values end at {largest} and are taken to be of {bits} bits"
    scaled = (np.nan_to_num(pixels, nan=low, posinf=high, neginf=low) - low) / max(
        high - low, 1e-12
    )
    return (scaled * 255).round().clip(0, 255).astype(np.uint8), guess


def tiff_to_rgb(path: Path) -> tuple[Image.Image, str]:
    """Returns a TIFF that Pillow does not know as RGB, and the text of a guess.

    Raises:
        TiffError: tifffile is not installed, or cannot read the file.
    """
    pixels = read_channels(path)
    channels = pixels.shape[-1]
    guess = ""
    chosen = pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, -1)
    if pixels.dtype != np.uint8:
        mode = "F" if pixels.dtype.kind == "f" else "I"
        chosen, guess = _to_8_bit(chosen.astype(np.float64), mode, Stored("", None))
    if channels > 3:
        first = f"it has {channels} channels, of which the first three are taken for RGB"
        guess = f"{first}; {guess}" if guess else first
    return Image.fromarray(np.ascontiguousarray(chosen)), guess
