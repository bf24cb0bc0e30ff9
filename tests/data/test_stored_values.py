"""Values of files that Pillow gives otherwise than they are stored."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from fastseg.data import to_rgb
from fastseg.data.image import ImageError, ImageWarning, read_image, read_labels
from fastseg.data.masks import read_mask
from tests.cli.png_files import tiff
from tests.data.test_tiff import NO_PICTURE


def grey_of(path):
    return np.asarray(read_image(path))[0, :, 0].tolist()


@pytest.mark.parametrize(("largest", "bits"), [(70000, 18), (2**20 - 1, 24), (2**31 - 1, 32)])
def test_integers_of_32_bits_are_as_bright_as_their_values(tmp_path, recwarn, largest, bits):
    path = tmp_path / "a.tiff"
    Image.fromarray(np.array([[0, largest]], np.int32)).save(path)
    assert grey_of(path) == [0, round(largest / (2**bits - 1) * 255)]
    told = [str(w.message) for w in recwarn.list]
    guess = f"{path}: its grey values end at {largest} and are taken to be of {bits} bits"
    assert told == ([] if bits == 32 else [guess])


def of_unsigned(values):
    """A TIFF of 32 bits without a sign, which Pillow does not write."""
    return tiff(np.array([values], ">u4").view("<u4"), 32)


def test_integers_without_a_sign(tmp_path):
    path = tmp_path / "a.tiff"
    path.write_bytes(of_unsigned([0, 2**30, 2**31, 2**32 - 1]))
    assert grey_of(path) == [0, 64, 128, 255]
    with pytest.raises(ImageError, match="ids must be 0 to 255, got 4294967295"):
        read_labels(path)


@pytest.mark.parametrize("largest", [2**40, 2**64 - 1])
def test_integers_of_64_bits(tmp_path, monkeypatch, recwarn, largest):
    pixels = np.array([[[0], [largest]]], np.uint64)
    monkeypatch.setattr(to_rgb, "read_channels", lambda path: pixels)
    (tmp_path / "a.tif").write_bytes(NO_PICTURE)
    assert grey_of(tmp_path / "a.tif") == [0, round(largest / 2**64 * 255)]
    assert not [w for w in recwarn.list if issubclass(w.category, ImageWarning)]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_ids_of_files_whose_0_is_white(tmp_path, bits):
    ids = np.arange(2**bits).reshape(2, -1)
    black, white = (struct.pack("<HHII", 262, 4, 1, kind) for kind in (1, 0))
    content = tiff(ids, bits)
    assert content.count(black) == 1
    (tmp_path / "a.tiff").write_bytes(content.replace(black, white))
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tiff").ids, ids)
    assert list(read_mask(tmp_path / "a.tiff").values) == list(range(2**bits))


def test_masks_in_fax_compression(tmp_path):
    ids = np.eye(8, dtype=bool)
    Image.fromarray(ids).save(tmp_path / "a.tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_labels(tmp_path / "a.tiff").ids, ids)
