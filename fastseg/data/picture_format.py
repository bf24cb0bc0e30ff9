"""How pictures of any number of channels are stored, and their reading without a conversion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fastseg.data.channel_image import ChannelImage, Picture
from fastseg.data.image import ImageError, opened, read_image, upright
from fastseg.data.silence import pillow_silenced
from fastseg.data.tiff import TiffError, is_tiff, read_channels, stored_shape
from fastseg.data.to_rgb import stored_values


class Kind(NamedTuple):
    """What a picture's file stores."""

    channels: int
    """Number of channels."""
    dtype: str
    """Name of the values' type, such as "uint16", or "palette"."""

    def __str__(self) -> str:
        """Returns words such as "5 channels of uint16"."""
        return f"{self.channels} channel{'s' * (self.channels != 1)} of {self.dtype}"


EXACT = {
    ("L", "L"): Kind(1, "uint8"),
    ("LA", "LA"): Kind(2, "uint8"),
    ("RGB", "RGB"): Kind(3, "uint8"),
    ("RGB", "BGR"): Kind(3, "uint8"),
    ("RGBA", "RGBA"): Kind(4, "uint8"),
    ("I;16", "I;16"): Kind(1, "uint16"),
    ("I;16", "I;16N"): Kind(1, "uint16"),
    ("I;16", "I;16B"): Kind(1, "uint16"),
    ("I;16B", "I;16B"): Kind(1, "uint16"),
    ("I;16B", "I;16N"): Kind(1, "uint16"),
    ("F", "F;32F"): Kind(1, "float32"),
    ("F", "F;32BF"): Kind(1, "float32"),
}
"""Kinds of pictures whose values Pillow gives as they are, by its mode and "raw mode"."""


@dataclass(frozen=True)
class PictureFormat:
    """Pictures that are read as they are stored, rather than as RGB of 8 bits.

    Args:
        channels: number of channels that a picture has.
        bands: those that a network takes, in its order, counted from 1; () is all.
        dtype: name of the values' type, such as "uint16"; "" is any.

    Raises:
        ValueError: no channel, or bands that are not there or come twice.
    """

    channels: int
    bands: tuple[int, ...] = ()
    dtype: str = ""

    def __post_init__(self) -> None:
        """Checks the numbers, and names all bands where none are chosen."""
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, got {self.channels}")
        every = tuple(range(1, self.channels + 1))
        if len(set(self.bands)) < len(self.bands) or not set(self.bands) <= set(every):
            raise ValueError(
                f"bands must be different numbers of 1 to {self.channels}, the channels, got "
                f"{' '.join(map(str, self.bands))}"
            )
        object.__setattr__(self, "bands", tuple(self.bands) or every)

    @property
    def in_channels(self) -> int:
        """Number of channels that a network takes."""
        return len(self.bands)

    @property
    def indices(self) -> list[int] | None:
        """Places of the bands among the channels; None where they are all, in their order."""
        places = [band - 1 for band in self.bands]
        return None if places == list(range(self.channels)) else places

    def __str__(self) -> str:
        """Returns words such as "5 channels of uint16"."""
        return str(Kind(self.channels, self.dtype or "any type"))

    def read(self, path: str | Path) -> ChannelImage:
        """Reads the bands of a picture, upright, with the values that its file stores.

        Raises:
            ImageError: a file that cannot be read, whose values would be converted, or that has
                another number of channels or another type of values.
        """
        pixels = read_stored(path)
        kind = Kind(pixels.shape[2], pixels.dtype.name)
        if kind.channels != self.channels or self.dtype not in ("", kind.dtype):
            raise ImageError(f"{path}: has {kind}, expected {self}")
        places = self.indices
        return ChannelImage(pixels if places is None else pixels[..., places])

    def as_metadata(self) -> dict[str, Any]:
        """Returns what a checkpoint says of it."""
        return {"channels": self.channels, "bands": list(self.bands), "dtype": self.dtype}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> PictureFormat | None:
        """Returns the format that a checkpoint tells; None for one of RGB pictures.

        Raises:
            ValueError: values out of range.
            TypeError: values of another kind.
        """
        if "channels" not in metadata:
            return None
        bands = tuple(int(band) for band in metadata.get("bands", ()))
        return cls(int(metadata["channels"]), bands, str(metadata.get("dtype", "")))


def read_picture(path: str | Path, form: PictureFormat | None) -> Picture:
    """Reads a picture: as RGB of 8 bits, or of a format as it is stored.

    Raises:
        ImageError: the file cannot be read, or is not of the format.
    """
    return read_image(path) if form is None else form.read(path)


def read_stored(path: str | Path) -> np.ndarray:
    """Returns a picture's pixels (H, W, channels) as they are stored, upright.

    Pillow reads what it does not convert. Other TIFFs are read by tifffile; where a TIFF has pages
    of one channel each, these are the channels.

    Raises:
        ImageError: the file cannot be read, or only converted.
    """
    path = Path(path)
    if _of_header(path)[0] is None and _is_tiff(path):
        try:
            return read_channels(path, pages=True)
        except TiffError as error:
            raise ImageError(f"{path}: {error}") from None
    with opened(path) as (image, stored):
        if _exact_kind(image, stored.mode) is None:
            raise ImageError(
                f"{path}: cannot be read as it is stored ({image.format}, mode {image.mode}); give "
                "a TIFF, or a PNG of 8 bits"
            )
        pixels = np.asarray(upright(image))
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return pixels if pixels.ndim == 3 else pixels[..., None]


def stored_kind(path: str | Path) -> Kind | None:
    """Returns what a picture's file stores, by its header alone; None where that does not say."""
    path = Path(path)
    exact, described = _of_header(path)
    if exact is not None or not _is_tiff(path):
        return exact or described
    try:
        return Kind(*stored_shape(path))
    except TiffError:
        return described


def _of_header(path: Path) -> tuple[Kind | None, Kind | None]:
    """Returns the kind of a picture that Pillow reads as it is stored, and of what it reads."""
    try:
        with pillow_silenced(), path.open("rb") as file, Image.open(file) as image:
            mode = stored_values(image).mode
            return _exact_kind(image, mode), _described(image, mode)
    except Exception:  # Pillow's readers raise nearly anything at malformed bytes
        return None, None


def _is_tiff(path: Path) -> bool:
    try:
        return is_tiff(path)
    except OSError:  # it cannot be opened, which ``opened`` says in words
        return False


def _exact_kind(image: Image.Image, mode: str) -> Kind | None:
    """Returns the kind of a picture that Pillow reads as it is stored, all of it; else None."""
    pages = image.format == "TIFF" and bool(image.tag_v2.next)
    return None if pages else EXACT.get((image.mode, mode))


def _described(image: Image.Image, mode: str) -> Kind:
    """Returns the kind of a picture whose values Pillow converts."""
    if image.mode == "P":
        return Kind(1, "palette")
    bits = {"1": "1 bit", "I": "int32", "F": "float32"}.get(image.mode, "uint8")
    return Kind(len(image.getbands()), "uint16" if ";16" in mode else bits)
