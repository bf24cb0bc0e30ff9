"""Pictures as their files store them: any number of channels, no value changed."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from fastseg.data import ChannelImage, PictureFormat
from fastseg.data.channel_stats import mean_and_std, measured
from fastseg.data.image import ImageError, ImageWarning, read_image
from fastseg.data.picture_format import read_stored, stored_kind
from tests.data.many_channels import import_tifffile, pixels_of, write_tiff

WRITTEN = {
    "pixel by pixel": {},
    "plane by plane": {"planarconfig": "separate"},
    "a page each": {"planarconfig": None},
    "in tiles": {"tile": (16, 16), "compression": "zlib"},
    "BigTIFF, big-endian": {"bigtiff": True, "byteorder": ">"},
}


@pytest.mark.parametrize("options", WRITTEN.values(), ids=WRITTEN)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_tiffs_of_five_channels(tmp_path, options, dtype):
    pixels = (pixels_of(0).astype(np.float64) - 900).clip(0, 255).astype(dtype)
    path = write_tiff(tmp_path / "a.tif", pixels, **options)
    found = PictureFormat(5).read(path)
    assert (found.pixels.dtype, found.size) == (np.dtype(dtype), (48, 40))
    np.testing.assert_array_equal(found.pixels, pixels)
    assert str(stored_kind(path)) == f"5 channels of {dtype}"


@pytest.mark.parametrize(
    ("channels", "options"),
    [
        (1, {}),
        (2, {}),
        (3, {}),
        (3, {"photometric": "rgb"}),
        (4, {"photometric": "rgb"}),
        (4, {"photometric": "rgb", "extrasamples": ["assocalpha"]}),
        (4, {"photometric": "rgb", "extrasamples": ["unassalpha"], "planarconfig": "separate"}),
        (6, {"photometric": "rgb"}),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiffs_that_pillow_takes_for_something_else(tmp_path, channels, options, dtype):
    """Pillow drops extra channels, divides by an alpha and halves bits: none of it happens here."""
    pixels = (pixels_of(0, channels) % 256).astype(dtype)
    path = write_tiff(tmp_path / "a.tif", pixels, **options)
    np.testing.assert_array_equal(read_stored(path), pixels)
    assert stored_kind(path) == (channels, dtype)


def test_smaller_copies_are_no_channels(tmp_path):
    tifffile = import_tifffile()
    pixels = pixels_of(0, 1)[..., 0]
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, subifds=0)
        file.write(pixels, subfiletype=1)
    assert read_stored(tmp_path / "a.tif").shape == (40, 48, 1)


@pytest.mark.parametrize(
    ("name", "channels", "dtype"),
    [
        ("a.png", 1, np.uint8),
        ("a.png", 2, np.uint8),
        ("a.png", 3, np.uint8),
        ("a.png", 4, np.uint8),
        ("a.png", 1, np.uint16),
        ("a.tif", 1, np.uint16),
        ("a.tif", 1, np.float32),
        ("a.tif", 4, np.uint8),
        ("a.bmp", 3, np.uint8),
    ],
)
def test_what_pillow_reads_as_it_is(tmp_path, name, channels, dtype, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    pixels = (pixels_of(0, channels) % 256).astype(dtype)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / name)
    found = PictureFormat(channels, dtype=np.dtype(dtype).name).read(tmp_path / name)
    np.testing.assert_array_equal(found.pixels, pixels)
    assert found.pixels.dtype == dtype


def test_orientation(tmp_path):
    pixels = pixels_of(0)
    path = write_tiff(tmp_path / "a.tif", pixels, extratags=[(274, "H", 1, 6, True)])
    np.testing.assert_array_equal(read_stored(path), np.rot90(pixels, -1))
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(pixels[..., 0]).save(tmp_path / "a.png", exif=exif)
    found = read_stored(tmp_path / "a.png")
    np.testing.assert_array_equal(found[..., 0], np.rot90(pixels[..., 0], -1))


def test_bands_and_their_order(tmp_path):
    pixels = pixels_of(0)
    path = write_tiff(tmp_path / "a.tif", pixels)
    found = PictureFormat(5, (4, 1)).read(path)
    np.testing.assert_array_equal(found.pixels, pixels[..., [3, 0]])


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (PictureFormat(4), "has 5 channels of uint16, expected 4 channels of any type"),
        (PictureFormat(5, dtype="uint8"), "has 5 channels of uint16, expected 5 channels of uint8"),
        (PictureFormat(1, dtype="uint16"), "expected 1 channel of uint16"),
    ],
)
def test_another_picture_than_expected(tmp_path, form, said):
    path = write_tiff(tmp_path / "a.tif", pixels_of(0))
    with pytest.raises(ImageError, match=rf"a\.tif: .*{said}$"):
        form.read(path)


def test_what_cannot_be_read_as_it_is_stored(tmp_path, monkeypatch):
    Image.new("P", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: cannot be read as it is stored \(PNG, mode P\)"):
        PictureFormat(3).read(tmp_path / "a.png")
    assert str(stored_kind(tmp_path / "a.png")) == "1 channel of palette"
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"b\.png: not an image"):
        PictureFormat(3).read(tmp_path / "b.png")
    assert stored_kind(tmp_path / "b.png") is None
    with pytest.raises(ImageError, match=r"c\.tif: no such file"):
        PictureFormat(3).read(tmp_path / "c.tif")
    with pytest.raises(ImageError, match="not a file"):
        PictureFormat(3).read(tmp_path)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    (tmp_path / "d.tif").write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(ImageError, match=r"d\.tif: .* pip install tifffile"):
        PictureFormat(3).read(tmp_path / "d.tif")


def test_rgb_is_as_it_was(tmp_path):
    """Without a format the first of several pages, and the first three channels, are taken."""
    path = write_tiff(tmp_path / "a.tif", pixels_of(0))
    with pytest.warns(ImageWarning, match="has 5 channels, of which the first three"):
        assert read_image(path).mode == "RGB"


@pytest.mark.parametrize(
    ("channels", "bands", "said"),
    [
        (0, (), "channels must be at least 1, got 0"),
        (5, (6,), "bands must be different numbers of 1 to 5, the channels, got 6"),
        (5, (0, 1), "got 0 1"),
        (5, (2, 2), "got 2 2"),
    ],
)
def test_numbers_that_make_no_format(channels, bands, said):
    with pytest.raises(ValueError, match=said):
        PictureFormat(channels, bands)


def test_metadata_and_back():
    form = PictureFormat(13, (4, 3, 2, 8), "uint16")
    assert form.as_metadata() == {"channels": 13, "bands": [4, 3, 2, 8], "dtype": "uint16"}
    assert PictureFormat.from_metadata(form.as_metadata()) == form
    assert PictureFormat.from_metadata({"mean": [0.5]}) is None
    assert PictureFormat(2) == PictureFormat(2, (1, 2))


def test_mean_and_deviation_are_those_of_all_pixels():
    rng = np.random.default_rng(0)
    pictures = [rng.normal(k, k + 1, (5 + k, 7, 3)).astype(np.float32) for k in range(3)]
    pictures[1][2, 3, 0] = np.nan
    for pixels in pictures:
        pixels[..., 2] = 7
    mean, std = mean_and_std([measured(ChannelImage(pixels)) for pixels in pictures])
    together = np.concatenate([pixels.reshape(-1, 3) for pixels in pictures]).astype(np.float64)
    np.testing.assert_allclose(mean, np.nanmean(together, 0), rtol=1e-12)
    np.testing.assert_allclose(std[:2], np.nanstd(together[:, :2], 0), rtol=1e-9)
    assert std[2] == 1, "values are divided by it"
