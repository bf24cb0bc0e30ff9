"""TIFFs of many channels and bits, by tifffile where it is installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fastseg.data.image import ImageError, ImageWarning, read_image

NO_PICTURE = b"II*\0" + bytes(60)


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "a.tif").write_bytes(NO_PICTURE)
    with pytest.raises(ImageError, match=r"a\.tif: a TIFF of a kind .* pip install tifffile"):
        read_image(tmp_path / "a.tif")


def test_a_damaged_one(tmp_path):
    pytest.importorskip("tifffile")
    (tmp_path / "a.tif").write_bytes(NO_PICTURE)
    with pytest.raises(ImageError, match=r"a\.tif: tifffile cannot read it"):
        read_image(tmp_path / "a.tif")


def written(tmp_path, pixels, **options):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, **options)
    return path


def ramp(channels: int, dtype=np.uint16, highest=65535) -> np.ndarray:
    values = np.linspace(0, highest, 6 * 8 * channels).reshape(6, 8, channels)
    return values.astype(dtype)


@pytest.mark.parametrize("separate", [False, True], ids=["pixel by pixel", "plane by plane"])
def test_many_channels_of_16_bits(tmp_path, separate):
    pixels = ramp(5)
    path = written(
        tmp_path,
        np.moveaxis(pixels, -1, 0) if separate else pixels,
        photometric="minisblack",
        planarconfig="separate" if separate else "contig",
    )
    with pytest.warns(ImageWarning, match="has 5 channels, of which the first three"):
        found = np.asarray(read_image(path))
    np.testing.assert_array_equal(found, (pixels[..., :3] / 65535 * 255).round().astype(np.uint8))


def test_colours_of_floats(tmp_path):
    path = written(tmp_path, ramp(3, np.float32, 1), photometric="rgb")
    found = np.asarray(read_image(path))
    assert found.shape == (6, 8, 3)
    np.testing.assert_allclose(found, ramp(3, np.float64, 1) * 255, atol=1)


def test_two_channels_of_12_bits_are_grey(tmp_path):
    path = written(tmp_path, ramp(2, highest=4000), photometric="minisblack", planarconfig="contig")
    with pytest.warns(ImageWarning, match=r"taken to be of 12 bits"):
        found = np.asarray(read_image(path))
    assert (found[..., 0] == found[..., 2]).all()
    assert found.max() > 240


@pytest.mark.parametrize("tag", range(2, 9))
def test_orientation(tmp_path, tag):
    """As Pillow turns a picture that it knows."""
    from PIL import Image, ImageOps

    pixels = ramp(5)
    path = written(
        tmp_path,
        pixels,
        photometric="minisblack",
        planarconfig="contig",
        extratags=[(274, "H", 1, tag, True)],
    )
    with pytest.warns(ImageWarning):
        found = np.asarray(read_image(path))
    image = Image.fromarray((pixels[..., :3] / 65535 * 255).round().astype(np.uint8))
    image.getexif()[274] = tag
    expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(found, expected)
